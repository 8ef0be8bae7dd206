//! `tv-agent cleanup`: what agents that are gone have left.

use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{PIN_ROOT, RUN_DIR, chain, print};
use crate::cli::{CleanupArgs, exit};
use crate::config::DEFAULT_SOCKET;
use crate::redirect::{self, Removed};
use crate::trust::{self, live};

pub fn run(args: &CleanupArgs) -> u8 {
    let run_dir = Path::new(RUN_DIR);
    let cleaned = redirect::cleanup(Path::new(PIN_ROOT), run_dir)
        .map_err(Error::Redirect)
        .and_then(|mut removed| {
            let mount = redirect::cgroup2_mount().map_err(Error::Mount)?;
            remove_exec_directories(run_dir, &mount, &mut removed)?;
            remove_dead_socket(Path::new(DEFAULT_SOCKET), &mut removed)?;
            remove_trust(&args.trust_dir, &mut removed)?;
            Ok(removed)
        });
    match cleaned {
        Ok(removed) => {
            print(args.output.output, &removed, || {
                if removed.is_empty() {
                    return "nothing was left behind".to_owned();
                }
                removed.iter().map(|one| format!("removed {one}\n")).collect()
            });
            exit::OK
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Redirect(redirect::Error),
    #[error("cannot find the cgroup2 mount")]
    Mount(#[source] io::Error),
    #[error(transparent)]
    Trust(#[from] live::Error),
    #[error(
        "{count} mounts of the CA are left, which somebody has covered or in namespaces that cannot be entered; end \
         their processes, or unmount what covers them, and try again"
    )]
    MountsLeft { count: usize },
    #[error("the CA cannot be taken out of the machine's own stores")]
    Host(#[source] trust::Error),
    #[error("the CA is left in {count} of the machine's own stores; `tv-agent trust uninstall` says which")]
    HostLeft { count: usize },
    #[error("cannot remove {}", path.display())]
    Remove { path: PathBuf, source: io::Error },
}

/// Removes the directory of each `exec` that is gone, and its cgroup.
///
/// The directory holds the certificates that the command's mounts show, so it stays for as long as processes of
/// the command do. It is then what a later cleanup finds their cgroup by.
fn remove_exec_directories(run_dir: &Path, mount: &Path, removed: &mut Vec<Removed>) -> Result<(), Error> {
    let Ok(entries) = fs::read_dir(run_dir) else {
        return Ok(());
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let Some(instance) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        // An exec takes its lock before it makes its directory; those of the dead have just been removed.
        let live = run_dir.join(format!("instances/{instance}.lock")).exists();
        if live || !instance.starts_with("exec-") {
            continue;
        }
        let cgroup = mount.join(redirect::exec_cgroup_name(instance));
        if cgroup.exists() {
            if !remove_cgroups(&cgroup) {
                continue;
            }
            removed.push(Removed {
                what: "cgroup",
                path: cgroup,
            });
        }
        fs::remove_dir_all(&path).map_err(|source| Error::Remove {
            path: path.clone(),
            source,
        })?;
        removed.push(Removed {
            what: "directory",
            path,
        });
    }
    Ok(())
}

/// Takes the CA out of the mount namespaces of workloads, unless an agent runs that looks after it.
fn remove_trust(dir: &Path, removed: &mut Vec<Removed>) -> Result<(), Error> {
    let cleaned = match live::cleanup(dir, Path::new("/proc/self/exe")) {
        Err(live::Error::Locked { .. }) => return Ok(()),
        other => other?,
    };
    let one = |what| Removed {
        what,
        path: dir.to_owned(),
    };
    removed.extend((0..cleaned.mounts).map(|_| one("mount from")));
    removed.extend((0..cleaned.directories).map(|_| one("directory in")));
    if live::is_in_host(dir) {
        let taken = live::host_root().and_then(|root| live::leave_host(dir, &root));
        let taken = taken.map_err(Error::Host)?;
        let changed = taken.restored.into_iter().chain(taken.taken_out);
        removed.extend(changed.map(|path| Removed {
            what: "the CA from",
            path,
        }));
        if !taken.left.is_empty() {
            return Err(Error::HostLeft {
                count: taken.left.len(),
            });
        }
    }
    if cleaned.left > 0 {
        return Err(Error::MountsLeft { count: cleaned.left });
    }
    Ok(())
}

/// Removes the admin socket when nobody answers there.
fn remove_dead_socket(path: &Path, removed: &mut Vec<Removed>) -> Result<(), Error> {
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if !UnixStream::connect(path).is_err_and(refused) {
        return Ok(());
    }
    fs::remove_file(path).map_err(|source| Error::Remove {
        path: path.to_owned(),
        source,
    })?;
    removed.push(Removed {
        what: "socket",
        path: path.to_owned(),
    });
    Ok(())
}

/// Deepest first; false when processes are left in one.
fn remove_cgroups(directory: &Path) -> bool {
    let below = fs::read_dir(directory).into_iter().flatten().flatten();
    below
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .for_each(|path| {
            remove_cgroups(&path);
        });
    fs::remove_dir(directory).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_admin_socket_goes_when_nobody_answers() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("admin.sock");
        let remove = || {
            let mut removed = Vec::new();
            remove_dead_socket(&path, &mut removed).unwrap();
            removed.len()
        };
        assert_eq!(remove(), 0, "there is none");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(remove(), 0, "somebody answers");
        drop(listener);
        assert_eq!(remove(), 1);
        assert!(!path.exists());
    }

    /// Plain directories stand for cgroups: both are removed only when nothing is in them.
    #[test]
    fn directories_go_with_the_last_process() {
        let scratch = tempfile::tempdir().unwrap();
        let (run, mount) = (scratch.path().join("run"), scratch.path().join("cgroup"));
        for name in ["exec-1", "exec-2", "exec-3", "instances", "other"] {
            fs::create_dir_all(run.join(name).join("trust")).unwrap();
        }
        fs::write(run.join("instances/exec-1.lock"), "").unwrap();
        fs::create_dir_all(mount.join("tv-exec-2/nested")).unwrap();
        let process = mount.join("tv-exec-2/nested/process");
        fs::write(&process, "").unwrap();
        fs::create_dir_all(mount.join("tv-exec-3/nested")).unwrap();
        let clean = || {
            let mut removed = Vec::new();
            remove_exec_directories(&run, &mount, &mut removed).unwrap();
            let mut paths: Vec<_> = removed.into_iter().map(|one| one.path).collect();
            paths.sort();
            paths
        };
        assert_eq!(clean(), [mount.join("tv-exec-3"), run.join("exec-3")]);
        assert!(
            run.join("exec-1").exists() && run.join("exec-2/trust").exists() && run.join("other").exists()
        );
        fs::remove_file(process).unwrap();
        assert_eq!(clean(), [mount.join("tv-exec-2"), run.join("exec-2")]);
        assert!(clean().is_empty());
        remove_exec_directories(Path::new("/nonexistent"), &mount, &mut Vec::new()).unwrap();
    }
}

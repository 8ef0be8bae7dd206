//! Takes away what dead instances left, and nothing of live ones.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::Error;
use super::cgroup::cgroup2_mount;
use super::lock::{InstanceLock, lock_directory};
use super::pins::{entries, instance_directories, kind, list, remove_file, remove_if_empty, remove_pin};

/// Instances of this name prefix belong to `tv-agent exec` and have a cgroup of their own.
const EXEC_PREFIX: &str = "exec-";
const CGROUP_PREFIX: &str = "tv-";

/// Something that [`cleanup`] removed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// What it was: `link`, `map`, `program`, `cgroup`, `lock` or `socket`.
    pub what: &'static str,
    pub path: PathBuf,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.path.display())
    }
}

/// The cgroup, directly below the cgroup v2 mount, of an exec instance (whose name begins with `exec-`).
///
/// Load the instance before making its cgroup, so that the lock tells who owns it.
pub fn exec_cgroup_name(instance: &str) -> String {
    format!("{CGROUP_PREFIX}{instance}")
}

/// Removes what is pinned, the lock files, the sockets beside them and the empty exec cgroups of every instance that
/// no process holds, of whatever version of the ABI.
///
/// Removing a link detaches its program, so the workload is no longer refused. A second call finds nothing.
///
/// # Errors
/// When something cannot be read or removed. What was removed before stays removed.
pub fn cleanup(pin_root: &Path, run_dir: &Path) -> Result<Vec<Removed>, Error> {
    let mut removed = Vec::new();
    for instance in instances(pin_root, run_dir)? {
        let lock_path = lock_directory(run_dir).join(format!("{instance}.lock"));
        let had_lock = lock_path.exists();
        // Held meanwhile, so that no instance of this name starts in the middle.
        let lock = match InstanceLock::acquire(run_dir, &instance) {
            Ok(lock) => lock,
            // A name that we would not take is none of ours.
            Err(Error::InstanceLive { .. } | Error::InstanceName(_)) => continue,
            Err(error) => return Err(error),
        };
        remove_pins(pin_root, &instance, &mut removed)?;
        if instance.starts_with(EXEC_PREFIX)
            && let Ok(mount) = cgroup2_mount()
        {
            remove_cgroups(&mount.join(exec_cgroup_name(&instance)), &mut removed)?;
        }
        let socket = lock_path.with_extension("sock");
        if socket.exists() {
            remove_file(&socket)?;
            removed.push(Removed {
                what: "socket",
                path: socket,
            });
        }
        lock.remove()?;
        if had_lock {
            removed.push(Removed {
                what: "lock",
                path: lock_path,
            });
        }
    }
    for version in list(pin_root)? {
        remove_if_empty(&version)?;
    }
    remove_if_empty(pin_root)?;
    Ok(removed)
}

/// Every name that a lock file or a pin directory mentions. Cgroups are no evidence: an instance with another
/// run directory may own them.
fn instances(pin_root: &Path, run_dir: &Path) -> Result<BTreeSet<String>, Error> {
    let mut names = BTreeSet::new();
    for path in list(&lock_directory(run_dir))? {
        if path.extension().is_some_and(|extension| extension == "lock") {
            names.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    for version in list(pin_root)? {
        let directories = list(&version)?;
        names.extend(
            directories
                .iter()
                .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())),
        );
    }
    Ok(names)
}

fn remove_pins(pin_root: &Path, instance: &str, removed: &mut Vec<Removed>) -> Result<(), Error> {
    for directory in instance_directories(pin_root, instance)? {
        let mut pins = entries(&directory)?;
        // Links before what they depend on.
        pins.sort_by_key(|(id, _)| id.is_none());
        for (id, path) in pins {
            remove_pin(&path)?;
            removed.push(Removed {
                what: kind(id, &path),
                path,
            });
        }
        remove_if_empty(&directory)?;
    }
    Ok(())
}

/// Deepest first; one that still has processes stays.
fn remove_cgroups(directory: &Path, removed: &mut Vec<Removed>) -> Result<(), Error> {
    for path in list(directory)? {
        if path.is_dir() {
            remove_cgroups(&path, removed)?;
        }
    }
    if remove_if_empty(directory)? {
        removed.push(Removed {
            what: "cgroup",
            path: directory.to_owned(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// Plain files stand for pins: cleanup only lists and removes them.
    #[test]
    fn dead_instances_go_and_live_ones_stay() {
        let scratch = std::env::temp_dir().join(format!("tv-cleanup-{}", std::process::id()));
        let (pins, run) = (scratch.join("pins"), scratch.join("run"));
        let pin = |version: &str, instance: &str| {
            let directory = pins.join(version).join(instance);
            fs::create_dir_all(&directory).unwrap();
            for name in ["tv_connect4", "TV_PORTS"] {
                fs::write(directory.join(name), "").unwrap();
            }
            let path = directory.join("77-tv_connect4");
            fs::write(&path, "").unwrap();
            path
        };
        let live = InstanceLock::acquire(&run, "live").unwrap();
        drop(InstanceLock::acquire(&run, "dead").unwrap());
        let sockets = ["live", "dead"].map(|name| lock_directory(&run).join(format!("{name}.sock")));
        for socket in &sockets {
            fs::write(socket, "").unwrap();
        }
        let kept = pin("v1", "live");
        let gone = [pin("v1", "dead"), pin("v0", "dead"), pin("v1", "lockless")];

        let removed = cleanup(&pins, &run).unwrap();

        let ours = removed.iter().filter(|r| r.path.starts_with(&scratch));
        let count = |what| ours.clone().filter(|r| r.what == what).count();
        let counts = ["link", "map", "program", "lock", "socket"].map(count);
        assert_eq!(counts, [3, 3, 3, 1, 1], "{removed:?}");
        assert!(sockets[0].exists() && !sockets[1].exists());
        assert!(kept.exists());
        assert!(gone.iter().all(|path| !path.exists()));
        assert!(!pins.join("v0").exists());
        assert_eq!(cleanup(&pins, &run).unwrap(), []);
        drop(live);
        assert_eq!(cleanup(&pins, &run).unwrap().len(), 5);
        assert!(!pins.exists());
        fs::remove_dir_all(&scratch).unwrap();
    }
}

//! What an instance leaves on bpffs: its maps, its programs, and a link for each cgroup and program.
//!
//! Below `<pin root>/v<ABI>/<instance>/`, a map and a program are pinned by their names, a link as
//! `<cgroup id>-<program>`.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tv_ebpf::ABI_VERSION;

use super::Error;
use crate::sys;

/// Where everything is pinned when nothing else is said.
pub const DEFAULT_PIN_ROOT: &str = "/sys/fs/bpf/tv-agent";

const BPFFS: &str = "/sys/fs/bpf";
/// A pin that is not in force yet. bpffs takes no dots in names.
const NEW: &str = "-new";

/// The pins of one instance.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    instance: String,
    directory: PathBuf,
}

impl Pins {
    pub(super) fn create(root: &Path, instance: &str) -> Result<Self, Error> {
        ensure_bpffs(root)?;
        let directory = root.join(format!("v{ABI_VERSION}")).join(instance);
        private_directory(&directory)?;
        Ok(Self {
            root: root.to_owned(),
            instance: instance.to_owned(),
            directory,
        })
    }

    /// Where a map or a program is pinned.
    pub(super) fn named(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Puts a program in the place of the one that the cgroup's pinned link runs. False: there is no such link, or
    /// it is attached no more (ENOLINK), so a new one has to be [staged](Self::stage).
    pub(super) fn update(&self, cgroup_id: u64, name: &str, program: BorrowedFd<'_>) -> bool {
        let path = self.directory.join(format!("{cgroup_id}-{name}"));
        match sys::update_pinned_link(&path, program) {
            Ok(()) => true,
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::debug!(%error, path = %path.display(), "a link cannot be updated; attaching anew");
                }
                false
            }
        }
    }

    /// Pins a program in the place of the one that is pinned under its name.
    pub(super) fn replace(
        &self,
        program: &'static str,
        pin: impl FnOnce(&Path) -> Result<(), aya::pin::PinError>,
    ) -> Result<(), Error> {
        let (path, new) = (self.named(program), self.named(&format!("{program}{NEW}")));
        remove_file(&new)?;
        pin(&new).map_err(|source| Error::Pin {
            program,
            path: new.clone(),
            source: Box::new(source),
        })?;
        rename(&new, &path)
    }

    /// Begins to pin the links of one cgroup; see [`Staged`].
    pub(super) fn stage(&self, cgroup_id: u64) -> Result<Staged, Error> {
        // What a crash left between pinning and renaming covers the cgroup, so it is kept as the pin in force.
        for (id, path) in entries(&self.directory)? {
            let name = path.to_string_lossy().into_owned();
            if let Some(in_force) = name.strip_suffix(NEW)
                && id == Some(cgroup_id)
            {
                rename(&path, Path::new(in_force))?;
            }
        }
        Ok(Staged {
            prefix: self.directory.join(format!("{cgroup_id}-")),
            pinned: Vec::new(),
        })
    }

    /// Detaches: a link that nothing holds is gone.
    pub(super) fn remove(&self, cgroup_id: u64) -> Result<(), Error> {
        for (id, path) in entries(&self.directory)? {
            if id == Some(cgroup_id) {
                remove_pin(&path)?;
            }
        }
        Ok(())
    }

    /// The cgroups that have links here.
    pub(super) fn cgroups(&self) -> Result<std::collections::HashSet<u64>, Error> {
        let entries = entries(&self.directory)?;
        Ok(entries.into_iter().filter_map(|(id, _)| id).collect())
    }

    /// As [`remove`](Self::remove), of one program. One that is not there is fine.
    pub(super) fn remove_program(&self, cgroup_id: u64, program: &str) -> Result<(), Error> {
        remove_pin(&self.directory.join(format!("{cgroup_id}-{program}")))
    }

    /// Removes the links of cgroups that are not `live`, and all that other versions of the ABI pinned for this
    /// instance.
    pub(super) fn remove_others(&self, live: &[u64]) -> Result<Vec<PathBuf>, Error> {
        let mut removed = Vec::new();
        for directory in instance_directories(&self.root, &self.instance)? {
            let own = directory == self.directory;
            for (id, path) in entries(&directory)? {
                if !own || id.is_some_and(|id| !live.contains(&id)) {
                    remove_pin(&path)?;
                    removed.push(path);
                }
            }
            if !own {
                remove_empty(&directory)?;
            }
        }
        Ok(removed)
    }

    /// Removes what is pinned when no link is, and so nothing depends on it.
    pub(super) fn remove_unless_linked(&self) -> Result<(), Error> {
        if entries(&self.directory)?.iter().any(|(id, _)| id.is_some()) {
            return Ok(());
        }
        self.remove_all()
    }

    /// Removes every pin of this instance: links first, while the maps that they depend on are there.
    pub(super) fn remove_all(&self) -> Result<(), Error> {
        self.remove_others(&[])?;
        for (_, path) in entries(&self.directory)? {
            remove_pin(&path)?;
        }
        remove_empty(&self.directory)?;
        // The version's directory and the root may hold other instances; they stay then.
        for parent in self.directory.ancestors().skip(1).take(2) {
            remove_if_empty(parent)?;
        }
        Ok(())
    }
}

/// Links of one cgroup, pinned beside the ones in force until [`commit`](Staged::commit) puts each in place
/// with a rename, which bpffs does atomically. Dropped before that, they are gone again.
#[derive(Debug)]
pub(super) struct Staged {
    /// Directory and cgroup id; a program's name completes it.
    prefix: PathBuf,
    pinned: Vec<&'static str>,
}

impl Staged {
    pub(super) fn pin(&mut self, program: &'static str, link: FdLink) -> Result<(), Error> {
        let path = self.path(program, NEW);
        link.pin(&path).map_err(|source| Error::Pin {
            program,
            path,
            source: Box::new(source),
        })?;
        self.pinned.push(program);
        Ok(())
    }

    /// When a rename fails, those that went before stay in force: half attached refuses more, never less.
    pub(super) fn commit(mut self) -> Result<(), Error> {
        while let Some(&program) = self.pinned.first() {
            let in_force = self.path(program, "");
            detach(&in_force);
            rename(&self.path(program, NEW), &in_force)?;
            self.pinned.remove(0);
        }
        Ok(())
    }

    fn path(&self, program: &str, suffix: &str) -> PathBuf {
        let mut path = self.prefix.clone().into_os_string();
        path.push(program);
        path.push(suffix);
        path.into()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        for program in &self.pinned {
            // Best effort: what stays is found by the next stage() or by cleanup.
            let _ = remove_pin(&self.path(program, NEW));
        }
    }
}

/// `<root>/v<any>/<instance>`, as far as they exist.
pub(super) fn instance_directories(root: &Path, instance: &str) -> Result<Vec<PathBuf>, Error> {
    let versions = list(root)?;
    let directories = versions.into_iter().map(|version| version.join(instance));
    Ok(directories.filter(|directory| directory.is_dir()).collect())
}

/// What is pinned under this name: `link`, `map` or `program`.
pub(super) fn kind(id: Option<u64>, path: &Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str());
    match id {
        Some(_) => "link",
        // Other versions may have other maps; the names of all begin so.
        None if name.is_some_and(|name| name.starts_with("TV_")) => "map",
        None => "program",
    }
}

/// The pins of a directory; a link with the id of its cgroup, with which its name begins.
pub(super) fn entries(directory: &Path) -> Result<Vec<(Option<u64>, PathBuf)>, Error> {
    let id = |path: &PathBuf| path.file_name()?.to_str()?.split('-').next()?.parse().ok();
    Ok(list(directory)?
        .into_iter()
        .map(|path| (id(&path), path))
        .collect())
}

/// The paths in a directory; none where there is no directory.
pub(super) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |error| Error::path("reading", directory, error);
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes a pin. A link is detached first: when this returns, its program runs no more.
pub(super) fn remove_pin(path: &Path) -> Result<(), Error> {
    detach(path);
    remove_file(path)
}

/// Best effort: where the kernel cannot do it at once, the end of the pin does it a moment later.
fn detach(pin: &Path) {
    let _ = sys::detach_pinned_link(pin);
}

pub(super) fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("removing", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn remove_empty(directory: &Path) -> Result<(), Error> {
    fs::remove_dir(directory).map_err(|error| Error::path("removing", directory, error))
}

/// Removes a directory unless something is in it. `Ok(true)`: it is gone now.
pub(super) fn remove_if_empty(directory: &Path) -> Result<bool, Error> {
    match fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOTEMPTY | Errno::EBUSY | Errno::ENOENT) => Ok(false),
            _ => Err(Error::path("removing", directory, error)),
        },
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(|error| Error::path("renaming", from, error))
}

pub(super) fn private_directory(directory: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|error| match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly(directory.to_owned()),
            _ => Error::path("making", directory, error),
        })
}

/// Mounts bpffs at its usual place when the pins belong there and it is missing.
fn ensure_bpffs(root: &Path) -> Result<(), Error> {
    let failed = |error: Errno| Error::path("looking at", root, error);
    let nearest = root
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(root);
    if statfs(nearest).map_err(failed)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    if !root.starts_with(BPFFS) {
        return Err(Error::NotBpffs(root.to_owned()));
    }
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .map_err(|error| Error::path("mounting bpffs at", BPFFS, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tv-pins-{}-{name}", std::process::id()));
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn pins_go_onto_bpffs_only() {
        let plain = Scratch::new("plain");
        let error = Pins::create(&plain.0.join("pins"), "a").unwrap_err();
        assert!(matches!(error, Error::NotBpffs(_)), "{error}");
        assert!(list(&plain.0).unwrap().is_empty());
    }
}

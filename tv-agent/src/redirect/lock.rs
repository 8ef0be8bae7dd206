//! The lock that says that an instance is alive.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Error;
use super::pins::{private_directory, remove_file};

/// Where lock files lie (in `instances/`) when nothing else is said.
pub const DEFAULT_RUN_DIR: &str = "/run/tv-agent";

const INSTANCE_LENGTH: usize = 64;

/// Held while an instance lives. The kernel lets go of it with the process, however it ends.
///
/// flock(2) belongs to the open file, not to the process: who is handed the descriptor holds the same lock, and it
/// is free when the last of them has closed it. So nobody may unlock one that is shared but by closing.
#[derive(Debug)]
pub struct InstanceLock {
    path: PathBuf,
    file: File,
    shared: AtomicBool,
}

impl InstanceLock {
    pub(super) fn acquire(run_dir: &Path, instance: &str) -> Result<Self, Error> {
        let mut path = lock_path(run_dir, instance)?;
        private_directory(&lock_directory(run_dir))?;
        loop {
            let failed = |error: io::Error| Error::path("locking", &path, error);
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(live(instance, &file)),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
            let lock = Self {
                path,
                file,
                shared: AtomicBool::new(false),
            };
            // The last owner may have removed the file between our open and our lock.
            if lock.is_of_path()? {
                lock.claim()?;
                return Ok(lock);
            }
            path = lock.path.clone();
        }
    }

    /// The lock of a live instance whose process gave us its descriptor.
    ///
    /// # Errors
    /// When it is the lock of another instance, or not held.
    pub fn adopt(run_dir: &Path, instance: &str, descriptor: OwnedFd) -> Result<Self, Error> {
        let lock = Self {
            path: lock_path(run_dir, instance)?,
            file: descriptor.into(),
            shared: AtomicBool::new(true),
        };
        // Nothing happens where the same open file holds the lock already; another's is refused.
        if lock.file.try_lock().is_err() || !lock.is_of_path()? {
            return Err(live(instance, &lock.file));
        }
        Ok(lock)
    }

    /// Writes this process into the file, as the one that the instance lives in.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn claim(&self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::path("writing", &self.path, error);
        let mut file = &self.file;
        file.rewind().map_err(failed)?;
        file.set_len(0).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)
    }

    /// A descriptor of the same lock, for a successor.
    ///
    /// # Errors
    /// When this process has too many open files.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.shared.store(true, Ordering::Relaxed);
        self.file.as_fd().try_clone_to_owned()
    }

    /// Removes the file while it is still locked, so that nobody locks a file without a name.
    pub(super) fn remove(self) -> Result<(), Error> {
        remove_file(&self.path)
    }

    fn is_of_path(&self) -> Result<bool, Error> {
        let own = self.file.metadata();
        let own = own.map_err(|error| Error::path("looking at", &self.path, error))?;
        Ok(fs::metadata(&self.path)
            .is_ok_and(|present| (present.dev(), present.ino()) == (own.dev(), own.ino())))
    }
}

/// At once, and not when a child that is just being forked closes its copy.
impl Drop for InstanceLock {
    fn drop(&mut self) {
        if !self.shared.load(Ordering::Relaxed) {
            // Closed right after, which unlocks as well.
            let _ = self.file.unlock();
        }
    }
}

fn live(instance: &str, mut file: &File) -> Error {
    let mut pid = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut pid));
    let pid = pid.trim();
    Error::InstanceLive {
        instance: instance.to_owned(),
        pid: if read.is_err() || pid.is_empty() {
            "?".into()
        } else {
            pid.to_owned()
        },
    }
}

/// The process that an instance lives in, as its lock file says; None where there is no such file.
pub fn instance_process(run_dir: &Path, instance: &str) -> Option<String> {
    let text = fs::read_to_string(lock_path(run_dir, instance).ok()?).ok()?;
    Some(text.trim().to_owned()).filter(|pid| !pid.is_empty())
}

pub(super) fn lock_directory(run_dir: &Path) -> PathBuf {
    run_dir.join("instances")
}

fn lock_path(run_dir: &Path, instance: &str) -> Result<PathBuf, Error> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if instance.is_empty() || instance.len() > INSTANCE_LENGTH || !instance.chars().all(allowed) {
        return Err(Error::InstanceName(instance.to_owned()));
    }
    Ok(lock_directory(run_dir).join(format!("{instance}.lock")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_live_instance_per_name() {
        let run = tempfile::tempdir().unwrap();
        let first = InstanceLock::acquire(run.path(), "a").unwrap();
        let error = InstanceLock::acquire(run.path(), "a").unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            matches!(&error, Error::InstanceLive { pid: live, .. } if *live == pid),
            "{error}"
        );
        assert!(error.to_string().contains(&pid), "{error}");
        InstanceLock::acquire(run.path(), "b").unwrap();
        // A dead one's file stays, and does not matter.
        drop(first);
        assert!(lock_directory(run.path()).join("a.lock").exists());
        InstanceLock::acquire(run.path(), "a").unwrap().remove().unwrap();
        assert!(!lock_directory(run.path()).join("a.lock").exists());
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let run = tempfile::tempdir().unwrap();
        for bad in ["", "..", "a/b", "a.b", "ä", &"a".repeat(65)] {
            let error = InstanceLock::acquire(run.path(), bad).unwrap_err();
            assert!(matches!(error, Error::InstanceName(_)), "{bad}: {error}");
        }
    }

    #[test]
    fn a_lock_that_is_handed_on_outlives_its_first_holder() {
        let run = tempfile::tempdir().unwrap();
        let first = InstanceLock::acquire(run.path(), "a").unwrap();
        let descriptor = first.share().unwrap();
        let second = InstanceLock::adopt(run.path(), "a", descriptor).unwrap();
        // Whichever of them goes first, the other still holds it.
        drop(first);
        assert!(InstanceLock::acquire(run.path(), "a").is_err());
        second.claim().unwrap();
        assert_eq!(
            instance_process(run.path(), "a"),
            Some(std::process::id().to_string())
        );
        drop(second);
        let first = InstanceLock::acquire(run.path(), "a").unwrap();
        // Neither somebody else's open file nor another instance's lock will do.
        let stranger = File::open(lock_directory(run.path()).join("a.lock")).unwrap();
        assert!(InstanceLock::adopt(run.path(), "a", stranger.into()).is_err());
        let other = InstanceLock::acquire(run.path(), "b").unwrap();
        let descriptor = other.share().unwrap();
        assert!(InstanceLock::adopt(run.path(), "a", descriptor).is_err());
        drop(first);
    }
}

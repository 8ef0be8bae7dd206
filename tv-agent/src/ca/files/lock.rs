//! Turns at a CA directory: many read, or one writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::{Paths, exists, failed, finish_filing};
use crate::ca::Error;

/// Time to wait for somebody else who works on the files. Issuing takes milliseconds, and the kernel half takes an
/// agent for dead that says nothing for five seconds.
const LOCK_TIME: Duration = Duration::from_secs(3);

/// Keeps writers from changing the files while they are read. A copy without a lock file (a read-only mount) is
/// read without.
pub(in crate::ca) fn lock_shared(paths: &Paths) -> Result<Option<Flock<File>>, Error> {
    if !exists(&paths.root)? && !exists(&paths.intermediate)? {
        return Err(Error::Missing {
            dir: paths.dir.clone(),
        });
    }
    match File::open(&paths.lock) {
        Ok(file) => flock(file, FlockArg::LockSharedNonblock, &paths.lock, LOCK_TIME).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("open", &paths.lock)(source)),
    }
}

/// The lock of writers, with what the last one left unfinished finished.
pub(in crate::ca) fn lock(paths: &Paths) -> Result<Flock<File>, Error> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&paths.lock)
        .map_err(failed("create", &paths.lock))?;
    let lock = flock(file, FlockArg::LockExclusiveNonblock, &paths.lock, LOCK_TIME)?;
    finish_filing(paths)?;
    Ok(lock)
}

/// Waits by asking again, for a wait in the kernel has no end.
fn flock(mut file: File, how: FlockArg, path: &Path, limit: Duration) -> Result<Flock<File>, Error> {
    let until = Instant::now() + limit;
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < until => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                return Err(Error::Locked {
                    path: path.to_owned(),
                });
            }
            Err((_, errno)) => return Err(failed("lock", path)(errno.into())),
        };
        std::thread::sleep(Duration::from_millis(5));
    }
}

//! Whether a package manager is at work in a root: it may be about to rewrite the very stores.

use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::Error;
use super::root::Root;

/// Held by record locks (fcntl(2)) meanwhile: dpkg and its front ends, rpm, apk, pacman's is a mere file.
const LOCKS: [&str; 6] = [
    "/var/lib/dpkg/lock-frontend",
    "/var/lib/dpkg/lock",
    "/var/lib/rpm/.rpm.lock",
    "/usr/lib/sysimage/rpm/.rpm.lock",
    "/lib/apk/db/lock",
    "/usr/lib/apk/db/lock",
];
const PACMAN: &str = "/var/lib/pacman/db.lck";

/// # Errors
/// [`Error::Packages`] when one is at work.
pub(super) fn idle(root: &Root) -> Result<(), Error> {
    if root.exists(Path::new(PACMAN)) {
        return Err(Error::Packages { path: PACMAN.into() });
    }
    for path in LOCKS.map(Path::new) {
        let unreadable = |errno: Errno| Error::Read {
            path: path.to_owned(),
            source: errno.into(),
        };
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let file = match root.open_inside(path, flags) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EROFS) => continue,
            Err(errno) => return Err(unreadable(errno)),
        };
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_GETLK(&mut lock)).map_err(unreadable)?;
        if lock.l_type != libc::F_UNLCK as libc::c_short {
            return Err(Error::Packages {
                path: path.to_owned(),
            });
        }
    }
    Ok(())
}

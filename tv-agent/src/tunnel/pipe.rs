//! Long streams through a pipe, so that their bytes stay in the kernel: splice(2), on a bounded number of pipes.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::Activity;

/// What one pipe holds, bytes. Measured: the default of 64 KiB saves nothing over copying.
const SIZE: usize = 256 * 1024;
/// A stream without a byte for so long gives its pipe to others.
const QUIET: Duration = Duration::from_secs(1);

/// Pipes that may be open at once, two descriptors each. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipes(Arc<Semaphore>);

pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    _place: OwnedSemaphorePermit,
}

/// Why a stream left its pipe, which is empty then.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    End,
    Quiet,
}

impl Pipes {
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Semaphore::new(limit)))
    }

    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.0.available_permits()
    }

    /// None when all are taken, or the kernel gives none of that size: copying works as well.
    pub(super) fn take(&self) -> Option<Pipe> {
        let place = self.0.clone().try_acquire_owned().ok()?;
        let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(i32::try_from(SIZE).ok()?)).ok()?;
        Some(Pipe {
            read,
            write,
            _place: place,
        })
    }
}

impl Pipe {
    /// Moves bytes until `from` ends or is quiet; the number of them is added to `moved`.
    pub(super) async fn carry(
        &self,
        from: &TcpStream,
        to: &TcpStream,
        activity: &Activity,
        moved: &mut u64,
    ) -> io::Result<Left> {
        let flags = SpliceFFlags::SPLICE_F_NONBLOCK | SpliceFFlags::SPLICE_F_MOVE;
        loop {
            // The pipe is empty, so EAGAIN says that the socket is.
            let fill = || Ok(splice(from.as_fd(), None, &self.write, None, SIZE, flags)?);
            let Ok(filled) = timeout(QUIET, from.async_io(Interest::READABLE, fill)).await else {
                return Ok(Left::Quiet);
            };
            let mut left = filled?;
            if left == 0 {
                return Ok(Left::End);
            }
            activity.touch();
            while left > 0 {
                let drain = || Ok(splice(&self.read, None, to.as_fd(), None, left, flags)?);
                let drained = to.async_io(Interest::WRITABLE, drain).await?;
                left -= drained;
                *moved += drained as u64;
                activity.touch();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_pipes_is_bounded_and_they_come_back() {
        let pipes = Pipes::new(2);
        let first = pipes.take().unwrap();
        let _second = pipes.take().unwrap();
        assert!(pipes.take().is_none());
        drop(first);
        assert!(pipes.take().is_some());
    }
}

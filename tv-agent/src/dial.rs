//! Every outbound socket of the data path: flagged, so that the kernel half lets it through, and timed.

use std::io;
use std::os::fd::BorrowedFd;

/// Flags a socket as the agent's own before it connects; faked in tests.
pub trait OwnSocket: Send + Sync {
    /// # Errors
    /// When the flag cannot be set. The socket must not be used then: the kernel half would send it to us.
    fn flag(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}

/// No kernel half, so no flag.
pub struct Unflagged;

impl OwnSocket for Unflagged {
    fn flag(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

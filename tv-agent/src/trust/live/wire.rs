//! What the agent and its helper say to each other: one message, one answer, over a sequenced-packet socket.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::mountinfo::Ours;
use crate::limits;
use crate::sys;

/// The descriptors that go along stand in brackets, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// A copy of the tree of mounts, without ours. [namespace, root]
    Look { ours: Ours },
    /// What [`Request::Look`] gave is no longer needed.
    LetGo,
    /// [namespace, root, tree]
    Mount { target: PathBuf, ours: Ours },
    /// Takes away ours, save those that `keep` holds. [namespace]
    Unmount { ours: Ours, keep: Option<Ours> },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// [root]
    Looked,
    LetGo,
    /// The mount's number in /proc/PID/mountinfo.
    Mounted(u64),
    Unmounted {
        gone: usize,
        /// Mounts of ours that somebody has covered or that the kernel does not let go.
        left: usize,
    },
    Failed {
        doing: String,
        errno: i32,
    },
}

/// # Errors
/// Those of sendmsg(2).
pub(super) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let numbers: Vec<i32> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights };
    let parts = [io::IoSlice::new(&text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// None when the other side has ended.
///
/// # Errors
/// A message that is too large or of another form; those of recvmsg(2).
pub(super) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (text, descriptors) = sys::receive_with_descriptors(socket, limits::TRUST_MESSAGE_BYTES)?;
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&text)?, descriptors)))
}

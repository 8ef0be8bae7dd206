//! How a running agent hands its sockets to one that takes its place.
//!
//! A socket of sequenced packets beside the instance's lock file, root's alone. The new agent asks, is sent every
//! socket (SCM_RIGHTS), gets ready, accepts beside the running one, and says so; only then does that one stop. Until
//! then the end of the conversation, for whatever reason, changes nothing.

use std::fs;
use std::io::{self, IoSlice, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    getsockopt, listen, sendmsg, socket,
};
use serde::{Deserialize, Serialize};
use tv_ebpf::ABI_VERSION;

use crate::accept::Listener;
use crate::agent::{Inheritance, Room};
use crate::limits;
use crate::sys;

mod give;

pub use give::{Event, serve};

/// Of the messages below. Agents that speak different ones refuse each other; [`Message::TakeOver`] and
/// [`Message::Refused`] stay as they are, so that they can say so.
pub const PROTOCOL: u32 = 1;

/// Everything that goes from one agent to the next. The order is that of the conversation.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// New agent: give me what you listen on.
    TakeOver {
        protocol: u32,
        abi: u32,
    },
    Refused {
        reason: String,
    },
    /// With the lock's descriptor, then the listening ones in the order of [`Estate`].
    Lock,
    Door,
    Admin {
        path: PathBuf,
    },
    Metrics {
        address: SocketAddr,
    },
    V4,
    V6,
    /// With the namespace's descriptor and one or two listeners'.
    Room {
        cgroup: PathBuf,
    },
    Complete,
    /// New agent: I accept; stop.
    Serving,
    /// The running agent writes nothing any more, and stops accepting.
    Retired,
}

/// What a running agent leaves.
pub struct Estate {
    pub lock: OwnedFd,
    /// The listening socket of this conversation.
    pub door: OwnedFd,
    pub admin: (PathBuf, OwnedFd),
    pub metrics: Option<(SocketAddr, OwnedFd)>,
    pub inheritance: Inheritance,
}

/// Why nothing is handed over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}", path.display())]
    Socket {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "the running agent (process {pid}) does not answer within {}; if it hangs, end it (kill -9 {pid}) and start \
         this one again",
        HumanTime(*limit)
    )]
    Silent { pid: i32, limit: Duration },
    #[error("the running agent (process {pid}) does not hand over: {reason}")]
    Refused { pid: i32, reason: String },
    #[error("the running agent (process {pid}) broke off; look at its log, and try again")]
    Broken { pid: i32, source: io::Error },
    #[error("the running agent (process {pid}) sent something that this version does not understand")]
    Unexpected { pid: i32 },
}

struct HumanTime(Duration);

impl std::fmt::Display for HumanTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs())
    }
}

/// Where the socket of an instance is.
pub fn socket_path(run_dir: &Path, instance: &str) -> PathBuf {
    run_dir.join("instances").join(format!("{instance}.sock"))
}

/// Makes the socket at `path`. Call it with the instance's lock held: what is there is a dead agent's.
///
/// # Errors
/// When it cannot be made.
pub fn open_door(path: &Path) -> Result<OwnedFd, Error> {
    let failed = |source: io::Error| Error::Socket {
        what: "listen at",
        path: path.to_owned(),
        source,
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let door = packets().map_err(failed)?;
    let made = bind(door.as_raw_fd(), &address(path).map_err(failed)?).map_err(io::Error::from);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o600)))
        .and_then(|()| Ok(listen(&door, Backlog::new(4)?)?))
        .map_err(failed)?;
    Ok(door)
}

/// A running agent that waits for us to serve. Dropped before that, it goes on.
pub struct Predecessor {
    stream: UnixStream,
    pid: i32,
}

/// Asks the agent behind the socket at `path` for all it has. None where no agent is. Blocks for
/// [`limits::HANDOVER_ANSWER_TIME`] at most; call it within a runtime.
///
/// # Errors
/// When it refuses, hangs, or speaks another protocol.
pub fn ask(path: &Path) -> Result<Option<(Predecessor, Estate)>, Error> {
    let failed = |source: io::Error| Error::Socket {
        what: "ask at",
        path: path.to_owned(),
        source,
    };
    let socket = packets().map_err(failed)?;
    match connect(socket.as_raw_fd(), &address(path).map_err(failed)?).map_err(io::Error::from) {
        Ok(()) => {}
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    }
    let stream = UnixStream::from(socket);
    let pid = getsockopt(&stream, PeerCredentials)
        .map_err(|error| failed(error.into()))?
        .pid();
    let predecessor = Predecessor { stream, pid };
    predecessor.limit(limits::HANDOVER_ANSWER_TIME).map_err(failed)?;
    let request = Message::TakeOver {
        protocol: PROTOCOL,
        abi: ABI_VERSION,
    };
    send(&predecessor.stream, &request, &[]).map_err(|error| predecessor.broken(error))?;
    let estate = predecessor.receive_estate()?;
    Ok(Some((predecessor, estate)))
}

impl Predecessor {
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Tells it that this process accepts, and waits until it writes the maps no more.
    ///
    /// # Errors
    /// When it does not say so; it then goes on itself, and this process must not.
    pub fn serving(self) -> Result<(), Error> {
        send(&self.stream, &Message::Serving, &[]).map_err(|error| self.broken(error))?;
        match self.receive()? {
            (Message::Retired, _) => Ok(()),
            _ => Err(Error::Unexpected { pid: self.pid }),
        }
    }

    fn limit(&self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        self.stream.set_write_timeout(Some(limit))
    }

    fn receive_estate(&self) -> Result<Estate, Error> {
        let unexpected = || Error::Unexpected { pid: self.pid };
        let (mut lock, mut door, mut v4, mut v6) = (None, None, None, None);
        let (mut admin, mut metrics, mut rooms) = (None, None, Vec::new());
        loop {
            let (message, descriptors) = self.receive()?;
            let mut descriptors = descriptors.into_iter();
            let mut next = || descriptors.next().ok_or_else(unexpected);
            let listener = |descriptor| Listener::adopt(descriptor).map_err(|error| self.broken(error));
            match message {
                Message::Lock => lock = Some(next()?),
                Message::Door => door = Some(next()?),
                Message::Admin { path } => admin = Some((path, next()?)),
                Message::Metrics { address } => metrics = Some((address, next()?)),
                Message::V4 => v4 = Some(listener(next()?)?),
                Message::V6 => v6 = Some(listener(next()?)?),
                Message::Room { cgroup } => rooms.push(Room {
                    door: Arc::new(next()?),
                    v4: listener(next()?)?,
                    v6: next().ok().map(listener).transpose()?,
                    cgroup: cgroup.into(),
                }),
                Message::Complete => break,
                Message::Refused { reason } => {
                    return Err(Error::Refused {
                        pid: self.pid,
                        reason,
                    });
                }
                Message::TakeOver { .. } | Message::Serving | Message::Retired => return Err(unexpected()),
            }
        }
        Ok(Estate {
            lock: lock.ok_or_else(unexpected)?,
            door: door.ok_or_else(unexpected)?,
            admin: admin.ok_or_else(unexpected)?,
            metrics,
            inheritance: Inheritance {
                v4: v4.ok_or_else(unexpected)?,
                v6,
                rooms,
            },
        })
    }

    fn receive(&self) -> Result<(Message, Vec<OwnedFd>), Error> {
        receive(&self.stream).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Silent {
                pid: self.pid,
                limit: limits::HANDOVER_ANSWER_TIME,
            },
            io::ErrorKind::InvalidData => Error::Unexpected { pid: self.pid },
            _ => self.broken(error),
        })
    }

    fn broken(&self, source: io::Error) -> Error {
        Error::Broken {
            pid: self.pid,
            source,
        }
    }
}

fn packets() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn address(path: &Path) -> io::Result<UnixAddr> {
    Ok(UnixAddr::new(path)?)
}

fn send(stream: &UnixStream, message: &Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).expect("plain data serialises");
    if descriptors.is_empty() {
        // A packet is written whole or not at all.
        return (&mut &*stream).write_all(&bytes);
    }
    let descriptors: Vec<RawFd> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let parts = [IoSlice::new(&bytes)];
    sendmsg::<()>(stream.as_raw_fd(), &parts, &rights, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn receive(stream: &UnixStream) -> io::Result<(Message, Vec<OwnedFd>)> {
    let (bytes, descriptors) = sys::receive_with_descriptors(stream.as_fd(), limits::HANDOVER_BYTES)?;
    if bytes.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the other side has closed the connection",
        ));
    }
    let message = serde_json::from_slice(&bytes);
    let message = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok((message, descriptors))
}

#[cfg(test)]
mod tests;

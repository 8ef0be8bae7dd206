//! Network namespaces of workloads: found by their processes (mount namespaces too, for `trust`), entered to make a socket, let go when dead.
//!
//! An open descriptor of a namespace keeps it alive, and so do its sockets. A [`Netns`] holds one until it is
//! [closed](Netns::close); whoever holds sockets looks at [`Netns::is_closed`].

use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use tokio::net::TcpSocket;

use crate::addr::NetnsCookie;
use crate::{diag, sys};

mod bell;
mod discover;
mod enter;

pub use bell::Bell;
pub use discover::{Bounds, Found, MountsId, Seen, discover};
pub(crate) use discover::{processes, subdirectories};
pub use enter::Visitors;

/// What tells a living network namespace from all others that live now: device and inode of its nsfs file.
///
/// The inode number of a dead one is given out again; the cookie is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetnsId {
    pub dev: u64,
    pub ino: u64,
}

/// Where a connection came from, and where the sockets for it are made.
#[derive(Clone)]
pub struct Netns(Option<Arc<Other>>);

struct Other {
    /// Never given twice by one process, whichever namespaces come again.
    number: u64,
    cookie: NetnsCookie,
    /// None once it is closed.
    door: Mutex<Option<Door>>,
}

#[derive(Clone)]
enum Door {
    Here(Arc<OwnedFd>, Visitors),
    /// Held by another process, which makes the sockets.
    Elsewhere,
}

impl Netns {
    /// The one that the agent runs in.
    pub const OWN: Self = Self(None);

    /// The namespace that `process` lives in, if that is still `id`.
    ///
    /// # Errors
    /// When the process is gone or has moved, or the kernel lets nobody in (CAP_SYS_ADMIN, CAP_SYS_PTRACE).
    pub async fn open(process: i32, id: NetnsId, visitors: &Visitors) -> io::Result<Self> {
        let file = File::open(format!("/proc/{process}/ns/net"))?;
        if id_of(&file.metadata()?) != id {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the process has moved to another network namespace",
            ));
        }
        let door = Arc::new(OwnedFd::from(file));
        let cookie = visitors.visit(door.clone(), || {
            let socket = TcpSocket::new_v4()?;
            sys::netns_cookie(socket.as_fd())
        });
        Ok(Self(Some(Arc::new(Other {
            number: next_number(),
            cookie: cookie.await?,
            door: Mutex::new(Some(Door::Here(door, visitors.clone()))),
        }))))
    }

    /// The one that another process calls `number`; that one makes its sockets.
    pub fn elsewhere(number: u64, cookie: NetnsCookie) -> Self {
        Self(Some(Arc::new(Other {
            number,
            cookie,
            door: Mutex::new(Some(Door::Elsewhere)),
        })))
    }

    /// The namespace behind `door`, a descriptor of it that another agent held, and its `cookie`.
    ///
    /// # Errors
    /// When it is no such descriptor.
    pub fn adopt(door: OwnedFd, cookie: NetnsCookie, visitors: &Visitors) -> io::Result<(NetnsId, Self)> {
        let file = File::from(door);
        let id = id_of(&file.metadata()?);
        let other = Other {
            number: next_number(),
            cookie,
            door: Mutex::new(Some(Door::Here(Arc::new(file.into()), visitors.clone()))),
        };
        Ok((id, Self(Some(Arc::new(other)))))
    }

    /// The descriptor that keeps it alive; None for the agent's own, and once it is closed.
    pub fn door(&self) -> Option<Arc<OwnedFd>> {
        match self.0.as_ref()?.door().clone()? {
            Door::Here(door, _) => Some(door),
            Door::Elsewhere => None,
        }
    }

    /// What two processes call it; None for the agent's own.
    pub fn number(&self) -> Option<u64> {
        self.0.as_ref().map(|other| other.number)
    }

    /// As [`socket`](Self::socket), made by the calling thread, which steps inside for it: not for a runtime's worker.
    ///
    /// # Errors
    /// As [`socket`](Self::socket).
    pub fn socket_here(&self, ipv4: bool) -> io::Result<TcpSocket> {
        match &self.0 {
            None => new_socket(ipv4),
            Some(other) => match other.door().clone() {
                Some(Door::Here(door, visitors)) => visitors.step_in(&door, || new_socket(ipv4)),
                Some(Door::Elsewhere) | None => Err(closed()),
            },
        }
    }

    /// None for the agent's own.
    pub fn cookie(&self) -> Option<NetnsCookie> {
        self.0.as_ref().map(|other| other.cookie)
    }

    /// A socket that belongs to this namespace, whatever is done with it afterwards.
    ///
    /// # Errors
    /// When the namespace is closed, or no socket can be had.
    pub async fn socket(&self, ipv4: bool) -> io::Result<TcpSocket> {
        self.visit(move || new_socket(ipv4)).await
    }

    /// Whether native IPv6 has somewhere to go, the namespace's own addresses included.
    ///
    /// # Errors
    /// As [`socket`](Self::socket).
    pub async fn routes_v6(&self) -> io::Result<bool> {
        self.visit(|| Ok(routes_v6())).await
    }

    /// Whether the loopback interface is up. Without it a listener can be had, and nobody can reach it.
    ///
    /// # Errors
    /// As [`socket`](Self::socket).
    pub async fn loopback_up(&self) -> io::Result<bool> {
        let look = || {
            let mut interfaces = getifaddrs()?;
            let up = InterfaceFlags::IFF_LOOPBACK | InterfaceFlags::IFF_UP;
            Ok(interfaces.any(|interface| interface.flags.contains(up)))
        };
        self.visit(look).await
    }

    /// A socket to ask the kernel about the connections of this namespace, see [`diag`].
    ///
    /// # Errors
    /// As [`socket`](Self::socket).
    pub async fn asker(&self) -> io::Result<OwnedFd> {
        self.visit(diag::open).await
    }

    /// Lets go: no socket can be made any more.
    pub fn close(&self) {
        if let Some(other) = &self.0 {
            other.door().take();
        }
    }

    pub fn is_closed(&self) -> bool {
        self.0.as_ref().is_some_and(|other| other.door().is_none())
    }

    /// None for the agent's own.
    fn address(&self) -> Option<*const Other> {
        self.0.as_ref().map(Arc::as_ptr)
    }

    async fn visit<T: Send + 'static>(
        &self,
        errand: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let Some(other) = &self.0 else {
            return errand();
        };
        let door = other.door().clone();
        let Some(Door::Here(door, visitors)) = door else {
            return Err(closed());
        };
        visitors.visit(door, errand).await
    }
}

fn closed() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "no workload lives in the network namespace any more",
    )
}

fn next_number() -> u64 {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    NUMBER.fetch_add(1, Ordering::Relaxed)
}

fn new_socket(ipv4: bool) -> io::Result<TcpSocket> {
    if ipv4 {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }
}

impl Other {
    fn door(&self) -> MutexGuard<'_, Option<Door>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One that was closed and opened again is another one: nothing of the first may be used for it.
impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.address() == other.address()
    }
}

impl Eq for Netns {}

impl Hash for Netns {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

impl std::fmt::Debug for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.cookie() {
            Some(cookie) => write!(f, "Netns({})", cookie.0),
            None => f.write_str("Netns(own)"),
        }
    }
}

/// Whether `process` began before this one. One that cannot be asked may have.
pub fn older_than_us(process: i32) -> bool {
    let began = |process: &str| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        start_time(&stat)
    };
    match (began(&process.to_string()), began("self")) {
        (Some(theirs), Some(ours)) => theirs < ours,
        _ => true,
    }
}

/// proc_pid_stat(5): the command in parentheses may hold anything; `starttime` is the twentieth field behind it.
fn start_time(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// The namespace of the calling thread.
///
/// # Errors
/// When /proc is not there.
pub fn own_id() -> io::Result<NetnsId> {
    fs::metadata("/proc/thread-self/ns/net").map(|metadata| id_of(&metadata))
}

fn id_of(metadata: &fs::Metadata) -> NetnsId {
    NetnsId {
        dev: metadata.dev(),
        ino: metadata.ino(),
    }
}

/// Whether the calling thread's namespace has somewhere to send native IPv6 to, its own addresses included.
pub fn routes_v6() -> bool {
    fs::read_to_string("/proc/thread-self/net/ipv6_route").is_ok_and(|table| has_route(&table))
}

/// Looks for a route that is neither loopback, link-local, multicast nor a rejection. Pure.
///
/// Lines as in the kernel's net/ipv6/route.c: destination, its length, …, flags, device.
fn has_route(table: &str) -> bool {
    const RTF_REJECT: u32 = 0x0200;
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [destination, length, .., flags, _device] = fields.as_slice() else {
            return false;
        };
        let rejected = u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_REJECT != 0);
        let loopback = *destination == "00000000000000000000000000000001" && *length == "80";
        let local = destination.starts_with("fe8") || destination.starts_with("ff");
        !rejected && !loopback && !local
    })
}

#[cfg(test)]
mod tests;

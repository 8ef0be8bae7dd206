//! One direction of asking: questions go out under numbers, answers come back in any order.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Read as _, Seek as _, Write as _};
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, setsockopt, socketpair, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{oneshot, watch};

use super::Frame;
use crate::{limits, sys};

/// Stands for a body that lies in the first descriptor.
const ASIDE: &[u8] = b"@";

/// A packet's body, and what came along.
pub type Received<T> = (T, Vec<OwnedFd>);

/// Two ends that speak to each other, closed on execution.
///
/// # Errors
/// When there are no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
    for end in [&ours, &theirs] {
        // The kernel doubles it; a packet has to fit.
        setsockopt(end, sockopt::SndBuf, &limits::WIRE_SLOW_BYTES)?;
    }
    Ok((ours, theirs))
}

/// One end for a runtime to watch; call it in one.
///
/// # Errors
/// When it cannot be watched.
pub fn watched(socket: OwnedFd) -> io::Result<UnixStream> {
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// As [`send_blocking`], in a runtime.
///
/// # Errors
/// The same.
pub async fn send(
    socket: &UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    aside: bool,
) -> io::Result<()> {
    loop {
        socket.writable().await?;
        let sent = socket.try_io(Interest::WRITABLE, || {
            send_blocking(socket.as_fd(), message, descriptors, aside)
        });
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// As [`receive_blocking`], in a runtime.
///
/// # Errors
/// The same.
pub async fn receive<T: DeserializeOwned>(
    socket: &UnixStream,
    aside: bool,
) -> io::Result<Option<Received<T>>> {
    loop {
        socket.readable().await?;
        let received = socket.try_io(Interest::READABLE, || {
            receive_blocking(socket.as_fd(), limits::WIRE_INLINE_BYTES, aside)
        });
        match received {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

/// Sends one packet. `aside`: a body that is too large goes along as a file; only the warden's may, for its reader has
/// to believe that the file does not block.
///
/// # Errors
/// Those of sendmsg(2); EMSGSIZE.
pub fn send_blocking(
    socket: BorrowedFd<'_>,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    aside: bool,
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() <= limits::WIRE_INLINE_BYTES || !aside {
        return send_packet(socket, &text, descriptors);
    }
    let mut file = File::from(memfd_create(c"tv-agent", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&text)?;
    file.rewind()?;
    let all: Vec<_> = std::iter::once(file.as_fd())
        .chain(descriptors.iter().copied())
        .collect();
    send_packet(socket, ASIDE, &all)
}

fn send_packet(socket: BorrowedFd<'_>, text: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let numbers: Vec<i32> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &rights };
    let parts = [IoSlice::new(text)];
    sendmsg::<()>(socket.as_raw_fd(), &parts, control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one packet of at most `most` bytes; None when the other side has ended.
///
/// # Errors
/// A packet that is too large or of another form (InvalidData); those of recvmsg(2).
pub fn receive_blocking<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
    most: usize,
    aside: bool,
) -> io::Result<Option<Received<T>>> {
    let (text, mut descriptors) = match sys::receive_with_descriptors(socket, most) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::ENOBUFS)) => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is too large"));
        }
        other => other?,
    };
    if text.is_empty() {
        return Ok(None);
    }
    let parsed = if aside && text == ASIDE && !descriptors.is_empty() {
        let mut body = Vec::new();
        File::from(descriptors.remove(0))
            .take(limits::WIRE_BODY_BYTES)
            .read_to_end(&mut body)?;
        serde_json::from_slice(&body)
    } else {
        serde_json::from_slice(&text)
    };
    let message = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, descriptors)))
}

/// The asking end. Cheap to clone; all clones are one.
pub struct Line<Q, A> {
    shared: Arc<Shared<A>>,
    questions: PhantomData<fn(Q)>,
}

struct Shared<A> {
    /// Of packets, whatever its type says.
    socket: UnixStream,
    waiting: Mutex<HashMap<u64, Waiting<A>>>,
    next: AtomicU64,
    /// Whether what is asked here may be too large for a packet.
    aside: bool,
    ended: watch::Sender<bool>,
}

enum Waiting<A> {
    Task(oneshot::Sender<Received<A>>),
    Thread(std::sync::mpsc::SyncSender<Received<A>>),
}

impl<Q, A> Clone for Line<Q, A> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
            questions: PhantomData,
        }
    }
}

impl<Q: Serialize, A: DeserializeOwned + Send + 'static> Line<Q, A> {
    /// Begins to listen for answers; call it in a runtime. `aside`: see [`send_blocking`].
    ///
    /// # Errors
    /// When the socket cannot be watched.
    pub fn start(socket: OwnedFd, aside: bool) -> io::Result<Self> {
        let socket = watched(socket)?;
        let shared = Arc::new(Shared {
            socket,
            waiting: Mutex::default(),
            next: AtomicU64::new(1),
            aside,
            ended: watch::Sender::new(false),
        });
        let listening = shared.clone();
        std::thread::Builder::new()
            .name("tv-answers".into())
            .spawn(move || listen(&listening))?;
        Ok(Self {
            shared,
            questions: PhantomData,
        })
    }

    /// Asks, and waits for the answer, at most `limit`.
    ///
    /// # Errors
    /// When the other side has ended, does not answer in time, or too much is asked at once.
    pub async fn ask(
        &self,
        question: Q,
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> io::Result<Received<A>> {
        self.begin(question, descriptors).await?.answer(limit).await
    }

    /// The first half of [`ask`](Self::ask): when it is done, the other side has the descriptors.
    ///
    /// # Errors
    /// The same.
    pub async fn begin(&self, question: Q, descriptors: &[BorrowedFd<'_>]) -> io::Result<Pending<A>> {
        let (sender, answer) = oneshot::channel();
        let asked = self.enter(Waiting::Task(sender))?;
        let frame = Frame {
            id: asked.id,
            body: question,
        };
        self.send(&frame, descriptors).await?;
        Ok(Pending {
            answer,
            _asked: asked,
        })
    }

    /// As [`ask`](Self::ask), on the calling thread; a runtime's worker gives its place away meanwhile.
    ///
    /// # Errors
    /// The same.
    pub fn ask_blocking(&self, question: Q, limit: Duration) -> io::Result<Received<A>> {
        off_the_runtime(|| {
            let (sender, answer) = std::sync::mpsc::sync_channel(1);
            let asked = self.enter(Waiting::Thread(sender))?;
            let frame = Frame {
                id: asked.id,
                body: question,
            };
            let socket = &self.shared.socket;
            while let Err(error) = send_blocking(socket.as_fd(), &frame, &[], self.shared.aside) {
                if error.kind() != io::ErrorKind::WouldBlock {
                    return Err(error);
                }
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX))? == 0 {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            answer.recv_timeout(limit).map_err(|error| match error {
                std::sync::mpsc::RecvTimeoutError::Timeout => io::ErrorKind::TimedOut.into(),
                std::sync::mpsc::RecvTimeoutError::Disconnected => gone(),
            })
        })
    }

    /// Waits for the end of the other side.
    pub async fn ended(&self) {
        // The sender lives as long as this does.
        let _ = self.shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn enter(&self, waiting: Waiting<A>) -> io::Result<Asked<A>> {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let mut all = self.shared.waiting();
        if all.len() >= limits::WIRE_WAITING {
            return Err(io::Error::other("too much is asked at once"));
        }
        all.insert(id, waiting);
        drop(all);
        let asked = Asked {
            id,
            shared: self.shared.clone(),
        };
        // After the entry: the end clears what is entered.
        if *self.shared.ended.borrow() {
            return Err(gone());
        }
        Ok(asked)
    }

    async fn send(&self, frame: &Frame<Q>, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        send(&self.shared.socket, frame, descriptors, self.shared.aside).await
    }
}

/// An answer that is still to come.
pub struct Pending<A> {
    answer: oneshot::Receiver<Received<A>>,
    _asked: Asked<A>,
}

impl<A> Pending<A> {
    /// Waits for it, at most `limit`.
    ///
    /// # Errors
    /// When the other side has ended, or does not answer in time.
    pub async fn answer(self, limit: Duration) -> io::Result<Received<A>> {
        match tokio::time::timeout(limit, self.answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(gone()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// A question that is under way.
struct Asked<A> {
    id: u64,
    shared: Arc<Shared<A>>,
}

impl<A> Drop for Asked<A> {
    fn drop(&mut self) {
        self.shared.waiting().remove(&self.id);
    }
}

impl<A> Shared<A> {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting<A>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On a thread of its own: a worker of the runtime may wait for an answer, all of them even, for others that wait for
/// the same leaf wait on theirs.
fn listen<A: DeserializeOwned + Send>(shared: &Shared<A>) {
    let socket = shared.socket.as_fd();
    loop {
        let mut fds = [PollFd::new(socket, PollFlags::POLLIN)];
        // What it says does not matter: receiving tells.
        let _ = poll(&mut fds, PollTimeout::NONE);
        match receive_blocking::<Frame<A>>(socket, limits::WIRE_INLINE_BYTES, !shared.aside) {
            Ok(Some((Frame { id, body }, descriptors))) => {
                let waiting = shared.waiting().remove(&id);
                // Nobody waits any more for what took too long.
                match waiting {
                    Some(Waiting::Task(sender)) => drop(sender.send((body, descriptors))),
                    Some(Waiting::Thread(sender)) => drop(sender.try_send((body, descriptors))),
                    None => {}
                }
            }
            Ok(None) => break,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::error!(%error, "the other process of the agent does not speak as it should");
                break;
            }
        }
    }
    shared.ended.send_replace(true);
    shared.waiting().clear();
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the other process of the agent has ended",
    )
}

fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

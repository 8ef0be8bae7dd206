//! The running agent's side.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::sync::{mpsc, oneshot};
use tv_ebpf::ABI_VERSION;

use super::{Estate, Message, PROTOCOL, receive, send};
use crate::agent::Inheritance;
use crate::limits;

/// What the running agent is told by the thread that talks to new ones.
pub enum Event {
    /// Somebody wants to take over. None when it cannot be told now.
    Asked(oneshot::Sender<Option<Estate>>),
    /// It did not come to that: everything as before.
    Abandoned,
    /// It accepts, and writes the maps.
    Taken,
}

/// Talks to those who come to `door`, one after the other, on a thread of its own that ends with [`Event::Taken`].
///
/// `retire` is called with true just before the new agent is told that nobody writes the maps any more, and with
/// false when that did not reach it. A new agent has the time `ready` to say that it serves.
///
/// # Errors
/// When no thread can be started.
pub fn serve(
    door: OwnedFd,
    ready: Duration,
    retire: impl Fn(bool) + Send + 'static,
    events: mpsc::Sender<Event>,
) -> io::Result<()> {
    let door = UnixListener::from(door);
    std::thread::Builder::new()
        .name("tv-handover".into())
        .spawn(move || {
            loop {
                let Ok((stream, _)) = door.accept() else {
                    // EMFILE and the like: it passes.
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                };
                let mut asked = false;
                let end = match give(&stream, ready, &retire, &events, &mut asked) {
                    Ok(()) => Event::Taken,
                    Err(error) => {
                        tracing::warn!(%error, "nothing was handed over; going on");
                        Event::Abandoned
                    }
                };
                let taken = matches!(end, Event::Taken);
                // Who only knocked has changed nothing.
                let told = !asked || events.blocking_send(end).is_ok();
                if taken || !told {
                    return;
                }
            }
        })?;
    Ok(())
}

fn give(
    stream: &UnixStream,
    ready: Duration,
    retire: &impl Fn(bool),
    events: &mpsc::Sender<Event>,
    asked: &mut bool,
) -> io::Result<()> {
    let peer = getsockopt(stream, PeerCredentials)?;
    if peer.uid() != 0 {
        return Err(io::Error::other(format!(
            "process {} of user {} is not root",
            peer.pid(),
            peer.uid()
        )));
    }
    stream.set_write_timeout(Some(limits::HANDOVER_ANSWER_TIME))?;
    stream.set_read_timeout(Some(limits::HANDOVER_ANSWER_TIME))?;
    let wrong = match receive(stream) {
        Ok((Message::TakeOver { protocol, abi }, _)) => mismatch(protocol, abi),
        Ok(_) => Some("it asked for something else".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Some(format!("it speaks hand-over protocol {PROTOCOL} only"))
        }
        Err(error) => return Err(error),
    };
    let refuse = |reason: String| {
        send(
            stream,
            &Message::Refused {
                reason: reason.clone(),
            },
            &[],
        )?;
        Err(io::Error::other(format!("process {}: {reason}", peer.pid())))
    };
    if let Some(reason) = wrong {
        return refuse(reason);
    }
    tracing::info!(pid = peer.pid(), "another agent wants to take over");
    let (reply, estate) = oneshot::channel();
    *asked = events.blocking_send(Event::Asked(reply)).is_ok();
    let Some(estate) = estate.blocking_recv().ok().flatten() else {
        return refuse("it is ending itself".to_owned());
    };
    send_estate(stream, &estate)?;
    drop(estate);
    stream.set_read_timeout(Some(ready))?;
    match receive(stream)? {
        (Message::Serving, _) => {}
        (other, _) => return Err(io::Error::other(format!("unexpected {other:?}"))),
    }
    retire(true);
    send(stream, &Message::Retired, &[]).inspect_err(|_| retire(false))
}

/// Why agents of these versions cannot follow each other, if they cannot.
fn mismatch(protocol: u32, abi: u32) -> Option<String> {
    let stop = "stop it, then start the new one; enrolled workloads are refused meanwhile";
    if protocol != PROTOCOL {
        return Some(format!(
            "it speaks hand-over protocol {PROTOCOL} and the new one {protocol}; {stop}"
        ));
    }
    (abi != ABI_VERSION)
        .then(|| format!("its maps are of version {ABI_VERSION} and the new one's of version {abi}; {stop}"))
}

fn send_estate(stream: &UnixStream, estate: &Estate) -> io::Result<()> {
    send(stream, &Message::Lock, &[estate.lock.as_fd()])?;
    send(stream, &Message::Door, &[estate.door.as_fd()])?;
    let (path, admin) = &estate.admin;
    send(stream, &Message::Admin { path: path.clone() }, &[admin.as_fd()])?;
    if let Some((address, metrics)) = &estate.metrics {
        send(
            stream,
            &Message::Metrics { address: *address },
            &[metrics.as_fd()],
        )?;
    }
    let Inheritance { v4, v6, rooms } = &estate.inheritance;
    send(stream, &Message::V4, &[v4.as_fd()])?;
    if let Some(v6) = v6 {
        send(stream, &Message::V6, &[v6.as_fd()])?;
    }
    for room in rooms {
        let cgroup = room.cgroup.to_path_buf();
        let all = [
            Some(room.door.as_fd()),
            Some(room.v4.as_fd()),
            room.v6.as_ref().map(|v6| v6.as_fd()),
        ];
        let all: Vec<_> = all.into_iter().flatten().collect();
        send(stream, &Message::Room { cgroup }, &all)?;
    }
    send(stream, &Message::Complete, &[])
}

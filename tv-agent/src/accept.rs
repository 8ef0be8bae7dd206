//! Stage 3: listeners of our own, flagged, and a bounded number of connections from them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::addr::{NetnsCookie, PeerAddr};
use crate::dial::OwnSocket;
use crate::limits;
use crate::phase::{self, Phase};
use crate::sys;

const BACKLOG: u32 = 4096;

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}: is another tv-agent running in this network namespace?")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("cannot mark the listener on {address} as our own; see `tv-agent check`")]
    Flag { address: SocketAddr, source: io::Error },
    #[error("cannot read the network namespace of the listener on {address} (needs Linux 5.14)")]
    Netns { address: SocketAddr, source: io::Error },
}

/// A listener in one network namespace. Clones are the same socket, which listens until the last is dropped, here
/// and in a process that it was handed to.
#[derive(Clone)]
pub struct Listener {
    // Not the runtime's kind: who only holds it is not woken by its connections.
    socket: Arc<std::net::TcpListener>,
    netns: NetnsCookie,
}

impl Listener {
    /// Listens in the calling thread's network namespace; port 0 takes a free one.
    pub fn bind(address: SocketAddr, own: &dyn OwnSocket) -> Result<Self, Error> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        };
        let socket = socket.map_err(|source| Error::Bind { address, source })?;
        Self::on(socket, address, own)
    }

    /// Listens with a new `socket`, in the network namespace that it was made in.
    pub fn on(socket: TcpSocket, address: SocketAddr, own: &dyn OwnSocket) -> Result<Self, Error> {
        let bind = |source| Error::Bind { address, source };
        // A predecessor's connections in TIME_WAIT must not keep us from starting.
        socket.set_reuseaddr(true).map_err(bind)?;
        socket.bind(address).map_err(bind)?;
        // Flagged before it listens: the kernel half must never see it unflagged.
        own.flag(socket.as_fd())
            .map_err(|source| Error::Flag { address, source })?;
        let netns = sys::netns_cookie(socket.as_fd()).map_err(|source| Error::Netns { address, source })?;
        let listener = socket.listen(BACKLOG).and_then(TcpListener::into_std);
        Ok(Self {
            socket: Arc::new(listener.map_err(bind)?),
            netns,
        })
    }

    /// A listener that another agent made, with the queue and the flag that it has.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        let netns = sys::netns_cookie(socket.as_fd())?;
        let socket = std::net::TcpListener::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Arc::new(socket),
            netns,
        })
    }

    /// Of the network namespace that it listens in.
    pub fn netns(&self) -> NetnsCookie {
        self.netns
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Listener {
    fn accepting(self) -> io::Result<TcpListener> {
        let socket = Arc::try_unwrap(self.socket).or_else(|shared| shared.try_clone())?;
        TcpListener::from_std(socket)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Accepts while the agent serves, then lets what is open finish for `drain`, then ends it.
///
/// `serve` runs one connection. At most `limit.available_permits()` run at once; others wait in the queue.
pub async fn run<F, S>(
    listener: Listener,
    limit: Arc<Semaphore>,
    mut phase: watch::Receiver<Phase>,
    drain: Duration,
    serve: S,
) where
    S: Fn(tokio::net::TcpStream, PeerAddr, NetnsCookie) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let netns = listener.netns;
    let listener = match listener.accepting() {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "cannot accept connections from a listener");
            return;
        }
    };
    let mut open = JoinSet::new();
    let mut failing = false;
    loop {
        let permit = tokio::select! {
            permit = limit.clone().acquire_owned() => permit.expect("the semaphore is never closed"),
            () = phase::reached(&mut phase, Phase::HandedOver) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Keeps the set small while nobody connects.
            Some(_) = open.join_next(), if !open.is_empty() => continue,
            () = phase::reached(&mut phase, Phase::HandedOver) => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                failing = false;
                let connection = serve(stream, PeerAddr(peer), netns);
                open.spawn(async move {
                    connection.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // EMFILE and the like: wait for somebody to finish instead of spinning. Told once.
                if !std::mem::replace(&mut failing, true) {
                    tracing::error!(%error, "cannot accept connections; trying again");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Closed, not shut down: a successor may be listening on the same socket.
    drop(listener);
    let deserted = *phase.borrow() == Phase::Deserted;
    let drain = if deserted {
        drain.min(limits::DESERTED_TIME)
    } else {
        drain
    };
    let finished = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(drain, finished).await.is_err() {
        open.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::Unflagged;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    #[tokio::test]
    async fn the_number_of_connections_is_bounded_and_a_stop_drains() {
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &Unflagged).unwrap();
        let address = listener.address().unwrap();
        let (stop, stopped) = watch::channel(Phase::Serving);
        let running = Arc::new(AtomicUsize::new(0));
        let count = running.clone();
        let task = tokio::spawn(run(
            listener,
            Arc::new(Semaphore::new(2)),
            stopped,
            Duration::from_millis(100),
            move |mut stream, _, _| {
                let count = count.clone();
                async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = stream.read(&mut [0]).await;
                    count.fetch_sub(1, Ordering::SeqCst);
                }
            },
        ));
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(running.load(Ordering::SeqCst), 2, "the third waits");
        drop(clients.remove(0));
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(
            running.load(Ordering::SeqCst),
            2,
            "and takes the first one's place"
        );
        stop.send(Phase::Ending).unwrap();
        tokio::time::timeout(Duration::from_secs(2), task)
            .await
            .unwrap()
            .unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn an_address_in_use_says_so() {
        let first = Listener::bind("127.0.0.1:0".parse().unwrap(), &Unflagged).unwrap();
        let second = Listener::bind(first.address().unwrap(), &Unflagged);
        assert!(matches!(second, Err(Error::Bind { .. })));
    }
}

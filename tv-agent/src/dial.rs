//! Every outbound socket of the data path: flagged, so that the kernel half lets it through, and timed.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use crate::addr::OriginAddr;
use crate::class::Class;
use crate::netns::Netns;

/// Flags a socket as the agent's own before it connects; faked in tests.
pub trait OwnSocket: Send + Sync {
    /// # Errors
    /// When the flag cannot be set. The socket must not be used then: the kernel half would send it to us.
    fn flag(&self, socket: BorrowedFd<'_>) -> io::Result<()>;
}

/// Makes the sockets that connect to origins, flagged; in another process where this one may not.
pub trait Sockets: Send + Sync {
    /// One in `netns`.
    fn socket<'a>(
        &'a self,
        netns: &'a Netns,
        ipv4: bool,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpSocket>> + Send + 'a>>;
}

/// Makes them here.
pub struct Flagging(pub Arc<dyn OwnSocket>);

impl Sockets for Flagging {
    fn socket<'a>(
        &'a self,
        netns: &'a Netns,
        ipv4: bool,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpSocket>> + Send + 'a>> {
        Box::pin(async move {
            let socket = netns.socket(ipv4).await?;
            self.0.flag(socket.as_fd())?;
            Ok(socket)
        })
    }
}

/// No kernel half, so no flag.
pub struct Unflagged;

impl OwnSocket for Unflagged {
    fn flag(&self, _: BorrowedFd<'_>) -> io::Result<()> {
        Ok(())
    }
}

/// Why there is no connection to the origin.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot make a socket of our own for {origin}; see `tv-agent check`")]
    Socket { origin: OriginAddr, source: io::Error },
    #[error("{origin} does not accept the connection")]
    Connect { origin: OriginAddr, source: io::Error },
    #[error("{origin} did not accept the connection within {} s", limit.as_secs())]
    Timeout { origin: OriginAddr, limit: Duration },
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Socket { .. } => Class::Internal,
            Self::Connect { .. } => Class::UpstreamUnreachable,
            Self::Timeout { .. } => Class::UpstreamTimeout,
        }
    }
}

/// Makes connections to origins.
#[derive(Clone)]
pub struct Dialer {
    sockets: Arc<dyn Sockets>,
    limit: Duration,
    netns: Netns,
}

impl Dialer {
    /// In the agent's own network namespace.
    pub fn new(own: Arc<dyn OwnSocket>, limit: Duration) -> Self {
        Self::by(Arc::new(Flagging(own)), limit)
    }

    /// The same, with sockets that `sockets` makes.
    pub fn by(sockets: Arc<dyn Sockets>, limit: Duration) -> Self {
        Self {
            sockets,
            limit,
            netns: Netns::OWN,
        }
    }

    /// The same from another namespace, with the source address and the routes that are found there.
    #[must_use]
    pub fn within(&self, netns: &Netns) -> Self {
        Self {
            netns: netns.clone(),
            ..self.clone()
        }
    }

    /// A connection to exactly the address that the workload chose.
    pub async fn connect(&self, origin: OriginAddr) -> Result<TcpStream, Error> {
        let socket = self
            .socket(origin)
            .await
            .map_err(|source| Error::Socket { origin, source })?;
        match timeout(self.limit, socket.connect(origin.0)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(source)) => Err(Error::Connect { origin, source }),
            Err(_) => Err(Error::Timeout {
                origin,
                limit: self.limit,
            }),
        }
    }

    async fn socket(&self, origin: OriginAddr) -> io::Result<TcpSocket> {
        let socket = self.sockets.socket(&self.netns, origin.0.is_ipv4()).await?;
        socket.set_nodelay(true)?;
        Ok(socket)
    }
}

/// Makes the close of `stream` a reset, so that the peer sees a failure and no clean end.
pub fn reset_on_close(stream: &TcpStream) {
    // A socket that is gone already cannot be reset; there is nothing to report then.
    drop(socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO)));
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken;
    impl OwnSocket for Broken {
        fn flag(&self, _: BorrowedFd<'_>) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }

    #[tokio::test]
    async fn a_socket_that_cannot_be_flagged_is_never_connected() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = OriginAddr(listener.local_addr().unwrap());
        let dialer = Dialer::new(Arc::new(Broken), Duration::from_secs(1));
        let error = dialer.connect(origin).await.unwrap_err();
        assert_eq!(error.class(), Class::Internal);
        assert!(
            timeout(Duration::from_millis(50), listener.accept())
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn refusal_and_time_out_are_told_apart() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let dialer = Dialer::new(Arc::new(Unflagged), Duration::from_secs(1));
        assert_eq!(
            dialer.connect(OriginAddr(free)).await.unwrap_err().class(),
            Class::UpstreamUnreachable
        );
        // A full listen queue answers no SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into())
            .unwrap();
        full.listen(0).unwrap();
        let addr = full.local_addr().unwrap().as_socket().unwrap();
        let _queued: Vec<_> = (0..3)
            .map(|_| {
                let s = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                s.set_nonblocking(true).unwrap();
                let _ = s.connect(&addr.into());
                s
            })
            .collect();
        let dialer = Dialer::new(Arc::new(Unflagged), Duration::from_millis(100));
        assert_eq!(
            dialer.connect(OriginAddr(addr)).await.unwrap_err().class(),
            Class::UpstreamTimeout
        );
    }
}

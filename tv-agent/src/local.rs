//! A small HTTP/1.1 server for what is local: the metrics port and the admin socket.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Time for a request's header block to arrive.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on this machine.
    Local,
    Remote,
}

/// A listener of either kind.
pub trait Accept: Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The stream, and from where it comes.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, peer) = Self::accept(self).await?;
        let local = peer.ip().to_canonical().is_loopback();
        Ok((stream, if local { Peer::Local } else { Peer::Remote }))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = Self::accept(self).await?;
        Ok((stream, Peer::Local))
    }
}

/// Answers at most `connections` at once, for as long as the future lives. A request's body is not read.
pub async fn serve<B>(
    listener: impl Accept,
    connections: usize,
    answer: impl Fn(&Request<Incoming>, Peer) -> Response<B> + Clone + Send + 'static,
) where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    let limit = Arc::new(Semaphore::new(connections));
    loop {
        let permit = limit.clone().acquire_owned().await.expect("never closed");
        let Ok((stream, peer)) = listener.accept().await else {
            // EMFILE and the like: it passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, peer);
                async move { Ok::<_, Infallible>(response) }
            });
            // Whatever a client does wrong concerns nobody else.
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .serve_connection(TokioIo::new(stream), service)
                .await;
            drop(permit);
        });
    }
}

//! The HTTPS server under the fakes: one listener per address, HTTP/1.1 or HTTP/2 by ALPN, gone on drop.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::TlsAcceptor;

use super::lock;
use super::pki::Identity;

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;
pub(crate) type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Conn, Request<Incoming>) -> Answer + Send + Sync>;

/// One TLS connection as its server saw it.
#[derive(Clone, Debug)]
pub struct Conn {
    /// Counts from 1 in the order of accepting.
    pub id: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub sni: Option<String>,
    pub alpn: Option<String>,
}

/// What happened below HTTP.
#[derive(Default)]
pub struct Connections {
    accepted: AtomicU64,
    established: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Connections {
    /// TCP connections accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// TLS handshakes that came to their end.
    pub fn established(&self) -> u64 {
        self.established.load(Ordering::Relaxed)
    }

    /// Why the other handshakes failed.
    pub fn failures(&self) -> Vec<String> {
        lock(&self.failures).clone()
    }
}

/// A running server; dropping it ends its threads and connections.
pub(crate) struct Server {
    runtime: Option<Runtime>,
    addrs: Vec<SocketAddr>,
}

impl Server {
    /// Listens on every one of `addrs` (port 0: any) and serves until dropped.
    pub(crate) fn start(
        name: &str,
        addrs: &[SocketAddr],
        tls: Arc<ServerConfig>,
        connections: &Arc<Connections>,
        handler: &Handler,
    ) -> io::Result<Self> {
        let runtime = runtime(name)?;
        let mut bound = Vec::with_capacity(addrs.len());
        for &addr in addrs {
            let listener = listen(addr)?;
            bound.push(listener.local_addr()?);
            let _guard = runtime.enter();
            let listener = TcpListener::from_std(listener)?;
            runtime.spawn(accept(
                listener,
                TlsAcceptor::from(tls.clone()),
                connections.clone(),
                handler.clone(),
            ));
        }
        Ok(Self {
            runtime: Some(runtime),
            addrs: bound,
        })
    }

    pub(crate) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(self.runtime.take());
    }
}

/// A small runtime whose threads are made here and now, in the caller's namespaces.
pub(crate) fn runtime(name: &str) -> io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name(name)
        .enable_all()
        .build()
}

/// Ends a fake's runtime; waiting for it is not allowed inside another runtime.
pub(crate) fn stop(runtime: Option<Runtime>) {
    let Some(runtime) = runtime else { return };
    if tokio::runtime::Handle::try_current().is_ok() {
        runtime.shutdown_background();
    } else {
        runtime.shutdown_timeout(Duration::from_secs(2));
    }
}

/// TLS for `identity` that offers `alpn` in this order of preference.
pub(crate) fn tls(identity: &Identity, alpn: &[&str]) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// A whole body in one piece.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

fn listen(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(addr),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket
        .bind(&addr.into())
        .map_err(|e| io::Error::new(e.kind(), format!("binding {addr}: {e}")))?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, connections: Arc<Connections>, handler: Handler) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let id = connections.accepted.fetch_add(1, Ordering::Relaxed) + 1;
                tokio::spawn(serve(
                    stream,
                    peer,
                    id,
                    tls.clone(),
                    connections.clone(),
                    handler.clone(),
                ));
            }
            // Out of descriptors or a client that left: neither ends the server.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    id: u64,
    tls: TlsAcceptor,
    connections: Arc<Connections>,
    handler: Handler,
) {
    let Ok(local) = stream.local_addr() else { return };
    // Nagle's delay would be measured as the agent's.
    stream.set_nodelay(true).ok();
    let stream = match tls.accept(stream).await {
        Ok(stream) => stream,
        Err(error) => {
            lock(&connections.failures).push(error.to_string());
            return;
        }
    };
    connections.established.fetch_add(1, Ordering::Relaxed);
    let session = stream.get_ref().1;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let conn = Conn {
        id,
        peer,
        local,
        sni: session.server_name().map(str::to_owned),
        alpn: session.alpn_protocol().map(text),
    };
    let h2 = conn.alpn.as_deref() == Some("h2");
    let service = service_fn(move |request| {
        let answer = handler(conn.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // A connection's end, clean or not, is the client's business and seen in its result.
    if h2 {
        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .max_concurrent_streams(1024)
            .serve_connection(TokioIo::new(stream), service)
            .await
            .ok();
    } else {
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await
            .ok();
    }
}

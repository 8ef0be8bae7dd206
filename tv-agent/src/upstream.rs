//! Stage 12: the real host, over verified TLS, at the address that the workload chose.
//!
//! Connections are pooled per namespace, workload, host and address: two workloads never share one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version, header::HOST};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::addr::{HostName, OriginAddr};
use crate::body::{Body, Running};
use crate::class::Class;
use crate::dial::{self, Dialer};
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;

mod pool;
pub mod roots;

use pool::{Connection, Http2, Lane, PROTOCOL_KEPT};

/// HTTP version of a connection, as ALPN settled it (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

/// Whom to talk to, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub host: HostName,
    pub origin: OriginAddr,
    /// cgroup id of the workload.
    pub workload: u64,
    /// Where the workload lives, and where connections for it are made.
    pub netns: Netns,
}

impl Target {
    /// The host, with its port where that is not the default one of https.
    fn authority(&self) -> String {
        match self.origin.0.port() {
            443 => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }
}

/// Why there is no response from the provider.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("the TLS handshake with {host} at {origin} failed, so nothing was sent to it")]
    Tls {
        host: HostName,
        origin: OriginAddr,
        source: std::io::Error,
    },
    #[error("{host} at {origin} did not finish the TLS handshake within {} s", limit.as_secs())]
    TlsTimeout {
        host: HostName,
        origin: OriginAddr,
        limit: Duration,
    },
    #[error("{host} at {origin} closes every connection before a request can be sent")]
    Closed { host: HostName, origin: OriginAddr },
    #[error("{host} broke the HTTP protocol or the connection")]
    Http { host: HostName, source: hyper::Error },
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Dial(error) => error.class(),
            Self::Tls { .. } => Class::UpstreamTls,
            Self::TlsTimeout { .. } => Class::UpstreamTimeout,
            Self::Closed { .. } | Self::Http { .. } => Class::UpstreamProtocol,
        }
    }

    /// The connection ended, and not by an answer that breaks the protocol.
    fn is_lost(&self) -> bool {
        matches!(self, Self::Http { source, .. } if !source.is_parse() && !source.is_user())
    }
}

/// The pools, and what is needed to open a connection.
pub struct Upstreams {
    dialer: Dialer,
    /// Offers h2 and http/1.1.
    any: TlsConnector,
    /// Offers http/1.1 only: for upgrades.
    http1: TlsConnector,
    lanes: moka::sync::Cache<Target, Arc<Lane>>,
    metrics: Metrics,
}

/// Connections tried for one request, while they turn out to be closed before it goes out.
const TRIES: usize = 4;

impl Upstreams {
    /// `roots`: system and configured roots without our own, see [`roots::compose`].
    pub fn new(dialer: Dialer, roots: Arc<rustls::RootCertStore>, metrics: Metrics) -> Self {
        let connector = |alpn: &[&[u8]]| {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let mut config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .expect("the provider supports the default versions")
                .with_root_certificates(roots.clone())
                .with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|a| a.to_vec()).collect();
            config.resumption = rustls::client::Resumption::in_memory_sessions(1024);
            TlsConnector::from(Arc::new(config))
        };
        let lanes = moka::sync::Cache::builder()
            .max_capacity(limits::UPSTREAM_KEYS)
            .time_to_idle(PROTOCOL_KEPT)
            .build();
        Self {
            dialer,
            any: connector(&[b"h2", b"http/1.1"]),
            http1: connector(&[b"http/1.1"]),
            lanes,
            metrics,
        }
    }

    /// The protocol that the origin speaks; opens a connection when that is not known, so that a failure is
    /// found before the workload believes in its own connection.
    pub async fn prepare(&self, target: &Target) -> Result<Protocol, Error> {
        let lane = self.lane(target);
        if let Some(protocol) = lane.known_protocol() {
            return Ok(protocol);
        }
        let _opening = lane.opening.lock().await;
        if let Some(protocol) = lane.known_protocol() {
            return Ok(protocol);
        }
        let connection = self.open(target, &self.any).await?;
        Ok(lane.keep(connection))
    }

    /// Sends one request and waits for the response's header. Bodies stream in both directions.
    ///
    /// An origin may close a kept connection in the moment in which it is used again. A request that is
    /// idempotent and has no body is then sent once more (RFC 9110 §9.2.2), on a connection of its own.
    pub async fn send(&self, target: &Target, request: Request<Body>) -> Result<Response<Body>, Error> {
        let lane = self.lane(target);
        let mut request = request;
        let mut kept = lane.checkout();
        for _ in 0..TRIES {
            let spare = kept.as_ref().and_then(|_| repeatable(&request));
            let connection = match kept.take() {
                Some(connection) => connection,
                None => self.fresh(target, &lane).await?,
            };
            match self.send_on(target, &lane, connection, request).await {
                Sent::Unsent(back) => request = back,
                Sent::Done(Err(error @ Error::Http { .. })) => match spare {
                    Some(again) if error.is_lost() => request = again,
                    _ => return Err(error),
                },
                Sent::Done(done) => return done,
            }
        }
        Err(Error::Closed {
            host: target.host.clone(),
            origin: target.origin,
        })
    }

    /// Sends an upgrade request (RFC 9110 §7.8) on an HTTP/1.1 connection of its own.
    pub async fn upgrade(
        &self,
        target: &Target,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        let Connection::Http1(mut sender) = self.open(target, &self.http1).await? else {
            unreachable!("only http/1.1 was offered")
        };
        let request = to_http1(request, target);
        sender.send_request(request).await.map_err(|source| Error::Http {
            host: target.host.clone(),
            source,
        })
    }

    /// Lets go of what has been idle too long; called now and then.
    pub fn sweep(&self) {
        for (target, lane) in &self.lanes {
            if target.netns.is_closed() {
                // Its sockets would keep a namespace alive that nobody lives in.
                self.lanes.invalidate(&*target);
            } else {
                lane.sweep();
            }
        }
        self.lanes.run_pending_tasks();
    }

    fn lane(&self, target: &Target) -> Arc<Lane> {
        self.lanes.get_with_by_ref(target, Arc::default)
    }

    async fn fresh(&self, target: &Target, lane: &Arc<Lane>) -> Result<Connection, Error> {
        if lane.known_protocol() == Some(Protocol::Http1) {
            return self.open(target, &self.any).await;
        }
        let _opening = lane.opening.lock().await;
        if let Some(connection) = lane.checkout() {
            return Ok(connection);
        }
        let connection = self.open(target, &self.any).await?;
        if let Connection::Http2(http2) = &connection {
            lane.keep(Connection::Http2(http2.clone()));
        } else {
            lane.learn(Protocol::Http1);
        }
        Ok(connection)
    }

    async fn send_on(
        &self,
        target: &Target,
        lane: &Arc<Lane>,
        connection: Connection,
        request: Request<Body>,
    ) -> Sent {
        let failed = |source| {
            Sent::Done(Err(Error::Http {
                host: target.host.clone(),
                source,
            }))
        };
        match connection {
            Connection::Http2(mut http2) => {
                let running = Running::start(&http2.running);
                match http2.sender.try_send_request(to_http2(request, target)).await {
                    Ok(response) => Sent::Done(Ok(response.map(|b| Body::passing(b).holding(running)))),
                    Err(mut error) => match error.take_message() {
                        Some(request) => Sent::Unsent(request),
                        None => failed(error.into_error()),
                    },
                }
            }
            Connection::Http1(mut sender) => {
                match sender.try_send_request(to_http1(request, target)).await {
                    Ok(response) => {
                        let lane = lane.clone();
                        // Ready again once the response's body has been read.
                        tokio::spawn(async move {
                            if sender.ready().await.is_ok() {
                                lane.keep(Connection::Http1(sender));
                            }
                        });
                        Sent::Done(Ok(response.map(Body::passing)))
                    }
                    Err(mut error) => match error.take_message() {
                        Some(request) => Sent::Unsent(request),
                        None => failed(error.into_error()),
                    },
                }
            }
        }
    }

    /// Boxed: a handshake's state is large and rare, and would be moved about with every request otherwise.
    fn open<'a>(
        &'a self,
        target: &'a Target,
        tls: &'a TlsConnector,
    ) -> Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send + 'a>> {
        Box::pin(self.connect(target, tls))
    }

    async fn connect(&self, target: &Target, tls: &TlsConnector) -> Result<Connection, Error> {
        let tcp = self.dialer.within(&target.netns).connect(target.origin).await?;
        let (host, origin) = (&target.host, target.origin);
        let limit = limits::UPSTREAM_HANDSHAKE_TIME;
        let name = rustls_pki_types::ServerName::try_from(host.as_str().to_owned());
        let name = name.map_err(|_| Error::Tls {
            host: host.clone(),
            origin,
            source: std::io::ErrorKind::InvalidInput.into(),
        })?;
        let stream = match timeout(limit, tls.connect(name, tcp)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(source)) => {
                self.metrics.handshake("upstream", "error");
                return Err(Error::Tls {
                    host: host.clone(),
                    origin,
                    source,
                });
            }
            Err(_) => {
                self.metrics.handshake("upstream", "timeout");
                return Err(Error::TlsTimeout {
                    host: host.clone(),
                    origin,
                    limit,
                });
            }
        };
        self.metrics.handshake("upstream", "ok");
        self.metrics.upstream_connections.inc();
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let opened = if http2 {
            open_http2(stream).await
        } else {
            open_http1(stream).await
        };
        opened.map_err(|source| Error::Http {
            host: host.clone(),
            source,
        })
    }
}

enum Sent {
    Done(Result<Response<Body>, Error>),
    /// The connection was closed before the request went out; here it is again.
    Unsent(Request<Body>),
}

/// A copy of a request that may be sent twice; None when it may not.
fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

async fn open_http2(stream: Stream) -> Result<Connection, hyper::Error> {
    let (sender, connection) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::H2_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_header_list_size(limits::HEADER_BYTES as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .handshake(TokioIo::new(stream))
        .await?;
    // Its errors come out at the requests that it breaks.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(Connection::Http2(Http2 {
        sender,
        running: Arc::default(),
    }))
}

async fn open_http1(stream: Stream) -> Result<Connection, hyper::Error> {
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(limits::HEADER_FIELDS)
        .max_buf_size(limits::HEADER_BYTES * 2)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = connection.with_upgrades();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(Connection::Http1(sender))
}

/// Origin form and a Host header (RFC 9112 §3.2.1).
fn to_http1(mut request: Request<Body>, target: &Target) -> Request<Body> {
    *request.version_mut() = Version::HTTP_11;
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |p| p.as_str())
        .to_owned();
    *request.uri_mut() = path.parse().expect("it was part of a valid address");
    if !request.headers().contains_key(HOST) {
        let value = target
            .authority()
            .parse()
            .expect("a host name and a port are a valid header value");
        request.headers_mut().insert(HOST, value);
    }
    request
}

/// Absolute form; `:authority` instead of Host (RFC 9113 §8.3.1).
fn to_http2(mut request: Request<Body>, target: &Target) -> Request<Body> {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |p| p.as_str())
        .to_owned();
    let uri = http::Uri::builder()
        .scheme("https")
        .authority(target.authority())
        .path_and_query(path)
        .build();
    *request.uri_mut() = uri.expect("a host name and the path of a valid address");
    request
}

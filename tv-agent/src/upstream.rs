//! Stage 12: the real host, over verified TLS, at the address that the workload chose.
//!
//! Connections are pooled per namespace, workload, host and address: two workloads never share one.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::addr::{HostName, OriginAddr};
use crate::body::{Body, Running};
use crate::class::Class;
use crate::dial::{self, Dialer};
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;

mod open;
mod pool;
mod request;
pub mod roots;

use pool::{Connection, Lane, PROTOCOL_KEPT};
use request::{repeatable, to_http1, to_http2};

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
    /// found before the workload believes in its own connection. `dialled` is a fresh connection to the target, when
    /// there is one.
    pub async fn prepare(&self, target: &Target, dialled: Option<TcpStream>) -> Result<Protocol, Error> {
        let lane = self.lane(target);
        if let Some(protocol) = lane.known_protocol() {
            return Ok(protocol);
        }
        let _opening = lane.opening.lock().await;
        if let Some(protocol) = lane.known_protocol() {
            return Ok(protocol);
        }
        let connection = match dialled {
            Some(tcp) => Box::pin(self.secure(target, &self.any, tcp)).await?,
            None => self.open(target, &self.any).await?,
        };
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
        self.secure(target, tls, tcp).await
    }

    async fn secure(&self, target: &Target, tls: &TlsConnector, tcp: TcpStream) -> Result<Connection, Error> {
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
            open::http2(stream).await
        } else {
            open::http1(stream).await
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

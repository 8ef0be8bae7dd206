//! The way to the API server: a connection for each request, made by our own dialer and TLS, with the token of the
//! moment; kube builds the requests.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use url::Url;

use super::credentials::{self, Credentials};
use super::health::Health;
use super::settings::{Pace, Server};
use crate::addr::OriginAddr;
use crate::dial::{self, Dialer};
use crate::https;
use crate::limits;
use crate::secret::Secret;

/// Shortest time between two readings of the credentials, however often they are refused.
const REREAD: Duration = Duration::from_secs(1);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there are no credentials to ask with")]
    NoCredentials,
    #[error("cannot find the address of {host:?}")]
    Resolve { host: String, source: io::Error },
    #[error("{host:?} has no address")]
    NoAddress { host: String },
    #[error("no connection")]
    Dial(#[source] dial::Error),
    #[error("TLS failed; check the API server's certificate and the CA that is given for it")]
    Tls(#[source] io::Error),
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
    #[error("the API server broke off")]
    Http(#[source] hyper::Error),
    #[error("no answer within {} s", limit.as_secs_f32())]
    Timeout { limit: Duration },
    #[error("the {0} that is given is no PEM, or holds nothing")]
    Pem(&'static str),
    #[error("the token cannot stand in a header")]
    Token,
    #[error(transparent)]
    Setup(#[from] https::Error),
}

/// The API server's door: what is asked with, and how. Cheap to clone.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    url: Url,
    name: Option<String>,
    dialer: Dialer,
    pace: Pace,
    access: ArcSwapOption<Access>,
    digest: Mutex<[u8; 32]>,
    refused: Notify,
}

/// What is asked with at this moment.
struct Access {
    token: Option<Arc<Secret>>,
    tls: Option<TlsConnector>,
}

impl Gate {
    pub fn new(server: &Server, dialer: Dialer, pace: Pace) -> Self {
        Self(Arc::new(Inner {
            url: server.url.clone(),
            name: server.name.clone(),
            dialer,
            pace,
            access: ArcSwapOption::empty(),
            digest: Mutex::default(),
            refused: Notify::new(),
        }))
    }

    /// The client that asks through here. Call within a runtime.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), "default")
    }

    /// Asks with these from now on. The same again change nothing.
    ///
    /// # Errors
    /// When they are not what they should be; the old ones stay then.
    pub fn put(&self, credentials: &Credentials) -> Result<(), Error> {
        let mut hash = Sha256::new();
        let (token, ca, identity) = (&credentials.token, &credentials.ca, &credentials.identity);
        let pair = identity.iter().flat_map(|(chain, key)| [chain, key]);
        for part in [token, ca].into_iter().flatten().chain(pair) {
            hash.update(part.len().to_be_bytes());
            part.digest_into(&mut hash);
        }
        let new: [u8; 32] = hash.finalize().into();
        let mut digest = self.0.digest.lock().unwrap_or_else(PoisonError::into_inner);
        if *digest == new && self.0.access.load().is_some() {
            return Ok(());
        }
        let tls = (self.0.url.scheme() == "https")
            .then(|| connector(credentials))
            .transpose()?;
        let token = token.clone();
        self.0.access.store(Some(Arc::new(Access { token, tls })));
        *digest = new;
        Ok(())
    }

    /// Has the credentials read again soon: the API server does not take them.
    pub fn refused(&self) {
        self.0.refused.notify_one();
    }

    /// Reads the credentials and puts them in force; what is wrong with them is told through `health`.
    pub fn look(&self, server: &Server, health: &Health) {
        let put = match credentials::read(server) {
            Ok(credentials) => self.put(&credentials).map_err(|error| https::causes(&error)),
            Err(error) => Err(https::causes(&error)),
        };
        health.credentials(put.err());
    }

    /// Reads the credentials again now and then, and when they were refused.
    pub(super) async fn tend(self, server: Server, health: Arc<Health>) {
        loop {
            let again = tokio::time::timeout(self.0.pace.credentials, self.0.refused.notified());
            let refused = again.await.is_ok();
            let (gate, server, health) = (self.clone(), server.clone(), health.clone());
            // A panic in there is a defect that the next reading may not have.
            let _ = tokio::task::spawn_blocking(move || gate.look(&server, &health)).await;
            if refused {
                tokio::time::sleep(REREAD.min(self.0.pace.credentials)).await;
            }
        }
    }

    async fn ask(self, request: Request<kube::client::Body>) -> Result<Response<Incoming>, Error> {
        let limit = self.0.pace.answer;
        let asked = tokio::time::timeout(limit, self.ask_unbounded(request)).await;
        let answer = asked.map_err(|_| Error::Timeout { limit })??;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.refused();
        }
        Ok(answer)
    }

    async fn ask_unbounded(
        &self,
        mut request: Request<kube::client::Body>,
    ) -> Result<Response<Incoming>, Error> {
        let access = self.0.access.load_full().ok_or(Error::NoCredentials)?;
        let url = &self.0.url;
        let base = url.path().trim_end_matches('/');
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        if let Ok(uri) = format!("{base}{path}").parse::<Uri>() {
            *request.uri_mut() = uri;
        }
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let headers = request.headers_mut();
        if let Ok(authority) = HeaderValue::from_str(&format!("{host}:{port}")) {
            headers.insert(header::HOST, authority);
        }
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        headers.insert(
            header::USER_AGENT,
            HeaderValue::from_static(concat!("tv-agent/", env!("CARGO_PKG_VERSION"))),
        );
        if let Some(token) = &access.token {
            let mut value =
                HeaderValue::from_str(&format!("Bearer {}", token.expose())).map_err(|_| Error::Token)?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = self.connect(&host, port).await?;
        match &access.tls {
            None => exchange(stream, request).await,
            Some(tls) => {
                let name = self.0.name.clone().unwrap_or(host);
                let name = ServerName::try_from(name.clone()).map_err(|_| Error::Name(name))?;
                exchange(tls.connect(name, stream).await.map_err(Error::Tls)?, request).await
            }
        }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<tokio::net::TcpStream, Error> {
        let resolve = |source| Error::Resolve {
            host: host.to_owned(),
            source,
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port))
            .await
            .map_err(resolve)?
            .collect();
        let mut last = Error::NoAddress {
            host: host.to_owned(),
        };
        for address in addresses {
            match self.0.dialer.connect(OriginAddr(address)).await {
                Ok(stream) => {
                    // A peer that is gone without a word is noticed long before a watch would be.
                    let keepalive = socket2::TcpKeepalive::new()
                        .with_time(Duration::from_secs(15))
                        .with_interval(Duration::from_secs(5));
                    // Without it the watch's own limit does.
                    let _ = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
                    return Ok(stream);
                }
                Err(error) => last = Error::Dial(error),
            }
        }
        Err(last)
    }
}

async fn exchange<I>(io: I, request: Request<kube::client::Body>) -> Result<Response<Incoming>, Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(limits::HEADER_BYTES)
        .max_headers(limits::HEADER_FIELDS)
        .handshake(TokioIo::new(io))
        .await
        .map_err(Error::Http)?;
    // Ends with the answer's body, or when that is dropped; its error is the body's.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(Error::Http)
}

fn connector(credentials: &Credentials) -> Result<TlsConnector, Error> {
    let mut roots = RootCertStore::empty();
    let chain_of = |pem: &Secret, what| {
        let all = CertificateDer::pem_slice_iter(pem.expose().as_bytes()).collect::<Result<Vec<_>, _>>();
        all.ok().filter(|all| !all.is_empty()).ok_or(Error::Pem(what))
    };
    match &credentials.ca {
        Some(ca) => {
            for root in chain_of(ca, "CA")? {
                roots.add(root).map_err(|_| Error::Pem("CA"))?;
            }
        }
        // Without one of its own, the system's.
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    let identity = match &credentials.identity {
        Some((chain, key)) => {
            let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes());
            Some((
                chain_of(chain, "client certificate")?,
                key.map_err(|_| Error::Pem("client key"))?,
            ))
        }
        None => None,
    };
    let tls = https::tls_as(Arc::new(roots), identity)?;
    Ok(TlsConnector::from(Arc::new(tls)))
}

impl tower_service::Service<Request<kube::client::Body>> for Gate {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        Box::pin(self.clone().ask(request))
    }
}

//! The HTTPS client for servers that the operator named (token endpoints, issuers), and bounded reads of what
//! they answer. Side module.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// Why a client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    #[error("the client's certificate and its key do not go together")]
    Identity(#[source] rustls::Error),
    #[error("cannot set up the HTTP client")]
    Client(#[source] reqwest::Error),
}

/// TLS towards a server that the operator named, verified by `roots` only.
///
/// # Errors
/// When TLS cannot be set up, which is a defect of the build.
pub fn tls(roots: Arc<RootCertStore>) -> Result<ClientConfig, Error> {
    tls_as(roots, None)
}

/// As [`tls`], with a certificate of our own.
pub(crate) fn tls_as(roots: Arc<RootCertStore>, identity: Option<Identity>) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(Error::Tls)?
        .with_root_certificates(roots);
    match identity {
        Some((chain, key)) => tls.with_client_auth_cert(chain, key).map_err(Error::Identity),
        None => Ok(tls.with_no_client_auth()),
    }
}

/// A client that trusts `roots` only: https only, no proxy, no redirect, no cookie, no decoding.
///
/// # Errors
/// When TLS or the client cannot be set up, which is a defect of the build.
pub fn client(roots: Arc<RootCertStore>) -> Result<reqwest::Client, Error> {
    client_as(roots, None)
}

/// A certificate chain and its key, by which a client proves who it is (RFC 8705).
pub type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// As [`client`], with a certificate of its own.
///
/// # Errors
/// When certificate and key do not go together, too.
pub fn client_as(roots: Arc<RootCertStore>, identity: Option<Identity>) -> Result<reqwest::Client, Error> {
    build(roots, identity, true)
}

/// As [`client`], for servers that get nothing secret: plain HTTP is allowed.
///
/// # Errors
/// As [`client`].
pub fn open_client(roots: Arc<RootCertStore>) -> Result<reqwest::Client, Error> {
    build(roots, None, false)
}

fn build(
    roots: Arc<RootCertStore>,
    identity: Option<Identity>,
    https_only: bool,
) -> Result<reqwest::Client, Error> {
    let mut tls = tls_as(roots, identity)?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .https_only(https_only)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .user_agent(concat!("tv-agent/", env!("CARGO_PKG_VERSION")))
        .pool_idle_timeout(Duration::from_secs(30))
        // A connection that died silently is noticed before it costs many callers their time-out.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(5))
        .build()
        .map_err(Error::Client)
}

/// Reads the answer's body into `body`, until that holds `limit` bytes. False: there is more.
///
/// # Errors
/// When the connection breaks before the body's end.
pub async fn fill(
    answer: &mut reqwest::Response,
    body: &mut Vec<u8>,
    limit: usize,
) -> Result<bool, reqwest::Error> {
    while let Some(chunk) = answer.chunk().await? {
        let left = limit.saturating_sub(body.len());
        body.extend_from_slice(&chunk[..chunk.len().min(left)]);
        if chunk.len() > left {
            return Ok(false);
        }
    }
    Ok(true)
}

/// An error and its sources in one line.
pub fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |e| e.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// A client's credentials for HTTP Basic, without the scheme (RFC 6749 §2.3.1): both parts form-urlencoded, so that a
/// colon in either cannot move the border.
pub fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    let mut pair = Zeroizing::new(String::with_capacity(3 * (id.len() + secret.len()) + 1));
    pair.extend(url::form_urlencoded::byte_serialize(id.as_bytes()));
    pair.push(':');
    pair.extend(url::form_urlencoded::byte_serialize(secret.as_bytes()));
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()))
}

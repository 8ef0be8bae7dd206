//! The checks on a request's head that need nothing but the request. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};

use crate::addr::HostName;
use crate::class::{Class, Refusal};
use crate::limits;
use crate::upstream::Target;

/// Refuses what may not be forwarded: another host than the connection is for, methods made for proxies,
/// and too large a header block. Ambiguous framing is refused or resolved by hyper (RFC 9112 §6.3).
pub(super) fn check_form<B>(request: &Request<B>, target: &Target) -> Result<(), Refusal> {
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        let text = format!("{} is not allowed on intercepted hosts", request.method());
        return Err(Refusal::new(Class::Forbidden, text));
    }
    check_size(request.headers())?;
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::new(
            Class::BadRequest,
            "the request has more than one Host header",
        ));
    }
    let named: Vec<&str> = request
        .uri()
        .authority()
        .map(http::uri::Authority::as_str)
        .into_iter()
        .chain(host.map(|h| h.to_str().unwrap_or("")))
        .collect();
    if named.is_empty() {
        return Err(Refusal::new(Class::BadRequest, "the request names no host"));
    }
    if named.iter().all(|authority| is_target(authority, target)) {
        return Ok(());
    }
    let text = format!(
        "the connection is for {}, the request for another host; connect to that one",
        target.host
    );
    Err(Refusal::new(Class::Misdirected, text))
}

/// hyper's own bounds are for its buffers: one large read gets past them, and HTTP/2 does not count fields.
fn check_size(headers: &HeaderMap) -> Result<(), Refusal> {
    // The size of a field as RFC 9113 §6.5.2 counts it.
    let size = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
    let bytes: usize = headers.iter().map(size).sum();
    if bytes <= limits::HEADER_BYTES && headers.len() <= limits::HEADER_FIELDS {
        return Ok(());
    }
    let text = format!(
        "the request's header block is larger than {} bytes or {} fields",
        limits::HEADER_BYTES,
        limits::HEADER_FIELDS
    );
    Err(Refusal::new(Class::HeaderTooLarge, text))
}

/// `host` or `host:port`, the same name and port as the connection's.
fn is_target(authority: &str, target: &Target) -> bool {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()),
        None => (authority, Some(target.origin.0.port())),
    };
    port == Some(target.origin.0.port()) && HostName::parse(name).as_ref() == Some(&target.host)
}

/// The protocol that an HTTP/1.1 request wants to switch to (RFC 9110 §7.8).
pub(super) fn upgrade_of<B>(request: &Request<B>) -> Option<HeaderValue> {
    if request.version() != http::Version::HTTP_11 {
        return None;
    }
    let wants = request.headers().get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|v| {
            v.split(',')
                .any(|token| token.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    // h2c would take the next bytes out of our sight; an origin over TLS never agrees to it (RFC 9113 §3.1).
    let protocol = request.headers().get(header::UPGRADE)?;
    (wants && !protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
}

pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

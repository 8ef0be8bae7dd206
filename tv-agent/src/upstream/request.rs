//! One request in the form that each protocol wants, and whether it may be sent twice. Pure.

use http::{Request, Uri, Version, header::HOST};
use http_body::Body as _;

use super::Target;
use crate::body::Body;

/// A copy of a request that may be sent twice; None when it may not.
pub(super) fn repeatable(request: &Request<Body>) -> Option<Request<Body>> {
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

/// Origin form and a Host header (RFC 9112 §3.2.1).
pub(super) fn to_http1(mut request: Request<Body>, target: &Target) -> Request<Body> {
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
pub(super) fn to_http2(mut request: Request<Body>, target: &Target) -> Request<Body> {
    *request.version_mut() = Version::HTTP_2;
    request.headers_mut().remove(HOST);
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |p| p.as_str())
        .to_owned();
    let uri = Uri::builder()
        .scheme("https")
        .authority(target.authority())
        .path_and_query(path)
        .build();
    *request.uri_mut() = uri.expect("a host name and the path of a valid address");
    request
}

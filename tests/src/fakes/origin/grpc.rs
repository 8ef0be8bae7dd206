//! `tv.Echo`, a gRPC service of raw bytes: `Unary` and `Stream` (bidirectional) echo messages, `Fail` fails.
//!
//! Wire format: github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md. Length-prefixed messages go back as they came.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};

use super::super::server::{Body, BoxError, full};
use super::generic::drain_briefly;
use super::record::Recording;
use super::{State, provider, unexpected};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Codes of google.rpc.Code that the service uses.
const OK: u16 = 0;
const NOT_FOUND: u16 = 5;
const UNAUTHENTICATED: u16 = 16;

pub(super) async fn answer(state: &State, request: Request<Recording>) -> Response<Body> {
    let grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"));
    let trailers = request.headers().get(header::TE).is_some_and(|v| v == "trailers");
    if !grpc || !trailers || request.version() != Version::HTTP_2 || request.method() != Method::POST {
        let call = format!(
            "{} {} is not a gRPC call over HTTP/2",
            request.method(),
            request.uri()
        );
        return unexpected(state, call);
    }
    let authenticated = provider::account(state, request.headers(), &["bearer"]).is_some();
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if authenticated && ["/tv.Echo/Unary", "/tv.Echo/Stream"].contains(&path) {
        let mut response = Response::new(Echo::Body(body).boxed_unsync());
        set_type(response.headers_mut());
        return response;
    }
    drain_briefly(body).await;
    match path {
        "/tv.Echo/Unary" | "/tv.Echo/Stream" | "/tv.Echo/Fail" if !authenticated => {
            trailers_only(UNAUTHENTICATED, "Request had invalid authentication credentials.")
        }
        "/tv.Echo/Fail" => trailers_only(NOT_FOUND, "no such thing"),
        path => unexpected(state, format!("gRPC method {path}")),
    }
}

/// An answer that fails before any message: status and trailers in one header block.
fn trailers_only(status: u16, message: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    let headers = response.headers_mut();
    set_type(headers);
    headers.insert(STATUS, status.into());
    headers.insert(MESSAGE, HeaderValue::from_static(message));
    response
}

fn set_type(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
}

/// The request's messages, then `grpc-status: 0`.
enum Echo {
    Body(Recording),
    Done,
}

impl HttpBody for Echo {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let Self::Body(body) = &mut *self else {
            return Poll::Ready(None);
        };
        let frame = match ready!(Pin::new(body).poll_frame(cx)) {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Err(error)) => Err(error.into()),
            // A gRPC client ends its side without trailers.
            Some(Ok(_)) | None => Ok(Frame::trailers(HeaderMap::from_iter([(STATUS, OK.into())]))),
        };
        *self = Self::Done;
        Poll::Ready(Some(frame))
    }
}

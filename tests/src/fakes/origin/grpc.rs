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
use super::generic::drain;
use super::record::Recording;
use super::{State, provider, unexpected};

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Codes of google.rpc.Code that the service uses.
const OK: u16 = 0;
const CANCELLED: u16 = 1;
const NOT_FOUND: u16 = 5;
const UNAUTHENTICATED: u16 = 16;
const CREDENTIALS: &str = "Request had invalid authentication credentials.";

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
    match (head.uri.path(), authenticated) {
        ("/tv.Echo/Unary" | "/tv.Echo/Stream", true) => {
            let mut response = Response::new(Echo::Body(body).boxed_unsync());
            set_type(response.headers_mut());
            response
        }
        ("/tv.Echo/Fail", true) => refuse(body, NOT_FOUND, "no such thing").await,
        // Its client may wait for an answer before it ends its side.
        ("/tv.Echo/Stream", false) => trailers_only(UNAUTHENTICATED, CREDENTIALS),
        ("/tv.Echo/Unary" | "/tv.Echo/Fail", false) => refuse(body, UNAUTHENTICATED, CREDENTIALS).await,
        (path, _) => unexpected(state, format!("gRPC method {path}")),
    }
}

/// Fails a unary call once its message is here: an answer that overtakes it ends in RST_STREAM, and some clients
/// lose the answer then.
async fn refuse(body: Recording, status: u16, message: &'static str) -> Response<Body> {
    match drain(body).await {
        Ok(_) => trailers_only(status, message),
        Err(_) => trailers_only(CANCELLED, "the message broke off"),
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

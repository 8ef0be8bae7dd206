//! Paths that every origin serves: what HTTP itself can do, independent of any provider.
//!
//! | path | answer |
//! |---|---|
//! | `/echo` | the request's body as it comes, then its trailers, or `x-body-sha256` where it has none |
//! | `/bytes/N` | N bytes of a fixed pattern, in constant memory |
//! | `/upload` | JSON with the length and hash of the body |
//! | `/headers` | JSON object of the request's headers |
//! | `/status/N` | that status; 204, 205 and 304 without body |
//! | `/redirect-elsewhere` | 302 to a host that must never get a credential |
//! | `/slow/MS` | 200 after that many milliseconds |
//! | `/drip/N/MS` | N lines, one each MS milliseconds |
//! | `/cut/N` | declares 2N bytes, sends N, breaks off |
//! | `/reject-body` | 413 without reading the body |
//! | `/ws` | WebSocket handshake, then the bytes back |

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, channel::Channel};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::super::server::{Body, BoxError, full};
use super::record::{Recording, hex};
use super::{json as reply_json, reply, websocket};

/// The trailer of `/echo` when the request has none.
pub fn echo_trailer() -> HeaderName {
    HeaderName::from_static("x-body-sha256")
}

/// The hash (hex) of what `/bytes/{bytes}` sends.
pub fn pattern_sha256(bytes: u64) -> String {
    let (piece, mut left, mut hash) = (pattern(), bytes, Sha256::new());
    while left > 0 {
        let take = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        hash.update(&piece[..take]);
        left -= take as u64;
    }
    hex(&hash.finalize())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    Root,
    Echo,
    Bytes(u64),
    Upload,
    Headers,
    Status(u16),
    RedirectElsewhere,
    Slow(Duration),
    Drip(u32, Duration),
    Cut(u64),
    RejectBody,
    WebSocket,
}

impl Endpoint {
    pub(super) fn find(method: &Method, path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
        let ms = |text: &str| text.parse().ok().map(Duration::from_millis);
        let endpoint = match parts[..] {
            [""] => Self::Root,
            ["echo"] => Self::Echo,
            ["bytes", n] => Self::Bytes(n.parse().ok()?),
            ["upload"] => Self::Upload,
            ["headers"] => Self::Headers,
            ["status", n] => Self::Status(n.parse().ok().filter(|n| (200..=999).contains(n))?),
            ["redirect-elsewhere"] => Self::RedirectElsewhere,
            ["slow", n] => Self::Slow(ms(n)?),
            ["drip", n, pause] => Self::Drip(n.parse().ok()?, ms(pause)?),
            ["cut", n] => Self::Cut(n.parse().ok()?),
            ["reject-body"] => Self::RejectBody,
            ["ws"] => Self::WebSocket,
            _ => return None,
        };
        let reads = matches!(method, &Method::GET | &Method::HEAD);
        let fits = match endpoint {
            Self::Echo | Self::Upload | Self::RejectBody => !reads,
            Self::Status(_) | Self::Headers | Self::RedirectElsewhere | Self::Slow(_) => true,
            _ => reads,
        };
        fits.then_some(endpoint)
    }
}

pub(super) async fn answer(endpoint: Endpoint, request: Request<Recording>) -> Response<Body> {
    let headers = request.headers().clone();
    let body = match endpoint {
        Endpoint::WebSocket => return websocket::answer(request),
        Endpoint::Echo => return echo(request),
        Endpoint::RejectBody => return reply(413, "text/plain", "too large\n".to_owned()),
        _ => match drain(request.into_body()).await {
            Ok(body) => body,
            Err(error) => return reply(400, "text/plain", format!("reading the body: {error}\n")),
        },
    };
    match endpoint {
        Endpoint::Root => reply(200, "text/plain", "an origin\n".to_owned()),
        Endpoint::Bytes(n) => octets(Repeat::new(n).boxed_unsync()),
        Endpoint::Upload => {
            let seen = body.seen();
            reply_json(200, &json!({ "bytes": seen.bytes, "sha256": seen.sha256 }))
        }
        Endpoint::Headers => reply_json(200, &header_object(&headers)),
        Endpoint::Status(status @ (204 | 205 | 304)) => {
            let mut response = Response::new(full(""));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            let etag = HeaderValue::from_static("\"v1\"");
            response.headers_mut().insert(header::ETAG, etag);
            response
        }
        Endpoint::Status(status) => reply(status, "text/plain", format!("status {status}\n")),
        Endpoint::RedirectElsewhere => {
            let mut response = reply(302, "text/plain", String::new());
            let elsewhere = HeaderValue::from_static("https://elsewhere.example/steal");
            response.headers_mut().insert(header::LOCATION, elsewhere);
            response
        }
        Endpoint::Slow(delay) => {
            tokio::time::sleep(delay).await;
            reply(200, "text/plain", "late\n".to_owned())
        }
        Endpoint::Drip(lines, pause) => octets(drip(lines, pause)),
        Endpoint::Cut(bytes) => {
            let mut response = octets(cut(bytes));
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, (2 * bytes).into());
            response
        }
        Endpoint::Echo | Endpoint::RejectBody | Endpoint::WebSocket => unreachable!("answered above"),
    }
}

/// Reads a body to its end, keeping nothing of it.
pub(super) async fn drain(mut body: Recording) -> Result<Recording, hyper::Error> {
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(body)
}

/// Reads what comes of a body within a second. An answer that overtakes a body ends in RST_STREAM over HTTP/2,
/// and some clients lose the answer then.
pub(super) async fn drain_briefly(body: Recording) {
    // The answer is the same whether the body came whole or not.
    tokio::time::timeout(Duration::from_secs(1), drain(body))
        .await
        .ok();
}

fn octets(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let octets = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, octets);
    response
}

fn header_object(headers: &HeaderMap) -> Value {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), Value::String(text(value))))
        .collect()
}

fn echo(request: Request<Recording>) -> Response<Body> {
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let mut response = octets(Echo::Body(request.into_body()).boxed_unsync());
    let headers = response.headers_mut();
    if let Some(content_type) = content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    // HTTP/1.1 sends only trailers that were announced.
    headers.insert(header::TRAILER, HeaderValue::from_static("x-body-sha256"));
    response
}

/// A request's body on its way back.
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
        let frame = ready!(pin!(&mut *body).poll_frame(cx));
        let seen = body.seen();
        let frame = match frame {
            Some(Ok(frame)) if frame.is_data() => return Poll::Ready(Some(Ok(frame))),
            Some(Ok(frame)) => Some(Ok(frame)),
            Some(Err(error)) => Some(Err(error.into())),
            None => {
                let hash = HeaderValue::from_str(&seen.sha256.unwrap_or_default()).expect("hex");
                Some(Ok(Frame::trailers(HeaderMap::from_iter([(
                    echo_trailer(),
                    hash,
                )]))))
            }
        };
        *self = Self::Done;
        Poll::Ready(frame)
    }
}

/// `left` bytes of the pattern, never more than one piece in memory.
struct Repeat {
    piece: Bytes,
    left: u64,
}

impl Repeat {
    fn new(left: u64) -> Self {
        Self {
            piece: Bytes::from_owner(pattern()),
            left,
        }
    }
}

/// Byte i is i mod 251, and the length a multiple of 251, so that pieces join without a seam.
fn pattern() -> Vec<u8> {
    (0..=250u8).cycle().take(251 * 256).collect()
}

impl HttpBody for Repeat {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let take = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(self.piece.len());
        self.left -= take as u64;
        Poll::Ready(Some(Ok(Frame::data(self.piece.slice(..take)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn drip(lines: u32, pause: Duration) -> Body {
    let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
    tokio::spawn(async move {
        for line in 0..lines {
            tokio::time::sleep(pause).await;
            if sender
                .send_data(Bytes::from(format!("data: {line}\n\n")))
                .await
                .is_err()
            {
                return;
            }
        }
    });
    body.map_err(|never| match never {}).boxed_unsync()
}

fn cut(bytes: u64) -> Body {
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    tokio::spawn(async move {
        let mut sending = Repeat::new(bytes);
        while let Some(Ok(frame)) = sending.frame().await {
            if sender.send(frame).await.is_err() {
                return;
            }
        }
        // The pieces must be on the wire before the connection breaks.
        tokio::time::sleep(Duration::from_millis(50)).await;
        sender.abort("cut on purpose".into());
    });
    body.boxed_unsync()
}

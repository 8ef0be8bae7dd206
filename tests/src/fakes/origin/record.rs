//! The log of an origin: requests with all their headers, bodies by length and hash.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use sha2::{Digest, Sha256};

use super::super::lock;
use super::super::server::Conn;

/// Requests kept; older ones are forgotten, so that a load test does not fill the memory.
pub const KEPT: usize = 16 * 1024;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    /// Number of the connection, from 1.
    pub connection: u64,
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub sni: Option<String>,
    pub alpn: Option<String>,
    pub method: String,
    /// `:authority` or `Host`.
    pub authority: String,
    pub path: String,
    pub query: Option<String>,
    pub version: Version,
    /// In the order of arrival, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: BodySeen,
}

/// What was read of a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BodySeen {
    pub bytes: u64,
    /// Hex; set once the body is complete.
    pub sha256: Option<String>,
    pub trailers: Vec<(String, String)>,
}

impl Received {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// The credential in `Authorization`: after `Bearer` or `token`, or the password in Basic.
    pub fn token(&self) -> Option<String> {
        let (scheme, rest) = self.header("authorization")?.split_once(' ')?;
        match scheme.to_ascii_lowercase().as_str() {
            "bearer" | "token" => Some(rest.trim().to_owned()),
            "basic" => Some(basic(rest)?.split_once(':')?.1.to_owned()),
            _ => None,
        }
    }

    /// Whether `secret` stands anywhere in the head of this request.
    pub fn holds(&self, secret: &str) -> bool {
        self.path.contains(secret)
            || self.query.as_ref().is_some_and(|q| q.contains(secret))
            || self.headers.iter().any(|(_, value)| {
                value.contains(secret)
                    || value
                        .split_whitespace()
                        .filter_map(basic)
                        .any(|text| text.contains(secret))
            })
    }
}

fn basic(text: &str) -> Option<String> {
    String::from_utf8(BASE64_STANDARD.decode(text.trim()).ok()?).ok()
}

#[derive(Default)]
pub(super) struct Log {
    kept: Mutex<VecDeque<Arc<Mutex<Received>>>>,
    count: AtomicU64,
}

impl Log {
    pub(super) fn add(&self, conn: &Conn, request: &Request<Incoming>) -> Arc<Mutex<Received>> {
        let headers = pairs(request.headers());
        let uri = request.uri();
        let authority = match uri.authority() {
            Some(authority) => authority.to_string(),
            None => headers
                .iter()
                .find(|(n, _)| n == "host")
                .map(|(_, v)| v.clone())
                .unwrap_or_default(),
        };
        let entry = Arc::new(Mutex::new(Received {
            connection: conn.id,
            peer: conn.peer,
            local: conn.local,
            sni: conn.sni.clone(),
            alpn: conn.alpn.clone(),
            method: request.method().to_string(),
            authority,
            path: uri.path().to_owned(),
            query: uri.query().map(str::to_owned),
            version: request.version(),
            headers,
            body: BodySeen::default(),
        }));
        self.count.fetch_add(1, Ordering::Relaxed);
        let mut kept = lock(&self.kept);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(entry.clone());
        entry
    }

    pub(super) fn all(&self) -> Vec<Received> {
        lock(&self.kept).iter().map(|entry| lock(entry).clone()).collect()
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn clear(&self) {
        lock(&self.kept).clear();
        self.count.store(0, Ordering::Relaxed);
    }
}

fn pairs(headers: &HeaderMap) -> Vec<(String, String)> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    headers
        .iter()
        .map(|(name, value)| (name.to_string(), text(value)))
        .collect()
}

/// A request's body that writes what it sees into the log.
pub(super) struct Recording {
    inner: Incoming,
    entry: Arc<Mutex<Received>>,
    hash: Sha256,
}

impl Recording {
    pub(super) fn new(inner: Incoming, entry: Arc<Mutex<Received>>) -> Self {
        let mut body = Self {
            inner,
            entry,
            hash: Sha256::new(),
        };
        if body.inner.is_end_stream() {
            body.finish();
        }
        body
    }

    /// What was read so far.
    pub(super) fn seen(&self) -> BodySeen {
        lock(&self.entry).body.clone()
    }

    fn finish(&mut self) {
        let mut entry = lock(&self.entry);
        if entry.body.sha256.is_none() {
            entry.body.sha256 = Some(hex(&self.hash.finalize_reset()));
        }
    }
}

impl Body for Recording {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.hash.update(data);
                    lock(&self.entry).body.bytes += data.len() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    lock(&self.entry).body.trailers = pairs(trailers);
                }
                if self.inner.is_end_stream() {
                    self.finish();
                }
            }
            None => self.finish(),
            Some(Err(_)) => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

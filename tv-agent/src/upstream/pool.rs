//! Connections to one target that are open and known: which one the next request takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};

use super::Protocol;
use crate::body::Body;
use crate::limits;

/// Connections to one target.
#[derive(Default)]
pub(super) struct Lane {
    known: std::sync::Mutex<Known>,
    /// Held while a first connection is opened, so that a burst of requests opens one, not hundreds.
    pub(super) opening: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Known {
    /// What the origin chose last, and when.
    protocol: Option<(Protocol, Instant)>,
    http2: Vec<Http2>,
    http1: Vec<(http1::SendRequest<Body>, Instant)>,
}

#[derive(Clone)]
pub(super) struct Http2 {
    pub(super) sender: http2::SendRequest<Body>,
    pub(super) running: Arc<AtomicUsize>,
    used: Instant,
}

impl Http2 {
    pub(super) fn new(sender: http2::SendRequest<Body>) -> Self {
        Self {
            sender,
            running: Arc::default(),
            used: Instant::now(),
        }
    }

    /// Open, and either at work or used lately.
    fn worth_keeping(&self) -> bool {
        let idle = self.running.load(Ordering::Relaxed) == 0 && self.used.elapsed() >= limits::UPSTREAM_IDLE;
        !self.sender.is_closed() && !idle
    }
}

/// A connection that a request may be sent on.
pub(super) enum Connection {
    Http1(http1::SendRequest<Body>),
    Http2(Http2),
}

/// Streams on one HTTP/2 connection before another is opened; what servers commonly allow.
const STREAMS: usize = 100;
/// HTTP/2 connections per target; beyond, streams queue.
const HTTP2_CONNECTIONS: usize = 8;
/// How long the origin's choice of protocol is believed.
pub(super) const PROTOCOL_KEPT: Duration = Duration::from_secs(600);

impl Lane {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn known_protocol(&self) -> Option<Protocol> {
        let known = self.known();
        known
            .protocol
            .filter(|(_, since)| since.elapsed() < PROTOCOL_KEPT)
            .map(|(protocol, _)| protocol)
    }

    pub(super) fn learn(&self, protocol: Protocol) {
        self.known().protocol = Some((protocol, Instant::now()));
    }

    pub(super) fn keep(&self, connection: Connection) -> Protocol {
        let mut known = self.known();
        let now = Instant::now();
        let protocol = match connection {
            Connection::Http2(http2) => {
                known.http2.retain(|c| !c.sender.is_closed());
                known.http2.push(http2);
                Protocol::Http2
            }
            Connection::Http1(sender) => {
                if known.http1.len() < limits::UPSTREAM_IDLE_PER_KEY {
                    known.http1.push((sender, now));
                }
                Protocol::Http1
            }
        };
        known.protocol = Some((protocol, now));
        protocol
    }

    pub(super) fn checkout(&self) -> Option<Connection> {
        let mut known = self.known();
        known.http2.retain(|c| !c.sender.is_closed());
        let full = known.http2.len() >= HTTP2_CONNECTIONS;
        let free = known
            .http2
            .iter_mut()
            .min_by_key(|c| c.running.load(Ordering::Relaxed));
        if let Some(connection) = free {
            if connection.running.load(Ordering::Relaxed) >= STREAMS && !full {
                return None;
            }
            connection.used = Instant::now();
            return Some(Connection::Http2(connection.clone()));
        }
        while let Some((sender, since)) = known.http1.pop() {
            if since.elapsed() < limits::UPSTREAM_IDLE && sender.is_ready() {
                return Some(Connection::Http1(sender));
            }
        }
        None
    }

    pub(super) fn sweep(&self) {
        let mut known = self.known();
        known
            .http1
            .retain(|(sender, since)| since.elapsed() < limits::UPSTREAM_IDLE && !sender.is_closed());
        known.http2.retain(Http2::worth_keeping);
    }
}

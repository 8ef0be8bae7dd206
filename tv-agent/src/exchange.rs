//! The life of a request: who asks for what, with which token, and what comes back.
//!
//! `serve` speaks HTTP with the workload; `Session::answer` is the script of one request.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::body::Body;
use crate::class::{Class, Refusal};
use crate::flows::{Flow, Flows};
use crate::inject;
use crate::limits;
use crate::metrics::Metrics;
use crate::phase::{self, Phase};
use crate::policy::{Found, OnMissingToken, Route};
use crate::respond::{self, Asked};
use crate::snapshot::{Current, Snapshot, Source};
use crate::token::{Decision, Tokens};
use crate::trace_context::TraceContext;
use crate::traces::Traces;
use crate::upstream::{self, Protocol, Target};
use crate::workload::Workload;

mod form;
mod obtain;
mod record;
mod sign;
mod swap;
mod upgrade;
mod verify;

use form::{check_form, is_grpc, upgrade_of};
use obtain::Brought;

/// What all requests of all connections share.
#[derive(Clone)]
pub struct Exchange {
    pub current: Current,
    pub tokens: Tokens,
    pub metrics: Metrics,
    pub flows: Flows,
    pub traces: Option<Traces>,
}

/// One terminated connection.
pub struct Session {
    pub exchange: Exchange,
    pub workload: Workload,
    pub target: Target,
    /// Who connected, and where to: what the record of each request begins with.
    pub flow: Flow,
    /// The protocol that the connection was switched to, running.
    pub upgraded: Mutex<JoinSet<()>>,
}

/// Why serving a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the workload broke the HTTP protocol or the connection")]
    Http(#[source] hyper::Error),
}

impl Error {
    /// For metrics: what a workload did wrong before a request could be answered.
    pub fn reason(&self) -> &'static str {
        let Self::Http(error) = self;
        if error.is_parse_too_large() {
            Class::HeaderTooLarge.label()
        } else if error.is_parse() {
            Class::BadRequest.label()
        } else if error.is_timeout() {
            "header_timeout"
        } else {
            "broken"
        }
    }
}

/// Speaks `protocol` on `io` until the workload is done, or the agent's phase says so.
pub async fn serve<I>(
    io: I,
    protocol: Protocol,
    session: Session,
    mut phase: watch::Receiver<Phase>,
) -> Result<(), Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = Arc::new(session);
    let upgraded = session.clone();
    let now = phase.clone();
    let service = service_fn(move |request| {
        let (session, now) = (session.clone(), now.clone());
        async move {
            let mut response = session.respond(request).await;
            // The client's next request goes to the successor: told in an answer, it cannot cross on the way.
            if protocol == Protocol::Http1
                && *now.borrow() >= Phase::HandedOver
                && response.status() != StatusCode::SWITCHING_PROTOCOLS
            {
                let close = header::HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let last = match protocol {
        Protocol::Http1 => Phase::Ending,
        Protocol::Http2 => Phase::HandedOver,
    };
    let stopped = async move { phase::reached(&mut phase, last).await };
    match protocol {
        Protocol::Http1 => {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::HEADER_TIME)
                .max_buf_size(limits::HEADER_BYTES)
                .max_headers(limits::HEADER_FIELDS)
                .preserve_header_case(true)
                .auto_date_header(false)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stopped => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            }
            .map_err(Error::Http)?;
            // hyper is done with a connection that was switched; for us it goes on, and counts as open.
            let mut upgraded = std::mem::take(&mut *upgraded.upgraded());
            while upgraded.join_next().await.is_some() {}
            Ok(())
        }
        Protocol::Http2 => {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits::H2_STREAMS)
                // Twice what is let through, so that most of what is too large gets our answer and is counted.
                .max_header_list_size(2 * limits::HEADER_BYTES as u32)
                .initial_stream_window_size(limits::H2_WINDOW)
                .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
                .auto_date_header(false)
                .serve_connection(TokioIo::new(io), service);
            tokio::pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(Error::Http),
                () = stopped => connection.as_mut().graceful_shutdown(),
            }
            connection.await.map_err(Error::Http)
        }
    }
}

/// What became of a request, for the record of it.
struct Outcome {
    response: Response<Body>,
    /// `forwarded`, or the label of the refusal's class.
    result: &'static str,
    /// Where the token came from, when there was one.
    token: Option<&'static str>,
    refused: Option<Refusal>,
}

/// What was learnt of the caller on the way, whatever became of the request.
#[derive(Default)]
struct Seen {
    /// Who the caller is, when its token was verified.
    identity: Option<String>,
    /// The beginning of the hash of its token.
    subject: Option<String>,
    /// The trace that its request is a part of.
    trace: Option<TraceContext>,
    /// The vault's connection that was asked for, when the pod chose another than the route's.
    connection: Option<Arc<str>>,
}

impl Session {
    /// Answers one request and records it, once.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        let snapshot = self.exchange.current.load();
        let (head, body) = request.into_parts();
        let (request, mut body) = (Request::from_parts(head, ()), Some(body));
        let method = request.method().clone();
        let route = match snapshot.routes.find(&self.target.host, &self.workload) {
            Found::Route(route) => Some(route),
            // New routes, for which too little was known of the workload when it connected.
            Found::Unsettled(_) | Found::Nothing => None,
        };
        let known = route.map(|route| &route.credentials);
        let path = inject::loggable_path(request.uri(), request.headers(), known);
        let asked = Asked {
            connection: route.and_then(|r| r.wanted.connection.as_deref()),
            grpc: is_grpc(&request),
            git: inject::speaks_git(&self.target.host),
            head: method == Method::HEAD,
        };
        let expects = request.headers().contains_key(header::EXPECT);
        let mut seen = Seen {
            trace: TraceContext::of(request.headers()),
            ..Seen::default()
        };
        let answered = self.answer(&snapshot, route, request, &mut body, &mut seen).await;
        let outcome = match answered {
            Ok(outcome) => outcome,
            Err(refusal) => {
                // A client that waits for 100 Continue must not be told to send what nobody wants.
                if let Some(body) = body.filter(|_| !expects) {
                    Box::pin(discard(body)).await;
                }
                let asked = Asked {
                    connection: seen.connection.as_deref().or(asked.connection),
                    ..asked
                };
                Outcome {
                    response: respond::refuse(&refusal, asked),
                    result: refusal.class.label(),
                    token: None,
                    refused: Some(refusal),
                }
            }
        };
        self.record(
            route.map(|route| &**route),
            &method,
            &path,
            &outcome,
            &seen,
            began.elapsed(),
        );
        outcome.response
    }

    /// The script of one request: verify, obtain, inject, in this order.
    async fn answer(
        &self,
        snapshot: &Snapshot,
        route: Option<&Arc<Route>>,
        request: Request<()>,
        body: &mut Option<Incoming>,
        seen: &mut Seen,
    ) -> Result<Outcome, Refusal> {
        if self.exchange.flows.refuses() {
            let mut refusal = Refusal::new(
                Class::AuditUnavailable,
                "the audit trail cannot be written; try again later",
            );
            refusal.retry_after = Some(limits::AUDIT_RETRY);
            return Err(refusal);
        }
        check_form(&request, &self.target)?;
        let route = route.ok_or_else(|| {
            // The configuration changed under an open connection.
            Refusal::new(
                Class::Misdirected,
                format!("no route names {} any more; connect again", self.target.host),
            )
        })?;
        let source = snapshot.source(&route.vault)?;
        let (mut head, ()) = request.into_parts();
        let presented = obtain::presented(&head, &self.target.host, route, source)?;
        seen.subject = presented
            .as_ref()
            .map(|presented| presented.subject.fingerprint());
        let foreign = match &presented {
            Some(presented) => inject::passes(presented, route)?,
            None => false,
        };
        let verified =
            verify::verify(snapshot, route, presented.as_ref(), foreign, &mut head.headers).await?;
        seen.identity = verified.identity().map(str::to_owned);
        let mut brought = Brought::take(&mut head, presented, route, source, verified)?;
        brought.choose(route, &self.workload)?;
        seen.connection = brought.connection(route).cloned();
        // The provider's certificate is checked before anything is asked of the vault.
        snapshot
            .upstreams
            .prepare(&self.target, None)
            .await
            .map_err(|error| refusal_of(&error))?;
        if foreign {
            return self.unchanged(snapshot, route, &brought, head, body, None).await;
        }
        brought.take_body(&mut head, source, body).await?;
        if brought.lacks_credentials(source) {
            if route.on_missing_token == OnMissingToken::Reject {
                return Err(Refusal::new(Class::MissingToken, "Authorization header required"));
            }
            return self.unchanged(snapshot, route, &brought, head, body, None).await;
        }
        match source {
            Source::Signer(signer) => {
                self.sign_and_forward(snapshot, route, signer, &brought, head, body)
                    .await
            }
            Source::Vault(vault) if brought.decide(vault) == Decision::Keep => {
                brought.is_verified(vault)?;
                let whose = Some("callers");
                self.unchanged(snapshot, route, &brought, head, body, whose).await
            }
            Source::Vault(vault) => self.swap(snapshot, route, vault, &brought, head, body).await,
        }
    }

    async fn forward(
        &self,
        snapshot: &Snapshot,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, Refusal> {
        if let Some(protocol) = upgrade_of(&request) {
            return Box::pin(self.upgrade(snapshot, request, protocol)).await;
        }
        respond::hop_by_hop(request.headers_mut());
        // hyper says 100 Continue to the workload when the body is first asked for, which is after the swap.
        request.headers_mut().remove(header::EXPECT);
        let sent = snapshot.upstreams.send(&self.target, request).await;
        let mut response = sent.map_err(|error| refusal_of(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let text = format!(
                "{} switched the protocol without being asked to",
                self.target.host
            );
            return Err(Refusal::new(Class::UpstreamProtocol, text));
        }
        respond::strip(response.headers_mut());
        Ok(response)
    }
}

/// Takes a little of a body that is not wanted, before the refusal.
///
/// An answer that overtakes the body resets the stream or the connection, and some clients lose the answer
/// then (curl 7.88 over HTTP/2: "Empty reply").
async fn discard(mut body: Incoming) {
    let some = async {
        let mut left = limits::DISCARDED_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, bytes::Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // What did not come in time is not waited for.
    let _ = tokio::time::timeout(limits::DISCARD_TIME, some).await;
}

fn refusal_of(error: &upstream::Error) -> Refusal {
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(error) {
        text = format!("{text}: {source}");
    }
    Refusal::new(error.class(), text)
}

#[cfg(test)]
mod tests;

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
use crate::inject::{self, Presented, purge};
use crate::limits;
use crate::metrics::Metrics;
use crate::policy::{OnMissingToken, Route};
use crate::respond::{self, Asked};
use crate::snapshot::{Current, Snapshot};
use crate::token::{Grant, Obtained, Tokens};
use crate::upstream::{self, Protocol, Target};
use crate::workload::Workload;

mod form;
mod record;
mod upgrade;

use form::{check_form, is_grpc, upgrade_of};

/// What all requests of all connections share.
#[derive(Clone)]
pub struct Exchange {
    pub current: Current,
    pub tokens: Tokens,
    pub metrics: Metrics,
    pub flows: Flows,
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

/// Speaks `protocol` on `io` until the workload is done, or `stop` says so.
pub async fn serve<I>(
    io: I,
    protocol: Protocol,
    session: Session,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Error>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let session = Arc::new(session);
    let upgraded = session.clone();
    let service = service_fn(move |request| {
        let session = session.clone();
        async move { Ok::<_, std::convert::Infallible>(session.respond(request).await) }
    });
    let stopped = async move {
        // An error means that the sender is gone, which is a stop too.
        let _ = stop.wait_for(|stop| *stop).await;
    };
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

impl Session {
    /// Answers one request and records it, once.
    async fn respond(&self, request: Request<Incoming>) -> Response<Body> {
        let began = Instant::now();
        let snapshot = self.exchange.current.load();
        let (head, body) = request.into_parts();
        let (request, mut body) = (Request::from_parts(head, ()), Some(body));
        let method = request.method().clone();
        let route = snapshot.routes.find(&self.target.host, &self.workload);
        let known = route.map(|route| &route.credentials);
        let path = inject::loggable_path(request.uri(), request.headers(), known);
        let asked = Asked {
            connection: route.map(|r| &*r.connection),
            grpc: is_grpc(&request),
            git: inject::speaks_git(&self.target.host),
            head: method == Method::HEAD,
        };
        let expects = request.headers().contains_key(header::EXPECT);
        let outcome = match self.answer(&snapshot, route, request, &mut body).await {
            Ok(outcome) => outcome,
            Err(refusal) => {
                // A client that waits for 100 Continue must not be told to send what nobody wants.
                if let Some(body) = body.filter(|_| !expects) {
                    Box::pin(discard(body)).await;
                }
                Outcome {
                    response: respond::refuse(&refusal, asked),
                    result: refusal.class.label(),
                    token: None,
                    refused: Some(refusal),
                }
            }
        };
        let name = route.map_or_else(|| Arc::from("none"), |r| r.name.clone());
        self.record(&name, &method, &path, &outcome, began.elapsed());
        outcome.response
    }

    /// The script of one request: policy, credentials, exchange, injection, provider.
    async fn answer(
        &self,
        snapshot: &Snapshot,
        route: Option<&Arc<Route>>,
        request: Request<()>,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        check_form(&request, &self.target)?;
        let route = route.ok_or_else(|| {
            // The configuration changed under an open connection.
            Refusal::new(
                Class::Misdirected,
                format!("no route names {} any more; connect again", self.target.host),
            )
        })?;
        let presented = inject::presented(
            request.headers(),
            request.uri(),
            &self.target.host,
            &route.credentials,
        )
        .map_err(inject::Error::refusal)?;
        let passes = presented
            .as_ref()
            .map_or(Ok(false), |presented| inject::passes(presented, route))?;
        // The provider's certificate is checked before anything is asked of the vault.
        snapshot
            .upstreams
            .prepare(&self.target)
            .await
            .map_err(|error| refusal_of(&error))?;
        match presented {
            None if route.on_missing_token == OnMissingToken::Passthrough => {
                self.pass(snapshot, route, request, body).await
            }
            None => Err(Refusal::new(Class::MissingToken, "Authorization header required")),
            Some(_) if passes => self.pass(snapshot, route, request, body).await,
            Some(presented) => self.swap(snapshot, route, presented, request, body).await,
        }
    }

    /// Sends the request as it came: to the same host, whose certificate is verified.
    async fn pass(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        mut request: Request<()>,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        inject::mark_sensitive(request.headers_mut(), &route.credentials);
        let request = request.map(|()| body.take().map_or_else(Body::empty, Body::passing));
        let response = self.forward(snapshot, request).await?;
        Ok(Outcome {
            response,
            result: "passed_through",
            token: None,
            refused: None,
        })
    }

    /// Replaces the subject token and sends the request; a 401 from the provider is tried once more with a
    /// fresh token, where there is no body that is gone.
    async fn swap(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        presented: Presented,
        request: Request<()>,
        body: &mut Option<Incoming>,
    ) -> Result<Outcome, Refusal> {
        let vault = snapshot.vault(&route.vault)?;
        let grant = Grant {
            vault,
            connection: &route.connection,
            login_hint: route.login_hint.as_deref(),
            subject: &presented.subject,
            route: &route.name,
        };
        let tokens = &self.exchange.tokens;
        let obtained = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let (head, ()) = request.into_parts();
        let body = body.take().map_or_else(Body::empty, Body::passing);
        let replay = http_body::Body::is_end_stream(&body).then(|| head.clone());
        let response = self
            .inject_and_forward(snapshot, route, head, body, &presented, &obtained)
            .await?;
        let outcome = |response, obtained: &Obtained| Outcome {
            response,
            result: "forwarded",
            token: Some(obtained.source.label()),
            refused: None,
        };
        if !purge::by_status(&route.credentials.purge, response.status()) || !tokens.reject(&obtained) {
            return Ok(outcome(response, &obtained));
        }
        let Some(head) = replay else {
            return Ok(outcome(response, &obtained));
        };
        let fresh = tokens.obtain(grant).await.map_err(|error| error.refusal())?;
        let response = self
            .inject_and_forward(snapshot, route, head, Body::empty(), &presented, &fresh)
            .await?;
        Ok(outcome(response, &fresh))
    }

    async fn inject_and_forward(
        &self,
        snapshot: &Snapshot,
        route: &Route,
        mut head: http::request::Parts,
        body: Body,
        presented: &Presented,
        obtained: &Obtained,
    ) -> Result<Response<Body>, Refusal> {
        let credentials = &route.credentials;
        inject::replace(&mut head, presented, &obtained.token, credentials)
            .map_err(inject::Error::refusal)?;
        let mut response = self.forward(snapshot, Request::from_parts(head, body)).await?;
        let leaks = inject::scrub(response.headers_mut(), &obtained.token);
        if leaks > 0 {
            tracing::warn!(host = %self.target.host, leaks, "the provider repeated its token in response headers; they were dropped");
        }
        let Some(rule) = purge::body_rule(&credentials.purge, response.headers()).cloned() else {
            return Ok(response);
        };
        // The answer is on its way by then: the next request gets a fresh token.
        let (tokens, obtained) = (self.exchange.tokens.clone(), obtained.clone());
        Ok(response.map(|body| {
            body.watched(limits::PURGE_BODY_BYTES, move |answer| {
                if purge::by_body(&rule, answer) {
                    tokens.reject(&obtained);
                }
            })
        }))
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

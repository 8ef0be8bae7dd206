//! A provider's HTTPS host: GitHub-like, Google-like or plain, with a log of everything it received.
//!
//! Every origin serves the paths of [`generic`] (echo, bytes, upload, status, WebSocket, gRPC…); a
//! [`Site`] adds the provider's own. Anything else is unexpected.

mod generic;
pub mod git;
mod grpc;
mod provider;
mod record;
mod websocket;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::{Body as _, Incoming};
use serde_json::Value;

use super::pki::Identity;
use super::server::{self, Body, Conn, Connections, Handler, Server, full};
use super::{UNEXPECTED_STATUS, Unexpected, lock};
pub use generic::{echo_trailer, pattern_sha256};
pub use record::{BodySeen, Received};
use record::{Log, Recording};

/// Which provider an origin plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    Plain,
    GitHub,
    Google,
}

/// What an origin is made of.
pub struct Setup<'a> {
    pub site: Site,
    pub addrs: &'a [SocketAddr],
    pub identity: &'a Identity,
    /// ALPN protocols in order of preference: `h2`, `http/1.1`, both or none.
    pub alpn: &'a [&'a str],
}

/// A running origin; dropped, it is gone, and complains about unexpected calls.
pub struct Origin {
    server: Server,
    state: Arc<State>,
}

struct State {
    site: Site,
    /// Valid provider token → the account it belongs to.
    tokens: Mutex<HashMap<String, String>>,
    /// What must never arrive here.
    forbidden: Mutex<Vec<String>>,
    repository: Mutex<Option<git::Repository>>,
    log: Log,
    connections: Arc<Connections>,
    unexpected: Unexpected,
}

impl Origin {
    pub fn start(setup: &Setup<'_>) -> io::Result<Self> {
        let state = Arc::new(State {
            site: setup.site,
            tokens: Mutex::default(),
            forbidden: Mutex::default(),
            repository: Mutex::default(),
            log: Log::default(),
            connections: Arc::default(),
            unexpected: Unexpected::default(),
        });
        let tls = server::tls(setup.identity, setup.alpn).map_err(io::Error::other)?;
        let shared = state.clone();
        let handler: Handler = Arc::new(move |conn, request| Box::pin(answer(shared.clone(), conn, request)));
        let name = match setup.site {
            Site::Plain => "fake-origin",
            Site::GitHub => "fake-github",
            Site::Google => "fake-google",
        };
        let server = Server::start(name, setup.addrs, tls, &state.connections, &handler)?;
        Ok(Self { server, state })
    }

    pub fn addrs(&self) -> &[SocketAddr] {
        self.server.addrs()
    }

    /// Makes `token` a valid one of `account`.
    pub fn accept(&self, token: &str, account: &str) {
        lock(&self.state.tokens).insert(token.to_owned(), account.to_owned());
    }

    /// From now on `token` is refused as the provider refuses it.
    pub fn revoke(&self, token: &str) {
        lock(&self.state.tokens).remove(token);
    }

    /// A request whose path or headers hold `secret` (in clear or inside Basic) is unexpected from now on.
    pub fn forbid(&self, secret: &str) {
        lock(&self.state.forbidden).push(secret.to_owned());
    }

    /// Serves `repository` below its own path (GitHub sites).
    pub fn serve_repository(&self, repository: git::Repository) {
        *lock(&self.state.repository) = Some(repository);
    }

    /// The requests so far in the order of arrival; the newest [`record::KEPT`] are kept.
    pub fn requests(&self) -> Vec<Received> {
        self.state.log.all()
    }

    /// How many requests came so far.
    pub fn count(&self) -> u64 {
        self.state.log.count()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        self.state.log.clear();
    }

    pub fn connections(&self) -> &Connections {
        &self.state.connections
    }

    pub fn unexpected(&self) -> &Unexpected {
        &self.state.unexpected
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let who = format!("the {:?} origin", self.state.site);
        self.state.unexpected.assert_none(&who);
    }
}

async fn answer(state: Arc<State>, conn: Conn, request: Request<Incoming>) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let entry = state.log.add(&conn, &request);
    let leaked = {
        let received = lock(&entry);
        let forbidden = lock(&state.forbidden);
        forbidden.iter().any(|secret| received.holds(secret))
    };
    let request = request.map(|body| Recording::new(body, entry));
    let mut response = if leaked {
        let call = format!(
            "{} {} holds a secret that must not arrive",
            request.method(),
            request.uri()
        );
        generic::drain_briefly(request.into_body()).await;
        unexpected(&state, call)
    } else {
        route(&state, request).await
    };
    if head {
        // HTTP/2 would send the body of an answer to HEAD (RFC 9110 section 9.3.2 forbids it).
        if let Some(length) = response.body().size_hint().exact() {
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, length.into());
        }
        *response.body_mut() = full("");
    }
    response
}

async fn route(state: &Arc<State>, request: Request<Recording>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/tv.Echo/") {
        return grpc::answer(state, request).await;
    }
    let served = match state.site {
        Site::Plain => None,
        Site::GitHub | Site::Google => provider::find(state.site, request.method(), &path),
    };
    if let Some(endpoint) = served {
        return provider::answer(state, endpoint, request).await;
    }
    match generic::Endpoint::find(request.method(), &path) {
        Some(endpoint) => generic::answer(endpoint, request).await,
        None => {
            let call = format!("{} {path}", request.method());
            generic::drain_briefly(request.into_body()).await;
            unexpected(state, call)
        }
    }
}

fn unexpected(state: &State, call: String) -> Response<Body> {
    let response = reply(UNEXPECTED_STATUS, "text/plain", format!("unexpected: {call}\n"));
    state.unexpected.remember(call);
    response
}

fn reply(status: u16, content_type: &'static str, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status from 100 to 999");
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    response
}

fn json(status: u16, body: &Value) -> Response<Body> {
    reply(status, "application/json; charset=utf-8", body.to_string())
}

//! Authorization servers other than Token Vault: one token endpoint, in the dialects of `dialect.rs`, which refuse
//! what the real ones refuse, and its discovery document.

pub mod dialect;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::pki::Identity;
use super::server::{self, Body, Conn, Connections, Handler, Server, full};
use super::{UNEXPECTED_STATUS, Unexpected, lock};

/// Largest request that is read, bytes.
const REQUEST_BYTES: usize = 64 * 1024;

/// One request of a token.
#[derive(Clone, Debug)]
pub struct Call {
    /// In the order in which they came.
    pub params: Vec<(String, String)>,
    /// Client id and secret of the Authorization header, as they stand there.
    pub basic: Option<(String, String)>,
}

impl Call {
    /// The only value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.params.iter().filter(|(found, _)| found == name);
        let (_, first) = values.next()?;
        values.next().is_none().then_some(first)
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let named = self.params.iter().filter(move |(found, _)| found == name);
        named.map(|(_, value)| value.as_str())
    }

    /// Client id and secret, from either place.
    pub fn client(&self) -> (&str, &str) {
        match &self.basic {
            Some((id, secret)) => (id, secret),
            None => (
                self.get("client_id").unwrap_or_default(),
                self.get("client_secret").unwrap_or_default(),
            ),
        }
    }
}

/// Status and body; or what no client of this server ever sends.
pub type Verdict = Result<(u16, Value), String>;
type Judge = Box<dyn Fn(&Call) -> Verdict + Send + Sync>;

/// A server with one token endpoint, `/token`; listens until dropped.
pub struct TokenServer {
    server: Server,
    shared: Arc<Shared>,
}

struct Shared {
    judge: Judge,
    calls: Mutex<Vec<Call>>,
    connections: Arc<Connections>,
    unexpected: Unexpected,
}

impl TokenServer {
    pub fn start(
        addrs: &[SocketAddr],
        identity: &Identity,
        judge: impl Fn(&Call) -> Verdict + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            judge: Box::new(judge),
            calls: Mutex::default(),
            connections: Arc::default(),
            unexpected: Unexpected::default(),
        });
        let tls = server::tls(identity, &["h2", "http/1.1"]).map_err(io::Error::other)?;
        let own = shared.clone();
        let handler: Handler =
            Arc::new(move |conn: Conn, request| Box::pin(answer(own.clone(), conn, request)));
        let server = Server::start("fake-oauth", addrs, tls, &shared.connections, &handler)?;
        Ok(Self { server, shared })
    }

    pub fn issuer(&self) -> String {
        format!("https://{}", self.server.addrs()[0])
    }

    pub fn endpoint(&self) -> String {
        format!("{}/token", self.issuer())
    }

    pub fn calls(&self) -> Vec<Call> {
        lock(&self.shared.calls).clone()
    }

    pub fn count(&self) -> usize {
        lock(&self.shared.calls).len()
    }
}

impl Drop for TokenServer {
    fn drop(&mut self) {
        self.shared
            .unexpected
            .assert_none("the authorization server's stand-in");
    }
}

async fn answer(shared: Arc<Shared>, conn: Conn, request: Request<Incoming>) -> Response<Body> {
    let what = format!("{} {}", request.method(), request.uri().path());
    if request.uri().path() == "/.well-known/openid-configuration" {
        let issuer = format!("https://{}", conn.local);
        return respond(
            200,
            &json!({ "issuer": issuer, "token_endpoint": format!("{issuer}/token") }),
        );
    }
    let verdict = match read(request).await {
        Ok(call) => {
            lock(&shared.calls).push(call.clone());
            (shared.judge)(&call)
        }
        Err(problem) => Err(problem),
    };
    match verdict {
        Ok((status, body)) => respond(status, &body),
        Err(problem) => {
            shared.unexpected.remember(format!("{what}: {problem}"));
            respond(UNEXPECTED_STATUS, &json!({ "unexpected": problem }))
        }
    }
}

fn respond(status: u16, body: &Value) -> Response<Body> {
    let response = Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::CACHE_CONTROL, "no-store");
    response.body(full(body.to_string())).expect("a response")
}

async fn read(request: Request<Incoming>) -> Result<Call, String> {
    if request.method() != Method::POST || request.uri().path() != "/token" || request.uri().query().is_some()
    {
        return Err("no such endpoint".to_owned());
    }
    let headers = request.headers();
    let kind = headers
        .get(header::CONTENT_TYPE)
        .map(header::HeaderValue::as_bytes);
    if kind != Some(b"application/x-www-form-urlencoded") {
        return Err(format!("content-type {kind:?}"));
    }
    let basic = match headers.get(header::AUTHORIZATION) {
        None => None,
        Some(value) => Some(basic(value.as_bytes()).ok_or("an Authorization that is not Basic")?),
    };
    let body = Limited::new(request.into_body(), REQUEST_BYTES).collect().await;
    let body = body.map_err(|e| e.to_string())?.to_bytes();
    let params: Vec<(String, String)> = form_urlencoded::parse(&body).into_owned().collect();
    for (index, (name, _)) in params.iter().enumerate() {
        let repeated = params[..index].iter().any(|(other, _)| other == name);
        if repeated && !["audience", "resource"].contains(&name.as_str()) {
            return Err(format!("parameter {name} twice"));
        }
    }
    if basic.is_some() && params.iter().any(|(name, _)| name.starts_with("client_")) {
        return Err("two ways of client authentication".to_owned());
    }
    Ok(Call { params, basic })
}

/// RFC 6749 section 2.3.1: id and secret are form-encoded before they go into Basic.
fn basic(value: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(value).ok()?.strip_prefix("Basic ")?;
    let pair = String::from_utf8(BASE64_STANDARD.decode(text).ok()?).ok()?;
    let (id, secret) = pair.split_once(':')?;
    let decoded = |text: &str| {
        let text = format!("x={text}");
        form_urlencoded::parse(text.as_bytes())
            .next()
            .map(|(_, v)| v.into_owned())
    };
    Some((decoded(id)?, decoded(secret)?))
}

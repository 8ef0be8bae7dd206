//! An Auth0 tenant as Token Vault callers see it: `POST /oauth/token` with the federated-connection grant.
//!
//! Wire format and error codes: auth0.com/docs, "Get a token from Token Vault", and what public clients
//! observe.

mod assertion;
mod form;
mod reply;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Request, Response, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::pki::Identity;
use super::server::{self, Body, Conn, Connections, Handler, Server};
use super::{UNEXPECTED_STATUS, Unexpected, lock};
use form::Form;
pub use form::{ClientAuth, Encoding};
use reply::{endless, huge, json_response, refuse, text};

/// The grant type of every Token Vault exchange.
pub const GRANT: &str = "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token";
/// `subject_token_type` of an Auth0 access token (RFC 8693 section 3).
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// `subject_token_type` of an Auth0 refresh token.
pub const REFRESH_TOKEN: &str = "urn:ietf:params:oauth:token-type:refresh_token";
/// `subject_token_type` of a privileged worker's request.
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// `requested_token_type` of a privileged worker.
pub const VAULT_ACCESS_TOKEN: &str = "http://auth0.com/oauth/token-type/token-vault-access-token";
/// `requested_token_type` and `issued_token_type`.
pub const FEDERATED_ACCESS_TOKEN: &str =
    "http://auth0.com/oauth/token-type/federated-connection-access-token";

/// A tenant with one client, listening until dropped.
pub struct Auth0 {
    server: Server,
    tenant: Arc<Tenant>,
}

/// How the tenant answers valid and invalid calls alike, until told otherwise.
#[derive(Clone, Debug, Default)]
pub enum Mode {
    /// By what it knows.
    #[default]
    Normal,
    /// 429 `too_many_requests`, with `Retry-After` seconds where given.
    RateLimited { retry_after: Option<u64> },
    /// The status, `error` and `error_description` given.
    Refuse(u16, &'static str, &'static str),
    /// By what it knows, this often in a second; 429 beyond, with the headers of a limited tenant.
    PerSecond(usize),
    /// 500 with a text body.
    ServerError,
    /// No answer at all.
    Hang,
    /// By what it knows, this much later.
    Slow(Duration),
    /// 200 with HTML.
    NotJson,
    /// 200 with JSON that lacks `access_token`.
    NoAccessToken,
    /// By what it knows, but with this `expires_in`; `None` leaves it out.
    ExpiresIn(Option<Value>),
    /// 200 with a body of this many bytes.
    Huge(usize),
    /// 200 with a body that never ends.
    Endless,
}

/// One call of the token endpoint as it came in.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub subject_token: String,
    pub connection: String,
    pub login_hint: Option<String>,
    pub client_auth: ClientAuth,
    pub encoding: Encoding,
    /// Every parameter but the client secret.
    pub params: BTreeMap<String, String>,
    /// `None` when there was no answer by intent.
    pub status: Option<u16>,
}

#[derive(Clone)]
struct Grant {
    token: String,
    /// Takes the token's place after one more exchange.
    next: Option<String>,
    expires_in: u64,
}

impl Grant {
    fn hand_out(&mut self) -> Self {
        let given = self.clone();
        if let Some(next) = self.next.take() {
            self.token = next;
        }
        given
    }
}

#[derive(Default)]
struct Book {
    /// Subject token → connection → what the vault holds.
    subjects: HashMap<String, HashMap<String, Grant>>,
    mode: Mode,
    exchanges: Vec<Exchange>,
    allowed: Vec<String>,
    /// A second since 1970, and the calls that came in it.
    window: (u64, usize),
    /// PEM of the client's public key.
    key: Option<String>,
    /// `jti` of every assertion so far.
    used: HashSet<String>,
}

struct Tenant {
    client_id: String,
    client_secret: String,
    book: Mutex<Book>,
    connections: Arc<Connections>,
    unexpected: Unexpected,
}

impl Auth0 {
    /// Starts a tenant whose only client has these credentials.
    pub fn start(
        addrs: &[SocketAddr],
        identity: &Identity,
        client_id: &str,
        client_secret: &str,
    ) -> io::Result<Self> {
        let tenant = Arc::new(Tenant {
            client_id: client_id.to_owned(),
            client_secret: client_secret.to_owned(),
            book: Mutex::default(),
            connections: Arc::default(),
            unexpected: Unexpected::default(),
        });
        let tls = server::tls(identity, &["h2", "http/1.1"]).map_err(io::Error::other)?;
        let shared = tenant.clone();
        let handler: Handler =
            Arc::new(move |conn: Conn, request| Box::pin(answer(shared.clone(), conn, request)));
        let server = Server::start("fake-auth0", addrs, tls, &tenant.connections, &handler)?;
        Ok(Self { server, tenant })
    }

    pub fn addrs(&self) -> &[SocketAddr] {
        self.server.addrs()
    }

    /// Makes `subject` a valid access token of a user without any connected account.
    pub fn know(&self, subject: &str) {
        lock(&self.tenant.book)
            .subjects
            .entry(subject.to_owned())
            .or_default();
    }

    /// Makes `subject` a valid access token of a user who connected `connection`, or changes (rotates) what
    /// the vault holds there. `expires_in` in seconds.
    pub fn connect(&self, subject: &str, connection: &str, token: &str, expires_in: u64) {
        let grant = Grant {
            token: token.to_owned(),
            next: None,
            expires_in,
        };
        let mut book = lock(&self.tenant.book);
        let user = book.subjects.entry(subject.to_owned()).or_default();
        user.insert(connection.to_owned(), grant);
    }

    /// The next exchange still gives what the vault holds; every later one gives `token`.
    ///
    /// # Panics
    /// When the account is not connected.
    pub fn rotate_next(&self, subject: &str, connection: &str, token: &str) {
        let mut book = lock(&self.tenant.book);
        let grant = book
            .subjects
            .get_mut(subject)
            .and_then(|user| user.get_mut(connection));
        grant.expect("the account is connected").next = Some(token.to_owned());
    }

    /// The user disconnects the account; the access token stays valid.
    pub fn disconnect(&self, subject: &str, connection: &str) {
        if let Some(user) = lock(&self.tenant.book).subjects.get_mut(subject) {
            user.remove(connection);
        }
    }

    /// From now on `subject` is unknown (expired, revoked).
    pub fn forget(&self, subject: &str) {
        lock(&self.tenant.book).subjects.remove(subject);
    }

    /// Lets the client prove itself by assertions, and work for absent users, with the key of this PEM.
    pub fn trust_key(&self, public_pem: &str) {
        lock(&self.tenant.book).key = Some(public_pem.to_owned());
    }

    /// Changes how every call is answered from now on.
    pub fn set_mode(&self, mode: Mode) {
        lock(&self.tenant.book).mode = mode;
    }

    /// Accepts one more parameter that a route may be configured to send.
    pub fn allow_param(&self, name: &str) {
        lock(&self.tenant.book).allowed.push(name.to_owned());
    }

    /// Every call so far that was an exchange, refused ones included.
    pub fn exchanges(&self) -> Vec<Exchange> {
        lock(&self.tenant.book).exchanges.clone()
    }

    /// Forgets the exchanges so far.
    pub fn clear(&self) {
        lock(&self.tenant.book).exchanges.clear();
    }

    /// How often `subject` was presented.
    pub fn count(&self, subject: &str) -> usize {
        let book = lock(&self.tenant.book);
        book.exchanges
            .iter()
            .filter(|e| e.subject_token == subject)
            .count()
    }

    pub fn connections(&self) -> &Connections {
        &self.tenant.connections
    }

    pub fn unexpected(&self) -> &Unexpected {
        &self.tenant.unexpected
    }
}

impl Drop for Auth0 {
    fn drop(&mut self) {
        self.tenant.unexpected.assert_none("the Auth0 stand-in");
    }
}

async fn answer(tenant: Arc<Tenant>, conn: Conn, request: Request<Incoming>) -> Response<Body> {
    // SDKs look here first.
    if request.uri().path() == "/.well-known/openid-configuration" {
        let origin = format!("https://{}", conn.local);
        return json_response(
            200,
            &json!({ "issuer": format!("{origin}/"), "token_endpoint": format!("{origin}/oauth/token") }),
        );
    }
    let call = format!("{} {}", request.method(), request.uri().path());
    let form = match Form::read(request).await {
        Ok(form) => form,
        Err(problem) => return unexpected(&tenant, format!("{call}: {problem}")),
    };
    let audience = format!("https://{}/", conn.local);
    if let Err(problem) = tenant.check(&form) {
        return unexpected(&tenant, format!("{call}: {problem}"));
    }
    let (mode, index) = tenant.record(&form);
    if let Mode::Slow(delay) = mode {
        tokio::time::sleep(delay).await;
    }
    let response = match mode {
        Mode::Hang => std::future::pending().await,
        Mode::PerSecond(limit) => match tenant.take_turn(limit) {
            Some(remaining) => {
                let mut response = tenant.exchange(&form, &audience, |_| {});
                limited(&mut response, limit, remaining);
                response
            }
            None => {
                let mut response = refuse(429, "too_many_requests", "Rate limit exceeded.");
                limited(&mut response, limit, 0);
                response
            }
        },
        Mode::Normal | Mode::Slow(_) => tenant.exchange(&form, &audience, |_| {}),
        Mode::ExpiresIn(value) => tenant.exchange(&form, &audience, |body| {
            match value {
                Some(value) => body.insert("expires_in".to_owned(), value),
                None => body.remove("expires_in"),
            };
        }),
        Mode::NoAccessToken => tenant.exchange(&form, &audience, |body| {
            body.remove("access_token");
        }),
        Mode::RateLimited { retry_after } => {
            let mut response = refuse(
                429,
                "too_many_requests",
                "Rate limit exceeded. Please retry after some time.",
            );
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
            }
            response
        }
        Mode::Refuse(status, error, description) => refuse(status, error, description),
        Mode::ServerError => text(500, "text/plain", "Internal Server Error"),
        Mode::NotJson => text(200, "text/html", "<html><body>Welcome</body></html>"),
        Mode::Huge(bytes) => huge(bytes),
        Mode::Endless => endless(),
    };
    // It may have been forgotten meanwhile.
    if let Some(exchange) = lock(&tenant.book).exchanges.get_mut(index) {
        exchange.status = Some(response.status().as_u16());
    }
    response
}

impl Tenant {
    /// What a caller that follows the documentation never does.
    fn check(&self, form: &Form) -> Result<(), String> {
        let expect = |name: &str, wanted: &str| match form.get(name) {
            Some(value) if value == wanted => Ok(()),
            other => Err(format!("{name} is {other:?}, expected {wanted:?}")),
        };
        expect("grant_type", GRANT)?;
        if form.get("subject_token_type") == Some(JWT) {
            expect("requested_token_type", VAULT_ACCESS_TOKEN)?;
        } else {
            if form.get("subject_token_type") != Some(REFRESH_TOKEN) {
                expect("subject_token_type", ACCESS_TOKEN)?;
            }
            expect("requested_token_type", FEDERATED_ACCESS_TOKEN)?;
        }
        for name in ["subject_token", "connection", "client_id"] {
            if form.get(name).is_none_or(str::is_empty) && (name != "client_id" || form.basic.is_none()) {
                return Err(format!("{name} is missing"));
            }
        }
        const KNOWN: [&str; 10] = [
            "client_assertion",
            "client_assertion_type",
            "grant_type",
            "subject_token",
            "subject_token_type",
            "requested_token_type",
            "connection",
            "client_id",
            "client_secret",
            "login_hint",
        ];
        let book = lock(&self.book);
        match form
            .params
            .keys()
            .find(|k| !KNOWN.contains(&k.as_str()) && !book.allowed.contains(k))
        {
            Some(name) => Err(format!("parameter {name} is not supported by Token Vault")),
            None => Ok(()),
        }
    }

    fn record(&self, form: &Form) -> (Mode, usize) {
        let mut book = lock(&self.book);
        let mut params = form.params.clone();
        params.remove("client_secret");
        book.exchanges.push(Exchange {
            subject_token: form.get("subject_token").unwrap_or_default().to_owned(),
            connection: form.get("connection").unwrap_or_default().to_owned(),
            login_hint: form.get("login_hint").map(str::to_owned),
            client_auth: form.client_auth(),
            encoding: form.encoding,
            params,
            status: None,
        });
        (book.mode.clone(), book.exchanges.len() - 1)
    }

    /// How many calls are left in this second after this one; `None`: it is one too many.
    fn take_turn(&self, limit: usize) -> Option<usize> {
        let (second, count) = &mut lock(&self.book).window;
        if *second != unix_seconds() {
            (*second, *count) = (unix_seconds(), 0);
        }
        *count += 1;
        limit.checked_sub(*count)
    }

    fn authenticates(&self, form: &Form, audience: &str) -> bool {
        if let Some(assertion) = form.get("client_assertion") {
            let book = &mut *lock(&self.book);
            return form.get("client_assertion_type") == Some(assertion::JWT_BEARER)
                && form.get("client_id").is_none_or(|id| id == self.client_id)
                && assertion::client(
                    book.key.as_deref(),
                    assertion,
                    &self.client_id,
                    audience,
                    &mut book.used,
                )
                .is_ok();
        }
        let (id, secret) = form.credentials();
        id == Some(&self.client_id) && secret == Some(&self.client_secret)
    }

    fn exchange(
        &self,
        form: &Form,
        audience: &str,
        change: impl FnOnce(&mut serde_json::Map<String, Value>),
    ) -> Response<Body> {
        if !self.authenticates(form, audience) {
            return refuse(401, "invalid_client", "Client authentication failed");
        }
        let mut subject = form.get("subject_token").unwrap_or_default().to_owned();
        if form.get("subject_token_type") == Some(JWT) {
            let book = &mut *lock(&self.book);
            subject = match assertion::worker(
                book.key.as_deref(),
                &subject,
                &self.client_id,
                audience,
                &mut book.used,
            ) {
                Ok(user) => user,
                Err(why) => return refuse(400, "invalid_request", &format!("subject_token: {why}")),
            };
        }
        let connection = form.get("connection").unwrap_or_default();
        let grant = match lock(&self.book).subjects.get_mut(&subject) {
            None => return refuse(401, "invalid_grant", "Invalid or expired subject token."),
            Some(user) => user.get_mut(connection).map(Grant::hand_out),
        };
        let Some(grant) = grant else {
            return refuse(
                401,
                "federated_connection_refresh_token_not_found",
                "Federated connection Refresh Token not found.",
            );
        };
        let mut body = json!({
            "access_token": grant.token,
            "expires_in": grant.expires_in,
            "scope": "read write",
            "issued_token_type": form.get("requested_token_type"),
            "token_type": "Bearer",
        });
        change(body.as_object_mut().expect("an object"));
        json_response(200, &body)
    }
}

/// `x-ratelimit-*` as limited endpoints of Auth0 send them.
fn limited(response: &mut Response<Body>, limit: usize, remaining: usize) {
    let headers = response.headers_mut();
    headers.insert("x-ratelimit-limit", limit.into());
    headers.insert("x-ratelimit-remaining", remaining.into());
    headers.insert("x-ratelimit-reset", (unix_seconds() + 1).into());
}

fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn unexpected(tenant: &Tenant, call: String) -> Response<Body> {
    let response = text(UNEXPECTED_STATUS, "text/plain", &format!("unexpected: {call}\n"));
    tenant.unexpected.remember(call);
    response
}

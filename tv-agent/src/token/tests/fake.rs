//! A token endpoint for tests: HTTPS on loopback, counts its calls, refuses what a vault would not expect.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::limits;
use crate::policy::Wanted;
use crate::secret::Secret;
use crate::token::request::Ask;
use crate::token::settings::{Pacing, TokenVault};
use crate::token::{ClientAuth, Encoding, Grant, Kind, Vault, VaultSettings};

pub const CLIENT_ID: &str = "client:one &";
pub const CLIENT_SECRET: &str = "CANARY-client secret:%&+é";

/// One call as it was received.
#[derive(Clone, Debug)]
pub struct Call {
    pub fields: BTreeMap<String, String>,
    pub content_type: String,
    pub authorization: Option<String>,
    pub accept_encoding: Option<String>,
}

impl Call {
    pub fn subject(&self) -> &str {
        &self.fields["subject_token"]
    }
}

/// What to answer.
#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Body,
    pub after: Duration,
}

#[derive(Clone)]
pub enum Body {
    Whole(Bytes),
    /// This many bytes of JSON that never closes.
    Long(usize),
    /// A byte now and then, for ever.
    Endless,
    /// The connection ends instead of an answer.
    Cut,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: Body::Whole(body.into()),
            after: Duration::ZERO,
        }
    }

    pub fn token(token: &str, expires_in: u64) -> Self {
        let json = serde_json::json!({
            "access_token": token, "token_type": "Bearer", "expires_in": expires_in, "scope": "repo,user",
            "issued_token_type": "http://auth0.com/oauth/token-type/federated-connection-access-token",
        });
        Self::new(200, json.to_string()).header("content-type", "application/json")
    }

    pub fn refusal(status: u16, error: &str, description: &str) -> Self {
        Self::new(
            status,
            serde_json::json!({"error": error, "error_description": description}).to_string(),
        )
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }
}

type Script = Box<dyn Fn(usize, &Call) -> Answer + Send + Sync>;

struct Shared {
    script: Script,
    calls: Mutex<Vec<Call>>,
    running: AtomicUsize,
    peak: AtomicUsize,
    unexpected: Mutex<Vec<String>>,
}

/// The running endpoint; ends with its test.
pub struct Fake {
    pub addr: SocketAddr,
    pub root: CertificateDer<'static>,
    shared: Arc<Shared>,
    accept: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.accept.abort();
        let unexpected = self.shared.unexpected.lock().unwrap();
        assert!(
            unexpected.is_empty() || std::thread::panicking(),
            "unexpected calls: {unexpected:?}"
        );
    }
}

impl Fake {
    /// Answers call number n (from 0) with `script(n, call)`.
    pub async fn start(script: impl Fn(usize, &Call) -> Answer + Send + Sync + 'static) -> Self {
        Self::speaking(&["h2", "http/1.1"], script).await
    }

    /// As [`Fake::start`], with these application protocols on offer.
    pub async fn speaking(
        alpn: &[&str],
        script: impl Fn(usize, &Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::believing(alpn, None, script).await
    }

    /// As [`Fake::speaking`], for clients with this certificate only, who need no secret.
    pub async fn believing(
        alpn: &[&str],
        client: Option<CertificateDer<'static>>,
        script: impl Fn(usize, &Call) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec!["127.0.0.1".into()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let root = cert.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let tls = match client {
            None => tls.with_no_client_auth(),
            Some(client) => {
                let mut roots = RootCertStore::empty();
                roots.add(client).unwrap();
                let verifier =
                    rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                tls.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let mut tls = tls.with_single_cert(vec![root.clone()], key).unwrap();
        tls.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let tls = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            calls: Mutex::default(),
            running: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            unexpected: Mutex::default(),
        });
        let accept = tokio::spawn({
            let shared = shared.clone();
            async move {
                // Dropped with the accept loop, so that no connection outlives the fake.
                let mut connections = tokio::task::JoinSet::new();
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (tls, shared) = (tls.clone(), shared.clone());
                    connections.spawn(async move {
                        // A client that does not trust us ends the handshake; that is its test.
                        let Ok(stream) = tls.accept(tcp).await else { return };
                        let known = stream.get_ref().1.peer_certificates().is_some();
                        let service =
                            hyper::service::service_fn(move |request| serve(shared.clone(), known, request));
                        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                        let io = TokioIo::new(stream);
                        if h2 {
                            let mut server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                            let _ = server
                                .max_concurrent_streams(4096)
                                .serve_connection(io, service)
                                .await;
                        } else {
                            let _ = hyper::server::conn::http1::Builder::new()
                                .serve_connection(io, service)
                                .await;
                        }
                    });
                }
            }
        });
        Self {
            addr,
            root,
            shared,
            accept,
        }
    }

    pub async fn always(answer: Answer) -> Self {
        Self::start(move |_, _| answer.clone()).await
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.shared.calls.lock().unwrap().len()
    }

    /// The most calls that ran at once.
    pub fn peak(&self) -> usize {
        self.shared.peak.load(Ordering::SeqCst)
    }

    pub fn settings(&self) -> VaultSettings {
        settings(
            &format!("https://{}/oauth/token", self.addr),
            vec![self.root.clone()],
        )
    }

    pub fn vault(&self) -> Arc<Vault> {
        self.vault_with(|_| {})
    }

    pub fn vault_with(&self, change: impl FnOnce(&mut VaultSettings)) -> Arc<Vault> {
        let mut settings = self.settings();
        change(&mut settings);
        Arc::new(Vault::new(settings, Arc::new(RootCertStore::empty())).unwrap())
    }
}

pub fn settings(endpoint: &str, extra_roots: Vec<CertificateDer<'static>>) -> VaultSettings {
    VaultSettings {
        name: "main".into(),
        kind: Kind::TokenVault(TokenVault::default()),
        token_endpoint: endpoint.parse().unwrap(),
        discover: false,
        client_id: CLIENT_ID.into(),
        client_auth: ClientAuth::SecretPost(Secret::new(CLIENT_SECRET.into())),
        encoding: Encoding::Form,
        extra_roots,
        timeout: limits::TOKEN_TIME,
        ttl_default: limits::TOKEN_TTL_DEFAULT,
        ttl_max: limits::TOKEN_TTL_MAX,
        pacing: Pacing::default(),
        when: Vec::new(),
    }
}

pub fn subject(text: &str) -> Arc<Secret> {
    Arc::new(Secret::new(text.into()))
}

pub fn grant<'a>(vault: &'a Arc<Vault>, subject: &'a Arc<Secret>) -> Grant<'a> {
    static WANTED: LazyLock<Arc<Wanted>> = LazyLock::new(|| Arc::new(Wanted::connection("github")));
    Grant {
        subject: Some(subject),
        ..Grant::new(vault, &WANTED)
    }
}

/// What `subject` asks for `wanted`, and no more.
pub(in crate::token) fn ask<'a>(wanted: &'a Wanted, subject: Option<&'a Secret>) -> Ask<'a> {
    Ask {
        wanted,
        login_hint: None,
        subject,
        actor: None,
        user: None,
        own: false,
    }
}

async fn serve(
    shared: Arc<Shared>,
    known: bool,
    request: http::Request<hyper::body::Incoming>,
) -> Result<http::Response<Answering>, std::io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let answer = match expected(&head, &body, known) {
        Ok(call) => {
            let running = Running::start(&shared);
            let number = {
                let mut calls = shared.calls.lock().unwrap();
                calls.push(call.clone());
                calls.len() - 1
            };
            let answer = (shared.script)(number, &call);
            tokio::time::sleep(answer.after).await;
            drop(running);
            answer
        }
        Err(why) => {
            shared.unexpected.lock().unwrap().push(why);
            Answer::new(599, "unexpected")
        }
    };
    let mut response = http::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        response = response.header(*name, value);
    }
    if matches!(answer.body, Body::Cut) {
        return Err(std::io::Error::other("cut"));
    }
    Ok(response
        .body(Answering {
            body: answer.body,
            wait: None,
        })
        .unwrap())
}

struct Running(Arc<Shared>);

impl Running {
    fn start(shared: &Arc<Shared>) -> Self {
        let now = shared.running.fetch_add(1, Ordering::SeqCst) + 1;
        shared.peak.fetch_max(now, Ordering::SeqCst);
        Self(shared.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Checks a call as strictly as a vault would, and more.
fn expected(head: &http::request::Parts, body: &[u8], known: bool) -> Result<Call, String> {
    if head.method != http::Method::POST || head.uri.path() != "/oauth/token" || head.uri.query().is_some() {
        return Err(format!("{} {}", head.method, head.uri));
    }
    let header = |name: &str| head.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let content_type = header("content-type").unwrap_or_default();
    let pairs: Vec<(String, String)> = match content_type.as_str() {
        "application/x-www-form-urlencoded" => url::form_urlencoded::parse(body).into_owned().collect(),
        "application/json" => serde_json::from_slice::<BTreeMap<String, String>>(body)
            .map_err(|e| e.to_string())?
            .into_iter()
            .collect(),
        other => return Err(format!("content type {other:?}")),
    };
    let mut fields = BTreeMap::new();
    for (name, value) in pairs {
        if fields.insert(name.clone(), value).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    let authorization = header("authorization");
    let (id, secret) = match &authorization {
        None => (
            fields.get("client_id").cloned(),
            fields.get("client_secret").cloned(),
        ),
        Some(_) if fields.contains_key("client_id") || fields.contains_key("client_secret") => {
            return Err("client authentication is given twice".into());
        }
        Some(value) => {
            let pair = value.strip_prefix("Basic ").ok_or("scheme")?;
            let pair = base64::engine::general_purpose::STANDARD
                .decode(pair)
                .map_err(|e| e.to_string())?;
            let pair = String::from_utf8(pair).map_err(|e| e.to_string())?;
            let (id, secret) = pair.split_once(':').ok_or("no colon")?;
            let decode = |text: &str| {
                let (text, _) = url::form_urlencoded::parse(text.as_bytes()).next()?;
                Some(text.into_owned())
            };
            (decode(id), decode(secret))
        }
    };
    // A certificate stands for the secret.
    let wanted = (!known).then_some(CLIENT_SECRET);
    if id.as_deref() != Some(CLIENT_ID) || secret.as_deref() != wanted {
        return Err("client_id or client_secret".into());
    }
    for (name, value) in [
        (
            "grant_type",
            "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token",
        ),
        (
            "subject_token_type",
            "urn:ietf:params:oauth:token-type:access_token",
        ),
    ] {
        if fields.get(name).map(String::as_str) != Some(value) {
            return Err(format!("{name} is {:?}", fields.get(name)));
        }
    }
    for name in ["subject_token", "connection", "requested_token_type"] {
        if !fields.contains_key(name) {
            return Err(format!("no {name}"));
        }
    }
    Ok(Call {
        fields,
        content_type,
        authorization,
        accept_encoding: header("accept-encoding"),
    })
}

/// The body of an answer.
struct Answering {
    body: Body,
    wait: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl hyper::body::Body for Answering {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        match &mut this.body {
            Body::Whole(bytes) if bytes.is_empty() => Poll::Ready(None),
            Body::Whole(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Body::Long(0) | Body::Cut => Poll::Ready(None),
            Body::Long(left) => {
                let chunk = (*left).min(16 * 1024);
                *left -= chunk;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b'['; chunk])))))
            }
            Body::Endless => {
                let wait = this
                    .wait
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(Duration::from_millis(20))));
                std::task::ready!(wait.as_mut().poll(context));
                this.wait = None;
                Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b" ")))))
            }
        }
    }
}

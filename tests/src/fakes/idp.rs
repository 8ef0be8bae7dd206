//! An issuer of tokens: discovery, key set and introspection, each answering what a test tells it to; and the
//! keys by which it signs.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::{Value, json};

use super::pki::Pki;
use super::server::{self, Body, Connections, Handler, Server};
use super::{UNEXPECTED_STATUS, Unexpected, lock};

pub const DISCOVERY: &str = "/.well-known/openid-configuration";
/// RFC 8414's place.
pub const METADATA: &str = "/.well-known/oauth-authorization-server";
pub const JWKS: &str = "/jwks";
pub const INTROSPECTION: &str = "/introspect";

/// What one address answers.
#[derive(Clone)]
pub enum Reply {
    Json(Value),
    /// 200 with `Cache-Control: max-age`, seconds.
    Fresh(Value, u64),
    Bytes(Bytes),
    Status(u16),
    Redirect(String),
    Slow(Duration, Box<Reply>),
}

/// One call as it came in.
#[derive(Clone, Debug)]
pub struct Call {
    pub path: String,
    pub authorization: Option<String>,
    /// The form's parameters.
    pub form: BTreeMap<String, String>,
}

#[derive(Default)]
struct Book {
    replies: BTreeMap<String, Reply>,
    calls: Vec<Call>,
}

/// A running issuer, listening until dropped.
pub struct Idp {
    server: Server,
    book: Arc<Mutex<Book>>,
    unexpected: Unexpected,
}

impl Idp {
    /// Starts an issuer that knows discovery and `keys`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(pki: &Pki, keys: &[&SigningKey]) -> io::Result<Self> {
        let identity = pki.leaf(&["127.0.0.1"]);
        let tls = server::tls(&identity, &["h2", "http/1.1"]).map_err(io::Error::other)?;
        let (book, unexpected) = (Arc::<Mutex<Book>>::default(), Unexpected::default());
        let handler: Handler = {
            let (book, unexpected) = (book.clone(), unexpected.clone());
            Arc::new(move |_, request| {
                let (book, unexpected) = (book.clone(), unexpected.clone());
                Box::pin(async move { answer(&book, &unexpected, request).await })
            })
        };
        let here = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::start("idp", &[here], tls, &Arc::<Connections>::default(), &handler)?;
        let idp = Self {
            server,
            book,
            unexpected,
        };
        idp.set(DISCOVERY, Reply::Json(idp.document()));
        idp.publish(keys);
        Ok(idp)
    }

    /// `https://127.0.0.1:PORT`.
    pub fn issuer(&self) -> String {
        format!("https://{}", self.server.addrs()[0])
    }

    /// An address of this issuer.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.issuer())
    }

    pub fn document(&self) -> Value {
        json!({
            "issuer": self.issuer(),
            "jwks_uri": self.url(JWKS),
            "token_endpoint": self.url("/token"),
            "introspection_endpoint": self.url(INTROSPECTION),
        })
    }

    /// From now on `path` answers so.
    pub fn set(&self, path: &str, reply: Reply) {
        lock(&self.book).replies.insert(path.to_owned(), reply);
    }

    pub fn publish(&self, keys: &[&SigningKey]) {
        self.set(JWKS, Reply::Json(jwks(keys)));
    }

    /// The calls of `path` so far.
    pub fn calls(&self, path: &str) -> Vec<Call> {
        let book = lock(&self.book);
        book.calls
            .iter()
            .filter(|call| call.path == path)
            .cloned()
            .collect()
    }
}

impl Drop for Idp {
    fn drop(&mut self) {
        self.unexpected.assert_none("the issuer");
    }
}

async fn answer(book: &Mutex<Book>, unexpected: &Unexpected, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let path = head.uri.path().to_owned();
    let body = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
    let authorization = head.headers.get(header::AUTHORIZATION);
    let call = Call {
        path: path.clone(),
        authorization: authorization.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned()),
        form: url::form_urlencoded::parse(&body).into_owned().collect(),
    };
    let reply = {
        let mut book = lock(book);
        book.calls.push(call);
        book.replies.get(&path).cloned()
    };
    let Some(mut reply) = reply else {
        // RFC 8414's place is looked at when OpenID's has nothing.
        if path == METADATA {
            return respond(&Reply::Status(404));
        }
        unexpected.remember(format!("{} {path}", head.method));
        return respond(&Reply::Status(UNEXPECTED_STATUS));
    };
    while let Reply::Slow(wait, then) = reply {
        tokio::time::sleep(wait).await;
        reply = *then;
    }
    respond(&reply)
}

fn respond(reply: &Reply) -> Response<Body> {
    let (status, body) = match reply {
        Reply::Json(value) | Reply::Fresh(value, _) => (200, Bytes::from(value.to_string())),
        Reply::Bytes(bytes) => (200, bytes.clone()),
        Reply::Status(status) => (*status, Bytes::new()),
        Reply::Redirect(_) => (302, Bytes::new()),
        Reply::Slow(_, then) => return respond(then),
    };
    let mut response = Response::builder().status(status);
    response = match reply {
        Reply::Redirect(to) => response.header(header::LOCATION, to),
        Reply::Fresh(_, seconds) => response.header(header::CACHE_CONTROL, format!("max-age={seconds}")),
        _ => response,
    };
    response.body(server::full(body)).expect("a valid response")
}

/// A JWKS of the public halves.
pub fn jwks(keys: &[&SigningKey]) -> Value {
    let keys: Vec<Value> = keys.iter().map(|key| key.public.clone()).collect();
    json!({ "keys": keys })
}

/// A private key with its name.
pub struct SigningKey {
    pub kid: String,
    pub algorithm: Algorithm,
    key: EncodingKey,
    /// As the JWKS has it.
    pub public: Value,
}

impl SigningKey {
    /// A new key for `algorithm`, one of RS256, PS256, ES256, ES384 and EdDSA.
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        let kind = match algorithm {
            Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
            Algorithm::ES384 => &PKCS_ECDSA_P384_SHA384,
            Algorithm::EdDSA => &PKCS_ED25519,
            _ => &PKCS_RSA_SHA256,
        };
        let pair = KeyPair::generate_for(kind).expect("a key");
        let pem = pair.serialize_pem();
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_der(&pair.serialize_der()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()).expect("a key"),
            _ => EncodingKey::from_rsa_pem(pem.as_bytes()).expect("a key"),
        };
        let mut public = if algorithm == Algorithm::EdDSA {
            // The library reads no PKCS#8 that holds the public half too (RFC 5958 §2).
            let x = B64.encode(pair.public_key_raw());
            json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "x": x })
        } else {
            let public = Jwk::from_encoding_key(&key, algorithm).expect("a public key");
            serde_json::to_value(public).expect("JSON")
        };
        public["kid"] = kid.into();
        public["use"] = "sig".into();
        Self {
            kid: kid.to_owned(),
            algorithm,
            key,
            public,
        }
    }

    /// A token with these claims, whose header names the key.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(&self.header(), claims)
    }

    pub fn sign_as(&self, header: &Header, claims: &Value) -> String {
        jsonwebtoken::encode(header, claims, &self.key).expect("a token")
    }

    pub fn header(&self) -> Header {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        header
    }

    /// A token whose header is this text, rightly signed.
    pub fn sign_raw(&self, header: &str, claims: &str) -> String {
        let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm);
        format!("{message}.{}", signature.expect("a signature"))
    }
}

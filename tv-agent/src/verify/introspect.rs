//! Asking the issuer about a token (RFC 7662): the call, its one repetition, its bounded answer and its cache.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use moka::future::Cache;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use url::Url;
use zeroize::Zeroizing;

use super::claims::Path;
use crate::https;
use crate::limits;
use crate::oidc::{self, Issuer, NotJson, Unavailable};
use crate::secret::Secret;

/// How a verifier asks.
pub struct Introspection {
    /// None: the issuer's discovery document says it.
    pub endpoint: Option<Url>,
    pub auth: Auth,
    /// `token_type_hint`.
    pub hint: Option<String>,
    /// Further parameters of the body.
    pub body: Vec<(String, String)>,
    /// For one call; a failed one is repeated once.
    pub timeout: Duration,
    pub cache: bool,
    /// A JWT inside the answer, whose claims count instead of the answer's.
    pub jwt_claim: Option<Path>,
    /// Whether such a JWT's claims count without being checked; its signature is, always.
    pub trust: bool,
    /// JWTs are asked about as well.
    pub always: bool,
}

/// How the agent proves that it may ask.
pub enum Auth {
    None,
    /// The whole value of the Authorization field.
    Raw(Secret),
    Basic {
        id: String,
        secret: Secret,
    },
    Post {
        id: String,
        secret: Secret,
    },
}

/// Why nothing is known about a token.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    #[error("no address to ask: {0}")]
    Undiscovered(Unavailable),
    #[error(
        "the issuer's discovery document names no introspection_endpoint; configure introspection.endpoint"
    )]
    NoEndpoint,
    #[error("the endpoint cannot be reached ({0}); check its name, the network and extra_roots")]
    Connect(String),
    #[error("the endpoint broke the connection ({0})")]
    Broken(String),
    #[error("the endpoint did not answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    #[error("the endpoint redirects ({0}), which is not followed; configure the final address")]
    Redirect(StatusCode),
    #[error("the endpoint refused the agent's credentials ({0}); check client_id, secret, authorization")]
    Credentials(StatusCode),
    #[error("the endpoint answered {0}")]
    Status(StatusCode),
    #[error("the endpoint answered with more than {} bytes", limits::INTROSPECTION_BYTES)]
    TooLarge,
    #[error("the endpoint's answer {0}")]
    NotJson(NotJson),
    #[error("the endpoint's answer has no member active that is true or false")]
    NoActive,
    #[error("too many tokens are being asked about")]
    Busy,
}

impl Fault {
    /// Whether a second call may fare better.
    fn passes(&self) -> bool {
        match self {
            Self::Connect(_) | Self::Broken(_) | Self::Timeout(_) => true,
            Self::Status(status) => status.is_server_error(),
            _ => false,
        }
    }
}

/// What the issuer says about a token: its members when it is active.
#[derive(Clone)]
pub struct Answer {
    pub active: Option<Arc<Map<String, Value>>>,
    at: Instant,
}

pub(super) struct Introspector {
    pub settings: Introspection,
    client: reqwest::Client,
    issuer: Option<Issuer>,
    slots: Semaphore,
    answers: Cache<[u8; 32], Answer>,
}

impl Introspector {
    pub fn new(settings: Introspection, client: reqwest::Client, issuer: Option<Issuer>) -> Self {
        Self {
            settings,
            client,
            issuer,
            slots: Semaphore::new(limits::INTROSPECTIONS_AT_ONCE),
            answers: Cache::builder()
                .max_capacity(limits::INTROSPECTIONS_KEPT)
                .time_to_live(limits::INTROSPECTION_TTL)
                .build(),
        }
    }

    /// What the issuer says; from the cache, or by one call that all who ask about this token share.
    pub async fn ask(&self, token: &Secret) -> Result<Answer, Fault> {
        if !self.settings.cache {
            return self.call_twice(token).await;
        }
        let mut hash = Sha256::new();
        token.digest_into(&mut hash);
        let key = hash.finalize().into();
        if let Some(answer) = self.answers.get(&key).await {
            if answer.active.is_some() || answer.at.elapsed() < limits::INTROSPECTION_TTL_INACTIVE {
                return Ok(answer);
            }
            self.answers.invalidate(&key).await;
        }
        let asking = self.answers.try_get_with(key, self.call_twice(token)).await;
        asking.map_err(|fault| Fault::clone(&fault))
    }

    async fn call_twice(&self, token: &Secret) -> Result<Answer, Fault> {
        let time = self.settings.timeout;
        let slot = tokio::time::timeout(time, self.slots.acquire());
        let _slot = slot.await.map_err(|_| Fault::Busy)?;
        let endpoint = self.endpoint().await?;
        let request = Request::new(&self.settings, token);
        let once = || async {
            let call = call(&self.client, &endpoint, &request);
            tokio::time::timeout(time, call)
                .await
                .unwrap_or(Err(Fault::Timeout(time)))
        };
        let outcome = match once().await {
            Err(fault) if fault.passes() => once().await,
            other => other,
        };
        outcome.inspect_err(|cause| tracing::warn!(%endpoint, %cause, "token introspection failed"))
    }

    pub(super) async fn endpoint(&self) -> Result<Url, Fault> {
        if let Some(endpoint) = &self.settings.endpoint {
            return Ok(endpoint.clone());
        }
        let issuer = self.issuer.as_ref().ok_or(Fault::NoEndpoint)?;
        let document = issuer.document().await.map_err(Fault::Undiscovered)?;
        document.introspection_endpoint.clone().ok_or(Fault::NoEndpoint)
    }
}

/// The request's variable parts, wiped when the call is over.
struct Request {
    body: Bytes,
    authorization: Option<HeaderValue>,
}

impl Request {
    fn new(settings: &Introspection, token: &Secret) -> Self {
        // Room for the body at once: a buffer that grows leaves copies of the secrets behind.
        let mut body = url::form_urlencoded::Serializer::new(String::with_capacity(3 * token.len() + 8192));
        body.append_pair("token", token.expose());
        if let Some(hint) = &settings.hint {
            body.append_pair("token_type_hint", hint);
        }
        for (name, value) in &settings.body {
            body.append_pair(name, value);
        }
        let authorization = match &settings.auth {
            Auth::None => None,
            Auth::Raw(value) => Some(Zeroizing::new(value.expose().to_owned())),
            Auth::Basic { id, secret } => {
                let encoded = https::basic(id, secret.expose());
                Some(Zeroizing::new(format!("Basic {}", encoded.as_str())))
            }
            Auth::Post { id, secret } => {
                body.append_pair("client_id", id)
                    .append_pair("client_secret", secret.expose());
                None
            }
        };
        let body = Zeroizing::new(body.finish().into_bytes());
        Self {
            body: Bytes::from_owner(body),
            authorization: authorization.and_then(|text| {
                let mut value = HeaderValue::from_str(&text).ok()?;
                value.set_sensitive(true);
                Some(value)
            }),
        }
    }
}

async fn call(client: &reqwest::Client, endpoint: &Url, request: &Request) -> Result<Answer, Fault> {
    let failed = |error: reqwest::Error| {
        let connect = error.is_connect();
        let why = https::causes(&error.without_url());
        if connect {
            Fault::Connect(why)
        } else {
            Fault::Broken(why)
        }
    };
    let mut call = client
        .post(endpoint.clone())
        .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
        .header(ACCEPT, "application/json")
        .body(request.body.clone());
    if let Some(value) = &request.authorization {
        call = call.header(AUTHORIZATION, value.clone());
    }
    let mut answer = call.send().await.map_err(failed)?;
    match answer.status() {
        StatusCode::OK => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(Fault::Credentials(status));
        }
        status if status.is_redirection() => return Err(Fault::Redirect(status)),
        status => return Err(Fault::Status(status)),
    }
    let mut body = Vec::new();
    let limit = limits::INTROSPECTION_BYTES;
    if !https::fill(&mut answer, &mut body, limit).await.map_err(failed)? {
        return Err(Fault::TooLarge);
    }
    let active = read(&body)?.map(Arc::new);
    let at = Instant::now();
    Ok(Answer { active, at })
}

/// The members of an answer about an active token; None: it is not active. Pure.
pub(super) fn read(body: &[u8]) -> Result<Option<Map<String, Value>>, Fault> {
    let members = oidc::object(body).map_err(Fault::NotJson)?;
    match members.get("active") {
        Some(Value::Bool(true)) => Ok(Some(members)),
        Some(Value::Bool(false)) => Ok(None),
        _ => Err(Fault::NoActive),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD as BASE64;

    #[test]
    fn only_true_is_active() {
        assert!(
            read(br#"{"active":true,"sub":"a"}"#)
                .unwrap()
                .unwrap()
                .contains_key("sub")
        );
        assert!(read(br#"{"active":false,"sub":"a"}"#).unwrap().is_none());
        for unclear in [
            r#"{"active":"true"}"#,
            r#"{"active":null}"#,
            r#"{"active":1}"#,
            "{}",
        ] {
            assert!(
                matches!(read(unclear.as_bytes()), Err(Fault::NoActive)),
                "{unclear}"
            );
        }
        for broken in ["", "[]", "true", r#"{"active":false,"active":true}"#] {
            assert!(
                matches!(read(broken.as_bytes()), Err(Fault::NotJson(_))),
                "{broken}"
            );
        }
    }

    #[test]
    fn the_request_is_the_configured_one() {
        let settings = |auth| Introspection {
            endpoint: None,
            auth,
            hint: Some("access_token".into()),
            body: vec![("realm".into(), "a b".into())],
            timeout: limits::INTROSPECTION_TIME,
            cache: true,
            jwt_claim: None,
            trust: true,
            always: false,
        };
        let made = |auth| {
            let request = Request::new(&settings(auth), &Secret::new("t&t".into()));
            let body = String::from_utf8(request.body.to_vec()).unwrap();
            let value = request.authorization.map(|v| v.to_str().unwrap().to_owned());
            (body, value)
        };
        let secret = || Secret::new("p:w".into());
        let id = || "i:d".to_owned();
        let common = "token=t%26t&token_type_hint=access_token&realm=a+b";
        assert_eq!(made(Auth::None), (common.into(), None));
        assert_eq!(made(Auth::Raw(secret())), (common.into(), Some("p:w".into())));
        let basic = format!("Basic {}", BASE64.encode("i%3Ad:p%3Aw"));
        assert_eq!(
            made(Auth::Basic {
                id: id(),
                secret: secret()
            }),
            (common.into(), Some(basic))
        );
        let post = format!("{common}&client_id=i%3Ad&client_secret=p%3Aw");
        assert_eq!(
            made(Auth::Post {
                id: id(),
                secret: secret()
            }),
            (post, None)
        );
    }
}

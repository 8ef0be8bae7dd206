//! One call of a token endpoint: the request, the connection that it takes, the bounded read of its answer.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use rand::Rng as _;
use rustls::RootCertStore;
use serde::Serialize;
use serde::ser::{SerializeMap as _, Serializer};
use url::Url;
use zeroize::Zeroizing;

use super::assertion::JWT_BEARER_ASSERTION;
use super::error::{BuildError, ErrorKind};
use super::request::{self, Ask, Value};
use super::response::{self, Dialect, Granted, Reply};
use super::settings::{ClientAuth, Encoding, VaultSettings};
use super::{Client, Vault, pace};
use crate::https;
use crate::limits;
use crate::metrics::Metrics;
use crate::secret::Secret;

/// Time for the body of an answer whose status already says that it is an error.
const ERROR_BODY_TIME: Duration = Duration::from_secs(1);

/// The HTTP client of one vault: its roots only, https only, no proxy, no redirect, no cookie, no decoding.
pub(super) fn client(
    settings: &VaultSettings,
    roots: Arc<RootCertStore>,
) -> Result<reqwest::Client, BuildError> {
    let identity = match &settings.client_auth {
        ClientAuth::TlsClient { chain, key } => Some((chain.clone(), key.clone_key())),
        _ => None,
    };
    https::client_as(roots, identity).map_err(|source| BuildError::Client {
        vault: settings.name.clone(),
        source,
    })
}

/// Has `ask` answered within the vault's timeout, from connect to last byte; faults in passing are repeated.
pub(super) async fn exchange(
    vault: &Vault,
    ask: &Ask<'_>,
    client: Option<&Client>,
    metrics: &Metrics,
) -> Result<Granted, ErrorKind> {
    let timeout = vault.settings.timeout;
    let deadline = Instant::now() + timeout;
    let mut repeated = 0;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let call = tokio::time::timeout(left, call(vault, ask, client)).await;
        let kind = match call.unwrap_or(Err(ErrorKind::Timeout(timeout))) {
            Err(kind) if kind.is_transient() && repeated + 1 < pace::ATTEMPTS => kind,
            other => return other,
        };
        let wait = match kind {
            // The vault closed an idle connection while we took it up again: no answer began.
            ErrorKind::Broken(_) if repeated == 0 => Duration::ZERO,
            _ => pace::back_off(repeated, rand::rng().random()),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        // A repetition needs a turn like any other call.
        let Some(wait) = vault
            .gate
            .reserve(left)
            .ok()
            .map(|turn| turn.max(wait))
            .filter(|wait| *wait < left)
        else {
            return Err(kind);
        };
        tokio::time::sleep(wait).await;
        repeated += 1;
        metrics.exchange_retry(&vault.settings.name);
    }
}

async fn call(vault: &Vault, ask: &Ask<'_>, client: Option<&Client>) -> Result<Granted, ErrorKind> {
    let settings = &vault.settings;
    let now = SystemTime::now();
    let request = Request::new(
        settings,
        ask,
        client,
        now.duration_since(UNIX_EPOCH).unwrap_or_default(),
    )?;
    let endpoint = match &vault.issuer {
        Some(issuer) => {
            let document = issuer.document().await.map_err(ErrorKind::Discovery)?;
            document.token_endpoint.clone().ok_or(ErrorKind::NoEndpoint)?
        }
        None => settings.token_endpoint.clone(),
    };
    let answer = send(&vault.client, endpoint, &request).await?;
    let reply = Reply {
        status: answer.status,
        headers: &answer.headers,
        body: &answer.body,
        complete: answer.complete,
    };
    let dialect = match client {
        Some(_) => Dialect::CallersClient,
        None if ask.own => Dialect::Own,
        None => Dialect::of(&settings.kind),
    };
    let secrets: Vec<&str> = request.secrets.iter().map(|secret| secret.as_str()).collect();
    response::read(&reply, SystemTime::now(), dialect, &secrets)
}

/// The request's variable parts, wiped when the call is over.
struct Request {
    body: Bytes,
    content_type: &'static str,
    /// The value of the Authorization field, without the scheme.
    basic: Option<Zeroizing<String>>,
    /// What must not be kept of an answer that repeats it.
    secrets: Vec<Zeroizing<String>>,
}

/// A parameter's value until it is written.
enum Held<'a> {
    Text(&'a str),
    Secret(&'a str),
    Made(Secret),
}

impl Held<'_> {
    fn as_str(&self) -> &str {
        match self {
            Self::Text(text) | Self::Secret(text) => text,
            Self::Made(secret) => secret.expose(),
        }
    }
}

type Fields<'a> = Vec<(&'a str, Held<'a>)>;

impl Request {
    fn new(
        settings: &VaultSettings,
        ask: &Ask<'_>,
        client: Option<&Client>,
        now: Duration,
    ) -> Result<Self, ErrorKind> {
        let mut fields: Fields<'_> = Vec::with_capacity(12);
        let list = request::parameters(&settings.kind, ask).map_err(ErrorKind::Missing)?;
        for (name, value) in list {
            let held = match value {
                Value::Text(text) => Held::Text(text),
                Value::Secret(secret) => Held::Secret(secret.expose()),
                Value::Signed(worker, user) => {
                    let signed =
                        worker.request(&settings.client_id, &settings.tenant(), user, now, &unique());
                    Held::Made(signed.map_err(ErrorKind::Sign)?)
                }
            };
            fields.push((name, held));
        }
        let basic = authenticate(settings, client, now, &mut fields)?;
        let (body, content_type) = match settings.encoding {
            Encoding::Form => (form(&fields), "application/x-www-form-urlencoded"),
            Encoding::Json => (json(&fields), "application/json"),
        };
        let kept = fields.iter().filter(|(_, held)| !matches!(held, Held::Text(_)));
        let mut secrets: Vec<_> = kept
            .map(|(_, held)| Zeroizing::new(held.as_str().to_owned()))
            .collect();
        secrets.extend(basic.clone());
        match (&settings.client_auth, client) {
            (_, Some(client)) => secrets.push(Zeroizing::new(client.secret.expose().to_owned())),
            (ClientAuth::SecretBasic(secret), None) => {
                secrets.push(Zeroizing::new(secret.expose().to_owned()));
            }
            _ => {}
        }
        Ok(Self {
            body: Bytes::from_owner(body),
            content_type,
            basic,
            secrets,
        })
    }
}

/// Adds what proves who we are; RFC 6749 §2.3: one way per request, never two. Gives the value for Basic.
fn authenticate<'a>(
    settings: &'a VaultSettings,
    client: Option<&'a Client>,
    now: Duration,
    fields: &mut Fields<'a>,
) -> Result<Option<Zeroizing<String>>, ErrorKind> {
    let id = settings.client_id.as_str();
    let mut add = |pairs: Vec<(&'a str, Held<'a>)>| {
        fields.splice(1..1, pairs);
        None
    };
    let in_body = |id: &'a str, secret: &'a Secret| {
        vec![
            ("client_id", Held::Text(id)),
            ("client_secret", Held::Secret(secret.expose())),
        ]
    };
    Ok(match (&settings.client_auth, client) {
        (ClientAuth::CallerBasic, Some(client)) => Some(https::basic(&client.id, client.secret.expose())),
        (_, Some(client)) => add(in_body(&client.id, &client.secret)),
        (ClientAuth::SecretPost(secret), None) => add(in_body(id, secret)),
        (ClientAuth::SecretBasic(secret), None) => Some(https::basic(id, secret.expose())),
        (ClientAuth::PrivateKeyJwt { signer, audience }, None) => {
            let assertion = signer
                .client(id, audience, now, &unique())
                .map_err(ErrorKind::Sign)?;
            add(vec![
                ("client_id", Held::Text(id)),
                ("client_assertion_type", Held::Text(JWT_BEARER_ASSERTION)),
                ("client_assertion", Held::Made(assertion)),
            ])
        }
        (ClientAuth::TlsClient { .. } | ClientAuth::None, None) if !id.is_empty() => {
            add(vec![("client_id", Held::Text(id))])
        }
        (_, None) => None,
    })
}

/// A name for one assertion, never used twice.
fn unique() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// Room for the body at once: a buffer that grows leaves copies of the secrets behind.
fn room(fields: &Fields<'_>) -> usize {
    let pairs = fields
        .iter()
        .map(|(name, held)| name.len() + 3 * held.as_str().len() + 8);
    pairs.sum::<usize>() + 16
}

fn form(fields: &Fields<'_>) -> Zeroizing<Vec<u8>> {
    let mut body = url::form_urlencoded::Serializer::new(String::with_capacity(room(fields)));
    for (name, held) in fields {
        body.append_pair(name, held.as_str());
    }
    Zeroizing::new(body.finish().into_bytes())
}

fn json(fields: &Fields<'_>) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(2 * room(fields)));
    serde_json::to_writer(&mut *body, &Object(fields)).expect("strings under string keys are always JSON");
    body
}

/// The fields as one JSON object; a repeated one becomes a list.
struct Object<'a>(&'a Fields<'a>);

impl Serialize for Object<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, (name, held)) in self.0.iter().enumerate() {
            let named =
                |(other, held): &'_ (&str, Held<'_>)| (other == name).then(|| held.as_str().to_owned());
            if self.0[..index].iter().any(|(other, _)| other == name) {
                continue;
            }
            let rest: Vec<String> = self.0[index + 1..].iter().filter_map(named).collect();
            if rest.is_empty() {
                map.serialize_entry(name, held.as_str())?;
            } else {
                let all: Vec<&str> = std::iter::once(held.as_str())
                    .chain(rest.iter().map(String::as_str))
                    .collect();
                map.serialize_entry(name, &all)?;
            }
        }
        map.end()
    }
}

struct Received {
    status: http::StatusCode,
    headers: http::HeaderMap,
    body: Zeroizing<Vec<u8>>,
    complete: bool,
}

async fn send(client: &reqwest::Client, endpoint: Url, request: &Request) -> Result<Received, ErrorKind> {
    let failed = |e: reqwest::Error| {
        if e.is_connect() {
            ErrorKind::Connect(e)
        } else {
            ErrorKind::Broken(e)
        }
    };
    let mut call = client
        .post(endpoint)
        .header(CONTENT_TYPE, request.content_type)
        .header(ACCEPT, "application/json")
        .body(request.body.clone());
    if let Some(basic) = &request.basic {
        let value = Zeroizing::new(format!("Basic {}", basic.as_str()));
        let mut value = HeaderValue::from_str(&value).expect("base64 is a valid field value");
        value.set_sensitive(true);
        call = call.header(AUTHORIZATION, value);
    }
    let mut answer = call.send().await.map_err(failed)?;
    let status = answer.status();
    let mut body = Zeroizing::new(Vec::with_capacity(limits::TOKEN_RESPONSE_BYTES));
    let complete = if status == http::StatusCode::OK {
        https::fill(&mut answer, &mut body, limits::TOKEN_RESPONSE_BYTES)
            .await
            .map_err(failed)?
    } else {
        // The status alone decides (429 pauses the vault), however slow or broken the body is.
        matches!(
            tokio::time::timeout(
                ERROR_BODY_TIME,
                https::fill(&mut answer, &mut body, limits::TOKEN_RESPONSE_BYTES)
            )
            .await,
            Ok(Ok(true))
        )
    };
    let headers = std::mem::take(answer.headers_mut());
    Ok(Received {
        status,
        headers,
        body,
        complete,
    })
}

#[cfg(test)]
mod tests;

//! One call of a token endpoint: the request, the connection that it takes, the bounded read of its answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use bytes::Bytes;
use http::HeaderValue;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use rustls::RootCertStore;
use serde::Serialize;
use zeroize::Zeroizing;

use super::error::{BuildError, ErrorKind};
use super::response::{self, Granted, Reply};
use super::{ClientAuth, Encoding, VaultSettings};
use crate::https;
use crate::limits;
use crate::secret::Secret;

/// Auth0 Token Vault's grant, the same for every kind of subject token.
pub(super) const GRANT_TYPE: &str =
    "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token";
/// RFC 8693 §3.
pub(super) const SUBJECT_TOKEN_TYPE: &str = "urn:ietf:params:oauth:token-type:access_token";
pub(super) const REQUESTED_TOKEN_TYPE: &str =
    "http://auth0.com/oauth/token-type/federated-connection-access-token";
/// Time for the body of an answer whose status already says that it is an error.
const ERROR_BODY_TIME: Duration = Duration::from_secs(1);

/// The HTTP client of one vault: its roots only, https only, no proxy, no redirect, no cookie, no decoding.
pub(super) fn client(
    settings: &VaultSettings,
    roots: Arc<RootCertStore>,
) -> Result<reqwest::Client, BuildError> {
    https::client(roots).map_err(|source| BuildError::Client {
        vault: settings.name.clone(),
        source,
    })
}

/// Exchanges `subject` for the token of `connection`, within the vault's timeout from connect to last byte.
pub(super) async fn exchange(
    client: &reqwest::Client,
    settings: &VaultSettings,
    connection: &str,
    login_hint: Option<&str>,
    subject: &Secret,
) -> Result<Granted, ErrorKind> {
    let request = Request::new(settings, connection, login_hint, subject);
    let call = async {
        let answer = match send(client, settings, &request).await {
            // The vault closed an idle connection while we took it up again: no answer began, so once more.
            Err(ErrorKind::Broken(_)) => send(client, settings, &request).await?,
            other => other?,
        };
        let reply = Reply {
            status: answer.status,
            headers: &answer.headers,
            body: &answer.body,
            complete: answer.complete,
        };
        let secrets = [
            subject.expose(),
            settings.client_secret.expose(),
            request.basic.as_ref().map_or("", |basic| basic.as_str()),
        ];
        response::read(&reply, SystemTime::now(), &secrets)
    };
    tokio::time::timeout(settings.timeout, call)
        .await
        .unwrap_or(Err(ErrorKind::Timeout(settings.timeout)))
}

/// The request's variable parts, wiped when the call is over.
struct Request {
    body: Bytes,
    content_type: &'static str,
    /// The value of the Authorization field, without the scheme.
    basic: Option<Zeroizing<String>>,
}

#[derive(Serialize)]
struct Parameters<'a> {
    grant_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_secret: Option<&'a str>,
    subject_token: &'a str,
    subject_token_type: &'a str,
    requested_token_type: &'a str,
    connection: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    login_hint: Option<&'a str>,
}

impl Request {
    fn new(settings: &VaultSettings, connection: &str, login_hint: Option<&str>, subject: &Secret) -> Self {
        let (id, secret) = (settings.client_id.as_str(), settings.client_secret.expose());
        // RFC 6749 §2.3: one way to authenticate per request, never both.
        let (basic, id, secret) = match settings.client_auth {
            ClientAuth::SecretPost => (None, Some(id), Some(secret)),
            ClientAuth::SecretBasic => (Some(basic(id, secret)), None, None),
        };
        let parameters = Parameters {
            grant_type: GRANT_TYPE,
            client_id: id,
            client_secret: secret,
            subject_token: subject.expose(),
            subject_token_type: SUBJECT_TOKEN_TYPE,
            requested_token_type: settings.requested_token_type(),
            connection,
            login_hint,
        };
        let (body, content_type) = match settings.encoding {
            Encoding::Form => (form(&parameters), "application/x-www-form-urlencoded"),
            Encoding::Json => (json(&parameters), "application/json"),
        };
        Self {
            body: Bytes::from_owner(body),
            content_type,
            basic,
        }
    }
}

/// Room for the body at once: a buffer that grows leaves copies of the secrets behind.
fn room(parameters: &Parameters<'_>) -> usize {
    let secret = parameters.client_secret.map_or(0, str::len);
    3 * (parameters.subject_token.len() + secret) + 4096
}

fn form(parameters: &Parameters<'_>) -> Zeroizing<Vec<u8>> {
    let mut body = url::form_urlencoded::Serializer::new(String::with_capacity(room(parameters)));
    body.append_pair("grant_type", parameters.grant_type);
    for (name, value) in [
        ("client_id", parameters.client_id),
        ("client_secret", parameters.client_secret),
        ("login_hint", parameters.login_hint),
    ] {
        if let Some(value) = value {
            body.append_pair(name, value);
        }
    }
    body.append_pair("subject_token", parameters.subject_token)
        .append_pair("subject_token_type", parameters.subject_token_type)
        .append_pair("requested_token_type", parameters.requested_token_type)
        .append_pair("connection", parameters.connection);
    Zeroizing::new(body.finish().into_bytes())
}

fn json(parameters: &Parameters<'_>) -> Zeroizing<Vec<u8>> {
    let mut body = Zeroizing::new(Vec::with_capacity(room(parameters)));
    serde_json::to_writer(&mut *body, parameters).expect("strings under string keys are always JSON");
    body
}

/// RFC 6749 §2.3.1: both parts form-urlencoded, so that a colon in either cannot move the border.
fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    let mut pair = Zeroizing::new(String::with_capacity(3 * (id.len() + secret.len()) + 1));
    pair.extend(url::form_urlencoded::byte_serialize(id.as_bytes()));
    pair.push(':');
    pair.extend(url::form_urlencoded::byte_serialize(secret.as_bytes()));
    Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(pair.as_bytes()))
}

struct Received {
    status: http::StatusCode,
    headers: http::HeaderMap,
    body: Zeroizing<Vec<u8>>,
    complete: bool,
}

async fn send(
    client: &reqwest::Client,
    settings: &VaultSettings,
    request: &Request,
) -> Result<Received, ErrorKind> {
    let failed = |e: reqwest::Error| {
        if e.is_connect() {
            ErrorKind::Connect(e)
        } else {
            ErrorKind::Broken(e)
        }
    };
    let mut call = client
        .post(settings.token_endpoint.clone())
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

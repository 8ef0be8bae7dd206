//! Reads a token endpoint's answer (RFC 6749 §5, RFC 8693 §2.2, Auth0's own codes). Pure: no I/O, no clock.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;

use super::error::{Answer, ErrorKind, Malformed};
use crate::class::Interaction;
use crate::limits::{INTERACTION_BYTES, PROVIDER_TOKEN_BYTES, RATE_LIMIT_WAIT};
use crate::secret::Secret;

mod meaning;

pub(super) use meaning::Dialect;
use meaning::{Meaning, meaning};

/// The wait when a rate limit says nothing about it.
const RATE_LIMIT_DEFAULT: Duration = Duration::from_secs(5);

/// An answer as far as it was read.
pub(super) struct Reply<'a> {
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    pub body: &'a [u8],
    /// False when the body goes on beyond the limit.
    pub complete: bool,
}

/// A provider token, and how long it lives by the vault's word (`None`: it said nothing).
pub(super) struct Granted {
    pub token: Secret,
    pub expires_in: Option<Duration>,
    /// The allowance was used up by this call: how long to send nothing.
    pub exhausted: Option<Duration>,
}

/// Reads `reply`, received at `now`. `secrets` are what must not be kept of an error's text.
pub(super) fn read(
    reply: &Reply<'_>,
    now: SystemTime,
    dialect: Dialect,
    secrets: &[&str],
) -> Result<Granted, ErrorKind> {
    if reply.status == StatusCode::OK {
        let mut granted = granted(reply).map_err(ErrorKind::InvalidResponse)?;
        granted.exhausted = exhausted(reply.headers, now);
        Ok(granted)
    } else if reply.status.is_client_error() || reply.status.is_server_error() {
        Err(refused(reply, now, dialect, secrets))
    } else {
        // Redirects too: following one would hand the client secret to whoever it names.
        Err(ErrorKind::InvalidResponse(Malformed::Status(
            reply.status.as_u16(),
        )))
    }
}

/// Values stay untyped, so that one wrong member is told from a wrong document.
#[derive(Deserialize)]
struct Document {
    access_token: Option<Value>,
    token_type: Option<Value>,
    expires_in: Option<Value>,
}

fn granted(reply: &Reply<'_>) -> Result<Granted, Malformed> {
    if !reply.complete {
        return Err(Malformed::TooLarge);
    }
    if reply.body.trim_ascii().is_empty() {
        return Err(Malformed::Empty);
    }
    // An array would be taken for the struct's members in order.
    if !reply.body.trim_ascii_start().starts_with(b"{") {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(reply.body).is_ok();
        return Err(if json {
            Malformed::NotObject
        } else {
            Malformed::NotJson
        });
    }
    // serde_json's error may quote the document, so only its category is kept.
    let document: Document = serde_json::from_slice(reply.body).map_err(|e| match e.classify() {
        serde_json::error::Category::Data => Malformed::NotObject,
        serde_json::error::Category::Syntax
        | serde_json::error::Category::Eof
        | serde_json::error::Category::Io => Malformed::NotJson,
    })?;
    let token = match document.access_token {
        None => return Err(Malformed::NoAccessToken),
        // It goes into a header field: RFC 6750 §2.1 allows no more than this.
        Some(Value::String(token))
            if (1..=PROVIDER_TOKEN_BYTES).contains(&token.len())
                && token.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Secret::new(token)
        }
        Some(_) => return Err(Malformed::BadAccessToken),
    };
    match document.token_type {
        None => {}
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("bearer") => {}
        // DPoP needs a proof per request, N_A is no access token (RFC 8693 §2.2.1).
        Some(_) => return Err(Malformed::TokenType),
    }
    let expires_in = document.expires_in.map(|v| seconds(&v)).transpose()?;
    Ok(Granted {
        token,
        expires_in,
        exhausted: None,
    })
}

/// `expires_in`: a number, or (GitHub's documents show it) a number in a string. Huge ones are capped.
fn seconds(value: &Value) -> Result<Duration, Malformed> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        // Only plain decimals: parse() would also take "NaN", "inf" and "1e9".
        Value::String(text) if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(s) if s >= 0.0 => Ok(Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)),
        _ => Err(Malformed::ExpiresIn),
    }
}

fn refused(reply: &Reply<'_>, now: SystemTime, dialect: Dialect, secrets: &[&str]) -> ErrorKind {
    let said = Said::read(reply.body);
    let answer = Answer {
        status: reply.status.as_u16(),
        code: clean(&said.code, 64, secrets),
        description: clean(&said.text, 256, secrets),
    };
    let text = said.text.to_ascii_lowercase();
    match meaning(dialect, reply.status, &said, &text) {
        Meaning::Subject => ErrorKind::SubjectRefused(answer),
        Meaning::CallersClient => ErrorKind::CallerRefused(answer),
        Meaning::Denied => ErrorKind::Denied(answer),
        Meaning::Interaction => ErrorKind::Interaction {
            answer,
            interaction: Arc::new(said.interaction(secrets)),
        },
        Meaning::NotConnected => ErrorKind::ConnectionRequired(answer),
        Meaning::Reconnect => ErrorKind::ReconnectRequired(answer),
        Meaning::Ours => ErrorKind::Credentials(answer),
        Meaning::RateLimit => {
            // Suspicious-IP throttling lasts for minutes at least (Auth0: 6 attempts an hour).
            let throttled = said.code == "too_many_attempts";
            let default = if throttled {
                RATE_LIMIT_WAIT
            } else {
                RATE_LIMIT_DEFAULT
            };
            let retry_after = retry_after(reply.headers, now).unwrap_or(default);
            ErrorKind::RateLimited { retry_after, answer }
        }
        Meaning::Down => {
            let retry_after = retry_after(reply.headers, now);
            ErrorKind::Server { retry_after, answer }
        }
    }
}

/// What an error answer says: RFC 6749 §5.2, Auth0's other JSON forms, or plain text.
#[derive(Default)]
struct Said {
    code: String,
    text: String,
    /// Entra's second code.
    suberror: String,
    interaction_uri: Option<String>,
    claims: Option<String>,
}

impl Said {
    fn read(body: &[u8]) -> Self {
        if let Ok(Value::Object(document)) = serde_json::from_slice(body) {
            let member = |names: &[&str]| {
                let found = names.iter().find_map(|name| document.get(*name)?.as_str());
                found.unwrap_or_default().to_owned()
            };
            let optional = |name: &str| document.get(name)?.as_str().map(str::to_owned);
            return Self {
                code: member(&["error", "errorCode", "code", "name"]),
                text: member(&["error_description", "description", "message"]),
                suberror: member(&["suberror"]),
                interaction_uri: optional("interaction_uri"),
                claims: optional("claims"),
            };
        }
        let text = String::from_utf8_lossy(body);
        let text = text.trim();
        // A proxy's or firewall's page says nothing that a log line can use.
        if text.starts_with('<') {
            Self::default()
        } else {
            Self {
                text: text.to_owned(),
                ..Self::default()
            }
        }
    }

    fn asks_for_consent(&self) -> bool {
        matches!(
            self.suberror.as_str(),
            "consent_required" | "basic_action" | "additional_action"
        ) || self.claims.is_some()
    }

    /// What may be handed to the caller: an https address, a JSON object, each of bounded length and without
    /// any of our secrets.
    fn interaction(&self, secrets: &[&str]) -> Interaction {
        let safe = |text: &String| {
            let fits = text.len() <= INTERACTION_BYTES && !text.chars().any(char::is_control);
            (fits && !secrets.iter().any(|secret| echoes(text, secret))).then(|| text.clone())
        };
        let is_https =
            |text: &String| url::Url::parse(text).is_ok_and(|url| url.scheme() == "https" && url.has_host());
        let is_object = |text: &String| matches!(serde_json::from_str(text), Ok(Value::Object(_)));
        Interaction {
            connect_url: self.interaction_uri.as_ref().and_then(safe).filter(is_https),
            claims: self.claims.as_ref().and_then(safe).filter(is_object),
        }
    }
}

/// `text` cut to `chars`, without control characters; empty when any part of a secret shows in it.
fn clean(text: &str, chars: usize, secrets: &[&str]) -> String {
    let kept: String = text
        .chars()
        .take(chars)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if secrets.iter().any(|secret| echoes(&kept, secret)) {
        String::new()
    } else {
        kept
    }
}

/// Whether `text` holds `secret` or twelve bytes of it in a row: an echo may be cut off at either end.
fn echoes(text: &str, secret: &str) -> bool {
    const RUN: usize = 12;
    if secret.len() <= RUN {
        return !secret.is_empty() && text.contains(secret);
    }
    let secret = secret.as_bytes();
    let runs: std::collections::HashSet<&[u8]> = text.as_bytes().windows(RUN).collect();
    secret.windows(RUN).any(|run| runs.contains(run))
}

/// Auth0 tells the last call of a window by `x-ratelimit-remaining: 0` and its end by `x-ratelimit-reset`.
fn exhausted(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let used_up = headers.get("x-ratelimit-remaining")?.as_bytes().trim_ascii() == b"0";
    let left = until_reset(headers, now)?;
    (used_up && !left.is_zero()).then(|| left.min(RATE_LIMIT_WAIT))
}

/// What is left until `x-ratelimit-reset`, in seconds since 1970.
fn until_reset(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let at: u64 = headers
        .get("x-ratelimit-reset")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let left = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    Some(
        UNIX_EPOCH
            .checked_add(Duration::from_secs(at))
            .map_or(RATE_LIMIT_WAIT, left),
    )
}

/// The wait that the headers ask for, 1 s to [`RATE_LIMIT_WAIT`]: Retry-After in seconds or as a date
/// (RFC 9110 §10.2.3), else Auth0's x-ratelimit-reset in seconds since 1970.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let header = text(RETRY_AFTER.as_str()).and_then(|value| match value.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok().map(until),
    });
    header
        .or_else(|| until_reset(headers, now))
        .map(|wait| wait.clamp(Duration::from_secs(1), RATE_LIMIT_WAIT))
}

#[cfg(test)]
mod tests;

//! Reads a token endpoint's answer (RFC 6749 §5, RFC 8693 §2.2, Auth0's own codes). Pure: no I/O, no clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use http::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde_json::Value;

use super::error::{Answer, ErrorKind, Malformed};
use crate::limits::{PROVIDER_TOKEN_BYTES, RATE_LIMIT_WAIT};
use crate::secret::Secret;

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
}

/// Reads `reply`, received at `now`. `secrets` are what must not be kept of an error's text.
pub(super) fn read(reply: &Reply<'_>, now: SystemTime, secrets: &[&str]) -> Result<Granted, ErrorKind> {
    if reply.status == StatusCode::OK {
        granted(reply).map_err(ErrorKind::InvalidResponse)
    } else if reply.status.is_client_error() || reply.status.is_server_error() {
        Err(refused(reply, now, secrets))
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
    Ok(Granted { token, expires_in })
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

fn refused(reply: &Reply<'_>, now: SystemTime, secrets: &[&str]) -> ErrorKind {
    let (code, text) = error_texts(reply.body);
    let answer = Answer {
        status: reply.status.as_u16(),
        code: clean(&code, 64, secrets),
        description: clean(&text, 256, secrets),
    };
    match meaning(reply.status, &code, &text.to_ascii_lowercase()) {
        Meaning::Subject => ErrorKind::SubjectRefused(answer),
        Meaning::NotConnected => ErrorKind::ConnectionRequired(answer),
        Meaning::Reconnect => ErrorKind::ReconnectRequired(answer),
        Meaning::Ours => ErrorKind::Credentials(answer),
        Meaning::RateLimit => {
            let retry_after = retry_after(reply.headers, now).unwrap_or(RATE_LIMIT_DEFAULT);
            ErrorKind::RateLimited { retry_after, answer }
        }
        Meaning::Down => {
            let retry_after = retry_after(reply.headers, now);
            ErrorKind::Server { retry_after, answer }
        }
    }
}

enum Meaning {
    Subject,
    NotConnected,
    Reconnect,
    Ours,
    RateLimit,
    Down,
}

/// `text` is the description in lower case: some of Auth0's answers carry their meaning there only.
fn meaning(status: StatusCode, code: &str, text: &str) -> Meaning {
    let by_code = match code {
        "too_many_requests" | "too_many_attempts" | "slow_down" => Some(Meaning::RateLimit),
        "federated_connection_refresh_token_not_found" | "tokenset_not_found" => Some(Meaning::NotConnected),
        "federated_connection_refresh_token_flow_failed" => Some(Meaning::Reconnect),
        "invalid_grant" | "expired_token" | "token_expired" | "invalid_token" => Some(Meaning::Subject),
        // RFC 8693 §2.2.2: a bad subject token is an invalid_request too.
        "invalid_request" if names_the_subject_token(text) => Some(Meaning::Subject),
        // Said of the user's account at the provider, unless it says that the client is what is denied.
        "access_denied" if !text.contains("client") && !text.contains("grant") => Some(Meaning::NotConnected),
        "access_denied"
        | "invalid_request"
        | "invalid_client"
        | "unauthorized_client"
        | "unsupported_grant_type"
        | "unsupported_token_type"
        | "invalid_scope"
        | "invalid_target"
        | "mfa_required"
        | "use_dpop_nonce" => Some(Meaning::Ours),
        "temporarily_unavailable" | "server_error" => Some(Meaning::Down),
        _ => None,
    };
    let by_text = || {
        if text.contains("federated connection refresh token not found") {
            Some(Meaning::NotConnected)
        } else if text.contains("refresh token flow for the federated connection failed") {
            Some(Meaning::Reconnect)
        } else if text.contains("too many requests") {
            Some(Meaning::RateLimit)
        } else {
            None
        }
    };
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Meaning::RateLimit;
    }
    if text.contains("grant type") && text.contains("not allowed") {
        return Meaning::Ours;
    }
    if status.is_server_error() {
        // A failing server's word for somebody else's fault is not believed, save where it is unmistakable.
        return match by_code {
            Some(found @ (Meaning::NotConnected | Meaning::Reconnect)) if code != "access_denied" => found,
            _ => Meaning::Down,
        };
    }
    by_code.or_else(by_text).unwrap_or(match status {
        StatusCode::UNAUTHORIZED => Meaning::Subject,
        StatusCode::REQUEST_TIMEOUT => Meaning::Down,
        _ => Meaning::Ours,
    })
}

fn names_the_subject_token(text: &str) -> bool {
    let rest = text
        .replace("subject_token_type", "")
        .replace("subject token type", "");
    rest.contains("subject_token") || rest.contains("subject token")
}

/// The error code and its description: RFC 6749 §5.2, Auth0's other JSON forms, or plain text.
fn error_texts(body: &[u8]) -> (String, String) {
    if let Ok(Value::Object(document)) = serde_json::from_slice(body) {
        let member = |names: &[&str]| {
            let found = names.iter().find_map(|name| document.get(*name)?.as_str());
            found.unwrap_or_default().to_owned()
        };
        return (
            member(&["error", "errorCode", "code", "name"]),
            member(&["error_description", "description", "message"]),
        );
    }
    let text = String::from_utf8_lossy(body);
    let text = text.trim();
    // A proxy's or firewall's page says nothing that a log line can use.
    if text.starts_with('<') {
        Default::default()
    } else {
        (String::new(), text.to_owned())
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

/// The wait that the headers ask for, 1 s to [`RATE_LIMIT_WAIT`]: Retry-After in seconds or as a date
/// (RFC 9110 §10.2.3), else Auth0's x-ratelimit-reset in seconds since 1970.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |name: &str| headers.get(name)?.to_str().ok().map(str::trim);
    let until = |at: SystemTime| at.duration_since(now).unwrap_or_default();
    let header = text(RETRY_AFTER.as_str()).and_then(|value| match value.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => httpdate::parse_http_date(value).ok().map(until),
    });
    let reset = || {
        let at = text("x-ratelimit-reset")?.parse::<u64>().ok()?;
        Some(
            UNIX_EPOCH
                .checked_add(Duration::from_secs(at))
                .map_or(RATE_LIMIT_WAIT, until),
        )
    };
    header
        .or_else(reset)
        .map(|wait| wait.clamp(Duration::from_secs(1), RATE_LIMIT_WAIT))
}

#[cfg(test)]
mod tests;

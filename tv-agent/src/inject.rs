//! Stage 11: which credentials a request presents, and the provider's token in their place. Pure.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use crate::addr::HostName;
use crate::class::{Class, Refusal};
use crate::limits;
use crate::secret::Secret;

mod client;

pub use client::{is_form, set_identity, take_client, take_client_from_form, take_header};

/// The way in which the caller presented its token; the provider's goes out in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `Authorization: Bearer` (RFC 6750).
    Bearer,
    /// `Authorization: token`, GitHub's own.
    Token,
    /// `Authorization: Basic` with the token as password, as git sends it.
    Basic,
}

/// The subject token of one request.
pub struct Presented {
    pub scheme: Scheme,
    pub subject: Arc<Secret>,
}

/// What is wrong with the caller's credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the request has more than one Authorization header; send one")]
    Repeated,
    #[error("the Authorization header is not of the form 'Bearer <token>'")]
    Malformed,
    #[error("the Authorization scheme is not accepted on this host; send 'Bearer <token>'")]
    Scheme,
    #[error("the token is longer than {} bytes", limits::SUBJECT_TOKEN_BYTES)]
    TooLong,
    #[error("the token is repeated in the request's address; send it in the Authorization header only")]
    InAddress,
    #[error("the vault's token cannot stand in a header")]
    Unsendable,
    #[error(
        "the client credentials are incomplete, repeated or malformed; send id and secret once, by Basic or as \
         parameters"
    )]
    Client,
    #[error(
        "the form is longer than {} bytes; send the client credentials by Basic",
        limits::CREDENTIALS_BODY_BYTES
    )]
    FormTooLong,
    #[error("a header that this route reads stands there more than once; send it once")]
    RepeatedField,
    #[error("a header that this route reads is no text")]
    Field,
    #[error("the user's identity cannot stand in a header")]
    Identity,
}

impl Error {
    pub fn class(self) -> Class {
        match self {
            Self::Repeated | Self::Malformed | Self::Scheme | Self::TooLong => Class::InvalidToken,
            Self::Client | Self::Identity => Class::InvalidToken,
            Self::InAddress | Self::FormTooLong | Self::RepeatedField | Self::Field => Class::BadRequest,
            Self::Unsendable => Class::VaultInvalidResponse,
        }
    }

    pub fn refusal(self) -> Refusal {
        Refusal::new(self.class(), self.to_string())
    }
}

/// Whether git and GitHub's own scheme are spoken on this host, besides Bearer.
pub fn speaks_git(host: &HostName) -> bool {
    host.as_str() == "github.com" || host.as_str().ends_with(".github.com")
}

/// The token that the request presents; None when it presents none.
///
/// # Errors
/// When there are credentials, but none that can be exchanged. Nothing is forwarded then.
pub fn presented(headers: &HeaderMap, host: &HostName) -> Result<Option<Presented>, Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Error::Repeated);
    }
    let value = value.to_str().map_err(|_| Error::Malformed)?;
    // One SP or more between scheme and credentials (RFC 9110 §11.4); the scheme in any case (§11.1).
    let (scheme, rest) = value
        .trim_matches([' ', '\t'])
        .split_once([' ', '\t'])
        .ok_or(Error::Malformed)?;
    let credentials = rest.trim_start_matches([' ', '\t']);
    let git = speaks_git(host);
    let presented = if scheme.eq_ignore_ascii_case("bearer") {
        Presented {
            scheme: Scheme::Bearer,
            subject: Secret::new(credentials.to_owned()).into(),
        }
    } else if git && scheme.eq_ignore_ascii_case("token") {
        Presented {
            scheme: Scheme::Token,
            subject: Secret::new(credentials.to_owned()).into(),
        }
    } else if git && scheme.eq_ignore_ascii_case("basic") {
        Presented {
            scheme: Scheme::Basic,
            subject: basic_password(credentials)?.into(),
        }
    } else {
        return Err(Error::Scheme);
    };
    check_form(&presented.subject)?;
    Ok(Some(presented))
}

/// Puts the provider's token where the subject token was, and removes every other copy of the latter. Without a
/// subject token it goes out as Bearer.
///
/// # Errors
/// When a copy stands where it cannot be removed (the address), or the new token cannot be sent.
pub fn replace(
    head: &mut http::request::Parts,
    presented: Option<&Presented>,
    token: &Secret,
) -> Result<(), Error> {
    let scheme = presented.map_or(Scheme::Bearer, |presented| presented.scheme);
    if let Some(presented) = presented {
        remove_copies(head, presented.subject.expose())?;
    }
    head.headers.insert(AUTHORIZATION, credentials(scheme, token)?);
    Ok(())
}

fn remove_copies(head: &mut http::request::Parts, subject: &str) -> Result<(), Error> {
    if head
        .uri
        .path_and_query()
        .is_some_and(|address| address_holds(address.as_str(), subject.as_bytes()))
    {
        return Err(Error::InAddress);
    }
    head.headers.remove(AUTHORIZATION);
    let copies: Vec<_> = head
        .headers
        .iter()
        .filter(|(_, value)| contains(value.as_bytes(), subject.as_bytes()))
        .map(|(name, _)| name.clone())
        .collect();
    for name in copies {
        head.headers.remove(name);
    }
    Ok(())
}

/// The path as it may stand in a log: not at all when it repeats what the Authorization header holds, in
/// whatever form that is.
pub fn loggable_path(uri: &http::Uri, headers: &HeaderMap) -> String {
    let path = uri.path();
    let repeats = |value: &HeaderValue| {
        let given = value.as_bytes().rsplit(u8::is_ascii_whitespace).next();
        let given = given.unwrap_or_default();
        let decoded = Zeroizing::new(BASE64.decode(given).unwrap_or_default());
        let mut parts = decoded.split(|&byte| byte == b':').chain([given]);
        parts.any(|part| address_holds(path, part))
    };
    if headers.get_all(AUTHORIZATION).iter().any(repeats) {
        "(withheld: it repeats the credentials)".to_owned()
    } else {
        path.to_owned()
    }
}

/// Drops response headers that repeat the provider's token, so that it never reaches the workload.
///
/// Returns how many were dropped. (Bodies are not searched: SECURITY.md says so.)
pub fn scrub(headers: &mut HeaderMap, token: &Secret) -> usize {
    let token = token.expose().as_bytes();
    let leaks: Vec<_> = headers
        .iter()
        .filter(|(_, v)| contains(v.as_bytes(), token))
        .map(|(name, _)| name.clone())
        .collect();
    leaks.iter().for_each(|name| {
        headers.remove(name);
    });
    leaks.len()
}

fn credentials(scheme: Scheme, token: &Secret) -> Result<HeaderValue, Error> {
    let text = Zeroizing::new(match scheme {
        Scheme::Bearer => format!("Bearer {}", token.expose()),
        Scheme::Token => format!("token {}", token.expose()),
        // The user name that GitHub documents for app and OAuth tokens.
        Scheme::Basic => {
            format!(
                "Basic {}",
                BASE64.encode(Zeroizing::new(format!("x-access-token:{}", token.expose())))
            )
        }
    });
    let mut value = HeaderValue::from_str(&text).map_err(|_| Error::Unsendable)?;
    // Never indexed in HPACK (RFC 7541 §7.1.3), and not printed by Debug.
    value.set_sensitive(true);
    Ok(value)
}

/// `user:token`, or `token:` and `token:x-oauth-basic`, which git users write too.
fn basic_password(credentials: &str) -> Result<Secret, Error> {
    let bytes = Zeroizing::new(BASE64.decode(credentials).map_err(|_| Error::Malformed)?);
    let text = std::str::from_utf8(&bytes).map_err(|_| Error::Malformed)?;
    let (user, password) = text.split_once(':').ok_or(Error::Malformed)?;
    let token = if password.is_empty() || password == "x-oauth-basic" {
        user
    } else {
        password
    };
    Ok(Secret::new(token.to_owned()))
}

/// RFC 6750 §2.1 (`b64token`), a little wider: visible ASCII without a space.
fn check_form(subject: &Secret) -> Result<(), Error> {
    if subject.len() > limits::SUBJECT_TOKEN_BYTES {
        return Err(Error::TooLong);
    }
    let visible = subject.expose().bytes().all(|b| b.is_ascii_graphic());
    if subject.is_empty() || !visible {
        Err(Error::Malformed)
    } else {
        Ok(())
    }
}

/// Whether an address holds `secret`, percent-encoded or not.
fn address_holds(address: &str, secret: &[u8]) -> bool {
    contains(address.as_bytes(), secret)
        || address.contains('%')
            && contains(
                &Zeroizing::new(percent_decode_str(address).collect::<Vec<_>>()),
                secret,
            )
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    // A very short token would match by chance; real ones are never that short.
    needle.len() >= 8 && hay.len() >= needle.len() && hay.windows(needle.len()).any(|w| w == needle)
}

#[cfg(test)]
mod tests;

//! Stage 11: which credentials a request presents, and the provider's token in their place. Pure.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use crate::addr::HostName;
use crate::class::{Class, Refusal};
use crate::limits;
use crate::policy::Credentials;
use crate::policy::credentials::{Inject, InjectScheme, OnForeignToken, Place};
use crate::secret::Secret;

mod client;
pub mod foreign;
mod places;
pub mod purge;

pub use client::{is_form, set_identity, take_client, take_client_from_form, take_header};
pub use foreign::{foreign, passes};

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
    #[error("the request has more than one token at a place where the route looks for one; send one")]
    RepeatedElsewhere,
    #[error("the token beside the Authorization header is not text")]
    Unreadable,
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
            Self::Repeated
            | Self::Malformed
            | Self::Scheme
            | Self::TooLong
            | Self::RepeatedElsewhere
            | Self::Unreadable
            | Self::Client
            | Self::Identity => Class::InvalidToken,
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

/// The token that the request presents: in `Authorization`, else at the first of the route's places that holds
/// one. None when it presents none.
///
/// # Errors
/// When there are credentials, but none that can be exchanged. Nothing is forwarded then.
pub fn presented(
    headers: &HeaderMap,
    uri: &http::Uri,
    host: &HostName,
    route: &Credentials,
) -> Result<Option<Presented>, Error> {
    if let Some(presented) = authorization(headers, host, route)? {
        return Ok(Some(presented));
    }
    for place in &route.places {
        if let Some(subject) = places::find(headers, uri, place)? {
            check_form(&subject)?;
            let (scheme, subject) = (Scheme::Bearer, subject.into());
            return Ok(Some(Presented { scheme, subject }));
        }
    }
    Ok(None)
}

fn authorization(
    headers: &HeaderMap,
    host: &HostName,
    route: &Credentials,
) -> Result<Option<Presented>, Error> {
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
    // A provider that takes a scheme has clients that send it, also with a token of its own.
    let also = |scheme| {
        speaks_git(host) || route.inject.scheme == scheme || route.on_foreign == OnForeignToken::Passthrough
    };
    let (scheme, subject) = if scheme.eq_ignore_ascii_case("bearer") {
        (Scheme::Bearer, Secret::new(credentials.to_owned()))
    } else if scheme.eq_ignore_ascii_case("token") && also(InjectScheme::Token) {
        (Scheme::Token, Secret::new(credentials.to_owned()))
    } else if scheme.eq_ignore_ascii_case("basic") && also(InjectScheme::Basic) {
        (Scheme::Basic, basic_password(credentials)?)
    } else {
        return Err(Error::Scheme);
    };
    check_form(&subject)?;
    let subject = subject.into();
    Ok(Some(Presented { scheme, subject }))
}

/// Puts the provider's token in, and removes the subject token: from `Authorization`, from the route's places,
/// and every other copy. Without a subject token, `as_presented` means Bearer.
///
/// # Errors
/// When a copy stands where it cannot be removed (the address), or the new token cannot be sent.
pub fn replace(
    head: &mut http::request::Parts,
    presented: Option<&Presented>,
    token: &Secret,
    route: &Credentials,
) -> Result<(), Error> {
    head.headers.remove(AUTHORIZATION);
    for place in &route.places {
        places::clear(&mut head.headers, &mut head.uri, place);
    }
    if let Some(presented) = presented {
        remove_copies(head, presented.subject.expose().as_bytes())?;
    }
    let scheme = presented.map_or(Scheme::Bearer, |presented| presented.scheme);
    let value = credentials(&route.inject, scheme, token)?;
    head.headers.insert(&route.inject.header, value);
    if route.purge.json.is_some() {
        // The rule can read no encoded body.
        head.headers
            .insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    Ok(())
}

fn remove_copies(head: &mut http::request::Parts, subject: &[u8]) -> Result<(), Error> {
    if head
        .uri
        .path_and_query()
        .is_some_and(|address| places::holds(address.as_str().as_bytes(), subject))
    {
        return Err(Error::InAddress);
    }
    places::clear_cookies(&mut head.headers, subject);
    let copies: Vec<_> = head
        .headers
        .iter()
        .filter(|(_, value)| places::holds(value.as_bytes(), subject))
        .map(|(name, _)| name.clone())
        .collect();
    for name in copies {
        head.headers.remove(name);
    }
    Ok(())
}

/// Puts a further token into a header of its own: a channel's, or the caller's where the operator sends that along.
/// What the caller wrote there goes. After [`replace`], which removes every copy of the caller's token.
///
/// # Errors
/// When the token cannot stand in a header.
pub fn set_token(headers: &mut HeaderMap, header: &HeaderName, token: &Secret) -> Result<(), Error> {
    headers.remove(header);
    let mut value = HeaderValue::from_str(token.expose()).map_err(|_| Error::Unsendable)?;
    value.set_sensitive(true);
    headers.insert(header, value);
    Ok(())
}

/// Marks what may hold a token: never indexed in HPACK (RFC 7541 §7.1.3), and not printed by Debug. For a request
/// that goes on as it came.
pub fn mark_sensitive(headers: &mut HeaderMap, route: &Credentials) {
    let places = route.places.iter().filter_map(|place| match place {
        Place::Header(name) => Some(name),
        Place::Query(_) | Place::Cookie(_) => None,
    });
    for name in [&AUTHORIZATION, &route.inject.header].into_iter().chain(places) {
        if let http::header::Entry::Occupied(mut values) = headers.entry(name) {
            values.iter_mut().for_each(|value| value.set_sensitive(true));
        }
    }
}

/// The path as it may stand in a log: not at all when it repeats what the Authorization header or one of the
/// route's places holds, in whatever form that is.
pub fn loggable_path(uri: &http::Uri, headers: &HeaderMap, route: Option<&Credentials>) -> String {
    let path = uri.path();
    let repeats = |value: &HeaderValue| {
        let given = value.as_bytes().rsplit(u8::is_ascii_whitespace).next();
        let given = given.unwrap_or_default();
        let decoded = Zeroizing::new(BASE64.decode(given).unwrap_or_default());
        let mut parts = decoded.split(|&byte| byte == b':').chain([given]);
        parts.any(|part| places::holds(path.as_bytes(), part))
    };
    let elsewhere = || {
        let places = route.iter().flat_map(|route| &route.places);
        places
            .filter_map(|place| places::find(headers, uri, place).ok().flatten())
            .any(|subject| places::holds(path.as_bytes(), subject.expose().as_bytes()))
    };
    if headers.get_all(AUTHORIZATION).iter().any(repeats) || elsewhere() {
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

fn credentials(inject: &Inject, presented: Scheme, token: &Secret) -> Result<HeaderValue, Error> {
    let scheme = match inject.scheme {
        InjectScheme::AsPresented => Some(presented),
        InjectScheme::Bearer => Some(Scheme::Bearer),
        InjectScheme::Token => Some(Scheme::Token),
        InjectScheme::Basic => Some(Scheme::Basic),
        InjectScheme::None => None,
    };
    let text = Zeroizing::new(match scheme {
        Some(Scheme::Bearer) => format!("Bearer {}", token.expose()),
        Some(Scheme::Token) => format!("token {}", token.expose()),
        Some(Scheme::Basic) => {
            let pair = Zeroizing::new(format!("{}:{}", inject.user, token.expose()));
            format!("Basic {}", BASE64.encode(&*pair))
        }
        None => token.expose().to_owned(),
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

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    // A very short token would match by chance; real ones are never that short.
    needle.len() >= 8 && hay.len() >= needle.len() && hay.windows(needle.len()).any(|w| w == needle)
}

#[cfg(test)]
mod tests;

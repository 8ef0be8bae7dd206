//! What else a request brings for its vault (client credentials, an actor's token, a word about the user), taken
//! off it: none of it is for the provider.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use url::form_urlencoded;
use zeroize::Zeroizing;

use super::Error;
use crate::limits;
use crate::secret::Secret;
use crate::token::Client;
use crate::token::settings::{CallerCredentials, Place};

/// Takes the client credentials off the head: Basic, query. The first place that has them counts, and they are
/// removed from all.
///
/// # Errors
/// When what stands there is no credentials; nothing may be forwarded then.
pub fn take_client(head: &mut Parts, wanted: &CallerCredentials) -> Result<Option<Client>, Error> {
    let mut found = None;
    for place in &wanted.from {
        let here = match place {
            Place::Header => basic(&head.headers)?,
            Place::Query => from_query(head, wanted)?,
            Place::Body => None,
        };
        found = found.or(here);
    }
    head.headers.remove(AUTHORIZATION);
    Ok(found)
}

/// Takes the client credentials out of a form; gives the form without them.
///
/// # Errors
/// When there is one of the two only, or one of them twice.
pub fn take_client_from_form(
    form: &[u8],
    wanted: &CallerCredentials,
) -> Result<(Option<Client>, Zeroizing<Vec<u8>>), Error> {
    let text = std::str::from_utf8(form).map_err(|_| Error::Client)?;
    let (client, rest) = split(text, wanted)?;
    // A form without credentials goes on byte for byte, empty fields included.
    let rest = if client.is_some() { rest.as_bytes() } else { form };
    Ok((client, Zeroizing::new(rest.to_vec())))
}

/// Whether a body is a form, and may hold credentials.
pub fn is_form(headers: &HeaderMap) -> bool {
    let kind = headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    kind.and_then(|kind| kind.split(|byte| *byte == b';').next())
        .is_some_and(|kind| {
            kind.trim_ascii()
                .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
        })
}

/// Takes a header off the request and gives its text.
///
/// # Errors
/// When it stands there more than once, or holds what is no text.
pub fn take_header(headers: &mut HeaderMap, name: &HeaderName) -> Result<Option<String>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next().cloned();
    let repeated = values.next().is_some();
    headers.remove(name);
    if repeated {
        return Err(Error::RepeatedField);
    }
    let Some(value) = first else { return Ok(None) };
    let text = value.to_str().map_err(|_| Error::Field)?.trim();
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

/// Sets the header that names the user. Whatever the caller wrote there goes, also when there is no identity:
/// else anybody could be anyone.
///
/// # Errors
/// When the identity cannot stand in a header.
pub fn set_identity(headers: &mut HeaderMap, name: &HeaderName, identity: Option<&str>) -> Result<(), Error> {
    headers.remove(name);
    if let Some(identity) = identity {
        let value = HeaderValue::from_str(identity).map_err(|_| Error::Identity)?;
        headers.insert(name, value);
    }
    Ok(())
}

/// `Authorization: Basic`, the two parts as they are: what curl and browsers send (RFC 7617), not form-encoded.
fn basic(headers: &HeaderMap) -> Result<Option<Client>, Error> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(Error::Repeated);
    }
    let text = value.to_str().map_err(|_| Error::Client)?.trim();
    let credentials = match text.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("basic") => rest.trim(),
        _ => return Err(Error::Client),
    };
    let bytes = Zeroizing::new(BASE64.decode(credentials).map_err(|_| Error::Client)?);
    let pair = std::str::from_utf8(&bytes).map_err(|_| Error::Client)?;
    let (id, secret) = pair.split_once(':').ok_or(Error::Client)?;
    client(id.to_owned(), Zeroizing::new(secret.to_owned())).map(Some)
}

fn from_query(head: &mut Parts, wanted: &CallerCredentials) -> Result<Option<Client>, Error> {
    let Some(query) = head.uri.query() else {
        return Ok(None);
    };
    let (client, rest) = split(query, wanted)?;
    if client.is_some() {
        let path = head.uri.path();
        let address = if rest.is_empty() {
            Zeroizing::new(path.to_owned())
        } else {
            Zeroizing::new(format!("{path}?{}", *rest))
        };
        let mut parts = head.uri.clone().into_parts();
        parts.path_and_query = Some(address.parse().map_err(|_| Error::Client)?);
        head.uri = http::Uri::from_parts(parts).map_err(|_| Error::Client)?;
    }
    Ok(client)
}

/// The credentials of a query or form, and the rest of it, byte for byte.
fn split(text: &str, wanted: &CallerCredentials) -> Result<(Option<Client>, Zeroizing<String>), Error> {
    let (mut id, mut secret): (Option<Zeroizing<String>>, Option<Zeroizing<String>>) = (None, None);
    let mut rest = Zeroizing::new(String::with_capacity(text.len()));
    for pair in text.split('&') {
        let parsed = form_urlencoded::parse(pair.as_bytes()).next();
        let slot = match &parsed {
            Some((name, _)) if *name == wanted.id_name => &mut id,
            Some((name, _)) if *name == wanted.secret_name => &mut secret,
            _ => {
                if !rest.is_empty() {
                    rest.push('&');
                }
                rest.push_str(pair);
                continue;
            }
        };
        let value = parsed.map(|(_, value)| Zeroizing::new(value.into_owned()));
        if std::mem::replace(slot, value).is_some() {
            return Err(Error::Client);
        }
    }
    match (id, secret) {
        (None, None) => Ok((None, rest)),
        (Some(id), Some(secret)) => Ok((Some(client((*id).clone(), secret)?), rest)),
        _ => Err(Error::Client),
    }
}

fn client(id: String, secret: Zeroizing<String>) -> Result<Client, Error> {
    let fits = |text: &str| (1..=limits::CREDENTIAL_BYTES).contains(&text.len());
    if !fits(&id) || !fits(&secret) {
        return Err(Error::Client);
    }
    Ok(Client {
        id,
        secret: Secret::new((*secret).clone()),
    })
}

#[cfg(test)]
mod tests;

//! The verify step of a request: the caller's tokens, by the verifiers that the route names.

use std::sync::Arc;

use http::HeaderMap;
use serde_json::{Map, Value};

use crate::class::{Class, Refusal};
use crate::inject::Presented;
use crate::policy::{Route, Verify};
use crate::secret::Secret;
use crate::snapshot::Snapshot;
use crate::verify::Verified;

/// What was verified of a request. Empty where the route verifies nothing.
#[derive(Default)]
pub(super) struct Tokens {
    pub access: Option<Verified>,
    /// And the token itself.
    pub channel: Option<(Verified, Arc<Secret>)>,
}

/// Claims of a verified token.
pub(super) type Claims = Map<String, Value>;

impl Tokens {
    /// Those of the access token.
    pub fn claims(&self) -> Option<&Claims> {
        self.access.as_ref().map(|token| &*token.claims)
    }

    /// Who the caller is: by the access token, else by the channel token.
    pub fn identity(&self) -> Option<&str> {
        let mut tokens = self
            .access
            .iter()
            .chain(self.channel.as_ref().map(|(token, _)| token));
        tokens.find_map(|token| token.identity.as_deref())
    }
}

/// Verifies what the route demands, and takes the channel token off `headers`. `foreign`: the token presented is none
/// that is meant for us, and goes on as it came.
///
/// # Errors
/// When a token is missing or not accepted, or cannot be checked now: nothing goes on unverified.
pub(super) async fn verify(
    snapshot: &Snapshot,
    route: &Route,
    presented: Option<&Presented>,
    foreign: bool,
    headers: &mut HeaderMap,
) -> Result<Tokens, Refusal> {
    let Some(wanted) = &route.verify else {
        return Ok(Tokens::default());
    };
    let channel = channel(wanted, headers)?;
    let access = presented.map(|presented| presented.subject.clone());
    let access = access.filter(|_| !foreign);
    if presented.is_none() && !wanted.optional {
        return Err(Refusal::new(Class::MissingToken, "Authorization header required"));
    }
    Ok(Tokens {
        access: match access {
            Some(token) => Some(check(snapshot, &wanted.access, &token, "access token").await?),
            None => None,
        },
        channel: match (&wanted.channel, channel) {
            (Some(wanted), Some(token)) => {
                let verified = check(snapshot, &wanted.verifier, &token, "channel token").await?;
                Some((verified, token))
            }
            _ => None,
        },
    })
}

async fn check(snapshot: &Snapshot, verifier: &str, token: &Secret, what: &str) -> Result<Verified, Refusal> {
    let checked = snapshot.verifier(verifier)?.check(token).await;
    checked.map_err(|error| error.refusal(what))
}

/// The channel token, with or without a scheme before it.
fn channel(wanted: &Verify, headers: &mut HeaderMap) -> Result<Option<Arc<Secret>>, Refusal> {
    let Some(channel) = &wanted.channel else {
        return Ok(None);
    };
    let invalid = |text: &str| {
        Refusal::new(
            Class::InvalidToken,
            format!("The header {} {text}", channel.header),
        )
    };
    let mut values = headers.get_all(&channel.header).iter();
    let (value, more) = (values.next().cloned(), values.next().is_some());
    headers.remove(&channel.header);
    let Some(value) = value else {
        return if channel.optional {
            Ok(None)
        } else {
            let text = format!("The header {} with the channel token is required", channel.header);
            Err(Refusal::new(Class::MissingToken, text))
        };
    };
    if more {
        return Err(invalid("is there more than once; send one"));
    }
    let text = value.to_str().map_err(|_| invalid("is no visible ASCII"))?.trim();
    let token = match text.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim_start(),
        Some(_) => return Err(invalid("is not of the form 'Bearer <token>' or '<token>'")),
        None => text,
    };
    if token.is_empty() {
        return Err(invalid("is empty"));
    }
    Ok(Some(Arc::new(Secret::new(token.to_owned()))))
}

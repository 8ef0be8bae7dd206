//! What a request brings for its vault, and the grant that is made of it.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Map, Value};

use crate::addr::HostName;
use crate::body::Body;
use crate::class::{Class, Refusal};
use crate::inject::{self, Presented};
use crate::limits;
use crate::policy::{Hint, Route};
use crate::secret::Secret;
use crate::token::settings::{ActorFrom, CallerCredentials, ClientCredentials, Kind, Place, VaultSubject};
use crate::token::{self, Client, Decision, Grant, Vault};

/// Claims of the caller's token, verified.
pub(super) type Claims = Map<String, Value>;

/// What was taken off one request.
#[derive(Default)]
pub(super) struct Brought {
    pub presented: Option<Presented>,
    login_hint: Option<String>,
    user: Option<String>,
    actor: Option<Arc<Secret>>,
    client: Option<Arc<Client>>,
    /// What is left of a form that was searched for credentials.
    form: Option<Bytes>,
}

impl Brought {
    /// Takes off the head what the vault's kind and the route name. `claims`: of the caller's verified token.
    ///
    /// # Errors
    /// When something stands there that is not what it should be; nothing may be forwarded then.
    pub fn take(
        head: &mut Parts,
        host: &HostName,
        route: &Route,
        vault: &Vault,
        claims: Option<&Claims>,
    ) -> Result<Self, inject::Error> {
        let kind = &vault.settings().kind;
        let mut brought = Self::default();
        match callers(kind) {
            Some(places) => brought.client = inject::take_client(head, places)?.map(Arc::new),
            None => brought.presented = inject::presented(&head.headers, host)?,
        }
        let mut word = |hint: &Hint| match hint {
            Hint::Fixed(text) => Ok(Some(text.to_string())),
            Hint::Header(name) => inject::take_header(&mut head.headers, name),
            Hint::Claim(path) => Ok(claim(claims, path)),
        };
        brought.login_hint = route.login_hint.as_ref().map(&mut word).transpose()?.flatten();
        match kind {
            Kind::TokenVault(vault) => {
                if let VaultSubject::Worker(worker) = &vault.subject {
                    brought.user = word(&worker.user)?;
                }
            }
            Kind::TokenExchange(exchange) => match exchange.actor.as_ref().map(|actor| &actor.from) {
                Some(ActorFrom::Config(secret)) => brought.actor = Some(secret.clone()),
                Some(ActorFrom::Header(name)) => brought.actor = actor(head, name)?,
                Some(ActorFrom::Own) | None => {}
            },
            Kind::ClientCredentials(ClientCredentials { forward_identity, .. }) => {
                if let Some(forward) = forward_identity {
                    let identity = claim(claims, &forward.claim);
                    inject::set_identity(&mut head.headers, &forward.header, identity.as_deref())?;
                }
            }
        }
        Ok(brought)
    }

    /// Takes client credentials out of a form, where the vault looks there. Other bodies stay where they are.
    ///
    /// # Errors
    /// When the form is too long, breaks off, or holds what is no credentials.
    pub async fn take_body(
        &mut self,
        head: &mut Parts,
        vault: &Vault,
        body: &mut Option<Incoming>,
    ) -> Result<(), Refusal> {
        let places = callers(&vault.settings().kind).filter(|places| places.from.contains(&Place::Body));
        let Some(places) = places.filter(|_| inject::is_form(&head.headers)) else {
            return Ok(());
        };
        let Some(incoming) = body.take() else {
            return Ok(());
        };
        let limited = Limited::new(incoming, limits::CREDENTIALS_BODY_BYTES);
        let whole = limited.collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                inject::Error::FormTooLong.refusal()
            } else {
                Refusal::new(Class::BadRequest, "the request's form broke off")
            }
        })?;
        let (client, rest) =
            inject::take_client_from_form(&whole.to_bytes(), places).map_err(inject::Error::refusal)?;
        if self.client.is_none() {
            self.client = client.map(Arc::new);
        }
        if head.headers.contains_key(header::CONTENT_LENGTH) {
            head.headers.insert(header::CONTENT_LENGTH, rest.len().into());
        }
        self.form = Some(Bytes::from_owner(rest));
        Ok(())
    }

    /// The body that goes out.
    pub fn body(&self, body: &mut Option<Incoming>) -> Body {
        match &self.form {
            Some(form) => Body::own(form.clone()),
            None => body.take().map_or_else(Body::empty, Body::passing),
        }
    }

    /// Whether nothing was brought that the vault could work with.
    pub fn lacks_credentials(&self, vault: &Vault) -> bool {
        let kind = &vault.settings().kind;
        match callers(kind) {
            Some(_) => self.client.is_none(),
            None => kind.needs_subject() && self.presented.is_none(),
        }
    }

    /// Whether the caller's token is one that the vault exchanges. A look into an unverified token is enough to
    /// decide that, since the token endpoint judges it; it is never enough to let one pass.
    pub fn decide(&self, vault: &Vault, claims: Option<&Claims>) -> Decision {
        let conditions = &vault.settings().when;
        let (Some(presented), false) = (&self.presented, conditions.is_empty()) else {
            return Decision::Exchange;
        };
        match claims {
            Some(claims) => token::decide(conditions, Some(claims)),
            None => {
                let peeked = presented.subject.jwt_claims_unverified::<Claims>();
                token::decide(conditions, peeked.ok().as_ref())
            }
        }
    }

    pub fn grant<'a>(&'a self, vault: &'a Arc<Vault>, route: &'a Route) -> Grant<'a> {
        Grant {
            login_hint: self.login_hint.as_deref(),
            subject: self.presented.as_ref().map(|presented| &presented.subject),
            actor: self.actor.as_ref(),
            user: self.user.as_deref(),
            client: self.client.as_ref(),
            ..Grant::new(vault, &route.wanted)
        }
    }
}

fn callers(kind: &Kind) -> Option<&CallerCredentials> {
    match kind {
        Kind::ClientCredentials(settings) => settings.credentials.as_ref(),
        Kind::TokenVault(_) | Kind::TokenExchange(_) => None,
    }
}

/// The actor's token, with or without `Bearer` before it.
fn actor(head: &mut Parts, name: &HeaderName) -> Result<Option<Arc<Secret>>, inject::Error> {
    let text = inject::take_header(&mut head.headers, name)?;
    let Some(text) = text else { return Ok(None) };
    let token = match text.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        Some(_) => return Err(inject::Error::Field),
        None => &text,
    };
    if token.len() > limits::SUBJECT_TOKEN_BYTES {
        return Err(inject::Error::TooLong);
    }
    Ok(Some(Arc::new(Secret::new(token.to_owned()))))
}

/// The string at `path`; anything else is no word about a user.
fn claim(claims: Option<&Claims>, path: &[String]) -> Option<String> {
    let (first, rest) = path.split_first()?;
    let found = rest
        .iter()
        .try_fold(claims?.get(first)?, |value, name| value.get(name))?;
    found.as_str().map(str::to_owned)
}

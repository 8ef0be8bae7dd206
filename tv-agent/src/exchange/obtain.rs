//! What a request brings for its vault, and the grant that is made of it.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;

use super::sign;
use super::verify::{Claims, Tokens};
use crate::addr::HostName;
use crate::body::Body;
use crate::class::{Class, Refusal};
use crate::inject::{self, Presented};
use crate::limits;
use crate::policy::{Hint, Route, Wanted, connection};
use crate::secret::Secret;
use crate::snapshot::Source;
use crate::token::settings::{ActorFrom, CallerCredentials, ClientCredentials, Kind, Place, VaultSubject};
use crate::token::{self, Client, Decision, Grant, Vault};
use crate::workload::Workload;

/// The caller's token. None where the vault takes the caller's client credentials, and nobody verifies a token.
///
/// # Errors
/// When there are credentials that nobody takes.
pub(super) fn presented(
    head: &Parts,
    host: &HostName,
    route: &Route,
    source: Source<'_>,
) -> Result<Option<Presented>, Refusal> {
    if callers(source).is_some() && route.verify.is_none() {
        return Ok(None);
    }
    inject::presented(&head.headers, &head.uri, host, &route.credentials).map_err(inject::Error::refusal)
}

/// What was taken off one request.
#[derive(Default)]
pub(super) struct Brought {
    pub presented: Option<Presented>,
    pub verified: Tokens,
    login_hint: Option<String>,
    user: Option<String>,
    actor: Option<Arc<Secret>>,
    client: Option<Arc<Client>>,
    /// What is left of a form that was searched for credentials.
    form: Option<Bytes>,
    /// With the connection that the pod chose.
    wanted: Option<Arc<Wanted>>,
}

impl Brought {
    /// Takes off the head what the source and the route name, and what only we may say there.
    ///
    /// # Errors
    /// When something stands there that is not what it should be; nothing may be forwarded then.
    pub fn take(
        head: &mut Parts,
        presented: Option<Presented>,
        route: &Route,
        source: Source<'_>,
        verified: Tokens,
    ) -> Result<Self, Refusal> {
        let brought = Self {
            presented,
            verified,
            ..Self::default()
        };
        let taken = match source {
            Source::Vault(vault) => brought.take_for(head, route, vault),
            Source::Signer(signer) => {
                for header in sign::headers(signer, &route.credentials) {
                    head.headers.remove(header);
                }
                Ok(brought)
            }
        };
        taken.map_err(inject::Error::refusal)
    }

    fn take_for(mut self, head: &mut Parts, route: &Route, vault: &Vault) -> Result<Self, inject::Error> {
        let kind = &vault.settings().kind;
        let claims = self.verified.claims();
        if let Some(places) = callers_of(kind) {
            self.client = inject::take_client(head, places)?.map(Arc::new);
        }
        let mut word = |hint: &Hint| match hint {
            Hint::Fixed(text) => Ok(Some(text.to_string())),
            Hint::Header(name) => inject::take_header(&mut head.headers, name),
            Hint::Claim(path) => Ok(claim(claims, path)),
        };
        self.login_hint = route.login_hint.as_ref().map(&mut word).transpose()?.flatten();
        match kind {
            Kind::TokenVault(vault) => {
                if let VaultSubject::Worker(worker) = &vault.subject {
                    self.user = word(&worker.user)?;
                }
            }
            Kind::TokenExchange(exchange) => match exchange.actor.as_ref().map(|actor| &actor.from) {
                Some(ActorFrom::Config(secret)) => self.actor = Some(secret.clone()),
                Some(ActorFrom::Header(name)) => self.actor = actor(head, name)?,
                Some(ActorFrom::Own) | None => {}
            },
            Kind::ClientCredentials(ClientCredentials { forward_identity, .. }) => {
                if let Some(forward) = forward_identity {
                    let identity = claim(claims, &forward.claim);
                    inject::set_identity(&mut head.headers, &forward.header, identity.as_deref())?;
                }
            }
        }
        Ok(self)
    }

    /// Takes client credentials out of a form, where the vault looks there. Other bodies stay where they are.
    ///
    /// # Errors
    /// When the form is too long, breaks off, or holds what is no credentials.
    pub async fn take_body(
        &mut self,
        head: &mut Parts,
        source: Source<'_>,
        body: &mut Option<Incoming>,
    ) -> Result<(), Refusal> {
        let places = callers(source).filter(|places| places.from.contains(&Place::Body));
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
    pub fn lacks_credentials(&self, source: Source<'_>) -> bool {
        match source {
            Source::Signer(_) => self.verified.access.is_none(),
            Source::Vault(_) if callers(source).is_some() => self.client.is_none(),
            Source::Vault(vault) => vault.settings().kind.needs_subject() && self.presented.is_none(),
        }
    }

    /// Whether the caller's token is one that the vault exchanges. A look into an unverified token is enough to
    /// decide that, since the token endpoint judges it; it is never enough to let one pass.
    pub fn decide(&self, vault: &Vault) -> Decision {
        let conditions = &vault.settings().when;
        let (Some(presented), false) = (&self.presented, conditions.is_empty()) else {
            return Decision::Exchange;
        };
        match self.verified.claims() {
            Some(claims) => token::decide(conditions, Some(claims)),
            None => {
                let peeked = presented.subject.jwt_claims_unverified::<Claims>();
                token::decide(conditions, peeked.ok().as_ref())
            }
        }
    }

    /// A token that is not exchanged goes on as it came, Kong's way: it is one for the target already.
    ///
    /// # Errors
    /// When no verifier has accepted it.
    pub fn is_verified(&self, vault: &Vault) -> Result<(), Refusal> {
        if self.verified.access.is_some() {
            return Ok(());
        }
        let text = format!(
            "the vault {} exchanges no token like this one (its conditions under `when`), and nothing has verified it",
            vault.settings().name
        );
        Err(Refusal::new(Class::InvalidToken, text))
    }

    /// Takes the connection that the caller's pod asks for.
    ///
    /// # Errors
    /// When it may not have it.
    pub fn choose(&mut self, route: &Route, workload: &Workload) -> Result<(), Refusal> {
        let chosen = connection::of(route, workload);
        self.wanted = chosen.map_err(|denied| Refusal::new(Class::Forbidden, denied.to_string()))?;
        Ok(())
    }

    /// The connection that is asked for.
    pub fn connection<'a>(&'a self, route: &'a Route) -> Option<&'a Arc<str>> {
        self.wanted.as_ref().unwrap_or(&route.wanted).connection.as_ref()
    }

    pub fn grant<'a>(&'a self, vault: &'a Arc<Vault>, route: &'a Route) -> Grant<'a> {
        Grant {
            login_hint: self.login_hint.as_deref(),
            subject: self.presented.as_ref().map(|presented| &presented.subject),
            actor: self.actor.as_ref(),
            user: self.user.as_deref(),
            client: self.client.as_ref(),
            route: &route.name,
            ..Grant::new(vault, self.wanted.as_ref().unwrap_or(&route.wanted))
        }
    }
}

/// Where the caller's client credentials stand, for a vault that takes them.
fn callers(source: Source<'_>) -> Option<&CallerCredentials> {
    match source {
        Source::Vault(vault) => callers_of(&vault.settings().kind),
        Source::Signer(_) => None,
    }
}

fn callers_of(kind: &Kind) -> Option<&CallerCredentials> {
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

//! Stage: a subject token in, the provider's token out. One exchange per key however many callers wait,
//! its result cached, its failure remembered for a moment, a token in use renewed before it ends.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use tokio::sync::Semaphore;

use crate::https;
use crate::limits;
use crate::metrics::Metrics;
use crate::oidc;
use crate::policy::Wanted;
use crate::secret::Secret;

mod assertion;
mod cache;
mod error;
mod exchange;
mod flight;
#[cfg(fuzzing)]
pub mod fuzzing;
mod labels;
mod life;
mod obtained;
mod pace;
mod request;
mod response;
pub mod rules;
pub mod settings;
pub mod shared;
mod when;

pub use assertion::Signer;
pub use cache::Cached;
pub use error::{Answer, BuildError, Error, ErrorKind, Malformed};
pub use labels::Filter;
pub use obtained::{Obtained, Source};
pub use request::Missing;
pub use settings::{ClientAuth, Encoding, Kind, VaultSettings};
pub use when::{Condition, Decision, decide};

use cache::{Entry, Key, Rejection, Store, VaultId};
use flight::{Boarding, Service};
use pace::Gate;
use request::Ask;
use settings::ActorFrom;
use shared::Shared;

/// A vault that can be called: its settings, its connections, and the cap on calls at once.
pub struct Vault {
    settings: VaultSettings,
    id: VaultId,
    host: Arc<str>,
    client: reqwest::Client,
    /// Calls that run.
    slots: Semaphore,
    /// Calls that run or wait for a slot.
    queue: Semaphore,
    gate: Gate,
    /// Names the token endpoint, where it is not configured.
    issuer: Option<oidc::Issuer>,
    check: Option<Arc<dyn CheckToken>>,
}

/// A word on a token that a vault just gave: the verifier of `validate`.
pub trait CheckToken: Send + Sync {
    /// `Err`: why the token is not to be used. The text is for the log, and holds nothing of the token.
    fn check<'a>(
        &'a self,
        token: &'a Secret,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>>;
}

impl Vault {
    /// Makes the vault's client. It trusts `roots` and the settings' `extra_roots`, and nothing else.
    ///
    /// # Errors
    /// When the settings cannot work; the message names the vault and the setting.
    pub fn new(settings: VaultSettings, roots: Arc<RootCertStore>) -> Result<Self, BuildError> {
        Self::with_queue(settings, roots, limits::EXCHANGES_QUEUED)
    }

    fn with_queue(
        settings: VaultSettings,
        mut roots: Arc<RootCertStore>,
        queued: usize,
    ) -> Result<Self, BuildError> {
        let vault = || settings.name.clone();
        let url = &settings.token_endpoint;
        let host: Arc<str> = match url.host_str() {
            Some(host) if url.scheme() == "https" => host.into(),
            _ => {
                return Err(BuildError::NotHttps {
                    vault: vault(),
                    scheme: url.scheme().to_owned(),
                });
            }
        };
        if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
            return Err(BuildError::ExtraUrlParts { vault: vault() });
        }
        match &settings.client_auth {
            ClientAuth::None | ClientAuth::CallerPost | ClientAuth::CallerBasic => {}
            _ if settings.client_id.is_empty() => {
                return Err(BuildError::EmptyClientId { vault: vault() });
            }
            ClientAuth::SecretPost(secret) | ClientAuth::SecretBasic(secret) if secret.is_empty() => {
                return Err(BuildError::EmptySecret { vault: vault() });
            }
            _ => {}
        }
        if settings.timeout.is_zero() || settings.ttl_max.is_zero() {
            return Err(BuildError::ZeroTime { vault: vault() });
        }
        for (index, root) in settings.extra_roots.iter().enumerate() {
            Arc::make_mut(&mut roots)
                .add(root.clone())
                .map_err(|source| BuildError::ExtraRoot {
                    vault: vault(),
                    index,
                    source,
                })?;
        }
        if roots.is_empty() {
            return Err(BuildError::NoRoots { vault: vault() });
        }
        let client = exchange::client(&settings, roots)?;
        // Discovered at first use: the agent starts while the issuer is down, and finds it later.
        let issuer = settings
            .discover
            .then(|| oidc::Issuer::new(&client, Some(url), oidc::KeySource::Issuer, None));
        Ok(Self {
            id: VaultId::of(&settings),
            host,
            client,
            issuer,
            slots: Semaphore::new(settings.pacing.at_once),
            queue: Semaphore::new(queued),
            gate: Gate::new(&settings.pacing),
            check: None,
            settings,
        })
    }

    /// Has every token checked before it is used or cached.
    pub fn checked_by(self, check: Arc<dyn CheckToken>) -> Self {
        Self {
            check: Some(check),
            ..self
        }
    }

    pub fn settings(&self) -> &VaultSettings {
        &self.settings
    }

    /// Whether the token endpoint answers HTTP over verified TLS within `limit`; what it answers is not
    /// looked at. For `check`.
    ///
    /// # Errors
    /// Why not, with every cause.
    pub async fn reach(&self, limit: Duration) -> Result<(), String> {
        if let Some(issuer) = &self.issuer {
            let found = tokio::time::timeout(limit, issuer.document()).await;
            return match found {
                Ok(Ok(document)) if document.token_endpoint.is_some() => Ok(()),
                Ok(Ok(_)) => Err("the issuer's document names no token_endpoint".to_owned()),
                Ok(Err(error)) => Err(https::causes(&error)),
                Err(_) => Err("no answer in time".to_owned()),
            };
        }
        let asked = self
            .client
            .head(self.settings.token_endpoint.clone())
            .timeout(limit)
            .send()
            .await;
        asked
            .map(drop)
            .map_err(|error| https::causes(&error.without_url()))
    }

    fn error(&self, kind: ErrorKind, wanted: &Wanted) -> Error {
        Error::new(kind, self, wanted)
    }
}

/// What a caller wants of a vault. Which of the parts are needed depends on the vault's [`Kind`].
#[derive(Clone, Copy)]
pub struct Grant<'a> {
    pub vault: &'a Arc<Vault>,
    /// The route's connection, audience, resource and scope.
    pub wanted: &'a Arc<Wanted>,
    /// Which of several accounts on one connection.
    pub login_hint: Option<&'a str>,
    /// The caller's token.
    pub subject: Option<&'a Arc<Secret>>,
    /// The actor's token, where the vault takes it from the request.
    pub actor: Option<&'a Arc<Secret>>,
    /// For whom a privileged worker asks.
    pub user: Option<&'a str>,
    /// The caller's client credentials, where the vault is to use them.
    pub client: Option<&'a Arc<Client>>,
    /// The route's name, for the cache's list.
    pub route: &'a str,
}

impl<'a> Grant<'a> {
    pub fn new(vault: &'a Arc<Vault>, wanted: &'a Arc<Wanted>) -> Self {
        Self {
            vault,
            wanted,
            login_hint: None,
            subject: None,
            actor: None,
            user: None,
            client: None,
            route: "",
        }
    }

    fn ask(&self, own: bool) -> Ask<'a> {
        Ask {
            wanted: self.wanted,
            login_hint: self.login_hint,
            subject: self.subject.map(|subject| &**subject),
            actor: self.actor.map(|actor| &**actor),
            user: self.user,
            own,
        }
    }
}

/// Client credentials that a request brought.
pub struct Client {
    pub id: String,
    pub secret: Secret,
}

/// The token service. One per agent, cheap to clone; it outlives configuration reloads, since its keys hold
/// everything that matters.
#[derive(Clone)]
pub struct Tokens(Arc<Service>);

impl Tokens {
    pub fn new(metrics: Metrics) -> Self {
        Self::with_capacity(metrics, limits::TOKEN_ENTRIES)
    }

    fn with_capacity(metrics: Metrics, capacity: u64) -> Self {
        Self(Arc::new(Service::new(Store::new(capacity), metrics)))
    }

    /// The token for `grant`: from the cache, or from one exchange shared by all who ask meanwhile.
    ///
    /// Cancel-safe: dropping the future leaves the exchange running for the others. Waits at most twice the
    /// vault's timeout (for a slot, and for the answer). Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::class`] says whose fault it is. The same error may come again out of the cache for seconds.
    pub async fn obtain(&self, grant: Grant<'_>) -> Result<Obtained, Error> {
        let own_actor = grant.actor.is_none() && acts_itself(&grant.vault.settings.kind);
        if !own_actor {
            return self.fetch(&grant, false).await;
        }
        // Boxed, since few vaults have an actor of their own.
        let actor = Box::pin(self.fetch(&grant, true)).await?;
        let actor = Some(&actor.token);
        self.fetch(&Grant { actor, ..grant }, false).await
    }

    /// `own`: a token for the agent itself, by client credentials.
    async fn fetch(&self, grant: &Grant<'_>, own: bool) -> Result<Obtained, Error> {
        let service = &self.0;
        let failed = |kind| grant.vault.error(kind, grant.wanted);
        let key = Key::of(grant, own).map_err(|missing| failed(ErrorKind::Missing(missing)))?;
        let boarding = Boarding { grant, own, key };
        let entry = service.store.get(&key);
        service.store.labels.note(&boarding, entry.is_some());
        match entry {
            Some(Entry::Good(good)) => {
                service.metrics.cache_event("hit");
                service.refresh_if_due(boarding, &good);
                return Ok(Obtained::new(&good, key, Source::Cache));
            }
            Some(Entry::Bad(error, _)) => {
                service.metrics.cache_event("negative_hit");
                return Err(error);
            }
            None => {}
        }
        // Another node may have one all the same.
        let is_alone = service
            .shared
            .load()
            .as_ref()
            .is_none_or(|shared| !shared.is_up());
        if let Some(kind) = service.closed(grant.vault).filter(|_| is_alone) {
            service.metrics.cache_event("negative_hit");
            return Err(failed(kind));
        }
        service.metrics.cache_event("miss");
        // Boxed, since most calls end in the cache, above.
        let (good, source) = Box::pin(service.board(boarding)).await?;
        Ok(Obtained::new(&good, key, source))
    }

    /// The provider refused the token: drops it, and tells whether a fresh one is worth asking for.
    ///
    /// A provider that goes on refusing does not make every request an exchange: per key, ten seconds pass.
    pub fn reject(&self, obtained: &Obtained) -> bool {
        let rejection = self.0.store.reject(obtained.key, &obtained.digest);
        if rejection == Rejection::Evicted {
            self.0.metrics.cache_event("evicted");
            if let Some(shared) = &*self.0.shared.load() {
                shared.reject(obtained.key, obtained.digest);
            }
        }
        rejection != Rejection::Believed
    }

    /// Drops the tokens and remembered failures that are meant; returns how many. Pauses that vaults asked for
    /// stay. The same tokens leave the shared cache, and all of it is emptied with a filter that means all.
    pub fn flush(&self, filter: &Filter) -> u64 {
        let keys = self.0.store.flush(filter);
        let count = keys.len() as u64;
        if let Some(shared) = &*self.0.shared.load() {
            shared.flush(keys, filter.is_all());
        }
        count
    }

    /// The fleet's cache from now on, or none.
    pub fn share(&self, shared: Option<Arc<Shared>>) {
        self.0.shared.store(shared);
    }

    /// The one in use.
    pub fn shared(&self) -> Option<Arc<Shared>> {
        self.0.shared.load_full()
    }

    /// What is in the cache, without anything secret.
    pub fn list(&self) -> Vec<Cached> {
        self.0.store.list()
    }

    /// Entries in the cache, good and bad ones together.
    pub fn len(&self) -> u64 {
        self.0.store.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn acts_itself(kind: &Kind) -> bool {
    match kind {
        Kind::TokenExchange(exchange) => {
            matches!(&exchange.actor, Some(actor) if matches!(actor.from, ActorFrom::Own))
        }
        Kind::TokenVault(_) | Kind::ClientCredentials(_) => false,
    }
}

#[cfg(test)]
mod tests;

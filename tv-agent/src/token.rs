//! Stage: a subject token in, the provider's token out. One exchange per key however many callers wait,
//! its result cached, its failure remembered for a moment, a token in use renewed before it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use url::Url;

use crate::limits;
use crate::metrics::Metrics;
use crate::secret::Secret;

mod cache;
mod error;
mod exchange;
mod flight;
mod labels;
mod response;

pub use cache::Cached;
pub use error::{Answer, BuildError, Error, ErrorKind, Malformed};
pub use labels::Filter;

use cache::{Entry, Good, Key, Rejection, Store, VaultId};
use flight::Service;

/// One Auth0 Token Vault as configured.
pub struct VaultSettings {
    /// Its name in the configuration: for logs, metrics and messages.
    pub name: Arc<str>,
    pub token_endpoint: Url,
    pub client_id: String,
    pub client_secret: Secret,
    pub client_auth: ClientAuth,
    pub encoding: Encoding,
    /// Trust anchors besides those given to [`Vault::new`].
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// For one whole call, connect to last byte ([`limits::TOKEN_TIME`] by default).
    pub timeout: Duration,
    /// `None`: Auth0's federated-connection-access-token.
    pub requested_token_type: Option<String>,
    /// Life in the cache when the vault says nothing ([`limits::TOKEN_TTL_DEFAULT`] by default).
    pub ttl_default: Duration,
    /// Longest life in the cache, at most [`limits::TOKEN_TTL_MAX`].
    pub ttl_max: Duration,
}

impl VaultSettings {
    pub fn requested_token_type(&self) -> &str {
        self.requested_token_type
            .as_deref()
            .unwrap_or(exchange::REQUESTED_TOKEN_TYPE)
    }
}

/// How the agent proves who it is to the token endpoint (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    SecretPost,
    SecretBasic,
}

/// The form of the request's body. RFC 8693 knows the form only; Auth0 takes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Form,
    Json,
}

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
}

impl Vault {
    /// Makes the vault's client. It trusts `roots` and the settings' `extra_roots`, and nothing else.
    ///
    /// # Errors
    /// When the settings cannot work; the message names the vault and the setting.
    pub fn new(settings: VaultSettings, roots: Arc<RootCertStore>) -> Result<Self, BuildError> {
        Self::with_caps(
            settings,
            roots,
            limits::EXCHANGES_AT_ONCE,
            limits::EXCHANGES_QUEUED,
        )
    }

    fn with_caps(
        settings: VaultSettings,
        mut roots: Arc<RootCertStore>,
        at_once: usize,
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
        if settings.client_id.is_empty() {
            return Err(BuildError::EmptyClientId { vault: vault() });
        }
        if settings.client_secret.is_empty() {
            return Err(BuildError::EmptySecret { vault: vault() });
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
        Ok(Self {
            id: VaultId::of(&settings),
            host,
            client: exchange::client(&settings, roots)?,
            slots: Semaphore::new(at_once),
            queue: Semaphore::new(queued),
            settings,
        })
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
        let asked = self
            .client
            .head(self.settings.token_endpoint.clone())
            .timeout(limit)
            .send()
            .await;
        asked.map(drop).map_err(|error| {
            let error = error.without_url();
            let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
            causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        })
    }

    fn error(&self, kind: ErrorKind, connection: &Arc<str>) -> Error {
        Error::new(kind, &self.settings.name, &self.host, connection)
    }
}

/// What a caller wants: the token of `connection` for the user whom `subject` stands for.
#[derive(Clone, Copy)]
pub struct Grant<'a> {
    pub vault: &'a Arc<Vault>,
    pub connection: &'a str,
    /// Which of several accounts on one connection.
    pub login_hint: Option<&'a str>,
    pub subject: &'a Arc<Secret>,
    /// The route's name, for the cache's list.
    pub route: &'a str,
}

/// A provider token, ready to be injected. No `Debug`: nothing of it is for a log.
#[derive(Clone)]
pub struct Obtained {
    pub token: Arc<Secret>,
    pub source: Source,
    /// When the vault gave it.
    pub fetched: Instant,
    key: Key,
    digest: [u8; 32],
}

impl Obtained {
    fn new(good: &Good, key: Key, source: Source) -> Self {
        Self {
            token: good.token.clone(),
            source,
            fetched: good.fetched,
            key,
            digest: good.digest,
        }
    }
}

/// Where a token came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Cache,
    Exchange,
}

impl Source {
    pub fn label(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Exchange => "exchange",
        }
    }
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
        let service = &self.0;
        let key = Key::of(&grant);
        let entry = service.store.get(&key);
        service.store.labels.note(key, &grant, entry.is_some());
        match entry {
            Some(Entry::Good(good)) => {
                service.metrics.cache_event("hit");
                service.refresh_if_due(&grant, key, &good);
                return Ok(Obtained::new(&good, key, Source::Cache));
            }
            Some(Entry::Bad(error, _)) => {
                service.metrics.cache_event("negative_hit");
                return Err(error);
            }
            None => {}
        }
        if let Some(remaining) = service.store.paused(&grant.vault.id) {
            service.metrics.cache_event("negative_hit");
            return Err(grant
                .vault
                .error(ErrorKind::Paused { remaining }, &grant.connection.into()));
        }
        service.metrics.cache_event("miss");
        // Boxed, since most calls end in the cache, above.
        let (good, source) = Box::pin(service.board(&grant, key)).await?;
        Ok(Obtained::new(&good, key, source))
    }

    /// The provider refused the token: drops it, and tells whether a fresh one is worth asking for.
    ///
    /// A provider that goes on refusing does not make every request an exchange: per key, ten seconds pass.
    pub fn reject(&self, obtained: &Obtained) -> bool {
        let rejection = self.0.store.reject(obtained.key, &obtained.digest);
        if rejection == Rejection::Evicted {
            self.0.metrics.cache_event("evicted");
        }
        rejection != Rejection::Believed
    }

    /// Drops the tokens and remembered failures that are meant; returns how many. Pauses that vaults asked for
    /// stay.
    pub fn flush(&self, filter: &Filter) -> u64 {
        self.0.store.flush(filter)
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

#[cfg(test)]
mod tests;

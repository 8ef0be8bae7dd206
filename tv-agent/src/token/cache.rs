//! What was fetched and what was refused, each for its own time; and which vaults want to be left alone.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use moka::Expiry;
use moka::ops::compute::{CompResult, Op};
use moka::policy::EvictionPolicy;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::Error;
use super::labels::{Filter, Labels};
use super::life::Life;
use super::request::{self, Missing, Value};
use super::{Grant, VaultSettings};
use crate::encode;
use crate::limits;
use crate::secret::Secret;

/// Everything that decides which token a vault gives, hashed: equal keys, equal answers.
///
/// Made of the very parameters that would be sent. Our own client's secret is left out: a rotated one gets the
/// same tokens, and refusals live for seconds. A caller's is in: a wrong one must not find a right one's token.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// # Errors
    /// When the grant lacks what its vault needs.
    pub fn of(grant: &Grant<'_>, own: bool) -> Result<Self, Missing> {
        let settings = grant.vault.settings();
        let list = request::parameters(&settings.kind, &grant.ask(own))?;
        let mut hash = Sha256::new();
        let field = |hash: &mut Sha256, text: &str| {
            hash.update((text.len() as u64).to_be_bytes());
            hash.update(text);
        };
        field(&mut hash, settings.token_endpoint.as_str());
        field(&mut hash, &settings.client_id);
        if let Some(client) = grant.client {
            field(&mut hash, "client");
            field(&mut hash, &client.id);
            client.secret.digest_into(&mut hash);
        }
        for (name, value) in list {
            field(&mut hash, name);
            match value {
                Value::Text(text) => field(&mut hash, text),
                Value::Secret(secret) => secret.digest_into(&mut hash),
                // The signature differs each time; what is signed decides.
                Value::Signed(worker, user) => {
                    field(&mut hash, user);
                    field(&mut hash, &worker.audit_context);
                    field(&mut hash, if worker.organization.is_some() { "org" } else { "" });
                    field(&mut hash, worker.organization.as_deref().unwrap_or_default());
                }
            }
        }
        Ok(Self(hash.finalize().into()))
    }

    #[cfg(test)]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A vault as its rate limit sees it: the endpoint and the client, whatever the configuration calls it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct VaultId([u8; 32]);

impl VaultId {
    pub fn of(settings: &VaultSettings) -> Self {
        let mut hash = Sha256::new();
        hash.update((settings.token_endpoint.as_str().len() as u64).to_be_bytes());
        hash.update(settings.token_endpoint.as_str());
        hash.update(&settings.client_id);
        Self(hash.finalize().into())
    }
}

/// A provider token with its times. Nothing of the subject token is in it.
pub(super) struct Good {
    pub token: Arc<Secret>,
    /// Tells whether a refresh brought another token, and whether an eviction means this one.
    pub digest: [u8; 32],
    pub fetched: Instant,
    pub ttl: Duration,
    /// When the next background refresh may start; `None`: a refresh could not prolong its life.
    next_refresh: Mutex<Option<Instant>>,
}

impl Good {
    /// `spread`, 0..1: this node's place among those that would refresh the same token.
    pub fn new(token: Secret, life: Option<Life>, fetched: Instant, spread: f64) -> Self {
        let refresh_at = life.and_then(|life| life.refresh_at(spread));
        Self {
            digest: digest(&token),
            token: Arc::new(token),
            fetched,
            ttl: life.map_or(Duration::ZERO, |life| life.ttl),
            next_refresh: Mutex::new(refresh_at.map(|after| fetched + after)),
        }
    }

    /// What is left of its life.
    pub fn left(&self) -> Duration {
        self.ttl.saturating_sub(self.fetched.elapsed())
    }

    /// Whether asking again may prolong its life.
    pub fn is_renewable(&self) -> bool {
        self.next_refresh
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_some()
    }

    /// True for one caller, when the time for a refresh has come; the next one is due after `pause`.
    pub fn take_refresh(&self, now: Instant, pause: Duration) -> bool {
        let mut next = self.next_refresh.lock().unwrap_or_else(PoisonError::into_inner);
        let due = next.is_some_and(|at| at <= now);
        if due {
            *next = Some(now + pause);
        }
        due
    }

    pub fn never_refresh(&self) {
        *self.next_refresh.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// An entry as people may see it: nothing of a token, not even its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cached {
    /// The first eight digits of the entry's key, which is a hash over everything that decides the token.
    pub key: String,
    /// The beginning of the SHA-256 of the caller's token.
    pub subject: String,
    pub vault: String,
    pub routes: Vec<String>,
    /// Requests that were answered out of it.
    pub hits: u64,
    /// `token`, or the label of the failure that is remembered.
    pub state: String,
    pub age_s: Option<u64>,
    pub left_s: Option<u64>,
}

/// By which a token is told from another.
pub(super) fn digest(token: &Secret) -> [u8; 32] {
    let mut hash = Sha256::new();
    token.digest_into(&mut hash);
    hash.finalize().into()
}

#[derive(Clone)]
pub(super) enum Entry {
    Good(Arc<Good>),
    Bad(Error, Duration),
}

impl Entry {
    fn ttl(&self) -> Duration {
        match self {
            // One of another node has lived a while.
            Self::Good(good) => good.left(),
            Self::Bad(_, ttl) => *ttl,
        }
    }
}

struct ByEntry;

impl Expiry<Key, Entry> for ByEntry {
    fn expire_after_create(&self, _: &Key, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl())
    }

    // moka's default keeps the old entry's end.
    fn expire_after_update(
        &self,
        _: &Key,
        entry: &Entry,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(entry.ttl())
    }
}

/// The table of entries and the table of pauses.
pub(super) struct Store {
    entries: moka::sync::Cache<Key, Entry>,
    /// The digest of the token that a provider refused last, per key, for [`REJECTION`].
    rejected: moka::sync::Cache<Key, [u8; 32]>,
    pauses: DashMap<VaultId, Instant>,
    pub labels: Labels,
}

/// What a provider's refusal of a token means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejection {
    /// Thrown out just now: a fresh one may do.
    Evicted,
    /// Somebody else has thrown out the same one; another may be there by now.
    Replaced,
    /// A fresh one was refused too: the provider means it.
    Believed,
}

/// A provider that refuses every token costs at most two exchanges per key in this time.
const REJECTION: Duration = Duration::from_secs(10);

impl Store {
    pub fn new(capacity: u64) -> Self {
        // Least recently used, so that a flood of bad tokens cannot keep good ones out.
        let entries = moka::sync::Cache::builder()
            .max_capacity(capacity)
            .eviction_policy(EvictionPolicy::lru())
            .expire_after(ByEntry)
            .build();
        Self {
            entries,
            rejected: moka::sync::Cache::builder()
                .max_capacity(capacity)
                .time_to_live(REJECTION)
                .build(),
            pauses: DashMap::new(),
            labels: Labels::new(capacity),
        }
    }

    pub fn get(&self, key: &Key) -> Option<Entry> {
        self.entries.get(key)
    }

    pub fn insert(&self, key: Key, entry: Entry) {
        self.entries.insert(key, entry);
    }

    /// A provider refused the token with `digest`.
    ///
    /// The first refusal in [`REJECTION`] throws the token out; later ones are believed.
    pub fn reject(&self, key: Key, digest: &[u8; 32]) -> Rejection {
        match self.rejected.get(&key) {
            None => {
                self.rejected.insert(key, *digest);
                self.evict(key, digest);
                Rejection::Evicted
            }
            Some(last) if last == *digest && !self.holds(&key, digest) => Rejection::Replaced,
            Some(_) => Rejection::Believed,
        }
    }

    /// The digest of the token of `key` that a provider refused within [`REJECTION`].
    pub fn refused(&self, key: &Key) -> Option<[u8; 32]> {
        self.rejected.get(key)
    }

    fn holds(&self, key: &Key, digest: &[u8; 32]) -> bool {
        matches!(self.get(key), Some(Entry::Good(good)) if good.digest == *digest)
    }

    /// Removes the entry of `key` if it holds this very token. True if it did.
    fn evict(&self, key: Key, digest: &[u8; 32]) -> bool {
        let outcome = self
            .entries
            .entry(key)
            .and_compute_with(|entry| match entry.map(|e| e.into_value()) {
                Some(Entry::Good(good)) if good.digest == *digest => Op::Remove,
                _ => Op::Nop,
            });
        matches!(outcome, CompResult::Removed(_))
    }

    pub fn list(&self) -> Vec<Cached> {
        let seconds = |duration: Duration| duration.as_secs();
        let row = |(key, entry): (Arc<Key>, Entry)| {
            let name = encode::hex(&key.0[..4]);
            let label = self.labels.get(&key);
            let (state, times) = match &entry {
                Entry::Good(good) => {
                    let age = good.fetched.elapsed();
                    ("token", Some((age, good.left())))
                }
                Entry::Bad(error, _) => (error.class().label(), None),
            };
            Cached {
                key: name,
                subject: label
                    .as_ref()
                    .map(|label| label.subject.clone())
                    .unwrap_or_default(),
                vault: label
                    .as_ref()
                    .map(|label| label.vault.to_string())
                    .unwrap_or_default(),
                routes: label.as_ref().map(|label| label.routes()).unwrap_or_default(),
                hits: label.map_or(0, |label| label.hits()),
                state: state.to_owned(),
                age_s: times.map(|(age, _)| seconds(age)),
                left_s: times.map(|(_, left)| seconds(left)),
            }
        };
        self.entries.iter().map(row).collect()
    }

    /// Drops what is meant; returns the keys of it.
    pub fn flush(&self, filter: &Filter) -> Vec<Arc<Key>> {
        // An entry without a label is dropped too: what is meant must not stay.
        let meant = |key: &Key| filter.is_all() || self.labels.get(key).is_none_or(|label| label.is(filter));
        let keys: Vec<Arc<Key>> = self
            .entries
            .iter()
            .map(|(key, _)| key)
            .filter(|key| meant(key))
            .collect();
        if filter.is_all() {
            self.entries.invalidate_all();
        }
        keys.iter().for_each(|key| self.entries.invalidate(&**key));
        self.entries.run_pending_tasks();
        keys
    }

    pub fn len(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Leaves the vault alone for `wait`, at most [`limits::RATE_LIMIT_WAIT`]; never shortens a pause.
    pub fn pause(&self, vault: VaultId, wait: Duration) {
        let now = Instant::now();
        // Vaults come and go with the configuration; pauses that are over go too.
        self.pauses.retain(|_, until| *until > now);
        let until = now + wait.min(limits::RATE_LIMIT_WAIT);
        let mut entry = self.pauses.entry(vault).or_insert(until);
        *entry = until.max(*entry);
    }

    /// What is left of the vault's pause.
    pub fn paused(&self, vault: &VaultId) -> Option<Duration> {
        let until = *self.pauses.get(vault)?;
        until
            .checked_duration_since(Instant::now())
            .filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests;

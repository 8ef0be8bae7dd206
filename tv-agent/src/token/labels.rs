//! What people may know of a cache entry: whose it is and for what, without anything secret.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use sha2::{Digest as _, Sha256};

use super::Grant;
use super::cache::Key;

/// Routes that are remembered of one entry; an entry that more of them share is dropped with any of these.
const ROUTES: usize = 8;

/// Which entries are meant. Those that have every part that is given; none given: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub route: Option<String>,
    pub vault: Option<String>,
    /// The beginning of a subject's hash, as it is listed.
    pub subject: Option<String>,
}

impl Filter {
    pub fn is_all(&self) -> bool {
        *self == Self::default()
    }
}

pub(super) struct Label {
    pub vault: Arc<str>,
    /// The first 16 digits of the SHA-256 of the subject token.
    pub subject: String,
    routes: RwLock<Vec<Arc<str>>>,
    hits: AtomicU64,
}

impl Label {
    fn of(grant: &Grant<'_>) -> Self {
        let mut hash = Sha256::new();
        grant.subject.digest_into(&mut hash);
        Self {
            vault: grant.vault.settings().name.clone(),
            subject: hash.finalize()[..8]
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            routes: RwLock::default(),
            hits: AtomicU64::new(0),
        }
    }

    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    pub fn routes(&self) -> Vec<String> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().map(ToString::to_string).collect()
    }

    fn note_route(&self, route: &str) {
        let known =
            |routes: &[Arc<str>]| routes.len() >= ROUTES || routes.iter().any(|known| **known == *route);
        if known(&self.routes.read().unwrap_or_else(PoisonError::into_inner)) {
            return;
        }
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if !known(&routes) {
            routes.push(route.into());
        }
    }

    pub fn is(&self, filter: &Filter) -> bool {
        let same = |wanted: &Option<String>, is: &dyn Fn(&str) -> bool| wanted.as_deref().is_none_or(is);
        same(&filter.vault, &|vault| vault == &*self.vault)
            && same(&filter.subject, &|start| {
                self.subject.starts_with(&start.to_ascii_lowercase())
            })
            && same(&filter.route, &|route| {
                let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
                routes.len() >= ROUTES || routes.iter().any(|known| **known == *route)
            })
    }
}

/// The labels of entries, as many as there may be entries.
pub(super) struct Labels(moka::sync::Cache<Key, Arc<Label>>);

impl Labels {
    pub fn new(capacity: u64) -> Self {
        Self(moka::sync::Cache::new(capacity))
    }

    /// Somebody asked for `key`; `hit`: it was in the cache.
    pub fn note(&self, key: Key, grant: &Grant<'_>, hit: bool) {
        let label = match self.0.get(&key) {
            Some(label) => label,
            None => self.0.get_with(key, || Arc::new(Label::of(grant))),
        };
        label.note_route(grant.route);
        if hit {
            label.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Label>> {
        self.0.get(key)
    }
}

//! What people may know of a cache entry: whose it is and for what, without anything secret.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::cache::Key;
use super::flight::Boarding;
use crate::secret::Secret;

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
    /// The first 16 digits of the SHA-256 of the caller's token or client secret; empty where the agent asked for
    /// itself.
    pub subject: String,
    routes: RwLock<Vec<Arc<str>>>,
    hits: AtomicU64,
}

impl Label {
    fn of(boarding: &Boarding<'_>) -> Self {
        let grant = boarding.grant;
        let subject = grant.subject.map(|subject| &**subject);
        let whose = subject.or(grant.client.map(|client| &client.secret));
        Self {
            vault: grant.vault.settings().name.clone(),
            subject: whose
                .filter(|_| !boarding.own)
                .map(Secret::fingerprint)
                .unwrap_or_default(),
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

    /// Somebody asked; `hit`: it was in the cache.
    pub fn note(&self, boarding: &Boarding<'_>, hit: bool) {
        let key = boarding.key;
        let label = match self.0.get(&key) {
            Some(label) => label,
            None => self.0.get_with(key, || Arc::new(Label::of(boarding))),
        };
        label.note_route(boarding.grant.route);
        if hit {
            label.hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Label>> {
        self.0.get(key)
    }
}

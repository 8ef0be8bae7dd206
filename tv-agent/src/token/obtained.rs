//! A token as the rest of the agent gets it, and where it came from.

use std::sync::Arc;
use std::time::Instant;

use super::cache::{Good, Key};
use crate::secret::Secret;

/// A provider token, ready to be injected. No `Debug`: nothing of it is for a log.
#[derive(Clone)]
pub struct Obtained {
    pub token: Arc<Secret>,
    pub source: Source,
    /// When the vault gave it.
    pub fetched: Instant,
    pub(super) key: Key,
    pub(super) digest: [u8; 32],
}

impl Obtained {
    pub(super) fn new(good: &Good, key: Key, source: Source) -> Self {
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
    /// Another node's.
    Shared,
    Exchange,
}

impl Source {
    pub fn label(self) -> &'static str {
        match self {
            Self::Cache => "cache",
            Self::Shared => "shared",
            Self::Exchange => "exchange",
        }
    }
}

//! What is taken out of the shared cache, in the background: a token that a provider refused, and what people flush.

use std::sync::Arc;

use super::{Event, Looked, Shared, delete, look};
use crate::limits;
use crate::token::cache::{self, Key};

impl Shared {
    /// Takes the token with this digest away from all nodes that have not got it yet, in the background.
    pub(in crate::token) fn reject(self: &Arc<Self>, key: Key, digest: [u8; 32]) {
        let shared = self.clone();
        self.errand(async move {
            let names = shared.ring.names(&shared.prefix, &key);
            let Ok((values, _)) = shared.link.ask::<Looked>(&look(&names, "glance", "")).await else {
                return;
            };
            for (index, (name, sealed)) in names.iter().zip(&values).enumerate() {
                let Some(sealed) = sealed else { continue };
                let meant = shared
                    .ring
                    .open(&key, index, name, sealed)
                    .is_some_and(|contents| cache::digest(&contents.token) == digest);
                if meant && shared.delete(name, sealed).await == Ok(1) {
                    shared.metrics.shared_cache(Event::Removed.label());
                }
            }
        });
    }

    /// Deletes the tokens of `keys`, and with `all` every token under the prefix, in the background.
    pub(in crate::token) fn flush(self: &Arc<Self>, keys: Vec<Arc<Key>>, all: bool) {
        let shared = self.clone();
        self.errand(async move {
            match shared.empty(&keys, all).await {
                Ok(()) => shared.metrics.shared_cache(Event::Flushed.label()),
                Err(event) => {
                    let cause = event.label();
                    tracing::warn!(
                        cause,
                        "the shared cache was not flushed to the end; flush again when it answers"
                    );
                }
            }
        });
    }

    async fn empty(&self, keys: &[Arc<Key>], all: bool) -> Result<(), Event> {
        for some in keys.chunks(64) {
            let names = some.iter().flat_map(|key| self.ring.names(&self.prefix, key));
            self.unlink(names.collect()).await?;
        }
        let mut cursor = 0u64;
        // Bounded: a server that lies about the end must not keep us here.
        for _ in 0..if all { limits::SHARED_FLUSH_STEPS } else { 0 } {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor)
                .arg("MATCH")
                .arg(format!("{}*", self.prefix))
                .arg("COUNT")
                .arg(500);
            let (next, names): (u64, Vec<String>) =
                self.link.ask_within(&scan, limits::SHARED_ERRAND_TIME).await?;
            self.unlink(names).await?;
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
        if all { Err(Event::Nonsense) } else { Ok(()) }
    }

    async fn unlink(&self, names: Vec<String>) -> Result<(), Event> {
        if names.is_empty() {
            return Ok(());
        }
        let mut unlink = redis::cmd("UNLINK");
        unlink.arg(names);
        self.link
            .ask_within::<i64>(&unlink, limits::SHARED_ERRAND_TIME)
            .await
            .map(drop)
    }

    pub(super) async fn delete(&self, name: &str, value: &[u8]) -> Result<i64, Event> {
        self.link.ask(&delete(name, value)).await
    }

    /// Does it in a task of its own, or not at all when many are under way.
    pub(super) fn errand(&self, errand: impl Future<Output = ()> + Send + 'static) {
        let Ok(permit) = self.errands.clone().try_acquire_owned() else {
            self.metrics.shared_cache(Event::Dropped.label());
            return;
        };
        tokio::spawn(async move {
            errand.await;
            drop(permit);
        });
    }
}

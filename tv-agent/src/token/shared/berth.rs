//! Where one token lies in the shared cache: filled by the node that asked the vault, which then lets go of the lock.

use std::sync::Arc;
use std::time::Duration;

use super::{Event, Shared, lock_name};
use crate::clock;
use crate::token::cache::{Good, Key};
use crate::token::life::Lived;

/// The place of one token, with the right to fill it if this node has the lock.
pub(in crate::token) struct Berth {
    pub(super) shared: Arc<Shared>,
    pub(super) key: Key,
    pub(super) names: Vec<String>,
    pub(super) owner: Option<String>,
}

impl Berth {
    /// Puts what the vault gave where the other nodes find it, and lets go of the lock.
    pub async fn leave(self, good: Option<&Good>) {
        if let Some(good) = good {
            self.put(good).await;
        }
        if let Some(owner) = &self.owner {
            // Not let go of, it lives its short life to the end.
            let _ = self
                .shared
                .delete(&lock_name(&self.names), owner.as_bytes())
                .await;
        }
    }

    async fn put(&self, good: &Good) {
        let shared = &self.shared;
        let (now, left) = (clock::unix_now(), good.left());
        let stay = left.min(shared.ttl_max);
        let Some(name) = self.names.first().filter(|_| stay >= Duration::from_millis(1)) else {
            return;
        };
        let expires = now + left;
        let lived = Lived {
            fetched: expires.saturating_sub(good.ttl),
            expires,
            is_final: !good.is_renewable(),
        };
        let Some(sealed) = shared.ring.seal(&self.key, name, &good.token, lived) else {
            return shared.metrics.shared_cache(Event::TooLong.label());
        };
        let mut set = redis::cmd("SET");
        set.arg(name).arg(sealed).arg("PX").arg(stay.as_millis() as u64);
        if shared.link.ask::<()>(&set).await.is_ok() {
            shared.metrics.shared_cache(Event::Stored.label());
        }
    }

    /// Lets go of the lock in the background.
    pub(super) fn release(self) {
        if self.owner.is_some() {
            let shared = self.shared.clone();
            shared.errand(self.leave(None));
        }
    }
}

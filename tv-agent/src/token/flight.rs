//! One exchange per key in a task of its own, and what becomes of its result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::{Entry as Slot, VacantEntry};
use tokio::sync::watch;

use super::cache::{self, Entry, Good, Key, Life, Store};
use super::error::{Error, ErrorKind};
use super::{Grant, Source, Vault, exchange, response};
use crate::https;
use crate::metrics::Metrics;
use crate::secret::Secret;

pub(super) type Outcome = Result<(Arc<Good>, Source), Error>;
type Landed = watch::Receiver<Option<Outcome>>;

/// The cache and the exchanges under way.
pub(super) struct Service {
    pub store: Store,
    /// Exchanges under way. Bounded by the vaults' queues and by the callers that wait.
    flights: DashMap<Key, Landed>,
    pub metrics: Metrics,
}

impl Service {
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self {
            store,
            flights: DashMap::new(),
            metrics,
        }
    }

    /// Waits for the exchange of `key`, which starts now if none is under way.
    pub async fn board(self: &Arc<Self>, grant: &Grant<'_>, key: Key) -> Outcome {
        let mut landed = match self.flights.entry(key) {
            Slot::Occupied(flight) => flight.get().clone(),
            Slot::Vacant(slot) => self.take_off(grant, key, slot, None),
        };
        match landed.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| Err(grant.vault.error(ErrorKind::Aborted, &grant.connection.into())))
    }

    /// Starts one background refresh when `good` nears its end. A failure keeps `good` until then.
    pub fn refresh_if_due(self: &Arc<Self>, grant: &Grant<'_>, key: Key, good: &Arc<Good>) {
        /// Between two attempts for one key.
        const AGAIN: Duration = Duration::from_secs(10);
        if !good.take_refresh(Instant::now(), AGAIN) || self.store.paused(&grant.vault.id).is_some() {
            return;
        }
        if let Slot::Vacant(slot) = self.flights.entry(key) {
            self.metrics.cache_event("refresh");
            self.take_off(grant, key, slot, Some(good.clone()));
        }
    }

    /// Starts the exchange in a task of its own: a caller that goes away must not cancel it for the others.
    fn take_off(
        self: &Arc<Self>,
        grant: &Grant<'_>,
        key: Key,
        slot: VacantEntry<'_, Key, Landed>,
        renews: Option<Arc<Good>>,
    ) -> Landed {
        let (land, landed) = watch::channel(None);
        // The shard's lock ends with this statement, before anything can want it again.
        drop(slot.insert(landed.clone()));
        let flight = Flight {
            service: self.clone(),
            vault: grant.vault.clone(),
            connection: grant.connection.into(),
            login_hint: grant.login_hint.map(Into::into),
            subject: grant.subject.clone(),
            key,
            renews,
        };
        tokio::spawn(async move {
            let outcome = flight.run().await;
            // First out of the table (its result is in the cache by now), then told: nobody boards too late.
            drop(flight);
            land.send_replace(Some(outcome));
        });
        landed
    }
}

/// One exchange under way. Dropping it, by a panic too, takes it out of the table.
struct Flight {
    service: Arc<Service>,
    vault: Arc<Vault>,
    connection: Arc<str>,
    login_hint: Option<Arc<str>>,
    subject: Arc<Secret>,
    key: Key,
    /// The token that a refresh is to replace.
    renews: Option<Arc<Good>>,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.service.flights.remove(&self.key);
    }
}

impl Flight {
    async fn run(&self) -> Outcome {
        let store = &self.service.store;
        // Another flight may have landed between the caller's look into the cache and its boarding.
        if self.renews.is_none() {
            match store.get(&self.key) {
                Some(Entry::Good(good)) => return Ok((good, Source::Cache)),
                Some(Entry::Bad(error, _)) => return Err(error),
                None => {}
            }
        }
        let settings = &self.vault.settings;
        let _queued = self
            .vault
            .queue
            .try_acquire()
            .map_err(|_| self.error(ErrorKind::Busy))?;
        let _slot = tokio::time::timeout(settings.timeout, self.vault.slots.acquire())
            .await
            .map_err(|_| self.error(ErrorKind::Timeout(settings.timeout)))?;
        if let Some(remaining) = store.paused(&self.vault.id) {
            return Err(self.error(ErrorKind::Paused { remaining }));
        }
        let started = Instant::now();
        let hint = self.login_hint.as_deref();
        let result = exchange::exchange(
            &self.vault.client,
            settings,
            &self.connection,
            hint,
            &self.subject,
        )
        .await;
        let took = started.elapsed();
        match result {
            Ok(granted) => {
                self.report(None, took);
                Ok((self.keep(granted), Source::Exchange))
            }
            Err(kind) => {
                if let ErrorKind::RateLimited { retry_after, .. } = &kind {
                    store.pause(self.vault.id, *retry_after);
                }
                let keep_for = kind.negative_ttl().filter(|_| self.renews.is_none());
                let error = self.error(kind);
                self.report(Some(&error), took);
                if let Some(ttl) = keep_for {
                    store.insert(self.key, Entry::Bad(error.clone(), ttl));
                }
                Err(error)
            }
        }
    }

    /// Puts a granted token into the cache, if it may live there.
    fn keep(&self, granted: response::Granted) -> Arc<Good> {
        let settings = &self.vault.settings;
        let life = Life::of(
            granted.expires_in,
            self.subject.jwt_expiry(),
            cache::unix_now(),
            settings.ttl_default,
            settings.ttl_max,
        );
        let good = Arc::new(Good::new(granted, life, Instant::now()));
        if self.renews.as_ref().is_some_and(|old| old.digest == good.digest) {
            // The vault hands out the same token until it ends, so asking again would gain nothing.
            good.never_refresh();
        }
        if life.is_some() {
            self.service.store.insert(self.key, Entry::Good(good.clone()));
        }
        good
    }

    /// One event and one count per exchange.
    fn report(&self, failure: Option<&Error>, took: Duration) {
        let result = failure.map_or("ok", |error| error.class().label());
        let vault = &self.vault.settings.name;
        self.service.metrics.exchange(vault, result, took);
        let (connection, took_ms) = (&*self.connection, took.as_secs_f64() * 1e3);
        match failure {
            None => tracing::info!(%vault, connection, result, took_ms, "token exchange"),
            Some(error) => {
                let cause = https::causes(error.kind());
                tracing::warn!(%vault, connection, result, took_ms, cause, "token exchange failed");
            }
        }
    }

    fn error(&self, kind: ErrorKind) -> Error {
        Error::new(
            kind,
            &self.vault.settings.name,
            &self.vault.host,
            &self.connection,
        )
    }
}

#[cfg(test)]
impl Service {
    /// No exchange is under way.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }
}

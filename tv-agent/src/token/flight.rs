//! One exchange per key in a task of its own, and what becomes of its result.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use dashmap::DashMap;
use dashmap::mapref::entry::{Entry as Slot, VacantEntry};
use tokio::sync::watch;

use super::cache::{Entry, Good, Key, Store};
use super::error::{Error, ErrorKind};
use super::life::Life;
use super::pace::Change;
use super::request::Ask;
use super::shared::plan::Purpose;
use super::shared::{Berth, Claim, Event, Shared, Wish};
use super::{Client, Grant, Source, Vault, exchange, response};
use crate::clock;
use crate::https;
use crate::metrics::Metrics;
use crate::policy::Wanted;
use crate::secret::Secret;

/// A grant with its key. `own`: the agent asks for itself.
#[derive(Clone, Copy)]
pub(super) struct Boarding<'a> {
    pub grant: &'a Grant<'a>,
    pub own: bool,
    pub key: Key,
}

pub(super) type Outcome = Result<(Arc<Good>, Source), Error>;
type Landed = watch::Receiver<Option<Outcome>>;

/// The cache and the exchanges under way.
pub(super) struct Service {
    pub store: Store,
    /// Exchanges under way. Bounded by the vaults' queues and by the callers that wait.
    flights: DashMap<Key, Landed>,
    /// The fleet's cache, where one is configured.
    pub shared: ArcSwapOption<Shared>,
    pub metrics: Metrics,
}

impl Service {
    pub fn new(store: Store, metrics: Metrics) -> Self {
        Self {
            store,
            flights: DashMap::new(),
            shared: ArcSwapOption::empty(),
            metrics,
        }
    }

    /// Why nothing may be sent to `vault` now: it asked for a pause, or fails.
    pub fn closed(&self, vault: &Vault) -> Option<ErrorKind> {
        let paused = self.store.paused(&vault.id);
        paused
            .map(|remaining| ErrorKind::Paused { remaining })
            .or_else(|| vault.gate.open().map(|remaining| ErrorKind::Open { remaining }))
    }

    /// Waits for the exchange of the key, which starts now if none is under way.
    pub async fn board(self: &Arc<Self>, boarding: Boarding<'_>) -> Outcome {
        let mut landed = match self.flights.entry(boarding.key) {
            Slot::Occupied(flight) => flight.get().clone(),
            Slot::Vacant(slot) => self.take_off(boarding, slot, None),
        };
        let Grant { vault, wanted, .. } = boarding.grant;
        match landed.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        }
        .unwrap_or_else(|| Err(vault.error(ErrorKind::Aborted, wanted)))
    }

    /// Starts one background refresh when `good` nears its end. A failure keeps `good` until then.
    pub fn refresh_if_due(self: &Arc<Self>, boarding: Boarding<'_>, good: &Arc<Good>) {
        /// Between two attempts for one key.
        const AGAIN: Duration = Duration::from_secs(10);
        if !good.take_refresh(Instant::now(), AGAIN) || self.closed(boarding.grant.vault).is_some() {
            return;
        }
        if let Slot::Vacant(slot) = self.flights.entry(boarding.key) {
            self.metrics.cache_event("refresh");
            self.take_off(boarding, slot, Some(good.clone()));
        }
    }

    /// Starts the exchange in a task of its own: a caller that goes away must not cancel it for the others.
    fn take_off(
        self: &Arc<Self>,
        boarding: Boarding<'_>,
        slot: VacantEntry<'_, Key, Landed>,
        renews: Option<Arc<Good>>,
    ) -> Landed {
        let (land, landed) = watch::channel(None);
        // The shard's lock ends with this statement, before anything can want it again.
        drop(slot.insert(landed.clone()));
        let Boarding { grant, own, key } = boarding;
        let flight = Flight {
            service: self.clone(),
            vault: grant.vault.clone(),
            wanted: grant.wanted.clone(),
            login_hint: grant.login_hint.map(Into::into),
            subject: grant.subject.cloned(),
            actor: grant.actor.cloned(),
            user: grant.user.map(Into::into),
            client: grant.client.cloned(),
            own,
            key,
            renews,
        };
        tokio::spawn(async move {
            let (outcome, berth) = flight.run().await;
            // First out of the table (its result is in the cache by now), then told: nobody boards too late.
            drop(flight);
            let given = outcome.as_ref().ok().map(|(good, _)| good.clone());
            land.send_replace(Some(outcome));
            // Nobody here waits for the other nodes.
            if let Some(berth) = berth {
                berth.leave(given.as_deref()).await;
            }
        });
        landed
    }
}

/// One exchange under way. Dropping it, by a panic too, takes it out of the table.
struct Flight {
    service: Arc<Service>,
    vault: Arc<Vault>,
    wanted: Arc<Wanted>,
    login_hint: Option<Arc<str>>,
    subject: Option<Arc<Secret>>,
    actor: Option<Arc<Secret>>,
    user: Option<Arc<str>>,
    client: Option<Arc<Client>>,
    own: bool,
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
    /// The berth is for what the vault gave, or for nothing if it gave nothing.
    async fn run(&self) -> (Outcome, Option<Berth>) {
        // Another flight may have landed between the caller's look into the cache and its boarding.
        if self.renews.is_none() {
            match self.service.store.get(&self.key) {
                Some(Entry::Good(good)) => return (Ok((good, Source::Cache)), None),
                Some(Entry::Bad(error, _)) => return (Err(error), None),
                None => {}
            }
        }
        let berth = match self.service.shared.load_full() {
            Some(shared) => match self.ask_around(&shared).await {
                Ok(landed) => return (Ok(landed), None),
                Err(berth) => Some(berth),
            },
            None => None,
        };
        (self.ask_vault().await, berth)
    }

    /// What the other nodes have, or the place for what the vault gives.
    async fn ask_around(&self, shared: &Arc<Shared>) -> Result<(Arc<Good>, Source), Berth> {
        let store = &self.service.store;
        let purpose = match &self.renews {
            Some(_) => Purpose::Renew,
            None if self.service.closed(&self.vault).is_some() => Purpose::Glance,
            None => Purpose::Need,
        };
        let settings = &self.vault.settings;
        let wish = Wish {
            key: self.key,
            purpose,
            ours: self.renews.as_deref(),
            refused: store.refused(&self.key),
            patience: settings.timeout,
            ttl_max: settings.ttl_max,
        };
        match (shared.claim(&wish).await, &self.renews) {
            (Claim::Found(good), _) => {
                // Another node's configuration may ask less of a token.
                if let Err(why) = self.believe(&good.token).await {
                    tracing::warn!(vault = %settings.name, cause = %why, "another node's token was not believed");
                    self.service.metrics.shared_cache(Event::Unvalidated.label());
                    return Err(shared.berth(&self.key));
                }
                store.insert(self.key, Entry::Good(good.clone()));
                Ok((good, Source::Shared))
            }
            (Claim::Keep { settled }, Some(ours)) => {
                if settled {
                    ours.never_refresh();
                }
                Ok((ours.clone(), Source::Cache))
            }
            (Claim::Keep { .. }, None) => Err(shared.berth(&self.key)),
            (Claim::Ask(berth), _) => Err(berth),
        }
    }

    async fn ask_vault(&self) -> Outcome {
        let store = &self.service.store;
        if let Some(kind) = self.service.closed(&self.vault) {
            return Err(self.error(kind));
        }
        let _queued = self
            .vault
            .queue
            .try_acquire()
            .map_err(|_| self.error(ErrorKind::Busy))?;
        let _slot = self.turn().await?;
        let started = Instant::now();
        let ask = Ask {
            wanted: &self.wanted,
            login_hint: self.login_hint.as_deref(),
            subject: self.subject.as_deref(),
            actor: self.actor.as_deref(),
            user: self.user.as_deref(),
            own: self.own,
        };
        let metrics = &self.service.metrics;
        let called = exchange::exchange(&self.vault, &ask, self.client.as_deref(), metrics).await;
        self.landed(called.as_ref().err());
        let result = match called {
            Ok(granted) => self.check(granted).await,
            Err(kind) => Err(kind),
        };
        let took = started.elapsed();
        match result {
            Ok(granted) => {
                self.report(None, took);
                if let Some(wait) = granted.exhausted {
                    self.vault.gate.hold(wait);
                }
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

    /// Waits for a turn of the configured rate and for a slot, each no longer than the vault's timeout.
    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Error> {
        let vault = &self.vault;
        let patience = vault.settings.timeout;
        let wait = vault.gate.reserve(patience).map_err(|wait| {
            // Back when half of those who wait now have had their turn: the queue is never idle.
            let remaining = wait.saturating_sub(patience / 2);
            self.error(ErrorKind::Paced { remaining })
        })?;
        tokio::time::sleep(wait).await;
        let slot = tokio::time::timeout(patience, vault.slots.acquire()).await;
        let Ok(Ok(slot)) = slot else {
            return Err(self.error(ErrorKind::Timeout(patience)));
        };
        if let Some(remaining) = self.service.store.paused(&vault.id) {
            return Err(self.error(ErrorKind::Paused { remaining }));
        }
        // Last, since it may make this call the one that tries.
        match vault.gate.allow() {
            Ok(()) => Ok(slot),
            Err(remaining) => Err(self.error(ErrorKind::Open { remaining })),
        }
    }

    /// Tells the circuit breaker how the call ended, and the world when that changed it.
    fn landed(&self, failure: Option<&ErrorKind>) {
        let name = &self.vault.settings.name;
        let Some(change) = self.vault.gate.landed(failure.is_some_and(ErrorKind::is_outage)) else {
            return;
        };
        self.service.metrics.breaker(name, change == Change::Opened);
        match change {
            Change::Opened => {
                let open_s = self.vault.settings.pacing.open.as_secs();
                tracing::error!(vault = %name, open_s, "the vault keeps failing: requests that need it are refused without asking it");
            }
            Change::Closed => tracing::info!(vault = %name, "the vault answers again"),
        }
    }

    async fn check(&self, granted: response::Granted) -> Result<response::Granted, ErrorKind> {
        let believed = self.believe(&granted.token).await;
        believed.map(|()| granted).map_err(ErrorKind::Unvalidated)
    }

    async fn believe(&self, token: &Secret) -> Result<(), String> {
        match &self.vault.check {
            // Our own token is the endpoint's to judge.
            Some(check) if !self.own => check.check(token).await,
            _ => Ok(()),
        }
    }

    /// Puts a granted token into the cache, if it may live there.
    fn keep(&self, granted: response::Granted) -> Arc<Good> {
        let settings = &self.vault.settings;
        let life = Life::of(
            granted.expires_in,
            self.subject.as_ref().and_then(|subject| subject.jwt_expiry()),
            clock::unix_now(),
            settings.ttl_default,
            settings.ttl_max,
        );
        let good = Arc::new(Good::new(granted.token, life, Instant::now(), rand::random()));
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
        let (target, took_ms) = (self.wanted.target(), took.as_secs_f64() * 1e3);
        match failure {
            None => tracing::info!(%vault, connection = target, result, took_ms, "token exchange"),
            Some(error) => {
                let cause = https::causes(error.kind());
                tracing::warn!(%vault, connection = target, result, took_ms, cause, "token exchange failed");
            }
        }
    }

    fn error(&self, kind: ErrorKind) -> Error {
        self.vault.error(kind, &self.wanted)
    }
}

#[cfg(test)]
impl Service {
    /// No exchange is under way.
    pub fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }
}

//! A value that is fetched from afar and kept: one fetch at a time, a floor between fetches, the old value for a
//! bounded time while no new one can be had.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::fetch::{Fetched, Unfetched};
use crate::limits;

type Fetching<T> = Pin<Box<dyn Future<Output = Result<Fetched<T>, Unfetched>> + Send>>;

/// How long what is kept.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Between the begins of two fetches.
    pub floor: Duration,
    /// Of a value whose server says nothing.
    pub fresh: Duration,
    pub fresh_max: Duration,
    /// After the freshness, while fetches fail.
    pub stale: Duration,
}

impl Times {
    pub const DEFAULT: Self = Self {
        floor: limits::METADATA_FLOOR,
        fresh: limits::METADATA_FRESH,
        fresh_max: limits::METADATA_FRESH_MAX,
        stale: limits::METADATA_STALE,
    };
}

/// There is no value that may be used.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Unavailable {
    pub cause: Unfetched,
    /// When the next fetch may begin.
    pub retry_after: Duration,
}

impl Unavailable {
    pub(super) fn never(cause: Unfetched) -> Self {
        Self {
            cause,
            retry_after: Duration::ZERO,
        }
    }

    pub(super) fn into_cause(self) -> Unfetched {
        self.cause
    }
}

/// The value and its fetches. Cheap to clone.
pub struct Kept<T>(Arc<Inner<T>>);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<T> {
    times: Times,
    fetch: Box<dyn Fn() -> Fetching<T> + Send + Sync>,
    state: Mutex<State<T>>,
}

struct State<T> {
    value: Option<Held<T>>,
    /// When the last fetch began.
    began: Option<Instant>,
    /// Why the last fetch failed, if it did.
    failed: Option<Unfetched>,
    /// Closed when the fetch under way is over.
    flight: Option<watch::Receiver<()>>,
}

struct Held<T> {
    value: Arc<T>,
    fresh_until: Instant,
}

impl<T: Send + Sync + 'static> Kept<T> {
    pub fn new(times: Times, fetch: impl Fn() -> Fetching<T> + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner {
            times,
            fetch: Box::new(fetch),
            state: Mutex::new(State {
                value: None,
                began: None,
                failed: None,
                flight: None,
            }),
        }))
    }

    /// The value: the one that is kept while it is fresh, else that of a fetch which all who ask share.
    ///
    /// Cancel-safe: the fetch goes on for the others. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When no value may be used and none can be fetched now.
    pub async fn get(&self) -> Result<Arc<T>, Unavailable> {
        let landed = {
            let mut state = self.0.lock();
            if let Some(held) = state
                .value
                .as_ref()
                .filter(|held| Instant::now() < held.fresh_until)
            {
                return Ok(held.value.clone());
            }
            self.board(&mut state)
        };
        wait(landed).await;
        let state = self.0.lock();
        let until = |held: &Held<T>| held.fresh_until + self.0.times.stale;
        match state.value.as_ref().filter(|held| Instant::now() < until(held)) {
            Some(held) => Ok(held.value.clone()),
            None => Err(self.0.unavailable(&state)),
        }
    }

    /// A newer value than `known`, fetched if the floor lets it; None when there is none.
    ///
    /// # Errors
    /// When the last fetch failed, so that nobody knows.
    pub async fn after(&self, known: &Arc<T>) -> Result<Option<Arc<T>>, Unavailable> {
        let newer = |state: &State<T>| {
            let held = state.value.as_ref().map(|held| &held.value);
            held.filter(|value| !Arc::ptr_eq(value, known)).cloned()
        };
        let landed = {
            let mut state = self.0.lock();
            if let Some(value) = newer(&state) {
                return Ok(Some(value));
            }
            self.board(&mut state)
        };
        wait(landed).await;
        let state = self.0.lock();
        match newer(&state) {
            Some(value) => Ok(Some(value)),
            None if state.failed.is_some() => Err(self.0.unavailable(&state)),
            None => Ok(None),
        }
    }

    /// The fetch under way, or a new one; None when the last began too short a time ago.
    fn board(&self, state: &mut State<T>) -> Option<watch::Receiver<()>> {
        if let Some(flight) = &state.flight {
            return Some(flight.clone());
        }
        let now = Instant::now();
        if state.began.is_some_and(|began| now < began + self.0.times.floor) {
            return None;
        }
        let (land, landed) = watch::channel(());
        state.began = Some(now);
        state.flight = Some(landed.clone());
        let mut flight = Flight {
            kept: self.0.clone(),
            outcome: Err(Unfetched::Aborted),
            _land: land,
        };
        let fetching = (self.0.fetch)();
        // A task of its own: a caller that goes away must not cancel it for the others.
        tokio::spawn(async move { flight.run(fetching).await });
        Some(landed)
    }
}

impl<T> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unavailable(&self, state: &State<T>) -> Unavailable {
        let next = state.began.map(|began| began + self.times.floor);
        Unavailable {
            cause: state.failed.clone().unwrap_or(Unfetched::Aborted),
            retry_after: next.map_or(Duration::ZERO, |next| next.duration_since(Instant::now())),
        }
    }

    fn take(&self, outcome: Result<Fetched<T>, Unfetched>) {
        let mut state = self.lock();
        state.flight = None;
        match outcome {
            Ok(fetched) => {
                let fresh = fetched.fresh.unwrap_or(self.times.fresh);
                let fresh = fresh.min(self.times.fresh_max).max(self.times.floor);
                state.failed = None;
                state.value = Some(Held {
                    value: Arc::new(fetched.value),
                    fresh_until: Instant::now() + fresh,
                });
            }
            Err(cause) => {
                tracing::warn!(%cause, "an issuer's document cannot be had");
                state.failed = Some(cause);
            }
        }
    }
}

/// One fetch under way. Dropped, by a panic too, it hands over what came of it and then wakes who waits.
struct Flight<T> {
    kept: Arc<Inner<T>>,
    outcome: Result<Fetched<T>, Unfetched>,
    _land: watch::Sender<()>,
}

impl<T> Flight<T> {
    async fn run(&mut self, fetching: Fetching<T>) {
        self.outcome = fetching.await;
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        let outcome = std::mem::replace(&mut self.outcome, Err(Unfetched::Aborted));
        self.kept.take(outcome);
    }
}

async fn wait(landed: Option<watch::Receiver<()>>) {
    if let Some(mut landed) = landed {
        // Nothing is ever sent: the end of the sender is the end of the fetch.
        let _ = landed.changed().await;
    }
}

#[cfg(test)]
mod tests;

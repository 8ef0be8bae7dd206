//! How the watch is doing: for `status`, metrics and the log.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::objects::Resource;
use crate::metrics::Metrics;

/// What is known of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// All of it was listed once.
    pub listed: bool,
    /// It is followed now.
    pub current: bool,
    /// Seconds since it was followed last, where it is not; None: never.
    pub stale_s: Option<u64>,
    /// Failures since the start.
    pub failures: u64,
    /// The last one, while it is not followed.
    pub error: Option<String>,
}

/// The whole, as `status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub pods: Feed,
    pub namespaces: Feed,
    /// What is wrong with the credentials, if anything is.
    pub credentials: Option<String>,
}

pub struct Health {
    state: Mutex<State>,
    metrics: Metrics,
}

#[derive(Default)]
struct State {
    pods: Kept,
    namespaces: Kept,
    credentials: Option<String>,
}

#[derive(Default)]
struct Kept {
    feed: Feed,
    heard: Option<Instant>,
}

impl Health {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            state: Mutex::default(),
            metrics,
        }
    }

    pub fn status(&self) -> Status {
        let state = self.state();
        let feed = |kept: &Kept| Feed {
            stale_s: kept
                .heard
                .filter(|_| !kept.feed.current)
                .map(|heard| heard.elapsed().as_secs()),
            ..kept.feed.clone()
        };
        Status {
            pods: feed(&state.pods),
            namespaces: feed(&state.namespaces),
            credentials: state.credentials.clone(),
        }
    }

    pub(super) fn listed(&self, resource: Resource) {
        let mut state = self.state();
        let kept = state.of(resource);
        kept.feed.listed = true;
        kept.heard = Some(Instant::now());
        drop(state);
        self.heard(resource);
    }

    /// The watch runs, or said something.
    pub(super) fn heard(&self, resource: Resource) {
        let mut state = self.state();
        let kept = state.of(resource);
        let back = !kept.feed.current;
        kept.feed.current = true;
        kept.heard = Some(Instant::now());
        kept.feed.error = None;
        drop(state);
        if back {
            tracing::info!(resource = resource.label(), "the API server is followed");
        }
        self.metrics.kubernetes.followed(resource.label(), true);
    }

    pub(super) fn failed(&self, resource: Resource, reason: &'static str, error: String) {
        let mut state = self.state();
        let kept = state.of(resource);
        let news = kept.feed.current || kept.feed.error.as_ref() != Some(&error);
        if std::mem::take(&mut kept.feed.current) {
            kept.heard = Some(Instant::now());
        }
        kept.feed.failures += 1;
        let listed = kept.feed.listed;
        kept.feed.error = Some(error.clone());
        drop(state);
        self.metrics.kubernetes.failure(resource.label(), reason);
        self.metrics.kubernetes.followed(resource.label(), false);
        if news {
            let meanwhile = if listed {
                "what was known last goes on"
            } else {
                "nothing is known of pods yet"
            };
            tracing::warn!(
                resource = resource.label(),
                reason,
                error,
                meanwhile,
                "the API server is not followed"
            );
        }
    }

    pub(super) fn credentials(&self, problem: Option<String>) {
        let mut state = self.state();
        if let Some(problem) = problem.as_ref().filter(|_| state.credentials != problem) {
            tracing::warn!(
                problem,
                "the credentials for the API server; the old ones stay, if there are any"
            );
        }
        state.credentials = problem;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn of(&mut self, resource: Resource) -> &mut Kept {
        match resource {
            Resource::Pods => &mut self.pods,
            Resource::Namespaces => &mut self.namespaces,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_followed_is_stale() {
        let health = Health::new(Metrics::new());
        assert_eq!(health.status(), Status::default());
        health.failed(Resource::Pods, "connect", "no".into());
        let status = health.status().pods;
        assert_eq!(
            (status.listed, status.current, status.stale_s, status.failures),
            (false, false, None, 1)
        );
        health.listed(Resource::Pods);
        let status = health.status().pods;
        assert_eq!((status.listed, status.current, status.error), (true, true, None));
        health.failed(Resource::Pods, "silent", "no".into());
        let status = health.status().pods;
        assert_eq!(
            (status.listed, status.current, status.stale_s),
            (true, false, Some(0))
        );
        assert_eq!(health.status().namespaces, Feed::default());
    }
}

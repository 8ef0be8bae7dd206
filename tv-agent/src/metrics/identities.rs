//! Requests by the caller's identity: bounded, since identities are whatever issuers write.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

use crate::limits;

/// Who is counted once there are too many.
const OTHER: &str = "(other)";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Labels {
    identity: Arc<str>,
}

#[derive(Clone, Default)]
pub(super) struct Identities {
    pub family: Family<Labels, Counter>,
    known: Arc<Mutex<HashSet<Arc<str>>>>,
}

impl Identities {
    pub fn count(&self, identity: &str) {
        let identity = self.named(&plain(identity));
        self.family.get_or_create(&Labels { identity }).inc();
    }

    fn named(&self, identity: &str) -> Arc<str> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(identity) = known.get(identity) {
            return identity.clone();
        }
        if known.len() >= limits::IDENTITIES {
            return OTHER.into();
        }
        let identity: Arc<str> = identity.into();
        known.insert(identity.clone());
        identity
    }
}

/// Without what means something in the format of metrics.
fn plain(identity: &str) -> String {
    let fits = |c: char| c.is_alphanumeric() || "@._-:|/+ ".contains(c);
    identity.chars().map(|c| if fits(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn identities_are_counted_until_there_are_too_many() {
        let metrics = Metrics::new();
        for n in 0..limits::IDENTITIES + 10 {
            metrics.identity(&format!("user-{n}"));
        }
        metrics.identity("user-0");
        let text = metrics.render();
        assert!(text.contains("tv_agent_identified_requests_total{identity=\"user-0\"} 2"));
        assert!(text.contains("tv_agent_identified_requests_total{identity=\"(other)\"} 10"));
        let lines = text
            .lines()
            .filter(|line| line.starts_with("tv_agent_identified_requests_total{"));
        assert_eq!(lines.count(), limits::IDENTITIES + 1);
    }

    #[test]
    fn an_identity_cannot_write_metrics_of_its_own() {
        let metrics = Metrics::new();
        metrics.identity("x\"} 1\ntv_agent_made_up{a=\"b\\");
        metrics.identity("Zoë@example.com");
        let text = metrics.render();
        assert!(!text.contains("\ntv_agent_made_up"), "{text}");
        let shown = "identity=\"x?? 1?tv_agent_made_up?a??b?\"";
        assert!(text.contains(shown), "{text}");
        assert!(text.contains("identity=\"Zoë@example.com\""));
    }
}

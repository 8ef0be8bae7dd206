//! The families about Kubernetes: the watch, the pods that follow from it, Events.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{ReasonLabels, ResultLabels, StateLabels};
use crate::clock;

#[derive(Clone, Default)]
pub struct Kubernetes {
    followed: Family<ResourceLabels, Gauge>,
    heard: Family<ResourceLabels, Gauge>,
    failures: Family<FailureLabels, Counter>,
    skipped: Family<FailureLabels, Counter>,
    pods: Family<StateLabels, Gauge>,
    /// Cgroups of pods and containers that the programs are attached to.
    pub covered: Gauge,
    /// Attempts to attach or detach that failed.
    pub cover_failures: Family<ReasonLabels, Counter>,
    events: Family<ResultLabels, Counter>,
}

/// `pods` or `namespaces`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabels {
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    resource: &'static str,
    reason: &'static str,
}

impl Kubernetes {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kubernetes_followed",
            "1 while the API server is followed, by resource",
            self.followed.clone(),
        );
        registry.register(
            "kubernetes_last_followed_timestamp_seconds",
            "When the API server was last heard, since 1970, by resource",
            self.heard.clone(),
        );
        registry.register(
            "kubernetes_failures",
            "Lists and watches that failed, by resource and reason",
            self.failures.clone(),
        );
        registry.register(
            "kubernetes_skipped_objects",
            "Objects of the API server that were not taken, by resource and reason",
            self.skipped.clone(),
        );
        registry.register(
            "kubernetes_pods",
            "Pods of this node that are known, and those that are enrolled",
            self.pods.clone(),
        );
        registry.register(
            "kubernetes_covered_cgroups",
            "Cgroups of pods and containers that the programs are attached to",
            self.covered.clone(),
        );
        registry.register(
            "kubernetes_cover_failures",
            "Attempts to attach to a pod or to detach that failed",
            self.cover_failures.clone(),
        );
        registry.register(
            "kubernetes_events",
            "Events on pods by what became of them",
            self.events.clone(),
        );
    }

    pub fn followed(&self, resource: &'static str, yes: bool) {
        let labels = ResourceLabels { resource };
        self.followed.get_or_create(&labels).set(yes.into());
        if yes {
            let now = i64::try_from(clock::unix_now().as_secs()).unwrap_or(i64::MAX);
            self.heard.get_or_create(&labels).set(now);
        }
    }

    pub fn failure(&self, resource: &'static str, reason: &'static str) {
        self.failures
            .get_or_create(&FailureLabels { resource, reason })
            .inc();
    }

    pub fn skipped(&self, resource: &'static str, reason: &'static str) {
        self.skipped
            .get_or_create(&FailureLabels { resource, reason })
            .inc();
    }

    pub fn pods(&self, known: usize, enrolled: usize) {
        for (state, count) in [("known", known), ("enrolled", enrolled)] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.pods.get_or_create(&StateLabels { state }).set(count);
        }
    }

    /// `created`, `updated`, `failed`, `dropped`, `unknown_pod`.
    pub fn events(&self, result: &'static str, count: u64) {
        self.events.get_or_create(&ResultLabels { result }).inc_by(count);
    }
}

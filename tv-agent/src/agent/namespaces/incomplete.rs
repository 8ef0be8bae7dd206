//! What discovery could not see.

use crate::limits;
use crate::metrics::{Metrics, ReasonLabels};
use crate::netns::Found;

/// What discovery could not see, told once while it lasts.
#[derive(Default)]
pub(super) struct Incomplete {
    truncated: bool,
    hidden: bool,
}

impl Incomplete {
    pub(super) fn tell(&mut self, found: &Found, metrics: &Metrics) {
        if found.truncated && !self.truncated {
            tracing::error!(
                cgroups = limits::DISCOVERY_CGROUPS,
                processes = limits::DISCOVERY_PROCESSES,
                "more cgroups or processes are enrolled than can be looked at; workloads in network namespaces of \
                 their own may stay refused; enrol less"
            );
            count_failure(metrics, "truncated");
        }
        if found.hidden && !self.hidden {
            tracing::error!(
                "enrolled processes cannot be looked at, and are refused in network namespaces of their own; start the \
                 agent in the host's pid namespace (hostPID) and with CAP_SYS_PTRACE"
            );
            count_failure(metrics, "hidden");
        }
        (self.truncated, self.hidden) = (found.truncated, found.hidden);
    }
}

pub(super) fn count_failure(metrics: &Metrics, reason: &'static str) {
    metrics
        .namespace_failures
        .get_or_create(&ReasonLabels { reason })
        .inc();
}

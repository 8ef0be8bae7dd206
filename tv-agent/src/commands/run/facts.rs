//! What only the warden can tell of the daemon.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::metrics::Metrics;
use crate::redirect::{Handles, Listeners};
use crate::strays;
use crate::wire::Facts;
use crate::workload::Workloads;

pub(super) fn of(
    began: Instant,
    listening: Arc<OnceLock<Listeners>>,
    handles: Handles,
    workloads: Arc<Workloads>,
    metrics: Metrics,
) -> Arc<dyn Fn() -> Facts + Send + Sync> {
    Arc::new(move || Facts {
        pid: std::process::id(),
        uptime_s: began.elapsed().as_secs(),
        listeners: listening
            .get()
            .into_iter()
            .flat_map(|listeners| std::iter::once(listeners.v4).chain(listeners.v6))
            .map(|address| address.to_string())
            .collect(),
        cgroups: workloads.roots().to_vec(),
        uncaptured: strays::count(&metrics),
        narrowing: handles.narrowing(),
        counters: handles.named_counters(),
        metrics: metrics.render(),
    })
}

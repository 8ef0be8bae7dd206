//! The daemon's admin socket: what it says of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::control::{Control, LogFilter, Status};
use crate::kubernetes::Health;
use crate::metrics::Metrics;
use crate::redirect::{self, Handles};
use crate::strays;
use crate::workload::Workloads;

/// What the daemon says of itself.
pub(super) type Said = Arc<dyn Fn() -> Status + Send + Sync>;

/// How the daemon is doing, for those who look.
#[derive(Clone)]
pub(super) struct Doing {
    pub ready: Arc<AtomicBool>,
    /// None: no API server is followed.
    pub watched: Option<Arc<Health>>,
}

pub(super) fn status(
    agent: &Agent,
    handles: Handles,
    workloads: Arc<Workloads>,
    metrics: Metrics,
    doing: Doing,
) -> Said {
    let started = Instant::now();
    let (listeners, current, cached) = (agent.listeners(), agent.current().clone(), agent.tokens().clone());
    Arc::new(move || Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bpf_sha256: redirect::object_sha256().map(str::to_owned),
        pid: std::process::id(),
        ready: doing.ready.load(Ordering::Relaxed),
        uptime_s: started.elapsed().as_secs(),
        listeners: std::iter::once(listeners.v4)
            .chain(listeners.v6)
            .map(|address| address.to_string())
            .collect(),
        cgroups: workloads.roots().to_vec(),
        routes: current
            .load()
            .routes
            .iter()
            .map(|route| route.name.to_string())
            .collect(),
        open_connections: metrics.open_connections.get(),
        cached_tokens: cached.len(),
        uncaptured_connections: strays::count(&metrics),
        narrowing: handles.narrowing(),
        kubernetes: doing.watched.as_ref().map(|health| health.status()),
        kernel: handles
            .counters()
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect(),
    })
}

/// Serves `listener` until the returned task is aborted.
pub(super) fn serve(
    listener: UnixListener,
    agent: &Agent,
    status: Said,
    workloads: Arc<Workloads>,
    log: LogFilter,
    metrics: Metrics,
) -> JoinHandle<()> {
    let current = agent.current().clone();
    let processes = agent.processes().clone();
    let control = Control {
        status,
        flows: agent.flows().clone(),
        tokens: agent.tokens().clone(),
        keys: Arc::new(move || current.load().keysets.clone()),
        trust: Arc::new(move || processes.list(&workloads.roots())),
        log,
        metrics: Arc::new(move || metrics.render()),
    };
    control.serve_on(listener)
}

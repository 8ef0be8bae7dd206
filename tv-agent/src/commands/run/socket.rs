//! The daemon's admin socket: what it says of itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::net::UnixListener;
use tokio::task::JoinHandle;

use crate::agent::Agent;
use crate::control::{Control, Status};
use crate::metrics::Metrics;
use crate::redirect::{self, Handles};
use crate::strays;
use crate::workload::Workloads;

/// Serves `listener` until the returned task is aborted.
pub(super) fn serve(
    listener: UnixListener,
    agent: &Agent,
    handles: Handles,
    workloads: Arc<Workloads>,
    metrics: Metrics,
    ready: Arc<AtomicBool>,
) -> JoinHandle<()> {
    let started = Instant::now();
    let (listeners, current, tokens) = (agent.listeners(), agent.current().clone(), agent.tokens().clone());
    let (processes, enrolled) = (agent.processes().clone(), workloads.clone());
    let (cached, keyed) = (tokens.clone(), current.clone());
    let status = move || Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        bpf_sha256: redirect::object_sha256().map(str::to_owned),
        pid: std::process::id(),
        ready: ready.load(Ordering::Relaxed),
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
        kernel: handles
            .counters()
            .into_iter()
            .map(|(reason, count)| (reason.to_owned(), count))
            .collect(),
    };
    let control = Control {
        status: Arc::new(status),
        flows: agent.flows().clone(),
        tokens,
        keys: Arc::new(move || keyed.load().keysets.clone()),
        trust: Arc::new(move || processes.list(&enrolled.roots())),
    };
    control.serve_on(listener)
}

//! The admin socket and the port for metrics: made by the warden, served here, where flows, tokens and keys are.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use super::Asks;
use crate::admin::Admin;
use crate::agent::Agent;
use crate::control::{Control, LogFilter, Status};
use crate::kubernetes::Health;
use crate::metrics;
use crate::page::View;
use crate::redirect;

/// What is told there.
pub(super) struct Place<'a> {
    pub(super) agent: &'a Agent,
    pub(super) asks: &'a Asks,
    pub(super) ready: &'a Arc<AtomicBool>,
    pub(super) log: &'a LogFilter,
    /// None: no API server is followed.
    pub(super) watched: Option<Arc<Health>>,
}

impl Place<'_> {
    /// Serves until the tasks are aborted.
    pub(super) fn serve(
        &self,
        socket: OwnedFd,
        port: Option<OwnedFd>,
        page: bool,
    ) -> io::Result<Vec<JoinHandle<()>>> {
        let status = self.status();
        let mut tasks = vec![self.control(status.clone()).serve_on(adopt_unix(socket)?)];
        if let Some(port) = port {
            let (flows, current) = (self.agent.flows().clone(), self.agent.current().clone());
            let processes = self.agent.processes().clone();
            let view = move || View::of(status(), flows.follow().0, processes.known());
            let asks = self.asks.clone();
            let admin = Admin {
                metrics: self.metrics(),
                ready: self.ready.clone(),
                more: Arc::new(move || asks.facts().counters),
                keys: Arc::new(move || Some(current.load().keysets.clone())),
                page: page.then(|| Arc::new(view) as _),
            };
            tasks.push(admin.serve_on(adopt_tcp(port)?));
        }
        Ok(tasks)
    }

    fn control(&self, status: Arc<dyn Fn() -> Status + Send + Sync>) -> Control {
        let current = self.agent.current().clone();
        let processes = self.agent.processes().clone();
        let (asks, here) = (self.asks.clone(), self.log.clone());
        // Here last: what the warden refuses changes nothing.
        let log = LogFilter::new(move |filter| {
            asks.log(filter)?;
            here.change(filter)
        });
        Control {
            status,
            flows: self.agent.flows().clone(),
            tokens: self.agent.tokens().clone(),
            keys: Arc::new(move || current.load().keysets.clone()),
            trust: Arc::new(move || processes.list()),
            log,
            metrics: self.metrics(),
        }
    }

    /// Those of both processes.
    fn metrics(&self) -> Arc<dyn Fn() -> String + Send + Sync> {
        let (metrics, asks) = (self.agent.metrics().clone(), self.asks.clone());
        Arc::new(move || metrics::merged(&metrics.render(), &asks.facts().metrics))
    }

    fn status(&self) -> Arc<dyn Fn() -> Status + Send + Sync> {
        let (current, cached) = (self.agent.current().clone(), self.agent.tokens().clone());
        let (metrics, asks, ready) = (
            self.agent.metrics().clone(),
            self.asks.clone(),
            self.ready.clone(),
        );
        let watched = self.watched.clone();
        Arc::new(move || {
            let facts = asks.facts();
            Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                bpf_sha256: redirect::object_sha256().map(str::to_owned),
                pid: facts.pid,
                data_path: Some(std::process::id()),
                ready: ready.load(Ordering::Relaxed),
                uptime_s: facts.uptime_s,
                listeners: facts.listeners,
                cgroups: facts.cgroups,
                routes: current
                    .load()
                    .routes
                    .iter()
                    .map(|route| route.name.to_string())
                    .collect(),
                open_connections: metrics.open_connections.get(),
                cached_tokens: cached.len(),
                uncaptured_connections: facts.uncaptured,
                narrowing: facts.narrowing,
                kubernetes: watched.as_ref().map(|health| health.status()),
                kernel: facts.counters,
            }
        })
    }
}

fn adopt_unix(socket: OwnedFd) -> io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}

fn adopt_tcp(socket: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

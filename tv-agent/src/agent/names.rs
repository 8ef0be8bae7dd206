//! The addresses of routed hosts: looked up, told to the kernel half, and let go.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::candidates::Candidates;
use crate::metrics::Metrics;
use crate::phase::{self, Phase};
use crate::policy::HostPattern;
use crate::redirect::{Narrow, Narrowing};
use crate::snapshot::Current;

/// How often the addresses of exact hosts are looked up.
const LOOKUP: Duration = Duration::from_secs(60);
/// How often candidates that have had their time are removed.
const SWEEP: Duration = Duration::from_secs(15);

pub(super) fn candidates(narrow: Option<Arc<dyn Narrow>>) -> Candidates {
    Candidates::new(Arc::new(move |address, time| {
        if let Some(narrow) = &narrow {
            narrow.keep(address, time);
        }
    }))
}

/// Learns the addresses of routed hosts: a connection to one of them without a name is not tunnelled, and with
/// `capture: dns` it is looked at though nobody asked for its name.
pub(super) async fn look_up(current: Current, candidates: Candidates, mut watched: watch::Receiver<Phase>) {
    loop {
        let snapshot = current.load();
        let exact = snapshot
            .routes
            .iter()
            .flat_map(|r| &r.hosts)
            .filter_map(HostPattern::exact);
        for host in exact.cloned().collect::<Vec<_>>() {
            // A name that does not resolve now is learned from the first connection to it.
            if let Ok(addresses) = tokio::net::lookup_host((host.as_str(), 443)).await {
                addresses.for_each(|address| candidates.learn(address.ip().to_canonical()));
            }
        }
        drop(snapshot);
        tokio::select! {
            () = tokio::time::sleep(LOOKUP) => {}
            () = phase::reached(&mut watched, Phase::HandedOver) => return,
        }
    }
}

/// Removes candidates that have had their time and that nobody is connected to, and counts the others.
pub(super) async fn sweep(
    narrow: Arc<dyn Narrow>,
    candidates: Candidates,
    metrics: Metrics,
    mut watched: watch::Receiver<Phase>,
) {
    loop {
        let (narrow, open) = (narrow.clone(), candidates.all_open());
        // Thousands of system calls, when the table is full.
        let swept = tokio::task::spawn_blocking(move || narrow.sweep(&open)).await;
        tell(&metrics, swept.ok().flatten().as_ref());
        tokio::select! {
            () = tokio::time::sleep(SWEEP) => {}
            () = phase::reached(&mut watched, Phase::HandedOver) => return,
        }
    }
}

fn tell(metrics: &Metrics, narrowing: Option<&Narrowing>) {
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    let (candidates, unsure, all) = narrowing.map_or((0, 0, false), |narrowing| {
        (
            count(narrowing.candidates),
            count(narrowing.unsure_namespaces),
            narrowing.all_unsure_s > 0,
        )
    });
    metrics.candidates.set(candidates);
    metrics.unsure_namespaces.set(unsure);
    metrics.all_unsure.set(i64::from(all));
}

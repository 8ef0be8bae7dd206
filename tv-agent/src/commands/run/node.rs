//! The watch of this node's pods, as the daemon runs it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::cover::Cover;
use super::pods::{Pods, Tools};
use crate::commands::own_cgroup;
use crate::dial::{Dialer, OwnSocket};
use crate::kubernetes::{Node, Settings};
use crate::limits;
use crate::metrics::Metrics;
use crate::workload::Workloads;

/// How long the start waits for the first list, so that pods that are not enrolled are not covered for a moment. Those
/// that a predecessor covered stay refused meanwhile.
const FIRST: Duration = Duration::from_secs(2);

pub(super) async fn start(
    settings: Option<Settings>,
    own: Arc<dyn OwnSocket>,
    metrics: &Metrics,
) -> Option<Node> {
    let dialer = Dialer::new(own, limits::CONNECT_TIME);
    let node = Node::start(settings?, dialer, metrics.clone());
    let mut orders = node.orders();
    let listed = tokio::time::timeout(FIRST, orders.wait_for(|orders| orders.listed)).await;
    if listed.is_err() {
        tracing::warn!(
            unknown = ?node.settings().unknown,
            "the API server has not told of this node's pods yet; they are treated as unknown until it does"
        );
    }
    Some(node)
}

pub(super) fn pods(
    node: &Node,
    cover: &Cover,
    workloads: &Arc<Workloads>,
    metrics: &Metrics,
    mount: &Path,
) -> io::Result<Pods> {
    Ok(Pods::new(Tools {
        cover: cover.clone(),
        workloads: workloads.clone(),
        metrics: metrics.clone(),
        orders: node.orders(),
        teller: node.teller(),
        unknown: node.settings().unknown,
        own: own_cgroup(mount)?,
    }))
}

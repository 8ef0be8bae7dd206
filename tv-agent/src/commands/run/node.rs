//! The first list of this node's pods.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::kubernetes::{Orders, Unknown};

/// How long the start waits for it, so that pods that are not enrolled are not covered for a moment. Those that a
/// predecessor covered stay refused meanwhile.
const FIRST: Duration = Duration::from_secs(2);

pub(super) async fn listed(mut orders: watch::Receiver<Arc<Orders>>, unknown: Unknown) {
    let listed = tokio::time::timeout(FIRST, orders.wait_for(|orders| orders.listed)).await;
    if listed.is_err() {
        tracing::warn!(
            ?unknown,
            "the API server has not told of this node's pods yet; they are treated as unknown until it does"
        );
    }
}

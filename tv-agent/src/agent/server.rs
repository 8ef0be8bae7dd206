//! Serves the connections of one listener after the other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use crate::accept::{self, Listener};
use crate::connection::Connections;
use crate::netns::Netns;
use crate::phase::Phase;

pub(super) struct Server {
    pub(super) connections: Arc<Connections>,
    /// Connections at once, of all listeners together.
    pub(super) limit: Arc<Semaphore>,
    pub(super) drain: Duration,
}

impl Server {
    pub(super) fn serve(
        &self,
        listener: Listener,
        netns: Netns,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let connections = self.connections.clone();
        let serve = move |stream, peer, cookie| {
            let (connections, netns) = (connections.clone(), netns.clone());
            async move { connections.serve(stream, peer, cookie, netns).await }
        };
        accept::run(listener, self.limit.clone(), phase, self.drain, serve)
    }
}

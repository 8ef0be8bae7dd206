//! How an agent ends: at once, after a drain, or leaving its listeners to another.

use tokio::sync::oneshot;

use super::namespaces::Order;
use super::{Agent, Room};
use crate::accept::Listener;
use crate::phase::Phase;

/// Everything that an agent listens on for workloads, to be gone on with by another.
pub struct Inheritance {
    pub v4: Listener,
    pub v6: Option<Listener>,
    pub rooms: Vec<Room>,
}

impl Agent {
    /// Ends at once, with whatever is open.
    pub async fn stop_now(self) {
        for task in self.loops {
            task.abort();
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }

    /// Stops accepting, lets what is open finish for `listen.drain_seconds`, and ends.
    pub async fn stop(self) {
        self.enter(Phase::Ending).await;
    }

    /// All that it listens on, for a successor. It goes on serving, and serves no further network namespace until
    /// [`keep`](Self::keep).
    pub async fn bequeath(&self) -> Option<Inheritance> {
        let (reply, rooms) = oneshot::channel();
        // Nobody takes orders where other namespaces are not served.
        let asked = self.orders.send(Order::Freeze(reply)).await;
        let rooms = if asked.is_ok() {
            rooms.await.ok()?
        } else {
            Vec::new()
        };
        let (v4, v6) = self.home.clone()?;
        Some(Inheritance { v4, v6, rooms })
    }

    /// The successor did not come.
    pub async fn keep(&self) {
        // As above.
        let _ = self.orders.send(Order::Thaw).await;
    }

    /// Leaves accepting to a successor, lets what is open finish for `listen.drain_seconds`, and ends.
    pub async fn hand_over(self) {
        self.enter(Phase::HandedOver).await;
    }

    async fn enter(mut self, phase: Phase) {
        self.home = None;
        self.phase.send_replace(phase);
        // Who has not come back by half of the time is closed while idle, not cut off.
        let half = tokio::time::sleep(self.drain / 2);
        let sender = self.phase.clone();
        let second = tokio::spawn(async move {
            half.await;
            sender.send_replace(Phase::Ending);
        });
        for task in self.loops {
            // It ends by itself, at the deadline at the latest.
            let _ = task.await;
        }
        second.abort();
        if let Some(traces) = self.traces {
            traces.finish().await;
        }
    }
}

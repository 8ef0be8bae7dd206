//! How an agent ends: at once, after a drain, or leaving its listeners to another.

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
        if let Some(grounds) = self.grounds {
            grounds.abandon().await;
        }
        for task in self.loops {
            task.abort();
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }

    /// Stops accepting, lets what is open finish for `listen.drain_seconds`, and ends.
    pub async fn stop(mut self) {
        let grounds = self.grounds.take();
        let served = async {
            if let Some(grounds) = grounds {
                grounds.leave(Phase::Ending).await;
            }
        };
        self.end(Phase::Ending, served).await;
    }

    /// Enters `phase`, waits until everything is `served` to its end, and ends.
    pub async fn end(self, phase: Phase, served: impl Future<Output = ()>) {
        self.phase.send_replace(phase);
        // Who has not come back by half of the time is closed while idle, not cut off.
        let half = tokio::time::sleep(self.drain / 2);
        let sender = self.phase.clone();
        let second = tokio::spawn(async move {
            half.await;
            sender.send_replace(Phase::Ending);
        });
        // It ends by itself, at the deadline at the latest.
        served.await;
        for task in self.loops {
            // As above.
            let _ = task.await;
        }
        second.abort();
        if let Some(traces) = self.traces {
            traces.finish().await;
        }
    }
}

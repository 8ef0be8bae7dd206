//! The last connections and requests, for `tv-agent flows`: who, where to, which route, what happened.
//!
//! Bounded, in memory, without secrets: what stands here is what the log says too.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::audit::Audit;
use crate::clock;

/// Flows kept for those who ask later.
const KEPT: usize = 1024;
/// Flows that a slow follower may lag behind before it loses some.
const LAG: usize = 1024;

/// One connection that ended, or one request that was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// `connection`, `request`, or `trust`: what became known of a process' trust in the CA.
    pub kind: String,
    /// The caller's cgroup, when it is known.
    pub cgroup: Option<String>,
    /// systemd unit, pod UID and container id, as the cgroup's path says them.
    pub unit: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
    /// The container's name, where the pod's facts say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_name: Option<String>,
    /// What was known of the pod: `namespace/name` and service account.
    pub pod_namespace: Option<String>,
    pub pod_name: Option<String>,
    pub service_account: Option<String>,
    pub tgid: u32,
    /// Command name of that process, where it is certain to be the one that connected.
    pub process: Option<String>,
    pub uid: u32,
    /// Name of that user on the host; None in a container.
    pub user: Option<String>,
    /// The name that the caller asked for, when it showed one.
    pub host: Option<String>,
    /// Address and port that the caller chose.
    pub origin: Option<String>,
    pub route: Option<String>,
    /// The first 16 digits of the SHA-256 of the caller's token, as `cache list` shows it.
    pub subject: Option<String>,
    /// The vault's connection that the route names.
    pub connection: Option<String>,
    /// Where the provider's token came from.
    pub token: Option<String>,
    /// Whose fault a refusal is.
    pub fault: Option<String>,
    /// Trace id of the request's `traceparent` (W3C Trace Context §3.2), if it had one.
    pub trace: Option<String>,
    /// Who the caller is, where the route verifies its token.
    pub identity: Option<String>,
    /// A connection's decision, or a request's result.
    pub outcome: String,
    /// Why, where there is more to say.
    pub reason: Option<String>,
    /// A request's method and path, without query.
    pub request: Option<String>,
    pub status: Option<u16>,
    /// Microseconds from the first byte to the answer's header, or of the whole connection.
    pub took_us: u64,
}

impl Flow {
    /// Requests, and everything that was refused or went past; not the connections that were merely served.
    fn is_audited(&self) -> bool {
        self.kind != "connection" || matches!(&*self.outcome, "refuse" | "uncaptured")
    }
}

/// The ring of flows. Cheap to clone.
#[derive(Clone)]
pub struct Flows {
    ring: Arc<Mutex<VecDeque<Arc<Flow>>>>,
    live: broadcast::Sender<Arc<Flow>>,
    audit: Option<Audit>,
}

impl Flows {
    pub fn new() -> Self {
        Self::audited(None)
    }

    /// What matters of the flows is written to `audit` too, for good.
    pub fn audited(audit: Option<Audit>) -> Self {
        Self {
            ring: Arc::default(),
            live: broadcast::Sender::new(LAG),
            audit,
        }
    }

    /// Whether requests have to be refused, since nothing could be written about them.
    pub fn refuses(&self) -> bool {
        self.audit.as_ref().is_some_and(Audit::refuses)
    }

    /// Notes a flow, now.
    pub fn note(&self, mut flow: Flow) {
        flow.time_ms = clock::unix_now_ms();
        if let Some(audit) = self.audit.as_ref().filter(|_| flow.is_audited()) {
            audit.note(flow.time_ms, &flow);
        }
        let flow = Arc::new(flow);
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(flow.clone());
        // Under the lock, so that nobody who asks now misses one or sees one twice. No follower, no error.
        let _ = self.live.send(flow);
    }

    /// What is kept, oldest first, and all that comes from now on.
    pub fn follow(&self) -> (Vec<Arc<Flow>>, broadcast::Receiver<Arc<Flow>>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        (ring.iter().cloned().collect(), self.live.subscribe())
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(n: u64) -> Flow {
        Flow {
            took_us: n,
            ..Flow::default()
        }
    }

    #[test]
    fn the_ring_is_bounded_and_followers_miss_nothing() {
        let flows = Flows::new();
        for n in 0..KEPT as u64 + 10 {
            flows.note(flow(n));
        }
        let (kept, mut live) = flows.follow();
        assert_eq!((kept.len(), kept[0].took_us), (KEPT, 10));
        flows.note(flow(7777));
        assert_eq!(live.try_recv().unwrap().took_us, 7777);
        assert!(live.try_recv().is_err());
    }

    #[test]
    fn a_follower_that_is_too_slow_loses_flows_and_blocks_nobody() {
        let flows = Flows::new();
        let (_, mut live) = flows.follow();
        for n in 0..2 * LAG as u64 {
            flows.note(flow(n));
        }
        assert!(matches!(
            live.try_recv(),
            Err(broadcast::error::TryRecvError::Lagged(_))
        ));
    }
}

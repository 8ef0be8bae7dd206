//! Stage 1: the kernel half as the agent sees it. `redirect/` is the only user of aya.

use std::io;
use std::net::SocketAddr;

use crate::addr::{NetnsCookie, OriginAddr, PeerAddr};

mod cgroup;

pub use cgroup::{cgroup_id, cgroup2_mount};

/// What the kernel half recorded about a redirected connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Where the workload wanted to go. A v4-mapped destination is given as IPv4.
    pub origin: OriginAddr,
    /// cgroup v2 id of the caller at connect().
    pub cgroup_id: u64,
    /// Process (thread group) id in the initial pid namespace.
    pub tgid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
}

/// Takes the record of an accepted connection out of the kernel half's table; faked in tests.
///
/// `None`: nobody recorded it, so it must be closed (DESIGN invariant 3).
pub trait OriginLookup: Send + Sync {
    fn take(&self, netns: NetnsCookie, peer: PeerAddr) -> io::Result<Option<Recorded>>;
}

/// A lookup that knows nothing: for an agent without the kernel half, and for tests of refusal.
pub struct NoRecords;

impl OriginLookup for NoRecords {
    fn take(&self, _: NetnsCookie, _: PeerAddr) -> io::Result<Option<Recorded>> {
        Ok(None)
    }
}

/// The address of a listener inside a network namespace, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    pub v4: SocketAddr,
    /// None where the namespace has no IPv6 loopback.
    pub v6: Option<SocketAddr>,
}

//! Stage 1: the kernel half as the agent sees it. `redirect/` is the only user of aya.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::addr::{HostName, NetnsCookie, OriginAddr, PeerAddr};

mod cgroup;
mod cleanup;
mod kernel_log;
mod layout;
mod load;
mod lock;
mod maps;
mod names;
mod object;
mod pins;
mod probe;

pub use cgroup::{cgroup_id, cgroup2_mount};
pub use cleanup::{Removed, cleanup, exec_cgroup_name};
pub use kernel_log::KernelLog;
pub use load::{Redirect, Usage, count_usage};
pub use lock::{DEFAULT_RUN_DIR, InstanceLock, instance_process};
pub use maps::Handles;
pub use object::{object, object_sha256};
pub use pins::DEFAULT_PIN_ROOT;
pub use probe::{Finding, probe};

/// What the kernel half recorded about a redirected connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recorded {
    /// Where the workload wanted to go. A v4-mapped destination is given as IPv4.
    pub origin: OriginAddr,
    /// cgroup v2 id of the caller at connect().
    pub cgroup_id: u64,
    /// Process (thread group) id in the initial pid namespace.
    pub tgid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// CLOCK_BOOTTIME at connect().
    pub connected: Duration,
}

/// Takes the record of an accepted connection out of the kernel half's table; faked in tests.
///
/// `None`: nobody recorded it, so it must be closed (DESIGN invariant 3).
pub trait OriginLookup: Send + Sync {
    fn take(&self, netns: NetnsCookie, peer: PeerAddr) -> io::Result<Option<Recorded>>;
}

/// What the kernel half has to know of each network namespace but the agent's own; faked in tests.
pub trait NetnsFacts: Send + Sync {
    /// # Errors
    /// When the map refuses: it holds [`tv_ebpf::abi::NETNS_ENTRIES`].
    fn set(&self, netns: NetnsCookie, v6_routable: bool) -> Result<(), Error>;

    fn forget(&self, netns: NetnsCookie);

    /// Somebody there looked names up before the programs could see it.
    fn unsure(&self, netns: NetnsCookie);
}

/// The candidate addresses of `capture: dns`, as far as the agent has to do with them; faked in tests.
pub trait Narrow: Send + Sync {
    /// A routed host is known to have `address`; it is kept for `time` at least.
    fn keep(&self, address: IpAddr, time: Duration);

    /// Removes what has had its time, but no address that a connection is `open` to.
    fn sweep(&self, open: &HashSet<IpAddr>) -> Option<Narrowing>;
}

/// What narrowing amounts to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Narrowing {
    /// `dns` or `cidr`.
    pub capture: Cow<'static, str>,
    /// Addresses that routed names are known to have.
    pub candidates: usize,
    /// Network namespaces in which everything is looked at.
    pub unsure_namespaces: usize,
    /// Seconds for which everything is looked at everywhere.
    pub all_unsure_s: u64,
}

/// Which destinations on captured ports are looked at; the SNI decides about those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    #[default]
    All,
    /// The addresses that these names were seen to have, and all where that is not sure.
    Dns {
        /// At most [`tv_ebpf::abi::NAME_ENTRIES`].
        names: Vec<RoutedName>,
        /// How long a network namespace stays unsure.
        unsure_for: Duration,
    },
    /// At most [`tv_ebpf::abi::CAPTURE_ENTRIES`].
    Cidr(Vec<IpNet>),
}

/// A name whose addresses are candidates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedName {
    pub name: HostName,
    /// Not the name itself, but all below it.
    pub below: bool,
}

/// The address of a listener inside a network namespace, by family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listeners {
    pub v4: SocketAddr,
    /// None where the namespace has no IPv6 loopback.
    pub v6: Option<SocketAddr>,
}

/// What happens to a captured connection while no agent is there to take it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentDown {
    /// Refused: no subject token reaches a provider.
    #[default]
    Closed,
    /// Left alone: the workload reaches the provider with the token it has.
    Open,
}

/// What the kernel half needs to know of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelPolicy {
    /// Captured destination ports. The listeners' own ports are not allowed.
    pub ports: Vec<u16>,
    /// Never captured. At most [`tv_ebpf::abi::BYPASS_ENTRIES`] prefixes.
    pub bypass: Vec<IpNet>,
    pub capture: Capture,
    /// Refuse UDP to the captured ports, so that QUIC clients fall back to TCP.
    pub block_quic: bool,
    pub on_agent_down: AgentDown,
    /// A cgroup whose sockets are let through (see [`cgroup_id`]): for sockets that a library opens unflagged.
    pub agent_cgroup: Option<u64>,
    pub listeners: Listeners,
    /// Whether native IPv6 can leave the agent's own namespace (see [`NetnsFacts`] for others); if not it is
    /// refused with ENETUNREACH.
    pub v6_routable: bool,
}

/// Why the kernel half cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("this binary was built without the kernel half; build it with: cargo xtask build --release")]
    NoObject,
    #[error(
        "instance `{instance}` is already running as process {pid}; stop it, or take its place with `tv-agent run \
         --take-over`"
    )]
    InstanceLive { instance: String, pid: String },
    #[error("`{0}` is no instance name; use letters, digits, `-` and `_`, and at most 64 of them")]
    InstanceName(String),
    #[error("{action} {path}")]
    Path {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} cannot be made: its file system is mounted read-only; remount it with: mount -o remount,rw")]
    ReadOnly(PathBuf),
    #[error("{0} is not on a BPF file system; mount one: mount -t bpf bpf {0}")]
    NotBpffs(PathBuf),
    #[error("{0} is not a cgroup v2 directory; name one below the cgroup v2 mount")]
    NotCgroup2(PathBuf),
    #[error("the kernel did not take the BPF object; run `tv-agent check` to see what is missing")]
    Object(#[source] Box<aya::EbpfError>),
    #[error(
        "the kernel's verifier refused program {program}; report this with the kernel version. It says: {log}"
    )]
    Verifier {
        program: &'static str,
        log: String,
        #[source]
        source: io::Error,
    },
    #[error("program {program} cannot be used; run `tv-agent check` to see what is missing")]
    Program {
        program: &'static str,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error(
        "this kernel lacks {0}, without which connections of different network namespaces cannot be told apart; \
         use Linux 5.15 or later"
    )]
    Unsupported(&'static str),
    #[error("the BPF object lacks `{0}`: it belongs to another version; build again: cargo xtask build")]
    Incomplete(&'static str),
    #[error(
        "the map that is pinned at {path} has {found}, and this version needs {wanted}; stop every agent of this \
         instance, run `tv-agent cleanup`, and start again"
    )]
    Layout {
        path: PathBuf,
        found: String,
        wanted: String,
    },
    #[error("what is pinned at {path} is no map; remove it, or run `tv-agent cleanup`")]
    NotAMap {
        path: PathBuf,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error("map {map} refused an entry")]
    Map {
        map: &'static str,
        #[source]
        source: Box<aya::maps::MapError>,
    },
    #[error(
        "{program} cannot be attached to {cgroup}; another tool may hold the hook exclusively there or above \
         (see `bpftool cgroup tree`)"
    )]
    Attach {
        program: &'static str,
        cgroup: PathBuf,
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    #[error("{program} cannot be pinned at {path}")]
    Pin {
        program: &'static str,
        path: PathBuf,
        #[source]
        source: Box<aya::pin::PinError>,
    },
    #[error("no policy was applied yet, so nothing would be captured; apply one before attaching")]
    NoPolicy,
    #[error("the policy's listener {0} is of the wrong address family")]
    ListenerFamily(SocketAddr),
    #[error("port {0} is the agent's own listener and cannot be captured; choose another listen port")]
    ListenerCaptured(u16),
    #[error("{count} {what} prefixes are more than the {most} that the kernel half holds; merge some")]
    TooManyPrefixes {
        what: &'static str,
        count: usize,
        most: usize,
    },
    #[error(
        "{count} host names are more than the {most} that `capture: dns` holds; use wildcards, or `capture: all`"
    )]
    TooManyNames { count: usize, most: usize },
}

impl Error {
    fn path(action: &'static str, path: impl Into<PathBuf>, source: impl Into<io::Error>) -> Self {
        Self::Path {
            action,
            path: path.into(),
            source: source.into(),
        }
    }
}

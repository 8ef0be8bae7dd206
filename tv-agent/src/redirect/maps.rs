//! The maps, typed: policy in, records and counters out.

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, Map, MapData, MapError, PerCpuArray, SkStorage};
use nix::time::ClockId;
use tv_ebpf::abi::{self, PORT_WORDS};
use tv_ebpf::{Reason, Record, Settings, TupleKey};

use super::names::Names;
use super::{Error, KernelPolicy, NetnsFacts, OriginLookup, Recorded};
use crate::addr::{NetnsCookie, OriginAddr, PeerAddr, from_mapped, to_mapped};
use crate::dial::OwnSocket;
use crate::limits;

mod clock;
mod policy;
mod write;

use policy::settings;
pub(super) use policy::{check, prefixes};
use write::empty;
pub(super) use write::write_prefixes;

/// How long one heartbeat is good for.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The maps of one loaded object.
pub(super) struct Tables {
    settings: Array<MapData, Settings>,
    deadline: Array<MapData, u64>,
    ports: Array<MapData, u64>,
    bypass: LpmTrie<MapData, [u8; 16], u32>,
    own: SkStorage<MapData, u32>,
    tuples: HashMap<MapData, TupleKey, Record>,
    netns: HashMap<MapData, u64, u32>,
    counters: PerCpuArray<MapData, u64>,
    names: Names,
}

/// What the data path needs of the kernel half, and what may be changed while it runs. Cheap to clone.
#[derive(Clone)]
pub struct Handles {
    shared: Arc<Shared>,
}

struct Shared {
    policy: Mutex<PolicyMaps>,
    own: Mutex<SkStorage<MapData, u32>>,
    tuples: Mutex<HashMap<MapData, TupleKey, Record>>,
    deadline: Mutex<Array<MapData, u64>>,
    netns: Mutex<HashMap<MapData, u64, u32>>,
    counters: PerCpuArray<MapData, u64>,
    /// A successor writes the maps now.
    retired: AtomicBool,
    names: Names,
}

struct PolicyMaps {
    settings: Array<MapData, Settings>,
    ports: Array<MapData, u64>,
    bypass: LpmTrie<MapData, [u8; 16], u32>,
    /// What is in `settings`; None before the first policy.
    current: Option<Settings>,
    /// Of the policy that was found there: generations go on from one agent to the next.
    generation: u64,
    has_v6_listener: bool,
}

impl Tables {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            settings: take(ebpf, abi::SETTINGS)?,
            deadline: take(ebpf, abi::DEADLINE)?,
            ports: take(ebpf, abi::PORTS)?,
            bypass: take(ebpf, abi::BYPASS)?,
            own: take(ebpf, abi::OWN)?,
            tuples: take(ebpf, abi::TUPLES)?,
            netns: take(ebpf, abi::NETNS)?,
            counters: take(ebpf, abi::COUNTERS)?,
            names: Names::take(ebpf)?,
        })
    }
}

impl Handles {
    pub(super) fn new(tables: Tables) -> Self {
        let policy = PolicyMaps {
            // All zero where nobody was before us.
            generation: tables.settings.get(&0, 0).map_or(0, |found| found.generation),
            settings: tables.settings,
            ports: tables.ports,
            bypass: tables.bypass,
            current: None,
            has_v6_listener: false,
        };
        let shared = Shared {
            policy: Mutex::new(policy),
            own: Mutex::new(tables.own),
            tuples: Mutex::new(tables.tuples),
            deadline: Mutex::new(tables.deadline),
            netns: Mutex::new(tables.netns),
            counters: tables.counters,
            retired: AtomicBool::new(false),
            names: tables.names,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Forgets connections and namespaces of a predecessor whose listeners are gone: an entry would else lend its
    /// identity to whoever comes from the same port.
    pub(super) fn forget_all(&self) -> Result<(), Error> {
        empty(&mut lock(&self.shared.tuples), abi::TUPLES)?;
        empty(&mut lock(&self.shared.netns), abi::NETNS)
    }

    /// From now on a successor writes policy, deadline and namespaces; this process only takes what it accepted,
    /// and flags its sockets. When this returns, nothing is being written any more. False takes it back.
    pub fn retire(&self, retired: bool) {
        let _writers = (
            lock(&self.shared.policy),
            lock(&self.shared.deadline),
            lock(&self.shared.netns),
        );
        self.shared.retired.store(retired, Ordering::Relaxed);
    }

    /// Whether a successor writes the maps.
    pub fn is_retired(&self) -> bool {
        self.shared.retired.load(Ordering::Relaxed)
    }

    pub(super) fn apply(&self, policy: &KernelPolicy) -> Result<(), Error> {
        let mut maps = lock(&self.shared.policy);
        if self.is_retired() {
            return Ok(());
        }
        let before = maps.in_force()?;
        self.shared
            .names
            .apply(&policy.capture, before.map(|s| s.flags))?;
        maps.apply(policy)
    }

    pub(super) fn names(&self) -> &Names {
        &self.shared.names
    }

    pub(super) fn has_policy(&self) -> bool {
        let policy = lock(&self.shared.policy);
        policy.current.is_some() || policy.generation > 0
    }

    /// As [`Redirect::heartbeat`](super::Redirect::heartbeat), for a task of its own.
    ///
    /// # Errors
    /// When the map refuses, which no working kernel does.
    pub fn heartbeat(&self) -> Result<(), Error> {
        self.set_deadline(now_ns().saturating_add(nanoseconds(HEARTBEAT)))
    }

    /// Lets the deadline pass at once: connections are treated as if no agent were there, until the next
    /// [`heartbeat`](Self::heartbeat). For a drain, and for tests.
    ///
    /// # Errors
    /// As [`heartbeat`](Self::heartbeat).
    pub fn stop_heartbeat(&self) -> Result<(), Error> {
        self.set_deadline(0)
    }

    /// As [`Redirect::set_v6_routable`](super::Redirect::set_v6_routable).
    ///
    /// # Errors
    /// As [`heartbeat`](Self::heartbeat); [`Error::NoPolicy`] before the first policy.
    pub fn set_v6_routable(&self, routable: bool) -> Result<(), Error> {
        let mut policy = lock(&self.shared.policy);
        let mut settings = policy.current.ok_or(Error::NoPolicy)?;
        if self.is_retired() {
            return Ok(());
        }
        settings.flags &= !abi::FLAG_V6_ROUTABLE;
        if routable && policy.has_v6_listener {
            settings.flags |= abi::FLAG_V6_ROUTABLE;
        }
        policy.write_settings(settings)
    }

    /// How often each decision was taken since the maps were made, by [`Reason::label`].
    ///
    /// A counter that cannot be read is left out.
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        Reason::ALL
            .into_iter()
            .filter_map(|reason| {
                let values = self.shared.counters.get(&(reason as u32), 0).ok()?;
                Some((reason.label(), values.iter().sum()))
            })
            .collect()
    }

    /// The same with owned names.
    pub fn named_counters(&self) -> Vec<(String, u64)> {
        let all = self.counters().into_iter();
        all.map(|(reason, count)| (reason.to_owned(), count)).collect()
    }

    fn set_deadline(&self, deadline: u64) -> Result<(), Error> {
        let mut map = lock(&self.shared.deadline);
        if self.is_retired() {
            return Ok(());
        }
        map.set(0, deadline, 0)
            .map_err(|error| refused(abi::DEADLINE, error))
    }
}

impl OriginLookup for Handles {
    fn take(&self, netns: NetnsCookie, peer: PeerAddr) -> io::Result<Option<Recorded>> {
        let key = TupleKey {
            netns: netns.0,
            address: abi::words(to_mapped(peer.0.ip())),
            port: peer.0.port(),
            padding: [0; 3],
        };
        let mut tuples = lock(&self.shared.tuples);
        let record = match tuples.get(&key, 0) {
            Ok(record) => record,
            Err(MapError::KeyNotFound) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        // Taken, not read: the same address and port may come again, with another origin.
        tuples.remove(&key).map_err(io::Error::other)?;
        let connected = Duration::from_nanos(record.connected_ns);
        if is_stale(connected, clock::now(ClockId::CLOCK_BOOTTIME)) {
            return Ok(None);
        }
        Ok(Some(Recorded {
            origin: OriginAddr(SocketAddr::new(
                from_mapped(abi::octets(record.origin)),
                record.port,
            )),
            cgroup_id: record.cgroup_id,
            tgid: record.tgid,
            uid: record.uid,
            connected: clock::to_own(connected, ClockId::CLOCK_BOOTTIME),
        }))
    }
}

/// Whether a record was left by a connection that never came, such as one whose SYN met a full queue. Whoever has
/// its address and port now, and reached the listener by itself, is somebody else.
fn is_stale(connected: Duration, now: Duration) -> bool {
    now.saturating_sub(connected) > limits::RECORD_AGE
}

impl OwnSocket for Handles {
    fn flag(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        lock(&self.shared.own)
            .insert(&socket, 1u32, 0)
            .map_err(io::Error::other)
    }
}

impl NetnsFacts for Handles {
    fn set(&self, netns: NetnsCookie, v6_routable: bool) -> Result<(), Error> {
        let flags = if v6_routable { abi::FLAG_V6_ROUTABLE } else { 0 };
        let mut map = lock(&self.shared.netns);
        if self.is_retired() {
            return Ok(());
        }
        map.insert(netns.0, flags, 0)
            .map_err(|error| refused(abi::NETNS, error))
    }

    fn forget(&self, netns: NetnsCookie) {
        let mut map = lock(&self.shared.netns);
        if !self.is_retired() {
            // Only one that was never told is not there.
            let _ = map.remove(&netns.0);
        }
    }

    fn unsure(&self, netns: NetnsCookie) {
        self.tell_unsure(netns);
    }
}

impl std::fmt::Debug for Handles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handles").finish_non_exhaustive()
    }
}

impl PolicyMaps {
    /// The policy that the programs go by, a predecessor's too; None where there never was one.
    fn in_force(&self) -> Result<Option<Settings>, Error> {
        if self.current.is_some() || self.generation == 0 {
            return Ok(self.current);
        }
        let found = self.settings.get(&0, 0);
        found.map(Some).map_err(|error| refused(abi::SETTINGS, error))
    }

    /// Settings first and ports last, so that the first policy captures nothing before it is complete.
    fn apply(&mut self, policy: &KernelPolicy) -> Result<(), Error> {
        let generation = self
            .current
            .map_or(self.generation, |settings| settings.generation);
        let settings = settings(policy, generation + 1)?;
        let prefixes = prefixes(&policy.bypass, "bypass")?;
        self.has_v6_listener = settings.port_v6 != 0;
        self.write_settings(settings)?;
        write_prefixes(&mut self.bypass, abi::BYPASS, &prefixes)?;
        self.write_ports(&policy.ports)
    }

    /// Rewritten as a whole; a program that reads meanwhile may see old and new words mixed for an instant,
    /// which is harmless: listeners change only with the process.
    fn write_settings(&mut self, settings: Settings) -> Result<(), Error> {
        self.settings
            .set(0, settings, 0)
            .map_err(|error| refused(abi::SETTINGS, error))?;
        self.current = Some(settings);
        Ok(())
    }

    fn write_ports(&mut self, ports: &[u16]) -> Result<(), Error> {
        let mut words = vec![0u64; PORT_WORDS];
        for &port in ports {
            words[usize::from(port / 64)] |= 1 << (port % 64);
        }
        for (index, bits) in (0u32..).zip(words) {
            let failed = |error| refused(abi::PORTS, error);
            if self.ports.get(&index, 0).map_err(failed)? != bits {
                self.ports.set(index, bits, 0).map_err(failed)?;
            }
        }
        Ok(())
    }
}

pub(super) fn take<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, Error> {
    let map = ebpf.take_map(name).ok_or(Error::Incomplete(name))?;
    T::try_from(map).map_err(|error| refused(name, error))
}

pub(super) fn refused(map: &'static str, error: MapError) -> Error {
    Error::Map {
        map,
        source: Box::new(error),
    }
}

/// A panic elsewhere leaves no map half written that the next call would not write again.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The clock of bpf_ktime_get_ns(): CLOCK_MONOTONIC of the initial time namespace.
pub(super) fn now_ns() -> u64 {
    nanoseconds(clock::now(ClockId::CLOCK_MONOTONIC))
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;

//! Narrowing by name: routed names in, candidate addresses and unsure namespaces out.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, LpmTrie, MapData};
use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError};
use tv_ebpf::abi::{self, FLAG_CAPTURE_DNS, NAME_BELOW, NAME_ENTRIES, NAME_EXACT, WIDE_FOR, WIDE_UNTIL};
use tv_ebpf::answer::FLOOR;
use tv_ebpf::name;

use super::maps::{Handles, lock, nanoseconds, now_ns, prefixes, refused, take, write_prefixes};
use super::{Capture, Error, Narrow, Narrowing, RoutedName};
use crate::addr::{NetnsCookie, from_mapped, to_mapped};

/// The maps, and what was last written to them.
pub(super) struct Names {
    capture: Mutex<LpmTrie<MapData, [u8; 16], u32>>,
    names: Mutex<HashMap<MapData, u64, u32>>,
    candidates: Mutex<HashMap<MapData, [u8; 16], u64>>,
    unsure: Mutex<HashMap<MapData, u64, u64>>,
    wide: Mutex<Array<MapData, u64>>,
    /// None before the first policy of this process.
    current: Mutex<Option<Capture>>,
}

impl Names {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            capture: Mutex::new(take(ebpf, abi::CAPTURE)?),
            names: Mutex::new(take(ebpf, abi::NAMES)?),
            candidates: Mutex::new(take(ebpf, abi::CANDIDATES)?),
            unsure: Mutex::new(take(ebpf, abi::UNSURE)?),
            wide: Mutex::new(take(ebpf, abi::WIDE)?),
            current: Mutex::default(),
        })
    }

    /// Before the settings say so. `before` are the flags of the policy in force: where there is one, cgroups may be
    /// attached to, and somebody may have looked a new name up unseen.
    pub(super) fn apply(&self, capture: &Capture, before: Option<u32>) -> Result<(), Error> {
        match capture {
            Capture::All => {}
            Capture::Cidr(nets) => {
                let wanted = prefixes(nets, "capture")?;
                write_prefixes(&mut lock(&self.capture), abi::CAPTURE, &wanted)?;
            }
            Capture::Dns { names, unsure_for } => {
                let wanted = hashes(names)?;
                lock(&self.wide)
                    .set(WIDE_FOR, nanoseconds(*unsure_for), 0)
                    .map_err(|error| refused(abi::WIDE, error))?;
                let wider = self.write_names(&wanted)?;
                if before.is_some_and(|flags| wider || flags & FLAG_CAPTURE_DNS == 0) {
                    self.widen(*unsure_for)?;
                }
            }
        }
        *lock(&self.current) = Some(capture.clone());
        Ok(())
    }

    /// None before the first policy of this process.
    pub(super) fn reads_dns(&self) -> Option<bool> {
        let current = lock(&self.current);
        current
            .as_ref()
            .map(|capture| matches!(capture, Capture::Dns { .. }))
    }

    /// For how long nothing is sure, with `capture: dns`.
    fn unsure_for(&self) -> Option<Duration> {
        match &*lock(&self.current) {
            Some(Capture::Dns { unsure_for, .. }) => Some(*unsure_for),
            _ => None,
        }
    }

    /// The programs see a cgroup from now on; whoever lives there already has looked names up unseen.
    pub(super) fn enrolled(&self, cgroup: &Path) -> Result<(), Error> {
        match self.unsure_for() {
            Some(time) if populated(cgroup) => self.widen(time),
            _ => Ok(()),
        }
    }

    /// True when there is a name, or a part of one's subtree, that was not there before.
    fn write_names(&self, wanted: &BTreeMap<u64, u32>) -> Result<bool, Error> {
        let failed = |error| refused(abi::NAMES, error);
        let mut names = lock(&self.names);
        let present: Vec<u64> = names.keys().collect::<Result<_, _>>().map_err(failed)?;
        for hash in present.iter().filter(|hash| !wanted.contains_key(hash)) {
            names.remove(hash).map_err(failed)?;
        }
        let mut wider = false;
        for (hash, &parts) in wanted {
            let before = names.get(hash, 0).unwrap_or(0);
            wider |= parts & !before != 0;
            if parts != before {
                names.insert(hash, parts, 0).map_err(failed)?;
            }
        }
        Ok(wider)
    }

    /// Every namespace is unsure for `time`.
    fn widen(&self, time: Duration) -> Result<(), Error> {
        let failed = |error| refused(abi::WIDE, error);
        let until = now_ns().saturating_add(nanoseconds(time));
        let mut wide = lock(&self.wide);
        let before = wide.get(&WIDE_UNTIL, 0).map_err(failed)?;
        wide.set(WIDE_UNTIL, until.max(before), 0).map_err(failed)
    }

    fn keep(&self, address: IpAddr, time: Duration) -> Result<(), Error> {
        let key = to_mapped(address);
        let until = now_ns().saturating_add(nanoseconds(time));
        let mut candidates = lock(&self.candidates);
        let before = candidates.get(&key, 0).unwrap_or(0);
        candidates
            .insert(key, until.max(before), 0)
            .map_err(|error| refused(abi::CANDIDATES, error))
    }

    /// Entries that go while we look are skipped.
    fn candidates(&self) -> Vec<([u8; 16], u64)> {
        lock(&self.candidates).iter().filter_map(Result::ok).collect()
    }

    fn sweep(&self, open: &HashSet<IpAddr>) {
        let now = now_ns();
        for (key, until) in self.candidates() {
            let address = from_mapped(key);
            if until > now {
                continue;
            }
            if open.contains(&address) {
                // Full or not: it is there already.
                let _ = self.keep(address, Duration::from_secs(FLOOR.into()));
                continue;
            }
            // One that is used this very instant comes back when the agent sees the name of a routed host there.
            let _ = lock(&self.candidates).remove(&key);
        }
        let mut unsure = lock(&self.unsure);
        let past: Vec<u64> = unsure
            .iter()
            .filter_map(|entry| {
                entry
                    .ok()
                    .filter(|(_, until)| *until <= now)
                    .map(|(netns, _)| netns)
            })
            .collect();
        for netns in past {
            let _ = unsure.remove(&netns);
        }
    }

    fn narrowing(&self) -> Option<Narrowing> {
        let capture = match &*lock(&self.current) {
            None | Some(Capture::All) => return None,
            Some(Capture::Dns { .. }) => "dns",
            Some(Capture::Cidr(_)) => "cidr",
        };
        let now = now_ns();
        let until = lock(&self.wide).get(&WIDE_UNTIL, 0).unwrap_or(0);
        let unsure = lock(&self.unsure)
            .iter()
            .filter(|entry| entry.as_ref().is_ok_and(|(_, until)| *until > now))
            .count();
        Some(Narrowing {
            capture: capture.into(),
            candidates: lock(&self.candidates).keys().filter_map(Result::ok).count(),
            unsure_namespaces: unsure,
            all_unsure_s: Duration::from_nanos(until.saturating_sub(now))
                .as_millis()
                .div_ceil(1000)
                .try_into()
                .unwrap_or(u64::MAX),
        })
    }
}

impl Narrow for Handles {
    fn keep(&self, address: IpAddr, time: Duration) {
        let names = self.names();
        if let Err(error) = names.keep(address, time) {
            // What is not in the table must not be left out, as when a program finds no room.
            let Some(unsure_for) = names.unsure_for() else {
                return;
            };
            tracing::debug!(%error, %address, "no room for a candidate address");
            let _ = names.widen(unsure_for);
        }
    }

    fn sweep(&self, open: &HashSet<IpAddr>) -> Option<Narrowing> {
        self.names().sweep(open);
        self.narrowing()
    }
}

impl Handles {
    pub(super) fn tell_unsure(&self, netns: NetnsCookie) {
        let names = self.names();
        let Some(unsure_for) = names.unsure_for() else {
            return;
        };
        let until = now_ns().saturating_add(nanoseconds(unsure_for));
        let told = lock(&names.unsure).insert(netns.0, until, 0);
        if told.is_err() {
            let _ = names.widen(unsure_for);
        }
    }

    /// What narrowing amounts to now. None with `capture: all`.
    pub fn narrowing(&self) -> Option<Narrowing> {
        self.names().narrowing()
    }

    /// Candidate addresses, and for how long each is kept at least.
    pub fn candidates(&self) -> Vec<(IpAddr, Duration)> {
        let now = now_ns();
        let left = |until: u64| Duration::from_nanos(until.saturating_sub(now));
        let known = self.names().candidates().into_iter();
        known
            .map(|(key, until)| (from_mapped(key), left(until)))
            .collect()
    }
}

/// Loads the program that reads answers, unless that was done.
pub(super) fn load(ebpf: &mut Ebpf) -> Result<(), Error> {
    let Ok(program) = program(ebpf) else {
        return Err(Error::Incomplete(abi::INGRESS));
    };
    if program.fd().is_ok() {
        return Ok(());
    }
    program
        .load()
        .map_err(|error| super::object::refused(abi::INGRESS, error))
}

pub(super) fn attach(ebpf: &mut Ebpf, cgroup: &File) -> Result<FdLink, ProgramError> {
    let program = program(ebpf)?;
    // As for the other programs, Single is flags 0.
    let id = program.attach(
        cgroup.as_fd(),
        CgroupSkbAttachType::Ingress,
        CgroupAttachMode::Single,
    )?;
    let no_fd = |_: LinkError| ProgramError::NotAttached;
    program.take_link(id)?.try_into().map_err(no_fd)
}

fn program(ebpf: &mut Ebpf) -> Result<&mut CgroupSkb, ProgramError> {
    ebpf.program_mut(abi::INGRESS)
        .ok_or(ProgramError::NotLoaded)?
        .try_into()
}

pub(super) fn hashes(names: &[RoutedName]) -> Result<BTreeMap<u64, u32>, Error> {
    let mut wanted = BTreeMap::new();
    for RoutedName { name, below } in names {
        let part = if *below { NAME_BELOW } else { NAME_EXACT };
        *wanted.entry(name::hash(name.as_str())).or_insert(0) |= part;
    }
    if wanted.len() > NAME_ENTRIES {
        return Err(Error::TooManyNames {
            count: wanted.len(),
            most: NAME_ENTRIES,
        });
    }
    Ok(wanted)
}

/// Whether a process lives in the cgroup or below. One that cannot be asked may have some.
fn populated(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events"))
        .map_or(true, |events| !events.lines().any(|line| line == "populated 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::HostName;

    fn routed(name: &str, below: bool) -> RoutedName {
        RoutedName {
            name: HostName::parse(name).unwrap(),
            below,
        }
    }

    #[test]
    fn a_name_and_what_lies_below_share_an_entry() {
        let wanted = hashes(&[
            routed("example.com", false),
            routed("example.com", true),
            routed("other.example", true),
        ])
        .unwrap();
        assert_eq!(wanted[&name::hash("example.com")], NAME_EXACT | NAME_BELOW);
        assert_eq!(wanted[&name::hash("other.example")], NAME_BELOW);
        assert_eq!(wanted.len(), 2);
    }

    #[test]
    fn the_table_of_names_is_bounded() {
        let names: Vec<_> = (0..=NAME_ENTRIES)
            .map(|n| routed(&format!("h{n}.example"), false))
            .collect();
        assert!(hashes(&names[..NAME_ENTRIES]).is_ok());
        let error = hashes(&names).unwrap_err();
        assert!(error.to_string().contains("8193"), "{error}");
    }

    #[test]
    fn a_cgroup_that_cannot_be_asked_counts_as_populated() {
        assert!(populated(Path::new("/nonexistent")));
    }
}

//! The processes that are remembered: bounded, the one seen longest ago goes first.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::look::Looked;
use super::{Belief, Evidence, Facts, Process, Runtime};
use crate::limits;
use crate::metrics::Metrics;
use crate::trust::{Installation, Ledger, MntnsId};
use crate::workload::Workload;

/// A process, told apart from all that had its id before or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    pub pid: u32,
    /// Clock ticks since boot.
    pub started: u64,
}

impl Key {
    /// None when it is not certain which process connected.
    pub fn of(workload: &Workload) -> Option<Self> {
        Some(Self {
            pid: workload.tgid,
            started: workload.started?,
        })
    }
}

pub(super) struct Record {
    /// None when it could not be looked at.
    pub mntns: Option<MntnsId>,
    pub runtime: Runtime,
    /// Device and inode of the program's file; None until it was looked at.
    program: Option<(u64, u64)>,
    pub evidence: Evidence,
    /// What was told last: belief, version of the installation, whether a handshake gave a reason.
    pub told: Option<(Belief, u64, bool)>,
    /// As it was when it connected first.
    pub who: Workload,
    seen: u64,
}

impl Record {
    pub fn new(mntns: Option<MntnsId>, runtime: Runtime, who: Workload) -> Self {
        Self {
            mntns,
            runtime,
            program: None,
            evidence: Evidence::default(),
            told: None,
            who,
            seen: 0,
        }
    }

    pub fn is_looked_at(&self) -> bool {
        self.program.is_some()
    }

    /// False when it has become another program by execve(), which keeps id and start.
    pub fn is_same_program(&self, looked: &Looked) -> bool {
        self.program.is_none_or(|program| program == looked.program)
    }

    pub fn learn(&mut self, looked: Looked) {
        self.mntns = Some(looked.mntns);
        self.runtime = looked.runtime;
        self.program = Some(looked.program);
    }

    pub fn installed(&self, ledger: &Ledger) -> (Option<Arc<Installation>>, u64) {
        self.mntns.map_or((None, 0), |mntns| ledger.versioned(mntns))
    }

    pub fn facts<'a>(
        &self,
        key: Key,
        installation: Option<&'a Installation>,
        version: u64,
        issuing: &'a str,
    ) -> Facts<'a> {
        Facts {
            started: Process::since_boot(key.started),
            runtime: self.runtime,
            installation,
            version,
            issuing,
        }
    }
}

pub(super) struct Table {
    records: HashMap<Key, Record>,
    limit: usize,
    clock: u64,
    /// Mount namespaces that were waited for in vain, and since when.
    given_up: HashMap<MntnsId, Duration>,
}

impl Table {
    pub fn new(limit: usize) -> Self {
        Self {
            records: HashMap::new(),
            limit,
            clock: 0,
            given_up: HashMap::new(),
        }
    }

    /// As seen now.
    pub fn get(&mut self, key: Key) -> Option<&mut Record> {
        self.clock += 1;
        let record = self.records.get_mut(&key)?;
        record.seen = self.clock;
        Some(record)
    }

    /// As it is, without having been seen.
    pub fn peek(&mut self, key: Key) -> Option<&mut Record> {
        self.records.get_mut(&key)
    }

    pub fn keys(&self) -> Vec<Key> {
        self.records.keys().copied().collect()
    }

    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Keeps what is there already.
    pub fn insert(&mut self, key: Key, mut record: Record, metrics: &Metrics) {
        if self.records.len() >= self.limit && !self.records.contains_key(&key) {
            self.make_room(metrics);
        }
        self.clock += 1;
        record.seen = self.clock;
        self.records.entry(key).or_insert(record);
    }

    pub fn remove(&mut self, key: Key, metrics: &Metrics) {
        if let Some(record) = self.records.remove(&key) {
            self.count(record.told.map(|(belief, ..)| belief), None, metrics);
        }
    }

    /// A sixteenth at once, so that not every newcomer looks through the whole table.
    fn make_room(&mut self, metrics: &Metrics) {
        let mut seen: Vec<(u64, Key)> = self
            .records
            .iter()
            .map(|(key, record)| (record.seen, *key))
            .collect();
        seen.sort_unstable_by_key(|(seen, _)| *seen);
        for (_, key) in seen.into_iter().take(self.limit / 16 + 1) {
            self.remove(key, metrics);
        }
    }

    pub fn count(&self, before: Option<Belief>, after: Option<Belief>, metrics: &Metrics) {
        metrics.trust_moved(before.map(Belief::label), after.map(Belief::label));
    }

    pub fn is_given_up(&self, mntns: MntnsId, now: Duration) -> bool {
        let since = self.given_up.get(&mntns);
        since.is_some_and(|since| now.saturating_sub(*since) < limits::TRUST_PAUSE)
    }

    /// For as long as a distrustful process is left alone; then the next connection waits again.
    pub fn give_up(&mut self, mntns: MntnsId, now: Duration) {
        self.given_up
            .retain(|_, since| now.saturating_sub(*since) < limits::TRUST_PAUSE);
        if self.given_up.len() < self.limit {
            self.given_up.insert(mntns, now);
        }
    }
}

//! Looks at processes: where they live, what runs in them; those seen connecting, and all that are enrolled. Blocks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::table::{Key, Record};
use super::{Belief, Processes, Runtime};
use crate::limits;
use crate::netns::{self, MountsId};
use crate::trust::{MntnsId, StoreKind, Unreached};
use crate::workload::{Cgroup, Opened, Workload};

/// What is told of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    pub pid: u32,
    /// Clock ticks since boot: with `pid`, what tells it from all others.
    pub started: u64,
    pub mntns: MntnsId,
    pub cgroup: String,
    pub unit: Option<String>,
    pub pod: Option<String>,
    pub container: Option<String>,
    /// Command name.
    pub process: String,
    pub runtime: Runtime,
    pub state: Belief,
    /// How a handshake showed it.
    pub reason: Option<String>,
    /// SHA-256 of the roots that it may be taken to trust, hexadecimal.
    pub roots: BTreeSet<String>,
    /// What the CA was put into where it lives, and what not.
    pub stores: BTreeSet<StoreKind>,
    pub unreached: Vec<Unreached>,
    /// What to do; empty where nothing is.
    pub advice: String,
}

/// What one look at a process shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Looked {
    pub mntns: MntnsId,
    pub runtime: Runtime,
    /// Device and inode of its program's file.
    pub program: (u64, u64),
}

impl Looked {
    /// `programs`: what is known of program files already.
    ///
    /// # Errors
    /// When the process is gone, its id is another's by now, or it may not be looked at.
    pub fn at(key: Key, programs: &mut HashMap<(u64, u64), Runtime>) -> io::Result<Self> {
        let process = Opened::new(key.pid)?;
        if process.process.started != key.started {
            return Err(io::ErrorKind::NotFound.into());
        }
        Self::of(&process, programs)
    }

    fn of(process: &Opened, programs: &mut HashMap<(u64, u64), Runtime>) -> io::Result<Self> {
        let mntns = MountsId::of_file(&process.open("ns/mnt")?)?.into();
        let file = process.open("exe")?.metadata()?;
        let program = (file.dev(), file.ino());
        let runtime = match programs.get(&program) {
            Some(runtime) => *runtime,
            None => Runtime::of_process(process)?,
        };
        programs.insert(program, runtime);
        let runtime = runtime.as_started(process)?;
        Ok(Self {
            mntns,
            runtime,
            program,
        })
    }
}

/// One process as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    pub key: Key,
    pub looked: Looked,
    /// Below the cgroup2 mount.
    pub cgroup: String,
    /// Command name.
    pub command: String,
}

/// Looks at processes; from another process where this one may not. Its calls block.
pub trait Sight: Send + Sync {
    /// One answer for each of `keys`.
    fn look(&self, keys: &[Key]) -> Vec<io::Result<Looked>>;

    /// Where the agent lives: nobody installs there while connections wait.
    fn home(&self) -> Option<MntnsId>;

    /// All processes that are enrolled, and those of `pids`; each once.
    fn list(&self, pids: Vec<u32>) -> Vec<Listed>;
}

/// Looks from here.
pub struct Here {
    /// The enrolled cgroups' directories.
    pub roots: Arc<dyn Fn() -> Arc<Vec<PathBuf>> + Send + Sync>,
}

impl Sight for Here {
    fn look(&self, keys: &[Key]) -> Vec<io::Result<Looked>> {
        let mut programs = HashMap::new();
        keys.iter().map(|key| Looked::at(*key, &mut programs)).collect()
    }

    fn home(&self) -> Option<MntnsId> {
        own_mntns()
    }

    /// Looks at no more than [`limits::DISCOVERY_CGROUPS`] and [`limits::DISCOVERY_PROCESSES`].
    fn list(&self, pids: Vec<u32>) -> Vec<Listed> {
        let mut all = enrolled(&(self.roots)());
        all.extend(pids);
        let (mut seen, mut programs) = (HashSet::new(), HashMap::new());
        let fresh = all.into_iter().filter(|pid| seen.insert(*pid));
        fresh.filter_map(|pid| Listed::of(pid, &mut programs)).collect()
    }
}

impl Listed {
    /// None when the process is gone, or a thread of the kernel.
    fn of(pid: u32, programs: &mut HashMap<(u64, u64), Runtime>) -> Option<Self> {
        let process = Opened::new(pid).ok()?;
        Some(Self {
            looked: Looked::of(&process, programs).ok()?,
            key: Key {
                pid,
                started: process.process.started,
            },
            cgroup: process.cgroup().unwrap_or_default().to_owned(),
            command: process.process.command,
        })
    }
}

impl Processes {
    /// All enrolled processes, and those that were seen connecting. Blocks.
    pub fn list(&self) -> Vec<Row> {
        let known = self.table().keys().into_iter().map(|key| key.pid).collect();
        let listed = self.0.sight.list(known);
        let mut rows: Vec<Row> = listed.into_iter().map(|one| self.row(one)).collect();
        rows.sort_by(|a, b| (&a.cgroup, a.pid).cmp(&(&b.cgroup, b.pid)));
        rows
    }

    fn row(&self, listed: Listed) -> Row {
        let Listed {
            key,
            looked,
            cgroup,
            command,
        } = listed;
        let mut table = self.table();
        let mut record = Record::new(None, Runtime::Unknown, Workload::default());
        if let Some(known) = table.peek(key).filter(|known| known.is_same_program(&looked)) {
            record.evidence = known.evidence.clone();
        }
        drop(table);
        record.learn(looked);
        let (installation, version) = record.installed(&self.0.ledger);
        let issuing = self.issuing();
        let facts = record.facts(key, installation.as_deref(), version, &issuing);
        let evidence = &record.evidence;
        let cgroup = Cgroup::at(cgroup);
        let identity = cgroup.identity;
        Row {
            pid: key.pid,
            started: key.started,
            mntns: looked.mntns,
            cgroup: cgroup.path,
            unit: identity.unit,
            pod: identity.pod,
            container: identity.container,
            process: command,
            runtime: looked.runtime,
            state: evidence.belief(&facts),
            reason: evidence.reason(&facts),
            roots: evidence.roots(&facts),
            stores: installation
                .as_ref()
                .map(|there| there.stores.clone())
                .unwrap_or_default(),
            unreached: installation
                .as_ref()
                .map(|there| there.unreached.clone())
                .unwrap_or_default(),
            advice: evidence.advice(&facts),
        }
    }
}

/// Where the agent lives.
pub(super) fn own_mntns() -> Option<MntnsId> {
    MountsId::of("/proc/thread-self/ns/mnt").ok().map(MntnsId::from)
}

fn enrolled(roots: &[PathBuf]) -> Vec<u32> {
    let (mut todo, mut pids, mut visited) = (roots.to_vec(), Vec::new(), 0);
    while let Some(directory) = todo.pop() {
        visited += 1;
        if visited > limits::DISCOVERY_CGROUPS || pids.len() >= limits::DISCOVERY_PROCESSES {
            tracing::warn!("more cgroups or processes are enrolled than are listed");
            break;
        }
        let here = netns::processes(&directory).into_iter();
        pids.extend(
            here.filter_map(|pid| u32::try_from(pid).ok())
                .filter(|pid| *pid != 0),
        );
        todo.extend(netns::subdirectories(&directory));
    }
    pids.truncate(limits::DISCOVERY_PROCESSES);
    pids
}

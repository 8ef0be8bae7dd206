//! Which processes trust our CA: what their handshakes have shown, told when it changes, and asked by the redirect.
//!
//! Nothing of it outlives the agent: after a restart the ledger says what is installed, and handshakes show the rest.

mod elf;
mod evidence;
mod known;
mod look;
mod runtime;
mod table;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};

use super::{Ledger, MntnsId};
use crate::clock;
use crate::flows::{Flow, Flows};
use crate::limits;
use crate::metrics::Metrics;
use crate::phase::{self, Phase};
use crate::workload::{Process, Workload};
pub use evidence::{Belief, Sign};
use evidence::{Evidence, Facts};
pub use known::Known;
pub use look::{Here, Listed, Looked, Row, Sight};
pub use runtime::Runtime;
pub use table::Key;
use table::{Record, Table};

/// How often the dead are forgotten.
const SWEEP: Duration = Duration::from_secs(10);

/// SHA-256 of the root that leaves lead to now, hexadecimal.
pub type Issuing = Arc<dyn Fn() -> Arc<str> + Send + Sync>;

/// What is believed of the process behind a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    pub belief: Belief,
    /// It has just shown that it does not trust us: another try would be in vain.
    pub paused: bool,
}

/// What has to be known before the answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask {
    /// Wait for the CA to be put where the process lives, if somebody does that.
    pub installation: bool,
    /// Look at the process, for a prediction.
    pub runtime: bool,
}

/// The processes that were seen connecting. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Processes(Arc<Shared>);

struct Shared {
    ledger: Ledger,
    issuing: Issuing,
    flows: Flows,
    metrics: Metrics,
    home: Option<MntnsId>,
    sight: Arc<dyn Sight>,
    readers: Arc<Semaphore>,
    table: Mutex<Table>,
}

impl Processes {
    pub fn new(
        sight: Arc<dyn Sight>,
        ledger: Ledger,
        issuing: Issuing,
        flows: Flows,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Shared {
            ledger,
            issuing,
            flows,
            metrics,
            home: sight.home(),
            sight,
            readers: Arc::new(Semaphore::new(limits::TRUST_READERS)),
            table: Mutex::new(Table::new(limits::TRUST_PROCESSES)),
        }))
    }

    /// SHA-256 of the root that leaves lead to now, hexadecimal.
    pub fn issuing(&self) -> Arc<str> {
        (self.0.issuing)()
    }

    /// What is believed of the process that connects. One that is known costs no look at it; of one that cannot be
    /// told, nothing is.
    pub async fn standing(&self, workload: &Workload, ask: Ask) -> Standing {
        let Some(key) = Key::of(workload) else {
            return Standing::default();
        };
        let mntns = self.meet(key, workload, ask.runtime).await;
        if let Some(mntns) = mntns.filter(|_| ask.installation) {
            self.wait(mntns).await;
        }
        let now = clock::since_boot();
        let mut table = self.table();
        let Some(record) = table.get(key) else {
            return Standing::default();
        };
        let (installation, version) = record.installed(&self.0.ledger);
        let issuing = self.issuing();
        let facts = record.facts(key, installation.as_deref(), version, &issuing);
        let standing = Standing {
            belief: record.evidence.belief(&facts),
            paused: record.evidence.is_paused(&facts, now),
        };
        drop(table);
        self.settle(key, &Flow::default());
        standing
    }

    /// The process has sent data over a full handshake with a leaf of `root`.
    pub fn completed(&self, workload: &Workload, root: &Arc<str>) {
        self.learn(workload, &Flow::default(), |evidence, _, _| {
            evidence.completed(root)
        });
    }

    /// The process has turned down a leaf of `root`; `flow` says on which connection.
    pub fn distrusted(&self, workload: &Workload, sign: Sign, root: &Arc<str>, flow: &Flow) {
        self.learn(workload, flow, |evidence, version, now| {
            evidence.distrusted(sign, root, version, now);
        });
    }

    /// Forgets processes that are gone or run another program, and notices what was installed, until the agent ends
    /// or hands over.
    pub async fn tend(self, mut phase: watch::Receiver<Phase>) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = phase::reached(&mut phase, Phase::HandedOver) => return,
            }
            let this = self.clone();
            // It ends by itself.
            let _ = tokio::task::spawn_blocking(move || this.sweep()).await;
        }
    }

    /// As [`tend`](Self::tend) does it, once. Blocks.
    pub fn sweep(&self) {
        let keys = self.table().keys();
        let all = self.0.sight.look(&keys);
        for (key, looked) in keys.into_iter().zip(all) {
            let mut table = self.table();
            let Some(record) = table.peek(key) else { continue };
            match looked {
                Ok(looked) if record.is_same_program(&looked) => record.learn(looked),
                // Whether it is gone cannot be told.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                Ok(_) | Err(_) => {
                    table.remove(key, &self.0.metrics);
                    continue;
                }
            }
            drop(table);
            self.settle(key, &Flow::default());
        }
    }

    /// How many are remembered.
    pub fn len(&self) -> usize {
        self.table().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes a record where there is none, and says where the process lives.
    async fn meet(&self, key: Key, workload: &Workload, look: bool) -> Option<MntnsId> {
        let known = self
            .table()
            .get(key)
            .map(|record| (record.mntns, record.is_looked_at()));
        let mntns = match known {
            Some((mntns, _)) => mntns,
            None => {
                let mntns = workload.mounts.map(MntnsId::from);
                let guess = workload.process.as_deref().and_then(Runtime::of_name);
                let record = Record::new(mntns, guess.unwrap_or_default(), workload.clone());
                self.table().insert(key, record, &self.0.metrics);
                mntns
            }
        };
        let looked = known.is_some_and(|(_, looked)| looked);
        if !looked && (look || known.is_none()) {
            let reading = self.look(key);
            if look && let Some(reading) = reading {
                // A look that failed leaves the guess by the name.
                let _ = reading.await;
            }
        }
        mntns
    }

    /// Looks at the process on another thread; None while too many are looked at.
    fn look(&self, key: Key) -> Option<tokio::task::JoinHandle<()>> {
        let permit = self.0.readers.clone().try_acquire_owned().ok()?;
        let this = self.clone();
        Some(tokio::task::spawn_blocking(move || {
            let looked = this.0.sight.look(&[key]).pop();
            if let (Some(Ok(looked)), Some(record)) = (looked, this.table().peek(key)) {
                record.learn(looked);
            }
            drop(permit);
        }))
    }

    /// Waits for the installation where it is due, once for all who come from there.
    async fn wait(&self, mntns: MntnsId) {
        let ledger = &self.0.ledger;
        let due = ledger.is_attended() && Some(mntns) != self.0.home && ledger.versioned(mntns).1 == 0;
        if !due || self.table().is_given_up(mntns, clock::since_boot()) {
            return;
        }
        if !ledger.settled(mntns, limits::TRUST_WAIT).await {
            self.table().give_up(mntns, clock::since_boot());
            tracing::warn!(
                mntns = mntns.ino,
                "the CA was not put into a mount namespace in time; its processes connect without it"
            );
        }
    }

    fn learn(&self, workload: &Workload, flow: &Flow, what: impl FnOnce(&mut Evidence, u64, Duration)) {
        let Some(key) = Key::of(workload) else { return };
        let now = clock::since_boot();
        if let Some(record) = self.table().get(key) {
            let (_, version) = record.installed(&self.0.ledger);
            what(&mut record.evidence, version, now);
        }
        self.settle(key, flow);
    }

    /// Notices a change of what is believed, and tells it.
    fn settle(&self, key: Key, flow: &Flow) {
        let issuing = self.issuing();
        let mut table = self.table();
        let Some(record) = table.peek(key) else { return };
        let (installation, version) = record.installed(&self.0.ledger);
        let facts = record.facts(key, installation.as_deref(), version, &issuing);
        let belief = record.evidence.belief(&facts);
        let reason = record.evidence.reason(&facts);
        // Again when it turns down what was installed anew, or one of several clients does.
        let told = (belief, version, reason.is_some());
        if record.told == Some(told) {
            return;
        }
        let advice = record.evidence.advice(&facts);
        let (runtime, before) = (
            record.runtime,
            record.told.replace(told).map(|(belief, ..)| belief),
        );
        let who = record.who.clone();
        table.count(before, Some(belief), &self.0.metrics);
        drop(table);
        if before != Some(belief) {
            self.0.metrics.trust_change(belief.label(), runtime.label());
        }
        let news = match belief {
            Belief::Untrusted | Belief::NeedsRestart => true,
            Belief::Verified => reason.is_some() || before == Some(Belief::Untrusted),
            Belief::Unknown | Belief::Installed => false,
        };
        if !news {
            return;
        }
        let mut flow = Flow {
            kind: "trust".to_owned(),
            outcome: belief.label().to_owned(),
            reason: reason
                .clone()
                .or(Some(advice.clone()).filter(|advice| !advice.is_empty())),
            host: flow.host.clone(),
            route: flow.route.clone(),
            origin: flow.origin.clone(),
            ..Flow::default()
        };
        who.introduce(&mut flow);
        tell(belief, runtime, reason.as_deref(), &advice, &flow);
        self.0.flows.note(flow);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log's line.
fn tell(belief: Belief, runtime: Runtime, reason: Option<&str>, advice: &str, flow: &Flow) {
    let (process, host) = (flow.process.as_deref(), flow.host.as_deref());
    let pod = flow.pod_name.as_deref().or(flow.pod.as_deref());
    let (cgroup, pid, runtime) = (flow.cgroup.as_deref(), flow.tgid, runtime.label());
    match (belief, reason) {
        (Belief::Verified, None) => {
            tracing::info!(pid, process, runtime, cgroup, pod, "a process trusts the CA now");
        }
        (Belief::NeedsRestart, _) => tracing::warn!(
            pid,
            process,
            runtime,
            cgroup,
            pod,
            host,
            advice,
            "a process started before the CA was installed, and will hardly trust it"
        ),
        _ => tracing::warn!(
            pid,
            process,
            runtime,
            cgroup,
            pod,
            host,
            reason,
            advice,
            "a process does not trust the CA"
        ),
    }
}

#[cfg(test)]
mod tests;

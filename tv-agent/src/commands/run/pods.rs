//! Covers the pods that are to be covered: finds their cgroups below the enrolled trees, attaches before anybody lives
//! there where the facts are known by then, and follows what the orders say.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;

use super::cover::Cover;
use crate::commands::chain;
use crate::kubernetes::{Note, Orders, Reason, Unknown};
use crate::metrics::{Metrics, ReasonLabels};
use crate::redirect::cgroup_id;
use crate::workload::Workloads;

mod tree;

use tree::Lodger;
pub(super) use tree::is_pods_tree;

/// Longest time between two looks, should the kernel not tell.
const LOOK: Duration = Duration::from_millis(100);

/// What is done about pods; shared with the thread that watches.
#[derive(Clone)]
pub(super) struct Pods(Arc<Mutex<Looked>>);

/// What it takes.
pub(super) struct Tools {
    pub cover: Cover,
    pub workloads: Arc<Workloads>,
    pub metrics: Metrics,
    pub orders: watch::Receiver<Arc<Orders>>,
    /// Has a pod told something.
    pub tell: Arc<dyn Fn(Note) + Send + Sync>,
    pub unknown: Unknown,
    /// The agent's own cgroup: its pod is left alone.
    pub own: PathBuf,
}

struct Looked {
    tools: Tools,
    /// Where pods are looked for.
    trees: Vec<PathBuf>,
    /// Enrolled cgroups that are no trees of pods.
    fixed: Vec<PathBuf>,
    /// By UID.
    lodgers: HashMap<String, Lodger>,
    /// Cgroups that a predecessor covered: they stay so until it is known better.
    pinned: HashSet<u64>,
    /// Ids of cgroups that could not be covered, of which that was said.
    told: HashSet<u64>,
    events: Option<Inotify>,
}

impl Pods {
    pub(super) fn new(tools: Tools) -> Self {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .inspect_err(|error| tracing::warn!(%error, "no inotify: new pods are noticed up to 100 ms late"))
            .ok();
        let pinned = tools.cover.with(|redirect| redirect.pinned());
        let pinned = pinned
            .inspect_err(|error| tracing::warn!(%error, "what a predecessor covered is not known"))
            .unwrap_or_default();
        Self(Arc::new(Mutex::new(Looked {
            tools,
            trees: Vec::new(),
            fixed: Vec::new(),
            lodgers: HashMap::new(),
            pinned,
            told: HashSet::new(),
            events,
        })))
    }

    /// Looks below `trees` from now on. `fixed`: the enrolled cgroups besides them.
    pub(super) fn settle(&self, trees: Vec<PathBuf>, fixed: Vec<PathBuf>) {
        let mut looked = self.lock();
        looked.tools.cover.set_trees(&trees);
        (looked.trees, looked.fixed) = (trees, fixed);
        looked.scan();
        looked.follow();
        looked.tell_roots();
    }

    /// Starts the thread that looks, until a successor does. Call within a runtime.
    ///
    /// # Errors
    /// When it cannot be started.
    pub(super) fn watch(&self) -> io::Result<()> {
        let (mut waker, woken) = UnixStream::pair()?;
        woken.set_nonblocking(true)?;
        waker.set_nonblocking(true)?;
        let mut orders = self.lock().tools.orders.clone();
        tokio::spawn(async move {
            while orders.changed().await.is_ok() {
                orders.borrow_and_update();
                // A full pipe wakes as well.
                let _ = waker.write(&[0]);
            }
        });
        let pods = self.clone();
        std::thread::Builder::new()
            .name("tv-pods".into())
            .spawn(move || {
                let fd = pods
                    .lock()
                    .events
                    .as_ref()
                    .and_then(|events| events.as_fd().try_clone_to_owned().ok());
                loop {
                    let mut fds = vec![PollFd::new(woken.as_fd(), PollFlags::POLLIN)];
                    fds.extend(fd.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
                    let limit = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
                    // What happened does not matter: all that is cheap is looked at.
                    let _ = poll(&mut fds, limit);
                    drop(fds);
                    while (&woken).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
                    let mut looked = pods.lock();
                    if looked.tools.cover.is_retired() {
                        return;
                    }
                    looked.scan();
                    looked.follow();
                }
            })?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Looked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Looked {
    /// Which pods there are. Reads the directories of the trees and of the classes below them, none of the pods'.
    fn scan(&mut self) {
        if let Some(events) = &self.events {
            while events.read_events().is_ok() {}
        }
        let mut found = BTreeMap::new();
        for root in &self.trees {
            tree::pods(root, &mut found, &mut |directory| self.watch_directory(directory));
        }
        found.retain(|_, directory| !self.tools.own.starts_with(directory));
        let gone: Vec<String> = self
            .lodgers
            .iter()
            .filter(|(uid, lodger)| found.get(*uid) != Some(&lodger.directory))
            .map(|(uid, _)| uid.clone())
            .collect();
        let left = !gone.is_empty();
        for uid in gone {
            if let Some(lodger) = self.lodgers.remove(&uid) {
                for directory in &lodger.covered {
                    self.uncover(directory);
                }
            }
        }
        for (uid, directory) in found {
            self.lodgers.entry(uid).or_insert_with(|| Lodger::new(directory));
        }
        if left {
            self.tell_roots();
        }
    }

    /// Brings what is covered in line with the orders.
    fn follow(&mut self) {
        let orders = self.tools.orders.borrow().clone();
        let mut wanted: Vec<(String, BTreeSet<PathBuf>)> = Vec::new();
        let mut lodgers = std::mem::take(&mut self.lodgers);
        for (uid, lodger) in &mut lodgers {
            if let Some(order) = orders.pods.get(uid) {
                lodger.order = Some(order.clone());
            }
            // A pod that is not known any more keeps what it had until its cgroup goes: its processes may still run.
            let mut children = Vec::new();
            if lodger
                .order
                .as_ref()
                .is_some_and(|order| order.enrol && order.apart)
            {
                self.watch_directory(&lodger.directory);
                children = tree::children(&lodger.directory);
            }
            let covered = |directory: &Path| cgroup_id(directory).is_ok_and(|id| self.pinned.contains(&id));
            let targets = lodger.targets(&children, self.tools.unknown, covered);
            if targets != lodger.covered {
                wanted.push((uid.clone(), targets));
            }
        }
        self.lodgers = lodgers;
        if wanted.is_empty() {
            return;
        }
        // Who connects first has to be found below one of them.
        let more: Vec<PathBuf> = wanted.iter().flat_map(|(_, targets)| targets.clone()).collect();
        let mut roots = self.roots();
        roots.extend(more);
        roots.sort();
        roots.dedup();
        self.tools.workloads.follow_roots(roots);
        for (uid, targets) in wanted {
            let before = self
                .lodgers
                .get(&uid)
                .map(|lodger| lodger.covered.clone())
                .unwrap_or_default();
            // Coverage first.
            let mut now: BTreeSet<PathBuf> = before.intersection(&targets).cloned().collect();
            let mut all = true;
            for directory in targets.difference(&before) {
                if self.cover(&uid, directory) {
                    now.insert(directory.clone());
                } else {
                    all = false;
                }
            }
            for directory in before.difference(&targets) {
                // What is to be covered another way stays as it is until that works.
                if all || targets.is_empty() {
                    self.uncover(directory);
                } else {
                    now.insert(directory.clone());
                }
            }
            if let Some(lodger) = self.lodgers.get_mut(&uid) {
                lodger.covered = now;
            }
        }
        self.tell_roots();
    }

    fn cover(&mut self, uid: &str, directory: &Path) -> bool {
        match self.tools.cover.cover_pod(directory) {
            Ok(()) => {
                tracing::debug!(pod = uid, cgroup = %directory.display(), "covered");
                true
            }
            // Gone again: the next look finds that.
            Err(_) if !directory.exists() => false,
            Err(error) => {
                self.failed("attach", uid, directory, &chain(&error));
                false
            }
        }
    }

    fn uncover(&mut self, directory: &Path) {
        if let Err(error) = self.tools.cover.uncover_pod(directory) {
            self.failed("detach", "", directory, &chain(&error));
        }
    }

    /// Tried again with each look, told once.
    fn failed(&mut self, reason: &'static str, uid: &str, directory: &Path, error: &str) {
        let labels = ReasonLabels { reason };
        self.tools
            .metrics
            .kubernetes
            .cover_failures
            .get_or_create(&labels)
            .inc();
        let id = cgroup_id(directory).unwrap_or_default();
        if self.told.len() > tree::PODS {
            self.told.clear();
        }
        if self.told.insert(id) {
            tracing::error!(pod = uid, cgroup = %directory.display(), error, "cannot {reason}; trying again");
            (self.tools.tell)(Note {
                pod: uid.to_owned(),
                reason: Reason::NotIntercepted,
                about: reason.to_owned(),
                text: format!("the pod's connections cannot be intercepted: {error}"),
            });
        }
    }

    fn roots(&self) -> Vec<PathBuf> {
        let covered = self.lodgers.values().flat_map(|lodger| &lodger.covered);
        let mut roots: Vec<PathBuf> = self.fixed.iter().chain(covered).cloned().collect();
        roots.sort();
        roots
    }

    fn tell_roots(&self) {
        let roots = self.roots();
        let covered = i64::try_from(roots.len() - self.fixed.len()).unwrap_or(i64::MAX);
        self.tools.metrics.kubernetes.covered.set(covered);
        self.tools.workloads.follow_roots(roots);
    }

    /// Twice is once: the kernel gives back the watch that a directory has.
    fn watch_directory(&self, directory: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_DELETE | AddWatchFlags::IN_ONLYDIR;
        if let Some(events) = &self.events {
            // Without a watch (gone, or too many of them) the clock finds it.
            let _ = events.add_watch(directory, flags);
        }
    }
}

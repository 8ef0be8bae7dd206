//! Which cgroups the programs are attached to, and those that are removed and made again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::commands::chain;
use crate::redirect::{self, Handles, KernelPolicy, Redirect};

/// Longest time between two looks, should the kernel not tell.
const LOOK: Duration = Duration::from_millis(100);

/// The kernel half and what it is attached to; shared with the thread that watches.
#[derive(Clone)]
pub(super) struct Cover(Arc<Mutex<Covered>>);

struct Covered {
    redirect: Redirect,
    handles: Handles,
    /// The enrolled directories, each with the id of the cgroup that is covered.
    enrolled: HashMap<PathBuf, u64>,
    /// Ids of cgroups that could not be covered, and of which that was said.
    uncovered: HashSet<u64>,
    /// Cgroups of pods and containers that are covered, and the trees below which such may be.
    pods: HashSet<PathBuf>,
    trees: Vec<PathBuf>,
}

impl Cover {
    pub(super) fn new(redirect: Redirect) -> Self {
        Self(Arc::new(Mutex::new(Covered {
            handles: redirect.handles(),
            redirect,
            enrolled: HashMap::new(),
            uncovered: HashSet::new(),
            pods: HashSet::new(),
            trees: Vec::new(),
        })))
    }

    /// The kernel half, for what is not about cgroups.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Redirect) -> T) -> T {
        act(&mut self.lock().redirect)
    }

    pub(super) fn apply(&self, policy: &KernelPolicy) -> Result<(), redirect::Error> {
        self.lock().redirect.apply(policy)
    }

    /// Attaches to all of `directories`.
    pub(super) fn attach(&self, directories: &[PathBuf]) -> Result<(), redirect::Error> {
        let mut covered = self.lock();
        for directory in directories {
            let id = covered.redirect.attach(directory)?;
            covered.enrolled.insert(directory.clone(), id);
        }
        Ok(())
    }

    /// Detaches from all but `directories`, and takes away what predecessors left, now that all of ours are covered.
    pub(super) fn keep_only(&self, directories: &[PathBuf]) -> Result<(), redirect::Error> {
        let mut covered = self.lock();
        covered
            .enrolled
            .retain(|directory, _| directories.contains(directory));
        for directory in covered.redirect.attached() {
            if !directories.contains(&directory) && !covered.pods.contains(&directory) {
                covered.redirect.detach(&directory)?;
            }
        }
        covered.redirect.retire_stale().map(drop)
    }

    /// Where [`cover_pod`](Self::cover_pod) may attach; what was covered elsewhere is let go of by the next
    /// [`keep_only`](Self::keep_only).
    pub(super) fn set_trees(&self, trees: &[PathBuf]) {
        let mut covered = self.lock();
        covered.trees = trees.to_vec();
        let Covered { pods, trees, .. } = &mut *covered;
        pods.retain(|pod| is_below(pod, trees));
    }

    /// Attaches to one cgroup below the trees.
    pub(super) fn cover_pod(&self, directory: &Path) -> Result<(), redirect::Error> {
        let mut covered = self.lock();
        if !is_below(directory, &covered.trees) {
            return Err(redirect::Error::NotCgroup2(directory.to_owned()));
        }
        covered.redirect.attach(directory)?;
        covered.pods.insert(directory.to_owned());
        Ok(())
    }

    /// Detaches from it; one that is not covered is fine.
    pub(super) fn uncover_pod(&self, directory: &Path) -> Result<(), redirect::Error> {
        let mut covered = self.lock();
        if covered.pods.contains(directory) {
            covered.redirect.detach(directory)?;
            covered.pods.remove(directory);
        }
        Ok(())
    }

    /// Whether a successor does all this.
    pub(super) fn is_retired(&self) -> bool {
        self.lock().handles.is_retired()
    }

    /// Starts a thread that attaches to enrolled cgroups as soon as they are made again, until a successor does.
    ///
    /// # Errors
    /// When no thread can be started.
    pub(super) fn watch(&self, mount: &Path) -> io::Result<()> {
        let (cover, mount) = (self.clone(), mount.to_owned());
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let events = events
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: a cgroup that is made again is noticed up to 100 ms late");
            })
            .ok();
        std::thread::Builder::new()
            .name("tv-cover".into())
            .spawn(move || {
                loop {
                    // First the watches: what is made after the look is an event.
                    events
                        .iter()
                        .for_each(|events| cover.watch_parents(events, &mount));
                    let mut covered = cover.lock();
                    if covered.handles.is_retired() {
                        return;
                    }
                    covered.look();
                    drop(covered);
                    wait(events.as_ref());
                }
            })?;
        Ok(())
    }

    /// Twice is once: the kernel gives back the watch that a directory has.
    fn watch_parents(&self, events: &Inotify, mount: &Path) {
        let covered = self.lock();
        let above = |directory: &'_ PathBuf| {
            let parents = directory.ancestors().skip(1);
            let parents = parents.take_while(|parent| parent.starts_with(mount));
            parents.map(Path::to_owned).collect::<Vec<_>>()
        };
        let parents: BTreeSet<PathBuf> = covered.enrolled.keys().flat_map(above).collect();
        drop(covered);
        for parent in parents {
            let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR;
            // Without a watch (gone, or too many of them) the clock finds it.
            let _ = events.add_watch(&parent, flags);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Covered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Strictly, and by plain parts: what is asked for may be chosen by somebody else.
fn is_below(directory: &Path, trees: &[PathBuf]) -> bool {
    use std::path::Component;
    let plain = |part| matches!(part, Component::Normal(_));
    trees.iter().any(|tree| {
        let below = directory.strip_prefix(tree);
        below.is_ok_and(|below| below.components().count() > 0 && below.components().all(plain))
    })
}

impl Covered {
    /// Attaches to enrolled cgroups that were made again: service managers remove a service's cgroup when it
    /// stops, and the programs go with it.
    fn look(&mut self) {
        for (directory, covered) in &mut self.enrolled {
            // One that cannot be looked at is gone, and so is everybody who was in it.
            let made_again = redirect::cgroup_id(directory).ok().filter(|id| id != covered);
            let Some(id) = made_again else { continue };
            match self.redirect.attach(directory) {
                Ok(id) => {
                    *covered = id;
                    tracing::warn!(
                        cgroup = %directory.display(),
                        "the cgroup was removed and made again, and was not intercepted for a moment; enrol the \
                         one above it, which stays"
                    );
                }
                // Tried again each time, told once.
                Err(error) if self.uncovered.insert(id) => {
                    tracing::error!(cgroup = %directory.display(), "NOT intercepted: {}", chain(&error));
                }
                Err(_) => {}
            }
        }
    }
}

/// For the next cgroup that is made, or the next look.
fn wait(events: Option<&Inotify>) {
    let Some(events) = events else {
        std::thread::sleep(LOOK);
        return;
    };
    let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
    let limit = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX);
    // What happened does not matter: all enrolled directories are looked at.
    if poll(&mut fds, limit).is_ok_and(|ready| ready > 0) {
        while events.read_events().is_ok() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_below_a_tree_is_a_pods() {
        let trees = [PathBuf::from("/sys/fs/cgroup/kubepods")];
        let below = |path: &str| is_below(Path::new(path), &trees);
        assert!(below("/sys/fs/cgroup/kubepods/burstable/podx"));
        for path in [
            "/sys/fs/cgroup/kubepods",
            "/sys/fs/cgroup/kubepods/../system.slice",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup/kubepodsx/a",
            "kubepods/a",
            "/",
        ] {
            assert!(!below(path), "{path}");
        }
        assert!(!is_below(Path::new("/a"), &[]));
    }
}

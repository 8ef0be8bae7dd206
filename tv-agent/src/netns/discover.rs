//! Which network and mount namespaces the processes of some cgroup subtrees live in: looked at when a cgroup changes,
//! and four times a second whatever happens.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Bell, NetnsId, id_of};
use crate::{limits, sys};

/// Longest time between two looks: children that are cloned into a cgroup cause no event.
const POLL: Duration = Duration::from_millis(250);
/// First time between two looks after an event; doubled until [`POLL`]. A process often enters its cgroup first and
/// its namespace a moment later.
const EAGER: Duration = Duration::from_millis(2);
/// A look is followed by a pause of at least this many times its own length.
const REST: u32 = 4;

/// Most that one look takes in.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub cgroups: usize,
    pub processes: usize,
    /// Processes known from before that are looked at again, for they may have moved; the others have their turn
    /// next time.
    pub rechecks: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            cgroups: limits::DISCOVERY_CGROUPS,
            processes: limits::DISCOVERY_PROCESSES,
            rechecks: limits::DISCOVERY_RECHECKS,
        }
    }
}

/// A namespace with a process that lives in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub process: i32,
    pub cgroup: Arc<Path>,
}

/// What tells a mount namespace from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountsId {
    /// The kernel's number, which is never given out twice (Linux 6.11); before that the device of nsfs, and the inode of
    /// a namespace that is gone is soon another's.
    pub number: u64,
    pub ino: u64,
}

/// What one look found.
#[derive(Debug, Default)]
pub struct Found {
    pub namespaces: HashMap<NetnsId, Seen>,
    /// Of each mount namespace, the first [`limits::TRUST_DWELLERS`] that were seen in it.
    pub mounts: HashMap<MountsId, Vec<Seen>>,
    /// There were more cgroups or processes than [`Bounds`] allows.
    pub truncated: bool,
    /// There were processes that cannot be looked at: of another pid namespace, or for want of CAP_SYS_PTRACE.
    pub hidden: bool,
}

impl MountsId {
    /// # Errors
    /// When `path` is not there.
    pub fn of(path: &str) -> io::Result<Self> {
        Self::of_file(&File::open(path)?)
    }

    /// # Errors
    /// When `file` cannot be looked at.
    pub fn of_file(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            number: sys::mount_namespace_number(file.as_fd()).unwrap_or(metadata.dev()),
            ino: metadata.ino(),
        })
    }
}

/// Starts a thread that looks until the receiver is dropped. `roots` are asked for each time, at once when `bell` rings.
///
/// # Errors
/// When no thread can be started.
pub fn discover(
    roots: impl Fn() -> Arc<Vec<PathBuf>> + Send + 'static,
    bell: Bell,
    bounds: Bounds,
) -> io::Result<watch::Receiver<Arc<Found>>> {
    let (sender, receiver) = watch::channel(Arc::default());
    std::thread::Builder::new()
        .name("tv-discover".into())
        .spawn(move || {
            let mut looker = Looker::new(bell, bounds);
            let mut pause = EAGER;
            loop {
                let began = Instant::now();
                let found = looker.look(&roots());
                if sender.send(Arc::new(found)).is_err() {
                    return;
                }
                let rest = began.elapsed() * REST;
                if looker.wait(pause.max(rest)) {
                    pause = EAGER;
                    // Many events are one.
                    std::thread::sleep(rest.min(POLL));
                } else {
                    pause = (pause * 2).min(POLL);
                }
            }
        })?;
    Ok(receiver)
}

struct Looker {
    bounds: Bounds,
    bell: Bell,
    /// None: only the clock tells.
    events: Option<Inotify>,
    known: HashMap<i32, Known>,
    round: u64,
}

#[derive(Clone, Copy)]
struct Known {
    netns: NetnsId,
    mounts: MountsId,
    /// The round in which it was looked at.
    checked: u64,
}

impl Looker {
    fn new(bell: Bell, bounds: Bounds) -> Self {
        let events = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
        let events = events
            .inspect_err(|error| {
                tracing::warn!(%error, "no inotify: new network namespaces are noticed up to 250 ms late");
            })
            .ok();
        Self {
            bounds,
            bell,
            events,
            known: HashMap::new(),
            round: 0,
        }
    }

    fn look(&mut self, roots: &[PathBuf]) -> Found {
        self.round += 1;
        let mut found = Found::default();
        let mut known = HashMap::with_capacity(self.known.len());
        let rounds = 1 + (self.known.len() / self.bounds.rechecks.max(1)) as u64;
        let mut todo: Vec<PathBuf> = roots.to_vec();
        let mut visited = 0;
        while let Some(directory) = todo.pop() {
            visited += 1;
            if visited > self.bounds.cgroups {
                found.truncated = true;
                break;
            }
            // Before it is read, so that nothing falls between.
            self.watch(&directory);
            let cgroup: Arc<Path> = directory.as_path().into();
            for process in processes(&directory) {
                if process == 0 {
                    found.hidden = true;
                    continue;
                }
                if known.len() >= self.bounds.processes {
                    found.truncated = true;
                    break;
                }
                let before = self.known.get(&process).copied();
                let fresh = before.filter(|before| before.checked + rounds > self.round);
                let now = match fresh.map_or_else(|| self.look_at(process), Ok) {
                    Ok(now) => now,
                    Err(error) => {
                        // Else it is gone, or about to be.
                        found.hidden |= error.kind() == io::ErrorKind::PermissionDenied;
                        continue;
                    }
                };
                known.insert(process, now);
                let seen = || Seen {
                    process,
                    cgroup: cgroup.clone(),
                };
                found.namespaces.entry(now.netns).or_insert_with(seen);
                let dwellers = found.mounts.entry(now.mounts).or_default();
                if dwellers.len() < limits::TRUST_DWELLERS {
                    dwellers.push(seen());
                }
            }
            todo.extend(subdirectories(&directory));
        }
        self.known = known;
        found
    }

    fn look_at(&self, process: i32) -> io::Result<Known> {
        let metadata = fs::metadata(format!("/proc/{process}/ns/net"))?;
        Ok(Known {
            netns: id_of(&metadata),
            mounts: MountsId::of(&format!("/proc/{process}/ns/mnt"))?,
            checked: self.round,
        })
    }

    /// Twice is once: the kernel gives back the watch that the directory has.
    fn watch(&self, directory: &Path) {
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_ONLYDIR;
        if let Some(events) = &self.events {
            // Without a watch (too many of them, or the cgroup is gone) the clock finds it.
            let _ = events.add_watch(directory, flags);
        }
    }

    /// Whether a cgroup changed, or the bell rang, before `limit` was over.
    fn wait(&self, limit: Duration) -> bool {
        let events = self.events.iter().map(|events| events.as_fd());
        let fds = events.chain(self.bell.heard_by());
        let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        let limit = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let changed = poll(&mut fds, limit).is_ok_and(|ready| ready > 0);
        // What changed does not matter: everything is looked at.
        if changed {
            self.bell.silence();
            while self
                .events
                .as_ref()
                .is_some_and(|events| events.read_events().is_ok())
            {}
        }
        changed
    }
}

pub(crate) fn processes(cgroup: &Path) -> Vec<i32> {
    // A cgroup that is gone, or a threaded one (whose processes its domain lists), has none.
    fs::read_to_string(cgroup.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

pub(crate) fn subdirectories(cgroup: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests;

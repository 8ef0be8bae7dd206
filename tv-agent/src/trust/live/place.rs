//! One place: what is there, and what is done there.

use std::collections::BTreeSet;

use super::record::Line;
use super::runtimes::{Traits, Wanted, wanted};
use super::*;
use crate::clock;
use crate::https::causes;
use crate::trust::{Extra, Root, copies};

pub(super) struct Place {
    cgroup: Arc<Path>,
    /// When it was first seen.
    pub(super) since: Instant,
    /// When it was last seen.
    pub(super) seen: Instant,
    /// Those that were seen then.
    pub(super) processes: Vec<i32>,
    /// What is in place; None before the first try.
    record: Option<Record>,
    /// What the processes read that were asked.
    wanted: Wanted,
    /// Those processes: number, and device and inode of the program, for it may become another one.
    asked: BTreeSet<(i32, u64, u64)>,
    pub(super) compared: Option<Instant>,
    /// After a failure: when to try again, and how long to wait after the next.
    pub(super) retry: Option<(Instant, Duration)>,
    /// Of the last failure.
    failure: Option<String>,
    /// Something was told of it.
    told: bool,
}

impl Place {
    pub(super) fn new(cgroup: &Arc<Path>, now: Instant) -> Self {
        Self {
            cgroup: cgroup.clone(),
            since: now,
            seen: now,
            processes: Vec::new(),
            record: None,
            wanted: Wanted::default(),
            asked: BTreeSet::new(),
            compared: None,
            retry: None,
            failure: None,
            told: false,
        }
    }

    pub(super) fn saw(&mut self, process: i32, id: PlaceId, now: Instant) {
        if self.seen < now {
            let before = std::mem::take(&mut self.processes);
            let goes_on = before.is_empty() || before.contains(&process);
            if !goes_on && !before.iter().any(|process| lives_in(*process, id)) {
                // The number of a dead namespace is given out again: nothing that was known need be true.
                *self = Self::new(&self.cgroup, now);
            }
        }
        self.seen = now;
        if !self.processes.contains(&process) {
            self.processes.push(process);
        }
    }

    pub(super) fn news(&mut self, id: PlaceId, outcome: Outcome) -> News {
        let first = !self.told;
        self.told |= !matches!(outcome, Outcome::Failed(_));
        News {
            first,
            namespace: MntnsId {
                number: id.namespace.0,
                ino: id.namespace.1,
            },
            cgroup: self.cgroup.clone(),
            outcome,
        }
    }

    /// Before that, its processes may still be on their way to another root.
    pub(super) fn is_tried(&self) -> bool {
        self.record.is_some() || self.failure.is_some()
    }

    /// None before the first try.
    pub(super) fn installation(&self) -> Option<Installation> {
        let failed = self.failure.as_ref().map(|why| Unreached {
            path: "/".into(),
            why: why.clone(),
        });
        match &self.record {
            Some(record) => Some(Installation {
                at: record.at,
                roots: record.roots.clone(),
                stores: record.stores.clone(),
                unreached: record.unreached.iter().cloned().chain(failed).collect(),
            }),
            None => failed.map(|failed| nothing(failed.why)),
        }
    }

    /// Brings it up to date; None when it was.
    pub(super) fn tend(
        &mut self,
        id: PlaceId,
        works: &mut Works,
        anchors: &Anchors,
        round: bool,
        compare: bool,
        now: Instant,
    ) -> Option<Outcome> {
        let more = (round || self.record.is_none()) && self.ask_processes(compare);
        let roots = anchors.fingerprints();
        let current = self
            .record
            .as_ref()
            .is_some_and(|record| record.anchors == roots && !more && self.failure.is_none());
        if current && !round {
            return None;
        }
        let process = *self.processes.iter().find(|process| lives_in(**process, id))?;
        if current && self.holds(process, id, works) {
            if !compare {
                return None;
            }
            self.compared = Some(now);
            match self.unchanged(process, works) {
                Ok(true) => return None,
                Ok(false) => {}
                Err(error) => return self.failed(error, process, id, now),
            }
        }
        if self.record.is_none()
            && let Some(record) = Record::read(&works.directory(id))
            && record.anchors == roots
            && record.wanted.covers(&self.wanted)
        {
            self.record = Some(record);
            if self.holds(process, id, works) {
                self.wanted = self
                    .record
                    .as_ref()
                    .map(|record| record.wanted.clone())
                    .unwrap_or_default();
                self.recovered();
                return self.installation().map(Outcome::Adopted);
            }
            self.record = None;
        }
        match self.install(process, id, works, anchors) {
            Ok(record) => {
                self.record = Some(record);
                self.compared = Some(now);
                self.recovered();
                self.installation().map(Outcome::Installed)
            }
            Err(error) => self.failed(error, process, id, now),
        }
    }

    fn recovered(&mut self) {
        (self.retry, self.failure) = (None, None);
    }

    /// None for a failure that was told before, or that is only the end of the process.
    fn failed(&mut self, error: Error, process: i32, id: PlaceId, now: Instant) -> Option<Outcome> {
        if !lives_in(process, id) {
            return None;
        }
        let wait = self.retry.map_or(RETRY.0, |(_, wait)| (wait * 2).min(RETRY.1));
        self.retry = Some((now + wait, wait));
        let told = self.failure.replace(causes(&error));
        (told != self.failure).then_some(Outcome::Failed(error))
    }

    /// Asks those that are new, or with `all` all of them, what they read; whether there is anything new.
    fn ask_processes(&mut self, all: bool) -> bool {
        let mut asked = BTreeSet::new();
        let mut more = false;
        for process in &self.processes {
            let Some((dev, ino)) = root_of(Path::new(&format!("/proc/{process}/exe"))) else {
                continue;
            };
            let who = (*process, dev, ino);
            if (all || !self.asked.contains(&who))
                && let Ok(traits) = Traits::of(*process)
                && let Ok(root) = u32::try_from(*process)
                    .map_err(|_| ())
                    .and_then(|process| Root::of_process(process).map_err(drop))
            {
                let mut wanted = wanted(&traits);
                let there = |path: &PathBuf| root.find(path).is_ok_and(|found| found.is_some());
                wanted.bundles.retain(there);
                wanted.keystores.retain(there);
                more |= self.wanted.add(wanted);
            }
            asked.insert(who);
        }
        self.asked = asked;
        more
    }

    /// Whether what was mounted is there and to be seen.
    fn holds(&self, process: i32, id: PlaceId, works: &Works) -> bool {
        let mounts = mounts_of(&format!("/proc/{process}/mountinfo")).unwrap_or_default();
        let ours = works.ours(id);
        self.record
            .as_ref()
            .is_some_and(|record| record.holds(&mounts, &ours))
    }

    /// Whether the originals are what the copies were made of.
    fn unchanged(&self, process: i32, works: &mut Works) -> Result<bool, Error> {
        let Some(record) = &self.record else {
            return Ok(false);
        };
        let at = entrance(process)?;
        let ours = works.ours.clone();
        works.hand.look(&at, &ours, |root| {
            let root = Root::open(&Entrance::path_of(root))?;
            for (path, digest) in &record.watched {
                // One that cannot be read now could be then.
                if root.digest(path).ok().flatten().as_ref() != Some(digest) {
                    return Ok(false);
                }
            }
            Ok(true)
        })?
    }

    /// Makes copies and mounts them, each beneath its predecessor if there is one.
    fn install(
        &self,
        process: i32,
        id: PlaceId,
        works: &mut Works,
        anchors: &Anchors,
    ) -> Result<Record, Error> {
        let directory = works.directory(id);
        make(&directory)?;
        let generation = generations(&directory).max().unwrap_or(0) + 1;
        let made = directory.join(generation.to_string());
        let installed = self.install_as(generation, &made, process, id, works, anchors);
        match &installed {
            Ok(_) => {
                for old in generations(&directory).filter(|old| *old != generation) {
                    remove(&directory.join(old.to_string()));
                }
            }
            // What could be mounted stays mounted; the next try replaces it. Its files go only if nothing was.
            Err(_) => {
                let mounts = mounts_of(&format!("/proc/{process}/mountinfo")).unwrap_or_default();
                let shown = works.ours(id).below(Path::new(&generation.to_string()));
                if !mounts.iter().any(|mount| shown.is(mount)) {
                    remove(&made);
                }
            }
        }
        installed
    }

    fn install_as(
        &self,
        generation: u64,
        made: &Path,
        process: i32,
        id: PlaceId,
        works: &mut Works,
        anchors: &Anchors,
    ) -> Result<Record, Error> {
        let at = entrance(process)?;
        let extra = Extra {
            certifi: self.wanted.bundles.iter().cloned().collect(),
            keystores: self.wanted.keystores.iter().cloned().collect(),
        };
        let all_ours = works.ours.clone();
        let (copies, before) = works.hand.look(&at, &all_ours, |root| {
            let root = Root::open(&Entrance::path_of(root))?;
            let copies = copies(made, anchors, &root, &extra)?;
            let before = |target: &Path| root.digest(target).ok().flatten();
            let before: Vec<_> = copies.mounts.iter().map(|mount| before(&mount.target)).collect();
            Ok::<_, Error>((copies, before))
        })??;
        let after = Root::open(made)?;
        let lines = copies.mounts.iter().zip(before).map(|(mount, before)| {
            let copy = mount
                .source
                .strip_prefix(made)
                .unwrap_or(&mount.source)
                .to_owned();
            Line {
                target: mount.target.clone(),
                after: after.digest(&Path::new("/").join(&copy)).ok().flatten(),
                copy,
                before,
                id: None,
            }
        });
        let mut record = Record {
            generation,
            whole: false,
            at: clock::since_boot(),
            anchors: anchors.fingerprints(),
            roots: anchors.fingerprints(),
            stores: copies.kinds.clone(),
            unreached: copies.unreached.clone(),
            mounts: lines.collect(),
            watched: copies.watched.clone(),
            wanted: self.wanted.clone(),
        };
        // Before anything is mounted: who finds the mounts finds out what they are.
        self.write(&record, &works.directory(id))?;
        let ours = works.ours(id);
        let mut mounted = 0;
        for (line, mount) in record.mounts.iter_mut().zip(&copies.mounts) {
            match works.hand.mount(&at, &mount.source, &mount.target, &all_ours) {
                Ok(number) => {
                    line.id = Some(number);
                    mounted += 1;
                }
                Err(error @ (Error::Gone | Error::Start(_))) => return Err(error),
                Err(error) => record.unreached.push(Unreached {
                    path: mount.target.clone(),
                    why: causes(&error),
                }),
            }
        }
        if mounted == 0 {
            record.stores.clear();
            record.roots.clear();
        }
        let keep = ours.below(Path::new(&generation.to_string()));
        // A store that is no longer there, say.
        use std::os::fd::AsFd as _;
        works.hand.unmount(at.namespace.as_fd(), &ours, Some(&keep))?;
        record.whole = true;
        record.at = clock::since_boot();
        self.write(&record, &works.directory(id))?;
        Ok(record)
    }

    fn write(&self, record: &Record, directory: &Path) -> Result<(), Error> {
        record.write(directory).map_err(|source| Error::Io {
            what: "write the record in",
            path: directory.to_owned(),
            source,
        })
    }

    /// Takes away what was put there, if the namespace lives on; with `alone`, all of ours.
    pub(super) fn leave(&self, id: PlaceId, works: &mut Works, alone: bool) {
        let ours = if alone { works.ours.clone() } else { works.ours(id) };
        cleanup::leave(id, works, &ours, &self.processes);
    }
}

/// Whether the process still has this root in this namespace.
fn lives_in(process: i32, id: PlaceId) -> bool {
    let namespace = MountsId::of(&format!("/proc/{process}/ns/mnt"));
    namespace.is_ok_and(|found| (found.number, found.ino) == id.namespace)
        && root_of(Path::new(&format!("/proc/{process}/root"))) == Some(id.root)
}

fn entrance(process: i32) -> Result<Entrance, Error> {
    Entrance::of(process).map_err(|source| Error::Io {
        what: "open",
        path: format!("/proc/{process}/ns/mnt").into(),
        source,
    })
}

fn make(directory: &Path) -> Result<(), Error> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory);
    made.map_err(|source| Error::Io {
        what: "make",
        path: directory.to_owned(),
        source,
    })
}

fn generations(directory: &Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// What cannot be removed now is removed with the place.
pub(super) fn remove(directory: &Path) {
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %directory.display(), "cannot remove copies of certificates");
    }
}

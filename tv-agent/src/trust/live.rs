//! The CA in mount namespaces that live: augmented copies of their stores are mounted over the originals, looked
//! after, and taken away again.
//!
//! What is mounted is the truth, found by /proc/PID/mountinfo: a mount is ours when it shows something below the
//! directory of the copies. The records beside the copies only say what was there before. So whoever dies, at any
//! point, leaves nothing that the next one cannot take over or take away.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls_pki_types::CertificateDer;

use super::{Anchors, Installation, Ledger, MntnsId, Unreached};
use crate::clock;
use crate::limits;
use crate::netns::{Found, MountsId, Seen};
use hand::{Entrance, Hand};
use mountinfo::{Mounted, Ours};
use record::Record;

mod cleanup;
mod hand;
mod helper;
mod mountinfo;
mod place;
mod record;
mod runtimes;
mod stores;
mod wire;
mod works;

pub use cleanup::{Cleaned, cleanup};
pub use hand::COMMAND;
pub use helper::serve;
use place::Place;
pub use stores::{Store, stores};
use works::{PlaceId, Works, mount_id, mounts_of};

/// How often all places are looked at; new ones at once.
const ROUND: Duration = Duration::from_secs(1);
/// In each round, the originals of so many places are compared with what their copies were made of.
const COMPARED: usize = 2;
/// And of none more often than this.
const COMPARE: Duration = Duration::from_secs(4);
/// A namespace that still has this machine's root is most often about to get another.
const UNSETTLED: Duration = Duration::from_millis(500);
/// A place without a process is kept for so long.
const LINGER: Duration = Duration::from_secs(1);
/// After a failure; doubled up to the other.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}", .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another agent installs the CA from {}", .dir.display())]
    Locked { dir: PathBuf },
    #[error("{} lies in no mount that can be seen", .dir.display())]
    NoMount { dir: PathBuf },
    #[error("cannot start the helper that enters mount namespaces")]
    Start(#[source] io::Error),
    #[error("the helper that enters mount namespaces has ended midway; it is started again")]
    Gone,
    #[error("cannot {doing}")]
    Refused { doing: String, source: io::Error },
    #[error("cannot copy the mount of {}", .path.display())]
    Mount { path: PathBuf, source: io::Error },
    #[error("more than {} mount namespaces; this one gets no CA", limits::TRUST_PLACES)]
    TooMany,
    #[error(transparent)]
    Trust(#[from] super::Error),
}

/// What happened in a namespace, to be told.
#[derive(Debug)]
pub struct News {
    pub namespace: MntnsId,
    pub cgroup: Arc<Path>,
    /// Nothing was told of it before.
    pub first: bool,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    /// Put there, for the first time or anew.
    Installed(Installation),
    /// Found as an earlier agent had left it.
    Adopted(Installation),
    Failed(Error),
    /// No enrolled process lives there any more.
    Left,
}

impl Outcome {
    /// A label for metrics.
    pub fn result(&self) -> &'static str {
        match self {
            Self::Installed(installation) if installation.unreached.is_empty() => "installed",
            Self::Installed(_) => "partial",
            Self::Adopted(_) => "adopted",
            Self::Failed(_) => "failed",
            Self::Left => "left",
        }
    }
}

/// Installs, looks after and takes away. One at a time may use a directory.
pub struct Live {
    works: Works,
    places: HashMap<PlaceId, Place>,
    /// This machine's own namespaces, and what is said of them.
    homes: Vec<MntnsId>,
    home_roots: Vec<(u64, u64)>,
    host: Installation,
    rounds: Option<Instant>,
    began: Instant,
    swept: bool,
}

impl Live {
    /// `dir` gets copies and records, `program` is this one (`/proc/self/exe`).
    ///
    /// # Errors
    /// [`Error::Locked`] while another has it; when the directory cannot be had.
    pub fn open(dir: &Path, program: &Path) -> Result<Self, Error> {
        let works = Works::open(dir, program)?;
        let roots = ["/", "/proc/1/root"];
        Ok(Self {
            works,
            places: HashMap::new(),
            homes: homes(),
            home_roots: roots
                .into_iter()
                .filter_map(|path| root_of(Path::new(path)))
                .collect(),
            host: Installation::default(),
            rounds: None,
            began: Instant::now(),
            swept: false,
        })
    }

    /// What is said of the machine's own mount namespace, where nothing is ever mounted.
    pub fn of_host(&mut self, host: Installation, ledger: &Ledger) {
        if self.host == host {
            return;
        }
        for id in &self.homes {
            if ledger.installation(*id).is_some() {
                ledger.installed(*id, host.clone());
            }
        }
        self.host = host;
    }

    /// Does what is to be done now. Blocks, a few milliseconds for each new namespace.
    pub fn look(&mut self, found: &Found, anchors: &Anchors, ledger: &Ledger) -> Vec<News> {
        let now = Instant::now();
        let round = self.rounds.is_none_or(|last| now - last >= ROUND);
        if round {
            self.rounds = Some(now);
        }
        let mut news = Vec::new();
        for (id, dwellers) in &found.mounts {
            let id = namespace_of(*id);
            if self.homes.contains(&id) {
                if ledger.installation(id).is_none() {
                    ledger.installed(id, self.host.clone());
                }
                continue;
            }
            let known = self.places.iter().any(|(place, known)| {
                let here = place.namespace == (id.number, id.ino);
                here && known.is_tried()
                    && dwellers
                        .iter()
                        .any(|dweller| known.processes.contains(&dweller.process))
            });
            if round || !known {
                self.note(id, dwellers, now);
            }
        }
        let mut changed = Vec::new();
        let compared = self.due(round, now);
        for (id, place) in &mut self.places {
            if place.seen < now && round && !found.truncated || place.processes.is_empty() {
                continue;
            }
            let unsettled = self.home_roots.contains(&id.root) && now - place.since < UNSETTLED;
            if unsettled || place.retry.is_some_and(|(at, _)| now < at) {
                continue;
            }
            let compare = compared.contains(id);
            if let Some(outcome) = place.tend(*id, &mut self.works, anchors, round, compare, now) {
                changed.push(id.namespace);
                news.push(place.news(*id, outcome));
            }
        }
        if round {
            for id in self.deserted(found, now) {
                if let Some(mut place) = self.places.remove(&id) {
                    let alone = !self.places.keys().any(|other| other.namespace == id.namespace);
                    place.leave(id, &mut self.works, alone);
                    changed.push(id.namespace);
                    news.push(place.news(id, Outcome::Left));
                }
            }
            if !self.swept && now - self.began > 2 * LINGER && !found.truncated {
                self.swept = true;
                let known = |id: &PlaceId| self.places.contains_key(id);
                cleanup::sweep(&mut self.works, &known);
            }
        }
        for namespace in changed {
            self.enter(namespace, ledger);
        }
        news
    }

    /// Notes which roots the processes of a namespace have.
    fn note(&mut self, id: MntnsId, dwellers: &[Seen], now: Instant) {
        for dweller in dwellers {
            let Some(root) = root_of(Path::new(&format!("/proc/{}/root", dweller.process))) else {
                continue;
            };
            let id = PlaceId {
                namespace: (id.number, id.ino),
                root,
            };
            if !self.places.contains_key(&id) && self.places.len() >= limits::TRUST_PLACES {
                continue;
            }
            let place = self
                .places
                .entry(id)
                .or_insert_with(|| Place::new(&dweller.cgroup, now));
            place.saw(dweller.process, id, now);
        }
    }

    /// Whose originals are compared in this round.
    fn due(&mut self, round: bool, now: Instant) -> Vec<PlaceId> {
        if !round {
            return Vec::new();
        }
        let due = |place: &Place| place.compared.is_none_or(|last| now - last >= COMPARE);
        let mut due: Vec<_> = self
            .places
            .iter()
            .filter(|(_, place)| due(place))
            .map(|(id, place)| (place.compared, *id))
            .collect();
        due.sort_unstable();
        due.into_iter().take(COMPARED).map(|(_, id)| id).collect()
    }

    fn deserted(&self, found: &Found, now: Instant) -> Vec<PlaceId> {
        if found.truncated {
            return Vec::new();
        }
        let gone = self.places.iter().filter(|(_, place)| now - place.seen > LINGER);
        gone.map(|(id, _)| *id).collect()
    }

    /// Tells the ledger what is in a namespace now.
    fn enter(&self, namespace: (u64, u64), ledger: &Ledger) {
        let id = MntnsId {
            number: namespace.0,
            ino: namespace.1,
        };
        let mut all: Option<Installation> = None;
        for (_, place) in self.places.iter().filter(|(id, _)| id.namespace == namespace) {
            let Some(one) = place.installation() else { continue };
            match &mut all {
                None => all = Some(one),
                Some(all) => {
                    all.at = all.at.max(one.at);
                    all.roots = all.roots.intersection(&one.roots).cloned().collect();
                    all.stores.extend(one.stores);
                    all.unreached.extend(one.unreached);
                }
            }
        }
        match all {
            Some(all) => ledger.installed(id, all),
            None => ledger.removed(id),
        }
    }
}

/// The agent's own mount namespace, and that of the first process, which is the host's where it can be seen.
fn homes() -> Vec<MntnsId> {
    let ids = ["/proc/self/ns/mnt", "/proc/1/ns/mnt"];
    let ids = ids.into_iter().filter_map(|path| MountsId::of(path).ok());
    ids.map(namespace_of).collect()
}

/// In the directory of copies: the machine's own stores got the CA from an agent.
pub const HOST_MARK: &str = "host";

/// The machine's root: this process' own, or that of the first process where it can be seen.
///
/// # Errors
/// When it cannot be opened.
pub fn host_root() -> Result<super::Root, super::Error> {
    let [own, first] = ["/proc/self/ns/mnt", "/proc/1/ns/mnt"].map(|path| MountsId::of(path).ok());
    let elsewhere = first.is_some() && own != first;
    super::Root::open(Path::new(if elsewhere { "/proc/1/root" } else { "/" }))
}

/// Whether an agent that had `dir` put the CA into the machine's own stores.
pub fn is_in_host(dir: &Path) -> bool {
    dir.join(HOST_MARK).exists()
}

/// Takes it out of them again; what others have hidden it in is `left`, and stays marked.
///
/// # Errors
/// When a store cannot be written, or somebody else is at work there.
pub fn leave_host(dir: &Path, root: &super::Root) -> Result<super::Removed, super::Error> {
    let removed = super::uninstall(root)?;
    if removed.left.is_empty() {
        let path = dir.join(HOST_MARK);
        fs::remove_file(&path).map_err(|source| super::Error::Write { path, source })?;
    }
    Ok(removed)
}

/// The same, as the ledger has it.
pub fn namespace_of(id: MountsId) -> MntnsId {
    id.into()
}

fn root_of(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Says of a whole namespace that nothing could be done.
pub fn nothing(reason: impl Into<String>) -> Installation {
    Installation {
        at: clock::since_boot(),
        unreached: vec![Unreached {
            path: "/".into(),
            why: reason.into(),
        }],
        ..Installation::default()
    }
}

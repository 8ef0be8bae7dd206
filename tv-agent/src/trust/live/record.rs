//! What was put into one place, on disk: a successor, or `cleanup`, finds it there.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::mountinfo::{Mounted, Ours};
use super::runtimes::Wanted;
use crate::trust::{StoreKind, Unreached};

const NAME: &str = "record.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The directory of its copies, beside the record. Counts up.
    pub(super) generation: u64,
    /// Everything is mounted that could be.
    pub(super) whole: bool,
    /// Since boot, as in [`crate::trust::Installation`].
    pub(super) at: Duration,
    /// SHA-256 of those that were to be brought there, and of those that are there.
    pub(super) anchors: BTreeSet<String>,
    pub(super) roots: BTreeSet<String>,
    pub(super) stores: BTreeSet<StoreKind>,
    pub(super) unreached: Vec<Unreached>,
    pub(super) mounts: Vec<Line>,
    /// What the copies were made of, and its digest then.
    pub(super) watched: Vec<(PathBuf, String)>,
    pub(super) wanted: Wanted,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Inside the root.
    pub(super) target: PathBuf,
    /// Name in the generation's directory.
    pub(super) copy: PathBuf,
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
    /// As /proc/PID/mountinfo numbers it; None where it could not be mounted.
    pub(super) id: Option<u64>,
}

impl Record {
    /// None when there is none that can be understood.
    pub(super) fn read(place: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(place.join(NAME)).ok()?).ok()
    }

    /// Whole or not at all.
    pub(super) fn write(&self, place: &Path) -> io::Result<()> {
        let new = place.join("record.new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, place.join(NAME))
    }

    /// Whether all that it names is there and nothing lies over it. `mounts` are those that a process with this root
    /// sees, `ours` those of this place.
    pub(super) fn holds(&self, mounts: &[Mounted], ours: &Ours) -> bool {
        let generation = ours.below(Path::new(&self.generation.to_string()));
        let mut wanted = self.mounts.iter().filter(|line| line.id.is_some());
        self.whole
            && wanted.all(|line| {
                let here = || mounts.iter().filter(|mount| mount.point == line.target);
                here().any(|mount| {
                    let covered = here().any(|other| other.parent == mount.id);
                    !covered && generation.is(mount) && Some(mount.id) == line.id
                })
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::live::mountinfo::parse;

    fn record() -> Record {
        Record {
            generation: 2,
            whole: true,
            at: Duration::from_millis(1500),
            anchors: BTreeSet::from(["ab".to_owned()]),
            roots: BTreeSet::from(["ab".to_owned()]),
            stores: BTreeSet::from([StoreKind::Directory]),
            unreached: Vec::new(),
            mounts: [("/etc/ssl/certs", "certs-0", Some(90)), ("/gone", "b.pem", None)]
                .map(|(target, copy, id)| Line {
                    target: target.into(),
                    copy: copy.into(),
                    before: None,
                    after: Some("cd".to_owned()),
                    id,
                })
                .into(),
            watched: vec![("/etc/ssl/certs".into(), "ef".to_owned())],
            wanted: Wanted::default(),
        }
    }

    #[test]
    fn a_record_survives_its_file_and_a_torn_one_is_none() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(scratch.path()), None);
        record().write(scratch.path()).unwrap();
        assert_eq!(Record::read(scratch.path()), Some(record()));
        fs::write(scratch.path().join(NAME), "{\"generation\":").unwrap();
        assert_eq!(Record::read(scratch.path()), None);
        assert!(record().write(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn what_was_unmounted_covered_or_left_by_another_does_not_hold() {
        const RUN: &str = "25 22 0:23 / /run rw - tmpfs t rw\n";
        let mine = "90 22 0:23 /t/p/2/certs-0 /etc/ssl/certs ro - tmpfs t rw\n";
        let holds = |text: &str| {
            let mounts = parse(format!("{RUN}{text}").as_bytes());
            let ours = Ours::of(&mounts, 25, Path::new("/run/t/p")).unwrap();
            record().holds(&mounts, &ours)
        };
        assert!(holds(mine));
        assert!(!holds(""), "unmounted");
        assert!(!holds(&mine.replace("90 ", "91 ")), "somebody else's");
        assert!(!holds(&mine.replace("/p/2/", "/p/1/")), "an older one");
        let cover = "95 90 0:99 / /etc/ssl/certs rw - tmpfs t rw\n";
        assert!(!holds(&format!("{mine}{cover}")), "covered");
        let torn = Record {
            whole: false,
            ..record()
        };
        let mounts = parse(format!("{RUN}{mine}").as_bytes());
        let ours = Ours::of(&mounts, 25, Path::new("/run/t/p")).unwrap();
        assert!(!torn.holds(&mounts, &ours));
    }
}

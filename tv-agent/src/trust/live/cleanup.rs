//! Taking everything away: from a place that nobody enrolled lives in any more, and all that agents that are gone
//! have left.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use super::place::remove;
use super::*;
use crate::https::causes;

/// What [`cleanup`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub mounts: usize,
    /// Copies and records of namespaces.
    pub directories: usize,
    /// Mounts that somebody has covered, or in namespaces that could not be entered.
    pub left: usize,
}

/// Takes away all that was mounted from `dir`, in every namespace, and what lies in `dir`.
///
/// # Errors
/// [`Error::Locked`] while an agent uses it; when the directory cannot be looked at. One that is not there is no error.
pub fn cleanup(dir: &Path, program: &Path) -> Result<Cleaned, Error> {
    if !dir.exists() {
        return Ok(Cleaned::default());
    }
    let mut works = Works::open(dir, program)?;
    let mut cleaned = Cleaned::default();
    let mut seen = BTreeSet::new();
    let homes = homes();
    for process in processes() {
        let Ok(id) = MountsId::of(&format!("/proc/{process}/ns/mnt")) else {
            continue;
        };
        if !seen.insert((id.number, id.ino)) || homes.contains(&namespace_of(id)) {
            continue;
        }
        // A process behind a chroot sees only some of the mounts: the helper looks at all of them.
        let all = works.ours.clone();
        match unmount(process, &mut works, &all) {
            Ok((gone, left)) => {
                cleaned.mounts += gone;
                cleaned.left += left;
            }
            Err(error) => {
                let mounts = mounts_of(&format!("/proc/{process}/mountinfo")).unwrap_or_default();
                let left = mounts.iter().filter(|mount| all.is(mount)).count();
                if left > 0 {
                    tracing::warn!(process, "mounts of the CA are left: {}", causes(&error));
                    cleaned.left += left;
                }
            }
        }
    }
    if cleaned.left == 0 {
        for (_, path) in recorded(&works.dir) {
            remove(&path);
            cleaned.directories += 1;
        }
    }
    Ok(cleaned)
}

/// Takes away what earlier agents have left in places that are not `known`.
pub(super) fn sweep(works: &mut Works, known: &dyn Fn(&PlaceId) -> bool) {
    for (id, _) in recorded(&works.dir) {
        if !known(&id) {
            let ours = works.ours(id);
            leave(id, works, &ours, &[]);
        }
    }
}

/// Takes `ours` out of the namespace of a place, which one of `processes` may live in, and removes the copies.
pub(super) fn leave(id: PlaceId, works: &mut Works, ours: &Ours, processes: &[i32]) {
    let lives = |process: &i32| {
        MountsId::of(&format!("/proc/{process}/ns/mnt"))
            .is_ok_and(|id_| (id_.number, id_.ino) == id.namespace)
    };
    let one = processes.iter().copied().find(|process| lives(process));
    if let Some(process) = one.or_else(|| self::processes().into_iter().find(lives)) {
        let done = unmount(process, works, ours);
        if let Err(error) = &done
            && lives(&process)
        {
            tracing::warn!(process, "mounts of the CA are left: {}", causes(error));
            return;
        }
    }
    remove(&works.directory(id));
}

fn unmount(process: i32, works: &mut Works, ours: &Ours) -> Result<(usize, usize), Error> {
    let at = Entrance::of(process).map_err(|source| Error::Io {
        what: "open",
        path: format!("/proc/{process}/ns/mnt").into(),
        source,
    })?;
    works.hand.unmount(at.namespace.as_fd(), ours, None)
}

/// The places that have a directory.
fn recorded(dir: &Path) -> Vec<(PlaceId, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((PlaceId::parse(entry.file_name().to_str()?)?, entry.path())))
        .collect()
}

/// All that /proc shows.
fn processes() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .take(limits::DISCOVERY_PROCESSES)
        .collect()
}

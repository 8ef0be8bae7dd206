//! Stage 4: who connects. The cgroup id that the kernel half recorded becomes a path, and a path an identity.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};

use crate::redirect::Recorded;

mod identity;

pub use identity::Identity;

/// How deep below an enrolled cgroup a caller is looked for (kubepods/burstable/pod/container and some).
const DEPTH: usize = 16;
/// Directories looked at for one unknown id.
const VISITS: usize = 20_000;
const KNOWN: u64 = 16 * 1024;

/// The caller of one connection, as the kernel saw it at connect().
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    pub cgroup_id: u64,
    /// Path below the cgroup2 mount, with a leading slash; None when the cgroup is gone or out of sight.
    pub cgroup: Option<Arc<str>>,
    pub tgid: u32,
    pub uid: u32,
}

impl Workload {
    /// Unit, pod and container, as far as the cgroup's path says them.
    pub fn identity(&self) -> Identity {
        self.cgroup.as_deref().map(Identity::of).unwrap_or_default()
    }
}

/// Resolves cgroup ids to paths by walking the enrolled subtrees, and remembers them for a while.
pub struct Workloads {
    mount: PathBuf,
    roots: arc_swap::ArcSwap<Vec<PathBuf>>,
    known: moka::sync::Cache<u64, Option<Arc<str>>>,
}

impl Workloads {
    /// `mount` is the cgroup2 mount point; `roots` are the enrolled cgroups' directories below it.
    pub fn new(mount: PathBuf, roots: Vec<PathBuf>) -> Self {
        // An id is never used again while the machine runs (64-bit kernfs ids), so a stale entry names a
        // cgroup that is gone, never another one. The life is short because a miss may turn into a hit.
        let known = moka::sync::Cache::builder()
            .max_capacity(KNOWN)
            .time_to_live(Duration::from_secs(60))
            .build();
        Self {
            mount,
            roots: arc_swap::ArcSwap::from_pointee(roots),
            known,
        }
    }

    pub fn set_roots(&self, roots: Vec<PathBuf>) {
        self.roots.store(Arc::new(roots));
        self.known.invalidate_all();
    }

    /// The enrolled cgroups' directories.
    pub fn roots(&self) -> Arc<Vec<PathBuf>> {
        self.roots.load_full()
    }

    /// The caller behind a record.
    pub fn identify(&self, recorded: &Recorded) -> Workload {
        let id = recorded.cgroup_id;
        let cgroup = self.known.get_with(id, || {
            self.roots
                .load()
                .iter()
                .find_map(|root| find(root, id))
                .map(|dir| self.name(&dir))
        });
        Workload {
            cgroup_id: id,
            cgroup,
            tgid: recorded.tgid,
            uid: recorded.uid,
        }
    }

    fn name(&self, dir: &Path) -> Arc<str> {
        let below = dir.strip_prefix(&self.mount).unwrap_or(dir);
        format!("/{}", below.display()).into()
    }
}

/// The directory below `root` (or `root` itself) whose inode is `id`: a cgroup's id is its inode number.
fn find(root: &Path, id: u64) -> Option<PathBuf> {
    if std::fs::metadata(root).ok()?.ino() == id {
        return Some(root.to_owned());
    }
    let mut todo = vec![(root.to_owned(), 0)];
    let mut visits = 0;
    while let Some((dir, depth)) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries
            .flatten()
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        {
            if entry.ino() == id {
                return Some(entry.path());
            }
            visits += 1;
            if visits > VISITS {
                return None;
            }
            if depth < DEPTH {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::OriginAddr;

    fn recorded(cgroup_id: u64) -> Recorded {
        Recorded {
            origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
            cgroup_id,
            tgid: 1,
            uid: 0,
        }
    }

    #[test]
    fn an_id_becomes_a_path_below_the_mount() {
        let mount = std::env::temp_dir().join(format!("tv-workload-{}", std::process::id()));
        let leaf = mount.join("kubepods.slice/pod1/container");
        std::fs::create_dir_all(&leaf).unwrap();
        let id = std::fs::metadata(&leaf).unwrap().ino();
        let workloads = Workloads::new(mount.clone(), vec![mount.join("kubepods.slice")]);
        let found = workloads.identify(&recorded(id));
        assert_eq!(found.cgroup.as_deref(), Some("/kubepods.slice/pod1/container"));
        assert_eq!(workloads.identify(&recorded(u64::MAX)).cgroup, None);
        // Outside the enrolled roots nothing is found, although it exists.
        workloads.set_roots(vec![mount.join("other")]);
        assert_eq!(workloads.identify(&recorded(id)).cgroup, None);
        std::fs::remove_dir_all(&mount).unwrap();
    }
}

//! Stage 4: who connects. The cgroup id that the kernel half recorded becomes a path, and a path an identity.

use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::addr::{NetnsCookie, PeerAddr};
use crate::flows::Flow;
use crate::netns::Bell;
use crate::netns::MountsId;
use crate::redirect::{OriginLookup, Recorded};

mod identity;
mod pods;
mod process;
mod users;

pub use identity::{Identity, is_pod_uid};
pub use pods::{DEFAULT_PREFIX, Directory, NoFacts, Pod, PodFacts};
pub use process::{Opened, Process};
pub use users::uid_of;

/// How deep below an enrolled cgroup a caller is looked for (kubepods/burstable/pod/container and some).
const DEPTH: usize = 16;
/// Directories looked at for one unknown id.
const VISITS: usize = 20_000;
const KNOWN: u64 = 16 * 1024;
/// How long an id is remembered that was found, and one that was not: what was out of sight may come into it.
const FOUND: Duration = Duration::from_secs(60);
const MISSED: Duration = Duration::from_secs(1);

/// The caller of one connection, as the kernel saw it at connect().
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Workload {
    pub cgroup_id: u64,
    /// None when the cgroup is gone or out of sight: then nothing is known of the caller but its ids.
    pub cgroup: Option<Arc<Cgroup>>,
    /// What was known of its pod when it connected. Never sent from one process to another: see [`Workload::of_pod`].
    #[serde(skip)]
    pub pod: Option<Arc<Pod>>,
    pub tgid: u32,
    /// None only where nobody connected, and one is imagined.
    pub uid: Option<u32>,
    /// Command name, as long as the process is the one that connected.
    pub process: Option<Arc<str>>,
    /// When that process started, clock ticks since boot: with its id, what tells it from all others.
    pub started: Option<u64>,
    /// The mount namespace that it lived in then.
    pub mounts: Option<MountsId>,
    /// Name of `uid` on the host; a container's users are its own.
    pub user: Option<Arc<str>>,
}

/// Who connected, and where to.
pub type Call = (Recorded, Workload);

/// Tells who is behind an accepted connection; in another process where this one may not look.
pub trait Callers: Send + Sync {
    /// Takes the record of the connection from `peer`; the facts of pods are not asked. None: nobody recorded it, so it
    /// must be closed.
    fn take<'a>(
        &'a self,
        netns: NetnsCookie,
        peer: PeerAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Option<Call>>> + Send + 'a>>;
}

/// Looks here.
pub struct Recognised {
    pub origins: Arc<dyn OriginLookup>,
    pub workloads: Arc<Workloads>,
}

impl Recognised {
    /// As [`Callers::take`].
    ///
    /// # Errors
    /// When the table of records cannot be read.
    pub fn take_now(&self, netns: NetnsCookie, peer: PeerAddr) -> io::Result<Option<Call>> {
        let recorded = self.origins.take(netns, peer)?;
        Ok(recorded.map(|recorded| (recorded, self.workloads.identify(&recorded))))
    }
}

impl Callers for Recognised {
    fn take<'a>(
        &'a self,
        netns: NetnsCookie,
        peer: PeerAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Option<Call>>> + Send + 'a>> {
        Box::pin(std::future::ready(self.take_now(netns, peer)))
    }
}

impl Workload {
    /// The same with what is known of its pod.
    #[must_use]
    pub fn of_pod(mut self, pods: &dyn PodFacts) -> Self {
        let uid = self
            .cgroup
            .as_deref()
            .and_then(|cgroup| cgroup.identity.pod.as_deref());
        self.pod = uid.and_then(|uid| pods.of(uid));
        self
    }

    /// Tells the record of a connection who it is.
    pub fn introduce(&self, flow: &mut Flow) {
        if let Some(cgroup) = self.cgroup.as_deref() {
            flow.cgroup = Some(cgroup.path.clone());
            let Identity { unit, pod, container } = cgroup.identity.clone();
            (flow.unit, flow.pod, flow.container) = (unit, pod, container);
        }
        if let Some(pod) = self.pod.as_deref() {
            flow.pod_namespace = Some(pod.namespace.clone());
            flow.pod_name = Some(pod.name.clone());
            flow.service_account = Some(pod.service_account.clone());
            let id = flow.container.as_deref();
            flow.container_name = id.and_then(|id| pod.containers.get(id)).cloned();
        }
        (flow.tgid, flow.uid) = (self.tgid, self.uid.unwrap_or_default());
        flow.process = self.process.as_deref().map(str::to_owned);
        flow.user = self.user.as_deref().map(str::to_owned);
    }
}

/// A cgroup and what its path says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Below the cgroup2 mount, with a leading slash.
    pub path: String,
    pub identity: Identity,
}

impl Cgroup {
    pub fn at(path: impl Into<String>) -> Self {
        let path = path.into();
        let identity = Identity::of(&path);
        Self { path, identity }
    }
}

/// Resolves cgroup ids to paths by walking the enrolled subtrees, and remembers them for a while.
pub struct Workloads {
    mount: PathBuf,
    roots: arc_swap::ArcSwap<Vec<PathBuf>>,
    known: moka::sync::Cache<u64, Option<Arc<Cgroup>>>,
    users: users::Users,
    /// Rings when the roots are others.
    bell: Bell,
}

impl Workloads {
    /// `mount` is the cgroup2 mount point; `roots` are the enrolled cgroups' directories below it.
    pub fn new(mount: PathBuf, roots: Vec<PathBuf>) -> Self {
        // An id is never used again while the machine runs (64-bit kernfs ids), not even by a cgroup of the same
        // name, so a stale entry names a cgroup that is gone, never another one.
        let known = moka::sync::Cache::builder()
            .max_capacity(KNOWN)
            .expire_after(Life)
            .build();
        Self {
            mount,
            roots: arc_swap::ArcSwap::from_pointee(roots),
            known,
            users: users::Users::new(users::PASSWD.into()),
            bell: Bell::new(),
        }
    }

    pub fn set_roots(&self, roots: Vec<PathBuf>) {
        self.roots.store(Arc::new(roots));
        self.known.invalidate_all();
        self.bell.ring();
    }

    /// As [`set_roots`](Self::set_roots), when they change often: what was found stays found.
    pub fn follow_roots(&self, roots: Vec<PathBuf>) {
        if **self.roots.load() != roots {
            self.roots.store(Arc::new(roots));
            self.bell.ring();
        }
    }

    /// Rings when the roots are others.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// The enrolled cgroups' directories.
    pub fn roots(&self) -> Arc<Vec<PathBuf>> {
        self.roots.load_full()
    }

    /// The caller behind a record, without the facts of its pod.
    pub fn identify(&self, recorded: &Recorded) -> Workload {
        let id = recorded.cgroup_id;
        let cgroup = self.known.get_with(id, || {
            let roots = self.roots.load();
            let found = roots.iter().find_map(|root| find(root, id));
            found.map(|dir| Arc::new(Cgroup::at(self.name(&dir))))
        });
        let identity = cgroup.as_deref().map(|cgroup| &cgroup.identity);
        let process = cgroup
            .as_deref()
            .and_then(|cgroup| Process::that_connected(recorded.tgid, &cgroup.path, recorded.connected));
        let contained = identity.is_none_or(|i| i.pod.is_some() || i.container.is_some());
        Workload {
            cgroup_id: id,
            pod: None,
            tgid: recorded.tgid,
            uid: Some(recorded.uid),
            started: process.as_ref().map(|(process, _)| process.started),
            mounts: process.as_ref().and_then(|(_, mounts)| *mounts),
            process: process.map(|(process, _)| process.command.into()),
            user: (!contained).then(|| self.users.name(recorded.uid)).flatten(),
            cgroup,
        }
    }

    fn name(&self, dir: &Path) -> String {
        let below = dir.strip_prefix(&self.mount).unwrap_or(dir);
        format!("/{}", below.display())
    }
}

struct Life;

impl moka::Expiry<u64, Option<Arc<Cgroup>>> for Life {
    fn expire_after_create(&self, _: &u64, value: &Option<Arc<Cgroup>>, _: Instant) -> Option<Duration> {
        Some(if value.is_some() { FOUND } else { MISSED })
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
            tgid: u32::MAX,
            uid: 0,
            connected: Duration::ZERO,
        }
    }

    fn path(workloads: &Workloads, id: u64) -> Option<String> {
        let found = workloads.identify(&recorded(id));
        found.cgroup.map(|cgroup| cgroup.path.clone())
    }

    #[test]
    fn an_id_becomes_a_path_below_the_mount() {
        let mount = tempfile::tempdir().unwrap();
        let leaf = mount.path().join("kubepods.slice/pod1/container");
        std::fs::create_dir_all(&leaf).unwrap();
        let id = std::fs::metadata(&leaf).unwrap().ino();
        let root = mount.path().join("kubepods.slice");
        let workloads = Workloads::new(mount.path().into(), vec![root]);
        assert_eq!(
            path(&workloads, id).as_deref(),
            Some("/kubepods.slice/pod1/container")
        );
        assert_eq!(path(&workloads, u64::MAX), None);
        // Outside the enrolled roots nothing is found, although it exists.
        workloads.set_roots(vec![mount.path().join("other")]);
        assert_eq!(path(&workloads, id), None);
    }

    #[test]
    fn the_facts_of_a_pod_and_the_name_of_a_user_are_found() {
        struct Table;
        impl PodFacts for Table {
            fn of(&self, uid: &str) -> Option<Arc<Pod>> {
                Some(Arc::new(Pod {
                    namespace: "shop".into(),
                    name: uid.into(),
                    service_account: "cart".into(),
                    labels: Default::default(),
                    annotations: Default::default(),
                    containers: Default::default(),
                    prefix: DEFAULT_PREFIX.into(),
                }))
            }
        }
        const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";
        let mount = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let leaf = mount.path().join(name);
            std::fs::create_dir_all(&leaf).unwrap();
            std::fs::metadata(&leaf).unwrap().ino()
        };
        let (pod, unit) = (make(&format!("kubepods/pod{UID}")), make("billing.service"));
        let workloads = Workloads::new(mount.path().into(), vec![mount.path().into()]);
        let found = workloads.identify(&recorded(pod)).of_pod(&Table);
        assert_eq!(found.pod.unwrap().name, UID);
        assert_eq!(found.user, None, "root of a pod is not the host's");
        let found = workloads.identify(&recorded(unit)).of_pod(&Table);
        assert_eq!((found.pod, found.user.as_deref()), (None, Some("root")));
        assert_eq!(found.process, None);
    }

    #[test]
    fn a_miss_is_forgotten_soon() {
        let life = |value| moka::Expiry::expire_after_create(&Life, &1, &value, Instant::now()).unwrap();
        assert!(life(None) < life(Some(Arc::new(Cgroup::at("/a")))));
    }
}

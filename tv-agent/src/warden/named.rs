//! What the configuration names, and the data path may therefore have: files, sets of keys, hosts to sign for.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::addr::HostName;
use crate::audit;
use crate::clock;
use crate::config::Config;
use crate::policy::Routes;
use crate::sign::keyset::Generate;
use crate::sign::{Due, Source, Store};
use crate::workload::is_pod_uid;

/// Of one configuration.
pub struct Named {
    files: BTreeSet<PathBuf>,
    /// A directory with a file for each pod.
    pods: Option<PathBuf>,
    generated: HashMap<String, Generate>,
    keys_dir: PathBuf,
    /// From which nothing is given, whatever names it.
    ca_dir: PathBuf,
    routes: Routes,
    audit: Option<PathBuf>,
}

impl Named {
    /// `read`: what its loading has read. The rest of what it needs is read by who puts it in force.
    pub fn of(config: &Config, read: BTreeSet<PathBuf>) -> Self {
        let mut files = read;
        files.extend(config.extra_roots.iter().cloned());
        files.extend(
            config
                .vaults
                .values()
                .flat_map(|vault| vault.extra_roots.iter().cloned()),
        );
        files.extend(
            config
                .verifiers
                .values()
                .flat_map(|verifier| verifier.extra_roots.iter().cloned()),
        );
        files.extend(
            config
                .shared_cache
                .iter()
                .flat_map(|cache| cache.extra_roots.iter().cloned()),
        );
        files.extend(config.traces.iter().flat_map(|(_, extra)| extra.iter().cloned()));
        let mut generated = HashMap::new();
        for set in &config.keysets {
            match &set.source {
                Source::Generate { how, .. } => {
                    files.insert(Store::new(&config.keysets_dir, &set.name).path);
                    generated.insert(set.name.to_string(), *how);
                }
                Source::File { path } => drop(files.insert(path.clone())),
                Source::Url { extra_roots, .. } => files.extend(extra_roots.iter().cloned()),
            }
        }
        if let Some(kubernetes) = &config.kubernetes {
            files.extend(kubernetes.server.files());
        }
        let audit = config.audit.as_ref().and_then(|audit| match &audit.to {
            audit::Destination::File(path) => Some(path.clone()),
            audit::Destination::Stdout => None,
        });
        Self {
            files,
            pods: config.intercept.pod_facts.clone(),
            generated,
            keys_dir: config.keysets_dir.clone(),
            ca_dir: config.ca_dir.clone(),
            routes: Routes::new(config.routes.clone()),
            audit,
        }
    }

    fn names(&self, path: &Path) -> bool {
        self.files.contains(path) || self.pods.as_deref().is_some_and(|pods| is_of_pod(path, pods))
    }

    /// Opened first, so that it is judged by where it really lies.
    fn open(&self, path: &Path) -> io::Result<File> {
        let mut how = OpenOptions::new();
        // A pipe without a writer must not hold us.
        let file = how.read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let lies_at = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        let ca = fs::canonicalize(&self.ca_dir).unwrap_or_else(|_| self.ca_dir.clone());
        if lies_at.starts_with(&ca) || path.starts_with(&self.ca_dir) {
            return Err(refused("it lies in the CA's directory"));
        }
        Ok(file)
    }
}

fn is_of_pod(path: &Path, pods: &Path) -> bool {
    let uid = path.file_stem().and_then(|stem| stem.to_str());
    let kind = path.extension().and_then(|kind| kind.to_str());
    path.parent() == Some(pods)
        && uid.is_some_and(is_pod_uid)
        && matches!(kind, Some("yaml" | "json"))
        // `parent` and the like look past what is not normal.
        && path == pods.join(path.file_name().unwrap_or_default())
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why.to_owned())
}

/// The configuration in force, and the one that is being prepared. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Naming(Arc<Mutex<Both>>);

type Both = (Arc<Named>, Option<Arc<Named>>);

impl Naming {
    pub fn new(named: Named) -> Self {
        Self(Arc::new(Mutex::new((Arc::new(named), None))))
    }

    /// Until one of the two below, what either names may be had.
    pub fn prepare(&self, named: Named) {
        self.lock().1 = Some(Arc::new(named));
    }

    pub fn install(&self) {
        let mut both = self.lock();
        if let Some(named) = both.1.take() {
            both.0 = named;
        }
    }

    pub fn abandon(&self) {
        self.lock().1 = None;
    }

    /// # Errors
    /// When no configuration names it, and those of open(2).
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        match self.all().into_iter().find(|named| named.names(path)) {
            Some(named) => named.open(path),
            None => Err(refused("the configuration does not name it")),
        }
    }

    /// # Errors
    /// When no configuration names it, or no key can be made.
    pub(super) fn make_key(&self, set: &str, due: Due) -> io::Result<()> {
        let mut all = self.all().into_iter();
        let found = all.find_map(|named| Some((*named.generated.get(set)?, named.keys_dir.clone())));
        let (how, dir) = found.ok_or_else(|| refused("the configuration does not name it"))?;
        let made = Store::new(&dir, set).change(&how, clock::unix_now().as_secs(), due);
        made.map(drop)
            .map_err(|error| io::Error::other(crate::https::causes(&error)))
    }

    pub(super) fn routes(&self, host: &HostName) -> bool {
        self.all().iter().any(|named| named.routes.names(host))
    }

    /// Of the configuration that the agent was started with; a reload does not change it.
    pub fn audit(&self) -> Option<PathBuf> {
        self.lock().0.audit.clone()
    }

    fn all(&self) -> Vec<Arc<Named>> {
        let both = self.lock();
        std::iter::once(both.0.clone()).chain(both.1.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Both> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

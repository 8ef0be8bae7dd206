//! What is needed to work in a place: the directory of the copies, locked, and the helper.

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::*;

/// One root that processes of one mount namespace have: most have one, a chroot makes another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PlaceId {
    pub(super) namespace: (u64, u64),
    pub(super) root: (u64, u64),
}

/// What is needed to work in a place.
pub(super) struct Works {
    pub(super) dir: PathBuf,
    pub(super) hand: Hand,
    pub(super) ours: Ours,
    _lock: Flock<File>,
}

impl Works {
    pub(super) fn open(dir: &Path, program: &Path) -> Result<Self, Error> {
        let failed = |what| {
            let path = dir.to_owned();
            move |source| Error::Io { what, path, source }
        };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .map_err(failed("make"))?;
        let dir = dir.canonicalize().map_err(failed("find"))?;
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join("lock"))
            .map_err(failed("write to"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Locked { dir: dir.clone() },
            errno => failed("lock")(errno.into()),
        })?;
        let ours = ours(&dir)?;
        Ok(Self {
            dir,
            hand: Hand::new(program),
            ours,
            _lock: lock,
        })
    }

    pub(super) fn directory(&self, id: PlaceId) -> PathBuf {
        self.dir.join(id.name())
    }

    /// Those of one place.
    pub(super) fn ours(&self, id: PlaceId) -> Ours {
        self.ours.below(Path::new(&id.name()))
    }
}

impl PlaceId {
    pub(super) fn name(self) -> String {
        let ((dev, ino), (root_dev, root_ino)) = (self.namespace, self.root);
        format!("{dev}-{ino}-{root_dev}-{root_ino}")
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        let numbers: Option<Vec<u64>> = name.split('-').map(|part| part.parse().ok()).collect();
        match numbers?[..] {
            [dev, ino, root_dev, root_ino] => Some(Self {
                namespace: (dev, ino),
                root: (root_dev, root_ino),
            }),
            _ => None,
        }
    }
}

/// The mounts below `dir`, an absolute path without symlinks.
pub(super) fn ours(dir: &Path) -> Result<Ours, Error> {
    let failed = |source| Error::Io {
        what: "look at",
        path: dir.to_owned(),
        source,
    };
    let file = File::open(dir).map_err(failed)?;
    let info = fs::read(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).map_err(failed)?;
    let mounts = mounts_of("/proc/self/mountinfo").map_err(failed)?;
    mount_id(&info)
        .and_then(|id| Ours::of(&mounts, id, dir))
        .ok_or_else(|| Error::NoMount { dir: dir.to_owned() })
}

/// The line `mnt_id:` of /proc/PID/fdinfo (proc_pid_fdinfo(5)).
pub(super) fn mount_id(fdinfo: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(fdinfo).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line?.trim().parse().ok()
}

pub(super) fn mounts_of(path: &str) -> io::Result<Vec<Mounted>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(limits::MOUNTINFO_BYTES)
        .read_to_end(&mut text)?;
    Ok(mountinfo::parse(&text))
}

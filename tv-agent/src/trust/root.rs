//! A root file system: this machine's, an unpacked image, or the one that a process lives in.
//!
//! It is opened once. Everything below is reached through that descriptor, by openat2 with RESOLVE_IN_ROOT (Linux
//! 5.6): no symlink leads out, and no path of this machine is mistaken for one inside.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use sha2::{Digest as _, Sha256};

use super::Error;
use crate::encode::hex;
use crate::limits;

pub struct Root {
    fd: OwnedFd,
    /// As /proc/self/fd calls the root; the same beginning stands before everything that is found inside.
    prefix: PathBuf,
}

/// Something inside a root, symlinks followed.
pub struct Found {
    pub(super) file: File,
    pub metadata: Metadata,
    /// Absolute, inside the root, free of symlinks.
    pub path: PathBuf,
}

/// An entry of a directory, symlinks not followed.
pub(super) struct Entry {
    pub(super) name: OsString,
    /// Where it leads, when it is a symlink.
    pub(super) link: Option<PathBuf>,
}

impl Root {
    /// # Errors
    /// When `path` is no directory that can be opened.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let unreadable = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| unreadable(errno.into()))?;
        let prefix = fs::read_link(proc_path(&fd)).map_err(unreadable)?;
        Ok(Self { fd, prefix })
    }

    /// The root that process `pid` of /proc has now.
    ///
    /// # Errors
    /// When there is no such process, or its root may not be looked at.
    pub fn of_process(pid: u32) -> Result<Self, Error> {
        Self::open(Path::new(&format!("/proc/{pid}/root")))
    }

    /// Whether it is the root that this process has itself.
    ///
    /// # Errors
    /// Those of stat(2).
    pub(super) fn is_own(&self) -> Result<bool, Error> {
        let unreadable = |source| Error::Read {
            path: "/".into(),
            source,
        };
        let own = fs::metadata("/").map_err(unreadable)?;
        let this = fs::metadata(proc_path(&self.fd)).map_err(unreadable)?;
        Ok((own.dev(), own.ino()) == (this.dev(), this.ino()))
    }

    /// Opens `path` inside the root; None when it does not exist.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub fn find(&self, path: &Path) -> Result<Option<Found>, Error> {
        // Not blocking: a pipe without a writer would hold us for good.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let unreadable = |source: io::Error| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = match self.open_inside(path, flags) {
            Ok(fd) => File::from(fd),
            // ENXIO: a socket.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(errno) => return Err(unreadable(errno.into())),
        };
        Ok(Some(Found {
            path: self.inside(&file).map_err(unreadable)?,
            metadata: file.metadata().map_err(unreadable)?,
            file,
        }))
    }

    /// Whether there is something that `path` leads to.
    pub(super) fn exists(&self, path: &Path) -> bool {
        self.open_inside(path, OFlag::O_PATH | OFlag::O_CLOEXEC).is_ok()
    }

    /// Whether the last part of `path` is a symlink, wherever it leads.
    pub(super) fn is_link(&self, path: &Path) -> bool {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        self.open_inside(path, flags).is_ok_and(|fd| {
            File::from(fd)
                .metadata()
                .is_ok_and(|metadata| metadata.is_symlink())
        })
    }

    /// Opens `path` with `flags`, without leaving the root.
    pub(super) fn open_inside(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut tries = 0;
        loop {
            match openat2(self.fd.as_fd(), path, how) {
                // A rename anywhere on the system can race with `..` (openat2(2)).
                Err(Errno::EAGAIN) if tries < 16 => tries += 1,
                other => return other,
            }
        }
    }

    /// What changes when the file, or the names in the directory, change; None when it does not exist.
    ///
    /// # Errors
    /// As [`Root::find`], and when it is larger than [`limits::TRUST_FILE_BYTES`].
    pub fn digest(&self, path: &Path) -> Result<Option<String>, Error> {
        self.find(path)?.map(|found| found.digest()).transpose()
    }

    /// The path inside the root of what is open.
    pub(super) fn inside(&self, fd: &impl AsRawFd) -> io::Result<PathBuf> {
        let outside = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        outside
            .strip_prefix(&self.prefix)
            .map(|inside| Path::new("/").join(inside))
            .map_err(|_| io::Error::other("it was moved while it was opened"))
    }
}

impl Found {
    /// All of a file.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond [`limits::TRUST_FILE_BYTES`].
    pub(super) fn read(&self) -> Result<Vec<u8>, Error> {
        read_all(&self.file, &self.path)
    }

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// [`Error::TooManyEntries`] beyond [`limits::TRUST_ENTRIES`].
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = Vec::new();
        // Through the descriptor: the path may mean something else by now, or on this side of a chroot.
        for entry in fs::read_dir(proc_path(&self.file)).map_err(|e| self.unreadable(e))? {
            let entry = entry.map_err(|e| self.unreadable(e))?;
            if entries.len() == limits::TRUST_ENTRIES {
                return Err(Error::TooManyEntries {
                    path: self.path.clone(),
                });
            }
            let name = entry.file_name();
            let link = match entry.file_type() {
                Ok(kind) if kind.is_symlink() => {
                    let target = nix::fcntl::readlinkat(&self.file, name.as_os_str());
                    Some(target.map_err(|errno| self.unreadable(errno.into()))?.into())
                }
                Ok(_) => None,
                Err(error) => return Err(self.unreadable(error)),
            };
            entries.push(Entry { name, link });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    pub(super) fn digest(&self) -> Result<String, Error> {
        if !self.metadata.is_dir() {
            return Ok(digest_of(&self.read()?));
        }
        let mut sum = Sha256::new();
        for entry in self.entries()? {
            sum.update(entry.name.as_encoded_bytes());
            sum.update([0]);
            sum.update(entry.link.unwrap_or_default().as_os_str().as_encoded_bytes());
            sum.update([0]);
        }
        Ok(hex(&sum.finalize()))
    }

    pub(super) fn unreadable(&self, source: io::Error) -> Error {
        Error::Read {
            path: self.path.clone(),
            source,
        }
    }
}

/// # Errors
/// [`Error::TooLarge`] beyond [`limits::TRUST_FILE_BYTES`].
pub(super) fn read_all(file: &File, path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let read = file.take(limits::TRUST_FILE_BYTES + 1).read_to_end(&mut bytes);
    let path = path.to_owned();
    match read {
        Err(source) => Err(Error::Read { path, source }),
        Ok(length) if length as u64 > limits::TRUST_FILE_BYTES => Err(Error::TooLarge { path }),
        Ok(_) => Ok(bytes),
    }
}

pub(super) fn digest_of(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn proc_path(fd: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

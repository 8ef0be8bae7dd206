//! One name in one directory of a root: what is there, and replacing it as a whole.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::{Deserialize, Serialize};
use xattr::FileExt as _;

use super::Error;
use super::root::{Root, digest_of, proc_path};

/// The directory is held open, so that a rename above it leads nowhere else.
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    /// Inside the root; symlinks in it are followed, save the last part's own.
    pub(super) path: PathBuf,
}

/// What is there, the last part's symlink not followed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    Absent,
    File { sha256: String, kept: Attributes },
    Link { target: PathBuf },
    Directory,
}

/// What a file has besides its contents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Since 1970.
    modified: Duration,
    extended: Vec<(OsString, Vec<u8>)>,
}

impl Attributes {
    /// Of a file that everybody may read.
    pub(super) fn public() -> Self {
        Self {
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: Duration::ZERO,
            extended: Vec::new(),
        }
    }

    fn of(file: &File, metadata: &Metadata) -> io::Result<Self> {
        let mut extended = Vec::new();
        match file.list_xattr() {
            Ok(names) => {
                for name in names {
                    if let Some(value) = file.get_xattr(&name)? {
                        extended.push((name, value));
                    }
                }
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
        extended.sort();
        Ok(Self {
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            modified: metadata
                .modified()?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default(),
            extended,
        })
    }

    /// The time of the last change stays as it is, unless `with_time`.
    fn put(&self, file: &File, with_time: bool) -> io::Result<()> {
        std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        // After chown(2), which takes set-user-id bits away.
        file.set_permissions(Permissions::from_mode(self.mode))?;
        for (name, value) in &self.extended {
            file.set_xattr(name, value)?;
        }
        if with_time {
            file.set_modified(UNIX_EPOCH + self.modified)?;
        }
        Ok(())
    }
}

impl State {
    /// Whether both have the same contents.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File { sha256: one, .. }, Self::File { sha256: other, .. }) => one == other,
            _ => self == other,
        }
    }
}

impl Root {
    /// None when the directory above does not exist.
    ///
    /// # Errors
    /// When it is there and cannot be opened.
    pub(super) fn place(&self, path: &Path) -> Result<Option<Place>, Error> {
        let unreadable = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unreadable(io::ErrorKind::InvalidInput.into()));
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = match self.open_inside(parent, flags) {
            Ok(directory) => directory,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(errno) => return Err(unreadable(errno.into())),
        };
        let inside = self.inside(&directory).map_err(unreadable)?;
        Ok(Some(Place {
            path: inside.join(name),
            directory,
            name: name.to_owned(),
        }))
    }
}

impl Place {
    /// # Errors
    /// When it cannot be read, or is larger than [`limits::TRUST_FILE_BYTES`].
    pub(super) fn state(&self) -> Result<State, Error> {
        Ok(self.read()?.0)
    }

    /// With the contents of a file.
    ///
    /// # Errors
    /// As [`Place::state`].
    pub(super) fn read(&self) -> Result<(State, Vec<u8>), Error> {
        let unreadable = |source| Error::Read {
            path: self.path.clone(),
            source,
        };
        let metadata = match fs::symlink_metadata(self.at()) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((State::Absent, Vec::new())),
            Err(error) => return Err(unreadable(error)),
        };
        if metadata.is_symlink() {
            let target = fs::read_link(self.at()).map_err(unreadable)?;
            return Ok((State::Link { target }, Vec::new()));
        }
        if metadata.is_dir() {
            return Ok((State::Directory, Vec::new()));
        }
        if !metadata.is_file() {
            return Err(Error::Kind {
                path: self.path.clone(),
            });
        }
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.at())
            .map_err(unreadable)?;
        let bytes = super::root::read_all(&file, &self.path)?;
        let kept = Attributes::of(&file, &metadata).map_err(unreadable)?;
        let sha256 = digest_of(&bytes);
        Ok((State::File { sha256, kept }, bytes))
    }

    /// Puts a file with these contents here as a whole, unless what is here is no longer as in `expected`.
    ///
    /// # Errors
    /// [`Error::Changed`] in that case; what is here is then left.
    pub(super) fn replace(
        &self,
        bytes: &[u8],
        attributes: &Attributes,
        with_time: bool,
        expected: &State,
    ) -> Result<(), Error> {
        let fresh = self.temporary();
        let written = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)
            .and_then(|mut file| {
                file.write_all(bytes)?;
                attributes.put(&file, with_time)?;
                file.sync_all()
            })
            .map_err(|source| self.unwritable(source));
        self.put(&fresh, written, expected)
    }

    /// Puts the file `kept` here, by a rename where that can be: on a full disk there is no room for another copy.
    ///
    /// # Errors
    /// As [`Place::replace`].
    pub(super) fn restore(
        &self,
        kept: &Self,
        attributes: &Attributes,
        with_time: bool,
        expected: &State,
    ) -> Result<(), Error> {
        File::options()
            .write(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(kept.at())
            .and_then(|file| {
                attributes.put(&file, with_time)?;
                file.sync_all()
            })
            .map_err(|source| kept.unwritable(source))?;
        self.check(expected)?;
        match fs::rename(kept.at(), self.at()) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                self.replace(&kept.read()?.1, attributes, with_time, expected)
            }
            renamed => renamed
                .and_then(|()| self.sync())
                .map_err(|source| self.unwritable(source)),
        }
    }

    /// Puts a symlink here.
    ///
    /// # Errors
    /// As [`Place::replace`].
    pub(super) fn link(&self, target: &Path, expected: &State) -> Result<(), Error> {
        let fresh = self.temporary();
        let written = symlink(target, &fresh).map_err(|source| self.unwritable(source));
        self.put(&fresh, written, expected)
    }

    fn put(&self, fresh: &Path, written: Result<(), Error>, expected: &State) -> Result<(), Error> {
        let put = written.and_then(|()| {
            self.check(expected)?;
            fs::rename(fresh, self.at())
                .and_then(|()| self.sync())
                .map_err(|source| self.unwritable(source))
        });
        if put.is_err() {
            // Nothing is there when it could not even be made.
            let _ = fs::remove_file(fresh);
        }
        put
    }

    /// As late as can be: between here and the rename nobody else can be kept out.
    fn check(&self, expected: &State) -> Result<(), Error> {
        if self.state()?.is_like(expected) {
            return Ok(());
        }
        Err(Error::Changed {
            path: self.path.clone(),
        })
    }

    /// # Errors
    /// When there is something already, or the directory cannot be written.
    pub(super) fn make_directory(&self) -> Result<(), Error> {
        fs::create_dir(self.at())
            .and_then(|()| fs::set_permissions(self.at(), Permissions::from_mode(0o755)))
            .and_then(|()| self.sync())
            .map_err(|source| self.unwritable(source))
    }

    /// Removes a file, a symlink or an empty directory; one that is not empty stays.
    ///
    /// # Errors
    /// When the directory above cannot be written.
    pub(super) fn remove(&self) -> Result<(), Error> {
        let removed = match fs::symlink_metadata(self.at()) {
            Ok(metadata) if metadata.is_dir() => match fs::remove_dir(self.at()) {
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                removed => removed,
            },
            Ok(_) => fs::remove_file(self.at()),
            Err(error) => Err(error),
        };
        match removed.and_then(|()| self.sync()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.unwritable(error)),
            _ => Ok(()),
        }
    }

    /// Removes what a process that ended midway has left beside it.
    ///
    /// # Errors
    /// As [`Place::remove`].
    pub(super) fn clear(&self) -> Result<(), Error> {
        match fs::remove_file(self.temporary()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.unwritable(error)),
            _ => Ok(()),
        }
    }

    /// Where this process reaches it.
    pub(super) fn at(&self) -> PathBuf {
        proc_path(&self.directory).join(&self.name)
    }

    /// One name for all, so that it is found again: the root's lock keeps others out.
    fn temporary(&self) -> PathBuf {
        let mut name = OsString::from(".tv-agent-");
        name.push(&self.name);
        proc_path(&self.directory).join(name)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(proc_path(&self.directory))?.sync_all()
    }

    fn unwritable(&self, source: io::Error) -> Error {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Error::ReadOnly { path },
            _ => Error::Write { path, source },
        }
    }
}

//! Copies of bundles and certificate directories with the CA added, read inside a root and never outside it.

use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::{Anchor, Error, Mount, make_directory};
use crate::limits;

/// Makes copies below one directory.
pub(super) struct Store {
    out: PathBuf,
    root: OwnedFd,
    root_path: PathBuf,
    ca: Anchor,
    /// Originals whose copy is made: path inside the root, copy. Directories and files.
    copies: Vec<(PathBuf, PathBuf)>,
    /// Bytes read so far, against [`limits::TRUST_BYTES`].
    read: u64,
}

/// The copies of the system's own store.
pub(super) struct System {
    /// The bundle that most programs would read; `None` when the system has no certificates.
    pub(super) bundle: Option<PathBuf>,
    /// A file with nothing but the CA.
    pub(super) ca_only: PathBuf,
    pub(super) mounts: Vec<Mount>,
}

/// Something inside the root, symlinks followed.
struct Found {
    file: File,
    metadata: Metadata,
    /// Absolute, inside the root.
    path: PathBuf,
}

impl Store {
    pub(super) fn open(out: &Path, root: &Path, ca: Anchor) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: root.to_owned(),
            source,
        };
        Ok(Self {
            out: out.canonicalize().map_err(|source| Error::Write {
                path: out.to_owned(),
                source,
            })?,
            root: File::open(root).map_err(read)?.into(),
            root_path: root.canonicalize().map_err(read)?,
            ca,
            copies: Vec::new(),
            read: 0,
        })
    }

    /// Copies those of `directories` and `bundles` that exist.
    pub(super) fn copy_system(&mut self, directories: &[&str], bundles: &[&str]) -> Result<System, Error> {
        let mut primary = None;
        let mut files = Vec::new();
        for bundle in bundles {
            let Some(found) = self.find(Path::new(bundle))? else {
                continue;
            };
            if !found.metadata.is_file() {
                return Err(Error::Kind { path: found.path });
            }
            if self.copy_of(&found.path).is_none() {
                let copy = self.out.join(format!("bundle-{}.pem", self.copies.len()));
                let target = found.path.clone();
                self.merge(found, &copy)?;
                primary.get_or_insert_with(|| copy.clone());
                files.push(Mount { source: copy, target });
            }
        }
        let mut mounts = Vec::new();
        let mut certificates = Vec::new();
        for directory in directories {
            let Some(found) = self.find(Path::new(directory))? else {
                continue;
            };
            if !found.metadata.is_dir() {
                return Err(Error::Kind { path: found.path });
            }
            if self.copy_of(&found.path).is_none() {
                let copy = self.out.join(format!("certs-{}", self.copies.len()));
                self.copy_directory(&found.path, &copy, &mut certificates)?;
                mounts.push(Mount {
                    source: copy,
                    target: found.path,
                });
            }
        }
        // A system with hashed files only: its bundle is their sum.
        if primary.is_none() && !certificates.is_empty() {
            let copy = self.out.join("bundle.pem");
            let certificates = certificates.concat();
            write(&copy, &[&certificates, self.ca.pem.as_bytes()].concat(), 0o444)?;
            primary = Some(copy);
        }
        // A bundle inside a copied directory was merged there.
        files.retain(|file| !mounts.iter().any(|dir| file.target.starts_with(&dir.target)));
        mounts.extend(files);
        let ca_only = self.out.join("ca.pem");
        write(&ca_only, self.ca.pem.as_bytes(), 0o444)?;
        Ok(System {
            bundle: primary,
            ca_only,
            mounts,
        })
    }

    /// A copy of the file, or certificate directory, that the variable `name` names.
    pub(super) fn merge_named(&mut self, name: &str, path: &Path) -> Result<PathBuf, Error> {
        if let Some(copy) = self.copy_named_directory(name, path)? {
            return Ok(copy);
        }
        let found = self.find_named(path)?.ok_or_else(|| Error::Read {
            path: path.to_owned(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        if !found.metadata.is_file() {
            return Err(Error::Kind { path: found.path });
        }
        if let Some(copy) = self.copy_of(&found.path) {
            return Ok(copy);
        }
        let copy = self.out.join(format!("{name}.pem"));
        self.merge(found, &copy)?;
        Ok(copy)
    }

    /// A copy of a directory that the variable `name` names; `None` when there is no such directory.
    pub(super) fn copy_named_directory(&mut self, name: &str, path: &Path) -> Result<Option<PathBuf>, Error> {
        let Some(found) = self.find_named(path)?.filter(|found| found.metadata.is_dir()) else {
            return Ok(None);
        };
        if let Some(copy) = self.copy_of(&found.path) {
            return Ok(Some(copy));
        }
        let copy = self.out.join(format!("{name}-{}", self.copies.len()));
        self.copy_directory(&found.path, &copy, &mut Vec::new())?;
        Ok(Some(copy))
    }

    /// A certificate directory with nothing but the CA.
    pub(super) fn ca_directory(&self) -> Result<PathBuf, Error> {
        let path = self.out.join("ca");
        make_directory(&path)?;
        self.add_hashed(&path)?;
        Ok(path)
    }

    fn merge(&mut self, found: Found, copy: &Path) -> Result<(), Error> {
        let path = found.path.clone();
        let mut bytes = self.read(found)?;
        if !has_certificate(&bytes) {
            return Err(Error::Empty { path });
        }
        bytes = with_newline(bytes);
        bytes.extend_from_slice(self.ca.pem.as_bytes());
        write(copy, &bytes, 0o444)?;
        self.copies.push((path, copy.to_owned()));
        Ok(())
    }

    /// Copies a directory and what is below it, adds the CA, and collects the PEM certificates found on top.
    fn copy_directory(
        &mut self,
        from: &Path,
        to: &Path,
        certificates: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        self.copy_entries(from, to, from, &mut 0, certificates)?;
        self.add_hashed(to)?;
        self.copies.push((from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn copy_entries(
        &mut self,
        from: &Path,
        to: &Path,
        top: &Path,
        seen: &mut usize,
        certificates: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        make_directory(to)?;
        let outside = self.root_path.join(from.strip_prefix("/").unwrap_or(from));
        let unreadable = |source| Error::Read {
            path: from.to_owned(),
            source,
        };
        for entry in fs::read_dir(outside).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            *seen += 1;
            if *seen > limits::TRUST_ENTRIES {
                return Err(Error::TooManyEntries { path: top.to_owned() });
            }
            let path = from.join(entry.file_name());
            let copy = to.join(entry.file_name());
            let is_link = entry.file_type().map_err(unreadable)?.is_symlink();
            // A link that leads nowhere is of no use in the copy.
            let Some(found) = self.find(&path)? else {
                continue;
            };
            if let Some(target) = is_link
                .then(|| link_in_copy(&entry.path(), from, &found))
                .flatten()
            {
                symlink(&target, &copy).map_err(|source| Error::Write { path: copy, source })?;
            } else if let Some(merged) = self.copy_of(&found.path).filter(|_| found.metadata.is_file()) {
                let bytes = fs::read(&merged).map_err(|source| Error::Read { path: merged, source })?;
                write(&copy, &bytes, 0o444)?;
            } else if found.metadata.is_file() {
                let metadata = found.metadata.clone();
                let bytes = self.read(found)?;
                // A private key that lies here stays as private as it was.
                write(&copy, &bytes, metadata.mode() & 0o444)?;
                keep_owner(&copy, &metadata)?;
                if from == top && has_certificate(&bytes) {
                    certificates.push(with_newline(bytes));
                }
            } else if found.metadata.is_dir() {
                self.copy_entries(&found.path, &copy, top, seen, certificates)?;
            }
            // Sockets, pipes and devices are no certificates.
        }
        Ok(())
    }

    /// Writes the CA under its hash, with the next number that is free: OpenSSL tries .0, .1, … in turn.
    fn add_hashed(&self, dir: &Path) -> Result<(), Error> {
        let path = (0..)
            .map(|n| dir.join(format!("{}.{n}", self.ca.hash)))
            .find(|path| path.symlink_metadata().is_err())
            .expect("the directory is finite");
        write(&path, self.ca.pem.as_bytes(), 0o444)
    }

    fn read(&mut self, found: Found) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        found
            .file
            .take(limits::TRUST_FILE_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|source| Error::Read {
                path: found.path.clone(),
                source,
            })?;
        let length = bytes.len() as u64;
        self.read += length;
        if length > limits::TRUST_FILE_BYTES {
            return Err(Error::TooLarge { path: found.path });
        }
        if self.read > limits::TRUST_BYTES {
            return Err(Error::TooMuch { path: found.path });
        }
        Ok(bytes)
    }

    fn copy_of(&self, original: &Path) -> Option<PathBuf> {
        let copy = self.copies.iter().find(|(path, _)| path == original);
        copy.map(|(_, copy)| copy.clone())
    }

    fn find_named(&self, path: &Path) -> Result<Option<Found>, Error> {
        let absolute = std::path::absolute(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        self.find(&absolute)
    }

    /// Opens `path` inside the root (openat2, Linux 5.6); `None` when it does not exist.
    fn find(&self, path: &Path) -> Result<Option<Found>, Error> {
        let unreadable = |source: io::Error| Error::Read {
            path: path.to_owned(),
            source,
        };
        // Not blocking: a pipe without a writer would hold us for good.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        let file = match openat2(self.root.as_fd(), path, how) {
            Ok(fd) => File::from(fd),
            // ENXIO: a socket.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            Err(errno) => return Err(unreadable(errno.into())),
        };
        let outside = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(unreadable)?;
        let inside = outside
            .strip_prefix(&self.root_path)
            .map_err(|_| unreadable(io::Error::other("it was moved while it was opened")))?;
        Ok(Some(Found {
            metadata: file.metadata().map_err(unreadable)?,
            path: Path::new("/").join(inside),
            file,
        }))
    }
}

/// Where a link of the directory `from` leads in its copy; `None` when the copy takes the contents instead.
fn link_in_copy(link: &Path, from: &Path, found: &Found) -> Option<PathBuf> {
    let raw = fs::read_link(link).ok()?;
    if raw.file_name() == Some(raw.as_os_str()) {
        // To a neighbour, such as `002c0b4f.0` to its file.
        return Some(raw);
    }
    if found.path.parent() == Some(from) {
        return found.path.file_name().map(PathBuf::from);
    }
    // A directory stays where it is, at a path that holds after the mount too.
    found.metadata.is_dir().then(|| found.path.clone())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(bytes)?;
            file.set_permissions(fs::Permissions::from_mode(mode))
        })
        .map_err(|source| Error::Write {
            path: path.to_owned(),
            source,
        })
}

/// Matters for files that not everybody may read; without the right to give files away they stay ours.
fn keep_owner(copy: &Path, original: &Metadata) -> Result<(), Error> {
    match std::os::unix::fs::chown(copy, Some(original.uid()), Some(original.gid())) {
        Err(source) if source.kind() != io::ErrorKind::PermissionDenied => Err(Error::Write {
            path: copy.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// `BEGIN CERTIFICATE` or OpenSSL's `BEGIN TRUSTED CERTIFICATE`.
fn has_certificate(bytes: &[u8]) -> bool {
    [
        &b"-----BEGIN CERTIFICATE-----"[..],
        b"-----BEGIN TRUSTED CERTIFICATE-----",
    ]
    .iter()
    .any(|mark| bytes.windows(mark.len()).any(|window| window == *mark))
}

fn with_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes
}

//! Copies of bundles, key stores and certificate directories with the anchors added.

use std::fs::{self, Metadata};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::root::{Entry, Found, Root, digest_of};
use super::{Anchors, Error, Mount, bundle, keystore, make_directory};
use crate::limits;

/// Makes copies below one directory.
pub(super) struct Store<'a> {
    out: PathBuf,
    pub(super) root: &'a Root,
    anchors: &'a Anchors,
    /// Originals whose copy is made: path inside the root, copy. Directories and files.
    copies: Vec<(PathBuf, PathBuf)>,
    /// What the copies were made of: path inside the root, digest.
    pub(super) watched: Vec<(PathBuf, String)>,
    /// Bytes read so far, against [`limits::TRUST_BYTES`].
    read: u64,
}

/// What a file holds certificates as.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Pem,
    Java,
}

impl<'a> Store<'a> {
    pub(super) fn open(out: &Path, root: &'a Root, anchors: &'a Anchors) -> Result<Self, Error> {
        Ok(Self {
            out: out.canonicalize().map_err(|source| Error::Write {
                path: out.to_owned(),
                source,
            })?,
            root,
            anchors,
            copies: Vec::new(),
            watched: Vec::new(),
            read: 0,
        })
    }

    /// A copy of the file `path`, to be mounted over it; None when there is none, or its copy is made already.
    pub(super) fn copy_file(&mut self, path: &Path, form: Form) -> Result<Option<Mount>, Error> {
        let Some(found) = self.root.find(path)? else {
            return match self.root.is_link(path) {
                true => Err(Error::Dangling {
                    path: path.to_owned(),
                }),
                false => Ok(None),
            };
        };
        if !found.metadata.is_file() {
            return Err(Error::Kind { path: found.path });
        }
        if self.copy_of(&found.path).is_some() {
            return Ok(None);
        }
        let name = match form {
            Form::Pem => format!("bundle-{}.pem", self.copies.len()),
            Form::Java => format!("keystore-{}", self.copies.len()),
        };
        let copy = self.out.join(name);
        self.merge(&found, &copy, form)?;
        Ok(Some(Mount {
            source: copy,
            target: found.path,
        }))
    }

    /// A copy of the directory `path`, to be mounted over it; None as for [`Store::copy_file`].
    pub(super) fn copy_directory(
        &mut self,
        path: &Path,
        certificates: &mut Vec<Vec<u8>>,
    ) -> Result<Option<Mount>, Error> {
        let Some(found) = self.root.find(path)? else {
            return Ok(None);
        };
        if !found.metadata.is_dir() {
            return Err(Error::Kind { path: found.path });
        }
        if self.copy_of(&found.path).is_some() {
            return Ok(None);
        }
        let copy = self.out.join(format!("certs-{}", self.copies.len()));
        self.copy_found(&found, &copy, certificates)?;
        Ok(Some(Mount {
            source: copy,
            target: found.path,
        }))
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
        self.merge(&found, &copy, Form::Pem)?;
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
        self.copy_found(&found, &copy, &mut Vec::new())?;
        Ok(Some(copy))
    }

    /// A certificate directory with nothing but the anchors.
    pub(super) fn ca_directory(&self) -> Result<PathBuf, Error> {
        let path = self.out.join("ca");
        make_directory(&path)?;
        self.add_hashed(&path)?;
        Ok(path)
    }

    /// A file with nothing but the anchors.
    pub(super) fn ca_only(&self) -> Result<PathBuf, Error> {
        let path = self.out.join("ca.pem");
        write(&path, self.anchors.pem().as_bytes(), 0o444)?;
        Ok(path)
    }

    /// A bundle of `certificates` and the anchors.
    pub(super) fn write_bundle(&self, name: &str, certificates: &[u8]) -> Result<PathBuf, Error> {
        let path = self.out.join(name);
        write(&path, &bundle::merge(certificates, self.anchors), 0o444)?;
        Ok(path)
    }

    /// The copy of `original`, a path inside the root free of symlinks.
    pub(super) fn copy_of(&self, original: &Path) -> Option<PathBuf> {
        let copy = self.copies.iter().find(|(path, _)| path == original);
        copy.map(|(_, copy)| copy.clone())
    }

    fn merge(&mut self, found: &Found, copy: &Path, form: Form) -> Result<(), Error> {
        let bytes = self.read(found)?;
        let merged = merged(&found.path, &bytes, self.anchors, form)?;
        // What is private in it (a key beside the certificates, a key store) stays as private as it was.
        write_as(copy, &merged, &found.metadata)?;
        self.copies.push((found.path.clone(), copy.to_owned()));
        self.watched.push((found.path.clone(), digest_of(&bytes)));
        Ok(())
    }

    /// Copies a directory and what is below it, adds the anchors, and collects the PEM certificates found on top.
    fn copy_found(&mut self, from: &Found, to: &Path, certificates: &mut Vec<Vec<u8>>) -> Result<(), Error> {
        self.copy_entries(from, to, &from.path, &mut 0, certificates)?;
        self.add_hashed(to)?;
        self.copies.push((from.path.clone(), to.to_owned()));
        self.watched.push((from.path.clone(), from.digest()?));
        Ok(())
    }

    fn copy_entries(
        &mut self,
        from: &Found,
        to: &Path,
        top: &Path,
        seen: &mut usize,
        certificates: &mut Vec<Vec<u8>>,
    ) -> Result<(), Error> {
        make_directory(to)?;
        keep_owner(to, &from.metadata)?;
        let mode = fs::Permissions::from_mode(from.metadata.mode() & 0o755);
        fs::set_permissions(to, mode).map_err(|source| Error::Write {
            path: to.to_owned(),
            source,
        })?;
        for entry in from.entries()? {
            *seen += 1;
            if *seen > limits::TRUST_ENTRIES {
                return Err(Error::TooManyEntries { path: top.to_owned() });
            }
            let path = from.path.join(&entry.name);
            let copy = to.join(&entry.name);
            // A link that leads nowhere is of no use in the copy.
            let Some(found) = self.root.find(&path)? else {
                continue;
            };
            if let Some(target) = link_in_copy(&entry, &from.path, &found) {
                symlink(&target, &copy).map_err(|source| Error::Write { path: copy, source })?;
            } else if let Some(merged) = self.copy_of(&found.path).filter(|_| found.metadata.is_file()) {
                let bytes = fs::read(&merged).map_err(|source| Error::Read { path: merged, source })?;
                write_as(&copy, &bytes, &found.metadata)?;
            } else if found.metadata.is_file() {
                let bytes = self.read(&found)?;
                write_as(&copy, &bytes, &found.metadata)?;
                if from.path == top && bundle::has_certificate(&bytes) {
                    certificates.push(with_newline(bytes));
                }
            } else if found.metadata.is_dir() {
                self.copy_entries(&found, &copy, top, seen, certificates)?;
            }
            // Sockets, pipes and devices are no certificates.
        }
        Ok(())
    }

    /// Writes the anchors under their hashes, with the next number that is free: OpenSSL tries .0, .1, … in turn.
    pub(super) fn add_hashed(&self, dir: &Path) -> Result<(), Error> {
        for anchor in self.anchors.iter() {
            let path = (0..)
                .map(|n| dir.join(format!("{}.{n}", anchor.subject_hash())))
                .find(|path| path.symlink_metadata().is_err())
                .expect("the directory is finite");
            write(&path, anchor.pem().as_bytes(), 0o444)?;
        }
        Ok(())
    }

    fn read(&mut self, found: &Found) -> Result<Vec<u8>, Error> {
        let bytes = found.read()?;
        self.read += bytes.len() as u64;
        if self.read > limits::TRUST_BYTES {
            return Err(Error::TooMuch {
                path: found.path.clone(),
            });
        }
        Ok(bytes)
    }

    fn find_named(&self, path: &Path) -> Result<Option<Found>, Error> {
        let absolute = std::path::absolute(path).map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
        self.root.find(&absolute)
    }
}

/// `bytes`, the contents of `path`, with the anchors.
///
/// # Errors
/// [`Error::Empty`] for a bundle without a certificate, [`Error::Keystore`] for a key store that cannot be added to.
pub(super) fn merged(path: &Path, bytes: &[u8], anchors: &Anchors, form: Form) -> Result<Vec<u8>, Error> {
    match form {
        Form::Pem if !bundle::has_certificate(bytes) => Err(Error::Empty {
            path: path.to_owned(),
        }),
        Form::Pem => Ok(bundle::merge(bytes, anchors)),
        Form::Java => keystore::merge(bytes, anchors).map_err(|source| Error::Keystore {
            path: path.to_owned(),
            source,
        }),
    }
}

/// Where a link of the directory `from` leads in its copy; `None` when the copy takes the contents instead, or it is no
/// link.
fn link_in_copy(entry: &Entry, from: &Path, found: &Found) -> Option<PathBuf> {
    let raw = entry.link.as_ref()?;
    if raw.file_name() == Some(raw.as_os_str()) {
        // To a neighbour, such as `002c0b4f.0` to its file.
        return Some(raw.clone());
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

/// Readable for those who may read the original, and for nobody else.
fn write_as(copy: &Path, bytes: &[u8], original: &Metadata) -> Result<(), Error> {
    write(copy, bytes, original.mode() & 0o444)?;
    keep_owner(copy, original)
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

pub(super) fn with_newline(mut bytes: Vec<u8>) -> Vec<u8> {
    if !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes
}

//! The CA on disk: `root.pem`, `intermediate.pem` (with the CAs above it, below the root) and `intermediate-key.pem`
//! in a directory of mode 0700; `root/root-key.pem`, which should leave the node, or `issuer.json`, which says where
//! the issuing key is; during a rotation `rotation.json`, `next/` and `old/`.
//!
//! All writers hold a lock, every file is replaced whole, and every change of several files has one that decides:
//! what comes after it is finished by the next writer, and seen as finished by every reader.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Error;
use super::facts::Parsed;
use super::profile::CaKey;
use super::rotation::{Filing, Rotation};
use super::source::Source;
use crate::limits;

mod lock;

pub(super) use lock::{lock, lock_shared};

/// The files of a CA directory.
pub(super) struct Paths {
    pub(super) dir: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) root: PathBuf,
    pub(super) root_key: PathBuf,
    /// Where the issuing CA is, if not here.
    pub(super) issuer: PathBuf,
    pub(super) intermediate: PathBuf,
    pub(super) intermediate_key: PathBuf,
    /// Of an intermediate that was just being replaced.
    fresh_key: PathBuf,
    pub(super) rotation: PathBuf,
}

impl Paths {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            lock: dir.join(".lock"),
            root: dir.join("root.pem"),
            root_key: dir.join("root/root-key.pem"),
            issuer: dir.join("issuer.json"),
            intermediate: dir.join("intermediate.pem"),
            intermediate_key: dir.join("intermediate-key.pem"),
            fresh_key: dir.join("intermediate-key.next.pem"),
            rotation: dir.join("rotation.json"),
        }
    }

    /// The root that comes, laid out as the present one.
    pub(super) fn next(&self) -> Self {
        Self::new(&self.dir.join("next"))
    }

    /// The root that goes.
    pub(super) fn old(&self) -> Self {
        Self::new(&self.dir.join("old"))
    }

    /// The files in force: while a step's files are being moved, those that are still in `next/`.
    pub(super) fn in_force(dir: &Path) -> Result<Self, Error> {
        let mut paths = Self::new(dir);
        if read_rotation(&paths)?.is_some_and(|rotation| rotation.filing.is_some()) {
            let next = paths.next();
            for (path, moved) in [
                (&mut paths.root, next.root),
                (&mut paths.root_key, next.root_key),
                (&mut paths.issuer, next.issuer),
                (&mut paths.intermediate, next.intermediate),
                (&mut paths.intermediate_key, next.intermediate_key),
            ] {
                if exists(&moved)? {
                    *path = moved;
                }
            }
        }
        Ok(paths)
    }

    /// Where the CA that issues intermediates is.
    pub(super) fn source(&self) -> Result<Source, Error> {
        if !exists(&self.issuer)? {
            return Ok(Source {
                certificate: self.root.clone(),
                key: self.root_key.clone(),
                root: None,
            });
        }
        let (bytes, _) = read(&self.issuer)?;
        serde_json::from_slice(&bytes).map_err(|e| failed("understand", &self.issuer)(e.into()))
    }
}

pub(super) fn read_rotation(paths: &Paths) -> Result<Option<Rotation>, Error> {
    if !exists(&paths.rotation)? {
        return Ok(None);
    }
    let (bytes, _) = read(&paths.rotation)?;
    let rotation = serde_json::from_slice(&bytes).map_err(|source| Error::NotARotation {
        path: paths.rotation.clone(),
        source,
    });
    rotation.map(Some)
}

pub(super) fn write_rotation(paths: &Paths, rotation: &Rotation) -> Result<(), Error> {
    write_json(&paths.rotation, rotation)
}

pub(super) fn write_source(paths: &Paths, source: &Source) -> Result<(), Error> {
    write_json(&paths.issuer, source)
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Error> {
    let text = serde_json::to_vec_pretty(value).map_err(|e| failed("write", path)(e.into()))?;
    write(path, &text, 0o644)
}

/// Moves the new root's files to where the old one's were. Each move may have been made before.
pub(super) fn finish_filing(paths: &Paths) -> Result<(), Error> {
    let Some(mut rotation) = read_rotation(paths)? else {
        return Ok(());
    };
    let (next, old) = (paths.next(), paths.old());
    if rotation.filing == Some(Filing::Old) {
        move_to(&paths.issuer, &old.issuer)?;
        move_to(&paths.root_key, &old.root_key)?;
        rotation.filing = Some(Filing::New);
        write_rotation(paths, &rotation)?;
    }
    if rotation.filing == Some(Filing::New) {
        move_to(&next.issuer, &paths.issuer)?;
        move_to(&next.root_key, &paths.root_key)?;
        move_to(&next.intermediate_key, &paths.intermediate_key)?;
        move_to(&next.intermediate, &paths.intermediate)?;
        move_to(&next.root, &paths.root)?;
        rotation.filing = None;
        write_rotation(paths, &rotation)?;
        remove_tree(&next.dir)?;
    }
    Ok(())
}

fn move_to(from: &Path, to: &Path) -> Result<(), Error> {
    if !exists(from)? {
        return Ok(());
    }
    make_directory(to.parent().expect("a file in a directory"))?;
    fs::rename(from, to).map_err(failed("move", from))?;
    sync_directory(to).map_err(failed("move", from))
}

pub(super) fn remove_tree(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", dir)(e)),
        _ => Ok(()),
    }
}

pub(super) fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
    }
}

/// A CA certificate that is valid at `now`.
pub(super) fn read_ca(path: &Path, now: OffsetDateTime) -> Result<(CertificateDer<'static>, Parsed), Error> {
    let (der, parsed) = read_certificate(path)?;
    parsed.check_ca(path, now)?;
    Ok((der, parsed))
}

/// A private key that only its owner can read.
pub(super) fn read_key(path: &Path) -> Result<CaKey, Error> {
    let (bytes, mode) = read(path)?;
    if mode & 0o077 != 0 {
        return Err(Error::KeyMode {
            path: path.to_owned(),
            mode,
        });
    }
    // What is no UTF-8 is no PEM either, and gives the same error.
    let pem = std::str::from_utf8(&bytes).unwrap_or_default();
    // PKCS#8 (RFC 7468 §11), and the form of RFC 1421 that OpenSSL wrote before.
    if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(Error::KeyEncrypted {
            path: path.to_owned(),
        });
    }
    CaKey::from_pem(pem).map_err(|source| Error::NotAKey {
        path: path.to_owned(),
        source,
    })
}

/// The intermediate's key. Of a replacement that broke off between certificate and key, the one that was to come.
pub(super) fn read_intermediate_key(paths: &Paths, certificate: &Parsed) -> Result<CaKey, Error> {
    let fits = |key: &CaKey| key.subject_public_key_info() == certificate.spki;
    let mut key = read_key(&paths.intermediate_key);
    if !key.as_ref().is_ok_and(fits)
        && let Ok(fresh) = read_key(&paths.fresh_key)
        && fits(&fresh)
    {
        key = Ok(fresh);
    }
    let key = key?;
    if fits(&key) {
        Ok(key)
    } else {
        Err(Error::KeyMismatch {
            key: paths.intermediate_key.clone(),
            certificate: paths.intermediate.clone(),
        })
    }
}

/// Replaces the intermediate; the certificate's file decides.
pub(super) fn write_intermediate(paths: &Paths, chain_pem: &str, key_pem: &str) -> Result<(), Error> {
    write(&paths.fresh_key, key_pem.as_bytes(), 0o600)?;
    write(&paths.intermediate, chain_pem.as_bytes(), 0o644)?;
    move_to(&paths.fresh_key, &paths.intermediate_key)
}

fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), Error> {
    let failed = failed("read", path);
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let mode = (|| {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode() & 0o7777;
        file.take(limits::CA_FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limits::CA_FILE_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it is larger than 64 KiB",
            ));
        }
        Ok(mode)
    })()
    .map_err(failed)?;
    Ok((bytes, mode))
}

pub(super) fn read_certificate(path: &Path) -> Result<(CertificateDer<'static>, Parsed), Error> {
    let (bytes, _) = read(path)?;
    let bad = || Error::NotACertificate {
        path: path.to_owned(),
    };
    let mut all = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| bad())?;
    let der = all.pop().filter(|_| all.is_empty()).ok_or_else(bad)?;
    let parsed = Parsed::new(&der).ok_or_else(bad)?;
    Ok((der, parsed))
}

/// Certificates from the one that issues upwards, one at least.
pub(super) type Chain = Vec<(CertificateDer<'static>, Parsed)>;

/// The certificates of one file, at most [`limits::CA_CHAIN`], each signed by the next as far as names tell.
pub(super) fn read_chain(path: &Path) -> Result<Chain, Error> {
    let (bytes, _) = read(path)?;
    let bad = || Error::NotAChain {
        path: path.to_owned(),
        most: limits::CA_CHAIN,
    };
    let chain: Chain = CertificateDer::pem_slice_iter(&bytes)
        .map(|der| {
            let der = der.ok()?;
            let parsed = Parsed::new(&der)?;
            Some((der, parsed))
        })
        .collect::<Option<_>>()
        .ok_or_else(bad)?;
    if chain.is_empty() || chain.len() > limits::CA_CHAIN {
        return Err(bad());
    }
    for pair in chain.windows(2) {
        if pair[0].1.issuer != pair[1].1.subject {
            return Err(Error::BrokenChain {
                path: path.to_owned(),
                subject: pair[0].1.facts.subject.clone(),
            });
        }
    }
    Ok(chain)
}

/// Replaces `path` as a whole, on disk before it is seen. Only under the lock, so one temporary name will do.
pub(super) fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let temporary = path.with_extension("tmp");
    let result = (|| {
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(path)
    })();
    result.map_err(failed("write", path))
}

fn sync_directory(of: &Path) -> io::Result<()> {
    File::open(of.parent().expect("a file in a directory"))?.sync_all()
}

pub(super) fn make_directory(dir: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(failed("create", dir))?;
    let mode = fs::metadata(dir)
        .map_err(failed("read", dir))?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o022 != 0 {
        return Err(Error::DirectoryMode {
            path: dir.to_owned(),
            mode,
        });
    }
    Ok(())
}

pub(super) fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(failed("look for", path))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io {
        action,
        path: path.clone(),
        source,
    }
}

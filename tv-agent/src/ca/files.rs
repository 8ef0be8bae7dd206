//! The CA on disk: `root.pem`, `intermediate.pem` and `intermediate-key.pem` in a directory of mode 0700, and
//! `root/root-key.pem`, which should leave the node. All writers hold a lock, and every file is replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use nix::fcntl::{Flock, FlockArg};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::Error;
use super::facts::Parsed;
use super::profile::CaKey;

/// The files of a CA directory.
pub(super) struct Paths {
    pub(super) dir: PathBuf,
    pub(super) lock: PathBuf,
    pub(super) root: PathBuf,
    pub(super) root_key: PathBuf,
    pub(super) intermediate: PathBuf,
    pub(super) intermediate_key: PathBuf,
}

impl Paths {
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            lock: dir.join(".lock"),
            root: dir.join("root.pem"),
            root_key: dir.join("root/root-key.pem"),
            intermediate: dir.join("intermediate.pem"),
            intermediate_key: dir.join("intermediate-key.pem"),
        }
    }
}

/// Keeps [`init`] from changing the files while they are read. A copy without a lock file (a read-only mount)
/// is read without.
pub(super) fn lock_shared(paths: &Paths) -> Result<Option<Flock<File>>, Error> {
    if !exists(&paths.root)? && !exists(&paths.intermediate)? {
        return Err(Error::Missing {
            dir: paths.dir.clone(),
        });
    }
    match File::open(&paths.lock) {
        Ok(file) => flock(file, FlockArg::LockShared, &paths.lock).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(failed("open", &paths.lock)(source)),
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
    CaKey::from_pem(pem).map_err(|source| Error::NotAKey {
        path: path.to_owned(),
        source,
    })
}

/// RFC 7468 §5.
pub(super) fn certificate_pem(der: &CertificateDer<'_>) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in body.as_bytes().chunks(64) {
        pem.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

/// Largest file of a CA that is read, bytes; a certificate with a hundred constraints has 5 KiB.
const FILE_BYTES: u64 = 64 * 1024;

fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), Error> {
    let failed = failed("read", path);
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let mode = (|| {
        let file = File::open(path)?;
        let mode = file.metadata()?.mode() & 0o7777;
        file.take(FILE_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_BYTES {
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
        File::open(path.parent().expect("a file in a directory"))?.sync_all()
    })();
    result.map_err(failed("write", path))
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

pub(super) fn lock(paths: &Paths) -> Result<Flock<File>, Error> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&paths.lock)
        .map_err(failed("create", &paths.lock))?;
    flock(file, FlockArg::LockExclusive, &paths.lock)
}

fn flock(file: File, how: FlockArg, path: &Path) -> Result<Flock<File>, Error> {
    Flock::lock(file, how).map_err(|(_, errno)| failed("lock", path)(errno.into()))
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

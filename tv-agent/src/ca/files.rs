//! The CA on disk: `root.pem`, `intermediate.pem` and `intermediate-key.pem` in a directory of mode 0700, and
//! `root/root-key.pem`, which should leave the node. All writers hold a lock, and every file is replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use nix::fcntl::{Flock, FlockArg};
use rcgen::{Issuer, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Serialize;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use super::authority::{self, Authority};
use super::facts::{Facts, Parsed};
use super::profile::{self, CaKey};
use super::subtree::Subtrees;
use super::{Error, rfc3339};

/// What [`init`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Initialised {
    pub dir: PathBuf,
    pub root: Outcome,
    pub intermediate: Outcome,
    /// What the operator should do next, a sentence each; may be empty.
    pub advice: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was there and good.
    Kept,
    Made {
        reason: String,
    },
}

/// What [`show`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub dir: PathBuf,
    pub root: Facts,
    pub intermediate: Facts,
    /// Whether the root's key lies on this node, where it need not be.
    pub root_key_on_node: bool,
    /// Why the agent would not use this CA; `None` when it would.
    pub problem: Option<String>,
}

/// Makes what is missing in `dir`: a root if there is none, and an intermediate constrained to `permitted` if
/// there is none that is good. Calling it again changes nothing; two at once take turns.
///
/// # Errors
/// [`Error::RootKeyNeeded`] when an intermediate has to be issued and the root's key is not on the node,
/// [`Error::RootWornOut`], and what the files can be; see [`Error`].
pub fn init(dir: &Path, permitted: &[String]) -> Result<Initialised, Error> {
    init_at(dir, permitted, OffsetDateTime::now_utc())
}

pub(super) fn init_at(dir: &Path, permitted: &[String], now: OffsetDateTime) -> Result<Initialised, Error> {
    let wanted = Subtrees::parse(permitted)?;
    let paths = Paths::new(dir);
    make_directory(dir)?;
    let _lock = lock(&paths)?;
    let root = if exists(&paths.root)? {
        Outcome::Kept
    } else {
        make_root(&paths, now)?;
        Outcome::Made {
            reason: "there was none".into(),
        }
    };
    let mut advice = Vec::new();
    let intermediate = match need(&paths, &wanted, now)? {
        Need::Nothing => Outcome::Kept,
        Need::Soon(reason) if !exists(&paths.root_key)? => {
            advice.push(format!(
                "A new intermediate is due ({reason}): put the root's key back at {} and run `tv-agent ca init`.",
                paths.root_key.display()
            ));
            Outcome::Kept
        }
        Need::Soon(reason) | Need::Now(reason) => {
            issue(&paths, &wanted, now, &reason)?;
            Outcome::Made { reason }
        }
    };
    if exists(&paths.root_key)? {
        advice.push(format!(
            "Move {} off this node and keep it safe: only `tv-agent ca init` needs it, serving does not.",
            paths.root_key.display()
        ));
    }
    Ok(Initialised {
        dir: dir.to_owned(),
        root,
        intermediate,
        advice,
    })
}

/// What lies in `dir`, whether it can be used or not.
///
/// # Errors
/// [`Error::Missing`], or when a certificate cannot be read at all.
pub fn show(dir: &Path) -> Result<Shown, Error> {
    let paths = Paths::new(dir);
    let _lock = lock_shared(&paths)?;
    Ok(Shown {
        dir: dir.to_owned(),
        root: read_certificate(&paths.root)?.1.facts,
        intermediate: read_certificate(&paths.intermediate)?.1.facts,
        root_key_on_node: exists(&paths.root_key)?,
        problem: Authority::load_locked(&paths, OffsetDateTime::now_utc())
            .err()
            .map(|e| with_sources(&e)),
    })
}

/// The files of a CA directory.
pub(super) struct Paths {
    dir: PathBuf,
    lock: PathBuf,
    pub(super) root: PathBuf,
    root_key: PathBuf,
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
    authority::check_ca(path, &parsed, now)?;
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

/// Whether an intermediate has to be issued.
enum Need {
    Nothing,
    /// The present one still serves.
    Soon(String),
    Now(String),
}

fn need(paths: &Paths, wanted: &Subtrees, now: OffsetDateTime) -> Result<Need, Error> {
    let (_, root) = read_ca(&paths.root, now)?;
    let present = match Authority::load_locked(paths, now) {
        Ok(authority) => authority,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Need::Now("there was none".into()));
        }
        // A new intermediate does not mend these.
        Err(error @ (Error::Io { .. } | Error::KeyMode { .. } | Error::NotYetValid { .. })) => {
            return Err(error);
        }
        Err(error) => return Ok(Need::Now(with_sources(&error))),
    };
    let missing: Vec<&str> = wanted
        .permitted
        .iter()
        .filter(|name| !crate::addr::HostName::parse(name).is_some_and(|host| present.permits(&host)))
        .map(String::as_str)
        .collect();
    Ok(if !missing.is_empty() {
        Need::Now(format!("the present one does not permit {}", missing.join(", ")))
    } else if present.permitted() != wanted.permitted {
        Need::Soon("the present one permits more than the routes need".into())
    } else if present.not_after() - now < profile::INTERMEDIATE_RENEWAL
        && present.not_after() < root.not_after
    {
        Need::Soon(format!(
            "the present one expires at {}",
            rfc3339(present.not_after())
        ))
    } else {
        Need::Nothing
    })
}

fn make_root(paths: &Paths, now: OffsetDateTime) -> Result<(), Error> {
    if exists(&paths.intermediate)? {
        return Err(Error::RootMissing {
            root: paths.root.clone(),
            intermediate: paths.intermediate.clone(),
        });
    }
    // The key first: if we are killed in between, the next `init` goes on with it.
    let key = if exists(&paths.root_key)? {
        read_key(&paths.root_key)?
    } else {
        let key = CaKey::generate().map_err(|source| Error::Make { what: "root", source })?;
        make_directory(paths.root_key.parent().expect("joined above"))?;
        write(&paths.root_key, key.to_pem().as_bytes(), 0o600)?;
        key
    };
    let root = authority::new_root(now, profile::ROOT_LIFE, key)?;
    write(&paths.root, certificate_pem(&root.certificate).as_bytes(), 0o644)
}

fn issue(paths: &Paths, wanted: &Subtrees, now: OffsetDateTime, reason: &str) -> Result<(), Error> {
    let (root_der, root) = read_ca(&paths.root, now)?;
    if root.not_after - now < profile::INTERMEDIATE_RENEWAL {
        return Err(Error::RootWornOut {
            path: paths.root.clone(),
            at: root.not_after,
        });
    }
    let key = match read_key(&paths.root_key) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::RootKeyNeeded {
                reason: reason.to_owned(),
                path: paths.root_key.clone(),
            });
        }
        key => key?,
    };
    if key.subject_public_key_info() != root.spki {
        return Err(Error::KeyMismatch {
            key: paths.root_key.clone(),
            certificate: paths.root.clone(),
        });
    }
    let issuer = Issuer::from_ca_cert_der(&root_der, key).map_err(|source| Error::Make {
        what: "issuer of intermediates",
        source,
    })?;
    let not_after = root.not_after.min(now + profile::INTERMEDIATE_LIFE);
    let (certificate, key) = authority::new_intermediate(now, not_after, wanted, &issuer)?;
    write(&paths.intermediate_key, key.to_pem().as_bytes(), 0o600)?;
    write(
        &paths.intermediate,
        certificate_pem(&certificate).as_bytes(),
        0o644,
    )?;
    Authority::load_locked(paths, now).map(drop)
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

fn read_certificate(path: &Path) -> Result<(CertificateDer<'static>, Parsed), Error> {
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
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
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

fn make_directory(dir: &Path) -> Result<(), Error> {
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

fn lock(paths: &Paths) -> Result<Flock<File>, Error> {
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

fn exists(path: &Path) -> Result<bool, Error> {
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

/// An error and its causes in one line, for a report that is no log.
fn with_sources(error: &Error) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        text += &format!(": {source}");
        next = source.source();
    }
    text
}

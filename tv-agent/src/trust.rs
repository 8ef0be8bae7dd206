//! What makes the command of `tv-agent exec` trust the CA: augmented copies of the system's certificate store, to
//! be mounted over it, and environment variables for runtimes that look elsewhere.
//!
//! A copy holds everything that the original holds and the CA besides; it never replaces the original's
//! contents. A variable that the caller has set is honoured: what it names is copied and augmented.

mod env;
mod hash;
mod ledger;
mod state;
mod store;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

use crate::limits;
pub use ledger::{Installation, Ledger, MntnsId, StoreKind, Unreached};
pub use state::{Ask, Belief, Issuing, Processes, Row, Runtime, Sign, Standing};
use store::Store;

/// What to give a command so that it trusts the CA. The files that it names live as long as the directory that
/// was given to [`prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Variables to set, each once.
    pub env: Vec<(OsString, OsString)>,
    /// In the order in which to mount them: directories come before files.
    pub mounts: Vec<Mount>,
}

/// A read-only bind mount. Both paths are absolute and free of symlinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the CA is not one PEM certificate with a subject")]
    Ca,
    #[error(
        "this system has no certificate store (looked for {}); install the package ca-certificates, or let \
         SSL_CERT_FILE name a PEM bundle",
        env::looked_for()
    )]
    NoStore,
    #[error("cannot read {}", .path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is larger than {} MiB, so it is no certificate bundle", .path.display(), limits::TRUST_FILE_BYTES >> 20)]
    TooLarge { path: PathBuf },
    #[error("{} has more than {} entries, so it is no certificate directory", .path.display(), limits::TRUST_ENTRIES)]
    TooManyEntries { path: PathBuf },
    #[error("with {} the certificates to copy exceed {} MiB", .path.display(), limits::TRUST_BYTES >> 20)]
    TooMuch { path: PathBuf },
    #[error("{} holds no PEM certificate", .path.display())]
    Empty { path: PathBuf },
    #[error("{} is neither a file nor a directory", .path.display())]
    Kind { path: PathBuf },
    #[error("cannot write {}", .path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("the environment variable {name} names no usable certificates; mend or unset it")]
    Variable { name: &'static str, source: Box<Error> },
}

/// Builds the copies in `dir`, which must not exist yet, and says what to mount and set.
///
/// `environment` is the caller's environment; `root` is `/`, or the root of another file system in tests. The
/// directories above `dir` must let the command's user pass, or the variables lead nowhere.
///
/// # Errors
/// When the system has no store and no `SSL_CERT_FILE` names one, when something is unreadable, empty or larger
/// than [`limits::TRUST_FILE_BYTES`], or when `dir` cannot be written.
pub fn prepare(
    dir: &Path,
    ca_pem: &str,
    environment: &dyn Fn(&str) -> Option<OsString>,
    root: &Path,
) -> Result<Trust, Error> {
    let ca = Anchor::new(ca_pem)?;
    make_directory(dir)?;
    let mut store = Store::open(dir, root, ca)?;
    let system = store.copy_system(&env::DIRECTORIES, &env::BUNDLES)?;
    let env = env::variables(&mut store, &system, environment)?;
    Ok(Trust {
        env,
        mounts: system.mounts,
    })
}

/// SHA-256 of a certificate, hexadecimal, as [`Installation::roots`] names it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(certificate);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The CA as it is added to stores.
struct Anchor {
    pem: String,
    /// Base name of its link in an OpenSSL certificate directory.
    hash: String,
}

impl Anchor {
    fn new(pem: &str) -> Result<Self, Error> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Ca)?;
        let (_, x509) = x509_parser::parse_x509_certificate(&der).map_err(|_| Error::Ca)?;
        Ok(Self {
            pem: format!("{}\n", pem.trim()),
            hash: hash::subject_hash(x509.subject()).ok_or(Error::Ca)?,
        })
    }
}

fn make_directory(dir: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::create_dir(dir)
        // Not by the mode of mkdir(2), which the umask cuts.
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .map_err(|source| Error::Write {
            path: dir.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;

//! The CA in the stores of workloads: augmented copies to be mounted over them, changes of a root file system that can be
//! undone, and environment variables for runtimes that look elsewhere.
//!
//! A store keeps everything that it holds, and gets the CA besides. A variable that the caller has set is honoured: what
//! it names is copied and augmented.

mod anchors;
pub mod bundle;
mod caller;
mod copies;
pub mod env;
mod hash;
mod install;
mod journal;
pub mod keystore;
mod layout;
mod ledger;
pub mod live;
mod packages;
mod place;
mod root;
mod search;
mod state;
mod store;
mod tool;
mod undo;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{encode, limits};
pub use anchors::{Anchor, Anchors};
pub use caller::extra;
use copies::Made;
pub use copies::{Copies, Extra, copies};
pub use install::{Installed, install, is_installed};
pub use keystore::Unusable;
pub use ledger::{Installation, Ledger, MntnsId, StoreKind, Unreached};
pub use root::{Found, Root};
pub use state::{
    Ask, Belief, Here, Issuing, Key as ProcessKey, Known, Listed, Looked, Processes, Row, Runtime, Sight,
    Sign, Standing,
};
use store::Store;
pub use undo::{Removed, uninstall};

/// What to give a command so that it trusts the CA. The files that it names live as long as the directory that
/// was given to [`prepare`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Variables to set, each once.
    pub env: Vec<(OsString, OsString)>,
    /// In the order in which to mount them: directories come before files.
    pub mounts: Vec<Mount>,
    /// Stores of runtimes that did not take the CA.
    pub unreached: Vec<Unreached>,
}

impl Trust {
    /// The copy of the key store that the system keeps for all its Java runtimes.
    pub fn keystore(&self) -> Option<PathBuf> {
        layout::SYSTEM_KEYSTORES.iter().find_map(|path| {
            let mount = self
                .mounts
                .iter()
                .find(|mount| Path::new(path).starts_with(&mount.target))?;
            let below = Path::new(path).strip_prefix(&mount.target).ok()?;
            let copy = if below.as_os_str().is_empty() {
                mount.source.clone()
            } else {
                mount.source.join(below)
            };
            copy.is_file().then_some(copy)
        })
    }
}

/// The bundle that most programs of `root` read, as they name it; None when there is none.
///
/// # Errors
/// When something on the way to it cannot be read.
pub fn system_bundle(root: &Root) -> Result<Option<PathBuf>, Error> {
    for path in layout::BUNDLES {
        if let Some(found) = root.find(Path::new(path))?
            && found.metadata.is_file()
        {
            return Ok(Some(path.into()));
        }
    }
    Ok(None)
}

/// Whether the PEM file `path` of `root` has every one of `anchors`.
///
/// # Errors
/// When there is none, or it is larger than [`limits::TRUST_FILE_BYTES`].
pub fn holds(root: &Root, path: &Path, anchors: &Anchors) -> Result<bool, Error> {
    let found = root.find(path)?.ok_or_else(|| Error::Read {
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    let bytes = found.read()?;
    Ok(anchors.iter().all(|anchor| bundle::holds(&bytes, anchor)))
}

/// A read-only bind mount. Both paths are absolute and free of symlinks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the root of the CA is not a PEM certificate of a CA with a subject")]
    Ca,
    #[error(
        "more than {} roots are to be trusted at once; remove those that are retired",
        limits::TRUST_ANCHORS
    )]
    TooManyAnchors,
    #[error("no store of certificates was found and none could be made")]
    NoStore,
    #[error("{} is not there, and neither is a directory to put it into", .path.display())]
    NoPlace { path: PathBuf },
    #[error("the key store {} cannot take the root", .path.display())]
    Keystore { path: PathBuf, source: Unusable },
    #[error("{} is a link that leads nowhere", .path.display())]
    Dangling { path: PathBuf },
    #[error(
        "{} cannot be changed, its file system is read-only; let the daemon put the CA into the running workload instead \
         (trust.install: live)",
        .path.display()
    )]
    ReadOnly { path: PathBuf },
    #[error("{} was changed by somebody else at the same time; try again", .path.display())]
    Changed { path: PathBuf },
    #[error("another tv-agent is at work in this root (it holds {}); try again when it is done", .path.display())]
    Busy { path: PathBuf },
    #[error("a package manager is at work in this root (it holds {}); try again when it is done", .path.display())]
    Packages { path: PathBuf },
    #[error("the record of what was changed in this root (var/lib/tv-agent/trust/journal.json) is damaged")]
    Journal,
    #[error("`{tool}` failed: {said}")]
    Tool { tool: String, said: String },
    #[error("not everything could be put back; mend what is named and run `tv-agent trust uninstall`")]
    Undo { source: Box<Error> },
    #[error("too many names at {}: stores of runtimes beyond are not looked for", .path.display())]
    TooMuchToSearch { path: PathBuf },
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

impl Error {
    /// What it is about.
    fn path(&self) -> &Path {
        match self {
            Self::Ca
            | Self::TooManyAnchors
            | Self::NoStore
            | Self::Variable { .. }
            | Self::Journal
            | Self::Tool { .. }
            | Self::Undo { .. } => Path::new("/"),
            Self::NoPlace { path }
            | Self::Dangling { path }
            | Self::ReadOnly { path }
            | Self::Changed { path }
            | Self::Busy { path }
            | Self::Packages { path }
            | Self::Keystore { path, .. }
            | Self::TooMuchToSearch { path }
            | Self::Read { path, .. }
            | Self::TooLarge { path }
            | Self::TooManyEntries { path }
            | Self::TooMuch { path }
            | Self::Empty { path }
            | Self::Kind { path }
            | Self::Write { path, .. } => path,
        }
    }
}

/// Builds the copies in `dir`, which must not exist yet, and says what to mount and set.
///
/// `environment` is the caller's environment, `extra` what [`extra`] found by it. The directories above `dir` must let the command's user pass, or the
/// variables lead nowhere.
///
/// # Errors
/// When one of the system's own stores, or what a variable names, is unreadable, empty or larger than
/// [`limits::TRUST_FILE_BYTES`], or when `dir` cannot be written.
pub fn prepare(
    dir: &Path,
    anchors: &Anchors,
    environment: &dyn Fn(&str) -> Option<OsString>,
    root: &Root,
    extra: &Extra,
) -> Result<Trust, Error> {
    make_directory(dir)?;
    let mut store = Store::open(dir, root, anchors)?;
    let mut made = Made::default();
    made.system(&mut store)?;
    made.strict()?;
    made.brought_along(&mut store, extra)?;
    let lenient = std::mem::take(&mut made.failed);
    made.directories(&mut store)?;
    made.strict()?;
    let named = environment(env::SSL_CERT_FILE).is_some_and(|value| !value.is_empty());
    if made.bundle.is_none() && !named {
        made.public_roots(&mut store)?;
    }
    let ca_only = store.ca_only()?;
    let env = env::variables(&mut store, made.bundle.as_ref(), &ca_only, environment)?;
    Ok(Trust {
        env,
        mounts: made.mounts(),
        unreached: {
            made.failed.extend(lenient);
            made.unreached()
        },
    })
}

/// SHA-256 of a certificate, hexadecimal, as [`Installation::roots`] names it.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    use sha2::{Digest as _, Sha256};
    encode::hex(&Sha256::digest(certificate))
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

//! What lies in a CA directory, told without the keys.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::Error;
use super::authority::Authority;
use super::facts::{Facts, Parsed};
use super::files::{Paths, exists, lock_shared, read_certificate, read_chain, read_rotation};
use super::rotation::{Rotation, Step};
use crate::encode::certificate_pem;
use crate::https::causes;

/// What [`show`] found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub dir: PathBuf,
    pub root: Facts,
    pub intermediate: Facts,
    /// The CAs between the intermediate and the root.
    pub issuing: Vec<Facts>,
    /// Whether the root's key lies on this node, where it need not be.
    pub root_key_on_node: bool,
    /// The key that intermediates are issued with, where the CA was imported.
    pub issuer_key: Option<PathBuf>,
    /// The rotation under way, or the last one.
    pub rotation: Option<Rotation>,
    /// The root that comes.
    pub next_root: Option<Facts>,
    /// The root that goes.
    pub old_root: Option<Facts>,
    /// Why the agent would not use this CA; `None` when it would.
    pub problem: Option<String>,
}

/// What lies in `dir`, whether it can be used or not.
///
/// # Errors
/// [`Error::Missing`], or when a certificate cannot be read at all.
pub fn show(dir: &Path) -> Result<Shown, Error> {
    let _lock = lock_shared(&Paths::new(dir))?;
    let paths = Paths::in_force(dir)?;
    let mut chain = read_chain(&paths.intermediate)?
        .into_iter()
        .map(|(_, ca)| ca.facts);
    let intermediate = chain.next().expect("a chain has one at least");
    let (mut next_root, mut old_root) = (None, None);
    for (what, _, parsed) in other_roots(dir)? {
        let place = if what == NEXT {
            &mut next_root
        } else {
            &mut old_root
        };
        *place = Some(parsed.facts);
    }
    let imported = exists(&paths.issuer)?;
    Ok(Shown {
        dir: dir.to_owned(),
        root: read_certificate(&paths.root)?.1.facts,
        intermediate,
        issuing: chain.collect(),
        root_key_on_node: exists(&paths.root_key)?,
        issuer_key: if imported { Some(paths.source()?.key) } else { None },
        rotation: read_rotation(&paths)?,
        next_root,
        old_root,
        problem: Authority::load_locked(dir, OffsetDateTime::now_utc())
            .err()
            .map(|e| causes(&e)),
    })
}

/// The roots that workloads are to trust, as PEM: the issuing one, then the next, then the retiring one. Reads
/// certificates only; a directory with nothing but `root.pem` will do.
///
/// # Errors
/// [`Error::Missing`], or when a certificate cannot be read.
pub fn anchors(dir: &Path) -> Result<String, Error> {
    let _lock = lock_shared(&Paths::new(dir))?;
    let mut all = vec![read_certificate(&Paths::in_force(dir)?.root)?.0];
    all.extend(other_roots(dir)?.into_iter().map(|(_, der, _)| der));
    all.dedup();
    Ok(all.iter().map(certificate_pem).collect())
}

/// Changes with every file that a running agent goes by.
pub fn digest(dir: &Path) -> [u8; 32] {
    let paths = Paths::new(dir);
    let mut digest = Sha256::new();
    for path in [
        &paths.root,
        &paths.intermediate,
        &paths.rotation,
        &paths.next().root,
        &paths.old().root,
    ] {
        // What cannot be read counts as nothing; loading says why.
        let bytes = std::fs::read(path).unwrap_or_default();
        digest.update(bytes.len().to_le_bytes());
        digest.update(bytes);
    }
    // Not the key itself: that it was replaced, or its mode mended, is enough.
    if let Ok(key) = std::fs::metadata(&paths.intermediate_key) {
        digest.update(key.ino().to_le_bytes());
        digest.update(key.mode().to_le_bytes());
        digest.update(key.mtime().to_le_bytes());
        digest.update(key.mtime_nsec().to_le_bytes());
    }
    digest.finalize().into()
}

const NEXT: &str = "next_root";
const OLD: &str = "old_root";

/// The other root of a rotation that is under way.
pub(super) fn other_roots(dir: &Path) -> Result<Vec<(&'static str, CertificateDer<'static>, Parsed)>, Error> {
    let paths = Paths::new(dir);
    let Some(Rotation { step, .. }) = read_rotation(&paths)? else {
        return Ok(Vec::new());
    };
    let (what, path) = if step.waits() {
        (NEXT, paths.next().root)
    } else if step.keeps_old() {
        (OLD, paths.old().root)
    } else {
        debug_assert_eq!(step, Step::Removed);
        return Ok(Vec::new());
    };
    let (der, parsed) = read_certificate(&path)?;
    Ok(vec![(what, der, parsed)])
}

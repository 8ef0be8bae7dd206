//! The stores of a process as its runtimes read them: through its root, in its mount namespace.
//!
//! /proc/PID/root shows exactly what the process sees, so nobody has to enter its namespace to read.

use std::collections::BTreeMap;

use rustls_pki_types::pem::PemObject as _;

use super::runtimes::{Traits, wanted};
use super::*;
use crate::https::causes;
use crate::trust::layout::{BUNDLES, DIRECTORIES, SYSTEM_KEYSTORES};
use crate::trust::search::Search;
use crate::trust::{Anchor, Root, StoreKind, keystore};

/// One store, read.
#[derive(Debug)]
pub struct Store {
    pub kind: StoreKind,
    /// Inside the root, free of symlinks.
    pub path: PathBuf,
    /// What a runtime trusts that reads it. Of a directory those under the hashes of the anchors, where OpenSSL looks;
    /// of a key store those of the anchors that it holds. Empty when none is found.
    pub roots: Vec<CertificateDer<'static>>,
    /// Why it could not be read.
    pub problem: Option<String>,
}

/// The stores of `process`, those that it brings along included.
///
/// # Errors
/// When the process is gone, or may not be looked at.
pub fn stores(process: u32, anchors: &Anchors) -> Result<Vec<Store>, super::Error> {
    let root = Root::of_process(process)?;
    let mut paths: BTreeMap<PathBuf, StoreKind> = BTreeMap::new();
    let mut add = |kind, path: &Path| {
        if let Ok(Some(found)) = root.find(path) {
            paths.entry(found.path).or_insert(kind);
        }
    };
    BUNDLES
        .iter()
        .for_each(|path| add(StoreKind::Bundle, Path::new(path)));
    DIRECTORIES
        .iter()
        .for_each(|path| add(StoreKind::Directory, Path::new(path)));
    SYSTEM_KEYSTORES
        .iter()
        .for_each(|path| add(StoreKind::Java, Path::new(path)));
    let mut search = Search::new(&root);
    for path in search.certifi()? {
        add(StoreKind::Certifi, &path);
    }
    for path in search.keystores()? {
        add(StoreKind::Java, &path);
    }
    if let Ok(traits) = i32::try_from(process)
        .map_err(io::Error::other)
        .and_then(Traits::of)
    {
        let wanted = wanted(&traits);
        wanted
            .bundles
            .iter()
            .for_each(|path| add(StoreKind::Certifi, path));
        wanted
            .keystores
            .iter()
            .for_each(|path| add(StoreKind::Java, path));
    }
    let read = paths.into_iter().map(|(path, kind)| {
        let (roots, problem) = match roots_of(&root, kind, &path, anchors) {
            Ok(roots) => (roots, None),
            Err(error) => (Vec::new(), Some(causes(&error))),
        };
        Store {
            kind,
            path,
            roots,
            problem,
        }
    });
    Ok(read.collect())
}

fn roots_of(
    root: &Root,
    kind: StoreKind,
    path: &Path,
    anchors: &Anchors,
) -> Result<Vec<CertificateDer<'static>>, crate::trust::Error> {
    let read = |path: &Path| match root.find(path)? {
        Some(found) if found.metadata.is_file() => found.read().map(Some),
        _ => Ok(None),
    };
    match kind {
        StoreKind::Bundle | StoreKind::Certifi => Ok(certificates(&read(path)?.unwrap_or_default())),
        StoreKind::Directory => {
            let mut all = Vec::new();
            for hash in anchors.iter().map(Anchor::subject_hash) {
                // In turn, up to the first number that is free (X509_LOOKUP_hash_dir(3)).
                for number in 0..limits::TRUST_ANCHORS {
                    match read(&path.join(format!("{hash}.{number}")))? {
                        Some(text) => all.extend(certificates(&text)),
                        None => break,
                    }
                }
            }
            Ok(all)
        }
        StoreKind::Java => {
            let store = read(path)?.unwrap_or_default();
            let holds = |anchor: &&Anchor| {
                // A merge that changes nothing had nothing to add.
                let one = Anchors::from_pem(anchor.pem()).ok()?;
                Some(keystore::merge(&store, &one).ok()? == store)
            };
            if let Err(source) = keystore::merge(&store, anchors) {
                return Err(crate::trust::Error::Keystore {
                    path: path.to_owned(),
                    source,
                });
            }
            let held = anchors.iter().filter(|anchor| holds(anchor) == Some(true));
            Ok(held
                .map(|anchor| CertificateDer::from(anchor.der().to_owned()))
                .collect())
        }
    }
}

/// Those that can be read, as runtimes do it.
fn certificates(pem: &[u8]) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem)
        .filter_map(Result::ok)
        .collect()
}

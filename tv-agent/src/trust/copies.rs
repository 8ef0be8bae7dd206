//! Augmented copies of every store in a root, to be mounted over the originals.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::layout::{BUNDLES, DIRECTORIES, SYSTEM_KEYSTORES};
use super::root::Root;
use super::search::Search;
use super::store::{Form, Store};
use super::{Anchors, Error, Mount, StoreKind, Unreached, make_directory};
use crate::encode::certificate_pem;
use crate::https::causes;

/// Stores that running processes are known to use: paths inside the root, besides those in the usual places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    pub certifi: Vec<PathBuf>,
    pub keystores: Vec<PathBuf>,
}

/// The copies of one root's stores. The files live as long as the directory that was given to [`copies`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copies {
    /// In the order in which to mount them: directories come before files.
    pub mounts: Vec<Mount>,
    pub kinds: BTreeSet<StoreKind>,
    pub unreached: Vec<Unreached>,
    /// The copy of the bundle that most programs would read: the root's own roots and ours.
    pub bundle: Option<PathBuf>,
    /// A file with nothing but the anchors.
    pub ca_only: PathBuf,
    /// What the copies were made of: path inside the root, and its [`Root::digest`].
    pub watched: Vec<(PathBuf, String)>,
}

/// Copies every store that is found in `root` to `dir`, which must not exist yet, and adds `anchors`.
///
/// A store that cannot be read, or holds nothing, is `unreached` and does not spoil the others. A root without any
/// gets Mozilla's roots and ours.
///
/// # Errors
/// When `dir` cannot be written.
pub fn copies(dir: &Path, anchors: &Anchors, root: &Root, extra: &Extra) -> Result<Copies, Error> {
    make_directory(dir)?;
    let mut store = Store::open(dir, root, anchors)?;
    let mut made = Made::default();
    made.system(&mut store)?;
    made.brought_along(&mut store, extra)?;
    made.directories(&mut store)?;
    if made.bundle.is_none() {
        made.public_roots(&mut store)?;
    }
    Ok(Copies {
        mounts: made.mounts(),
        ca_only: store.ca_only()?,
        kinds: std::mem::take(&mut made.kinds),
        unreached: made.unreached(),
        bundle: made.bundle,
        watched: store.watched,
    })
}

/// What has been made so far.
#[derive(Default)]
pub(super) struct Made {
    directories: Vec<Mount>,
    files: Vec<Mount>,
    kinds: BTreeSet<StoreKind>,
    pub(super) bundle: Option<PathBuf>,
    pub(super) failed: Vec<Error>,
}

impl Made {
    /// The system's own bundles.
    pub(super) fn system(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        for path in BUNDLES {
            let made = self.file(store, Path::new(path), Form::Pem, StoreKind::Bundle)?;
            self.bundle = self.bundle.take().or(made);
        }
        Ok(())
    }

    /// What runtimes and libraries bring; before the directories, in which some of it lies.
    pub(super) fn brought_along(&mut self, store: &mut Store<'_>, extra: &Extra) -> Result<(), Error> {
        let mut search = Search::new(store.root);
        let mut searched = |found: Result<Vec<PathBuf>, Error>| match found {
            Ok(found) => found,
            Err(error) => {
                self.failed.push(error);
                Vec::new()
            }
        };
        let certifi = searched(search.certifi());
        let keystores = searched(search.keystores());
        for path in certifi.iter().chain(&extra.certifi) {
            self.file(store, path, Form::Pem, StoreKind::Certifi)?;
        }
        let system = SYSTEM_KEYSTORES.map(PathBuf::from);
        for path in system.iter().chain(&keystores).chain(&extra.keystores) {
            self.file(store, path, Form::Java, StoreKind::Java)?;
        }
        Ok(())
    }

    pub(super) fn directories(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        let mut certificates = Vec::new();
        for path in DIRECTORIES {
            let made = store.copy_directory(Path::new(path), &mut certificates);
            if let Some(mount) = self.kept(made)?.flatten() {
                self.kinds.insert(StoreKind::Directory);
                self.directories.push(mount);
            }
        }
        // A system with hashed files only: its bundle is their sum.
        if self.bundle.is_none() && !certificates.is_empty() {
            self.bundle = Some(store.write_bundle("bundle.pem", &certificates.concat())?);
        }
        Ok(())
    }

    /// For a system that has no roots: Mozilla's, and ours, put where most programs look if a mount can get there.
    pub(super) fn public_roots(&mut self, store: &mut Store<'_>) -> Result<(), Error> {
        let target = Path::new("/etc/ssl/certs/ca-certificates.crt");
        let public: String = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(certificate_pem)
            .collect();
        let bundle = store.write_bundle("bundle.pem", public.as_bytes())?;
        let certs = Path::new("/etc/ssl/certs");
        if let Some(copy) = store.copy_of(certs) {
            copy_into(&bundle, &copy)?;
            self.kinds.insert(StoreKind::Bundle);
        } else if let Some(mount) = self
            .kept(store.copy_directory(Path::new("/etc/ssl"), &mut Vec::new()))?
            .flatten()
        {
            let copy = mount.source.join("certs");
            make_directory(&copy)?;
            store.add_hashed(&copy)?;
            copy_into(&bundle, &copy)?;
            self.directories.push(mount);
            self.kinds.extend([StoreKind::Bundle, StoreKind::Directory]);
        } else {
            self.failed.push(Error::NoPlace { path: target.into() });
        }
        self.bundle = Some(bundle);
        Ok(())
    }

    /// # Errors
    /// The first thing that was wrong so far.
    pub(super) fn strict(&mut self) -> Result<(), Error> {
        self.failed.drain(..).next().map_or(Ok(()), Err)
    }

    pub(super) fn unreached(&self) -> Vec<Unreached> {
        let mut all: Vec<_> = self.failed.iter().map(unreached).collect();
        // Several patterns lead to one place.
        all.sort_by(|a, b| a.path.cmp(&b.path));
        all.dedup();
        all
    }

    pub(super) fn mounts(&mut self) -> Vec<Mount> {
        let mut mounts = std::mem::take(&mut self.directories);
        let mut files = std::mem::take(&mut self.files);
        // What lies inside a copied directory was merged there.
        files.retain(|file| !mounts.iter().any(|dir| file.target.starts_with(&dir.target)));
        mounts.extend(files);
        mounts
    }

    fn file(
        &mut self,
        store: &mut Store<'_>,
        path: &Path,
        form: Form,
        kind: StoreKind,
    ) -> Result<Option<PathBuf>, Error> {
        let Some(mount) = self.kept(store.copy_file(path, form))?.flatten() else {
            return Ok(None);
        };
        let copy = mount.source.clone();
        self.kinds.insert(kind);
        self.files.push(mount);
        Ok(Some(copy))
    }

    /// Keeps what is wrong with a store for later; what is wrong with our own directory ends everything.
    fn kept<T>(&mut self, made: Result<T, Error>) -> Result<Option<T>, Error> {
        match made {
            Ok(made) => Ok(Some(made)),
            Err(error @ Error::Write { .. }) => Err(error),
            Err(error) => {
                self.failed.push(error);
                Ok(None)
            }
        }
    }
}

fn copy_into(bundle: &Path, directory: &Path) -> Result<(), Error> {
    let path = directory.join("ca-certificates.crt");
    std::fs::copy(bundle, &path)
        .map(drop)
        .map_err(|source| Error::Write { path, source })
}

pub(super) fn unreached(error: &Error) -> Unreached {
    Unreached {
        path: error.path().to_owned(),
        why: causes(error),
    }
}

#[cfg(test)]
mod tests;

//! The anchors in the stores of a root file system itself, for as long as it lasts, and taking them out again.

mod links;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::journal::{self, Change, Journal, What};
use super::layout::{self, BUNDLES, Distribution, SYSTEM_KEYSTORES};
use super::place::{Attributes, State};
use super::root::Root;
use super::search::Search;
use super::store::{Form, merged};
use super::{Anchors, Error, Extra, Unreached, bundle, copies, packages, tool, undo};
use crate::encode::certificate_pem;

/// What an installation has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Installed {
    /// As what the root was recognised; None for one without a directory of anchors.
    pub distribution: Option<&'static str>,
    /// Paths inside the root; none when everything was in place before.
    pub changed: Vec<PathBuf>,
    pub unreached: Vec<Unreached>,
}

/// Puts `anchors` into every store of `root`, and records how to take them out again. For this process's own root the
/// distribution's tool does what it can; in any other root nothing is run.
///
/// Done again it goes on to stores that came since; with other anchors, or after stores were changed, it takes out what
/// it had put in and begins anew.
///
/// # Errors
/// When a store cannot be written, another agent or a package manager is at work, or the distribution's tool fails:
/// then everything is as it was before the first time. What cannot be read is `unreached` instead.
pub fn install(root: &Root, anchors: &Anchors, extra: &Extra) -> Result<Installed, Error> {
    install_in_steps(root, anchors, extra, &|| ())
}

/// `step` is called before everything that changes something; tests end there.
pub(super) fn install_in_steps(
    root: &Root,
    anchors: &Anchors,
    extra: &Extra,
    step: &dyn Fn(),
) -> Result<Installed, Error> {
    packages::idle(root)?;
    step();
    let mut journal = Journal::open(root)?;
    let again = journal.record.anchors == anchors.pem() && undo::in_place(root, &journal)?;
    if !journal.is_empty() && !again {
        undo::undo(root, journal, step)?;
        journal = Journal::open(root)?;
    }
    let mut work = Work {
        root,
        anchors,
        journal,
        step,
        again,
        seen: BTreeSet::new(),
        bundles: false,
        done: Installed::default(),
    };
    match work.all(extra) {
        Ok(()) => Ok(work.done),
        Err(error) => {
            undo::undo(root, work.journal, step).map_err(|undo| Error::Undo {
                source: Box::new(error_with(&error, undo)),
            })?;
            Err(error)
        }
    }
}

/// Neither may hide the other.
fn error_with(first: &Error, undo: Error) -> Error {
    tracing::error!("{first}");
    undo
}

/// Where a store is, what is there, its contents, and what they are to be.
type Planned = (PathBuf, State, Vec<u8>, Vec<u8>);

struct Work<'a> {
    root: &'a Root,
    anchors: &'a Anchors,
    journal: Journal<'a>,
    step: &'a dyn Fn(),
    /// What was done before is in place.
    again: bool,
    /// Files that were looked at already, free of symlinks.
    seen: BTreeSet<PathBuf>,
    /// Whether there was any bundle.
    bundles: bool,
    done: Installed,
}

impl Work<'_> {
    fn all(&mut self, extra: &Extra) -> Result<(), Error> {
        (self.step)();
        if !self.again {
            self.journal.begin(self.anchors)?;
        }
        let root = self.root;
        let distribution = layout::distribution(&mut |path| root.exists(Path::new(path)));
        if let Some(distribution) = distribution {
            self.done.distribution = Some(distribution.name);
            self.anchor_files(distribution)?;
            if !self.again && root.is_own()? && tool::is_there(root, distribution) {
                self.by_tool(distribution)?;
            }
        }
        self.files(extra)?;
        self.links(distribution)?;
        if !self.bundles {
            self.public_roots()?;
        }
        (self.step)();
        self.journal.complete()
    }

    fn anchor_files(&mut self, distribution: &Distribution) -> Result<(), Error> {
        self.directories(Path::new(distribution.anchors))?;
        for anchor in self.anchors.iter() {
            let path = anchor_file(distribution, &anchor.name());
            self.make(&path, bundle::block(anchor).as_bytes())?;
        }
        Ok(())
    }

    /// Records everything that the tool may change, and keeps of the record what it did change.
    fn by_tool(&mut self, distribution: &Distribution) -> Result<(), Error> {
        let bundles = BUNDLES.map(|path| (path, What::Pem));
        let keystores = SYSTEM_KEYSTORES.map(|path| (path, What::Java));
        for (path, what) in bundles.into_iter().chain(keystores) {
            let Some(found) = self
                .root
                .find(Path::new(path))?
                .filter(|found| found.metadata.is_file())
            else {
                continue;
            };
            if !self.seen.insert(found.path.clone()) {
                continue;
            }
            let Some(place) = self.root.place(&found.path)? else {
                continue;
            };
            let (before, bytes) = place.read()?;
            let change = Change {
                path: found.path,
                what,
                before,
                after: None,
                kept: None,
            };
            (self.step)();
            self.journal.add(change, &bytes)?;
        }
        self.seen.clear();
        (self.step)();
        tool::run(distribution)?;
        (self.step)();
        for change in &mut self.journal.record.changes {
            if change.after.is_none()
                && let Some(place) = self.root.place(&change.path)?
            {
                let after = place.state()?;
                if !after.is_like(&change.before) {
                    self.done.changed.push(change.path.clone());
                }
                change.after = Some(after);
            }
        }
        self.journal.save()
    }

    fn files(&mut self, extra: &Extra) -> Result<(), Error> {
        let mut search = Search::new(self.root);
        let mut searched = |found: Result<Vec<PathBuf>, Error>| match found {
            Ok(found) => found,
            Err(error) => {
                self.done.unreached.push(copies::unreached(&error));
                Vec::new()
            }
        };
        let certifi = searched(search.certifi());
        let keystores = searched(search.keystores());
        let bundles = BUNDLES.map(PathBuf::from);
        for path in &bundles {
            self.file(path, Form::Pem)?;
        }
        self.bundles = !self.seen.is_empty();
        for path in certifi.iter().chain(&extra.certifi) {
            self.file(path, Form::Pem)?;
        }
        let system = SYSTEM_KEYSTORES.map(PathBuf::from);
        for path in system.iter().chain(&keystores).chain(&extra.keystores) {
            self.file(path, Form::Java)?;
        }
        Ok(())
    }

    /// Adds the anchors to one store, if it is there.
    fn file(&mut self, path: &Path, form: Form) -> Result<(), Error> {
        match self.read(path, form) {
            Ok(Some((real, before, bytes, merged))) if merged != bytes => {
                self.change(&real, form.into(), before, &bytes, &merged)
            }
            Ok(_) => Ok(()),
            Err(error) => {
                let unreached = copies::unreached(&error);
                if !self.done.unreached.contains(&unreached) {
                    self.done.unreached.push(unreached);
                }
                Ok(())
            }
        }
    }

    /// Where the store is, what is there, and what is to be there; None when there is none, or it was seen already.
    fn read(&mut self, path: &Path, form: Form) -> Result<Option<Planned>, Error> {
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
        if !self.seen.insert(found.path.clone()) {
            return Ok(None);
        }
        let Some(place) = self.root.place(&found.path)? else {
            return Ok(None);
        };
        let (before, bytes) = place.read()?;
        // Wherever they stand: the distribution may have put them there.
        if form == Form::Pem && self.anchors.iter().all(|anchor| bundle::holds(&bytes, anchor)) {
            return Ok(None);
        }
        let merged = merged(&found.path, &bytes, self.anchors, form)?;
        Ok(Some((found.path, before, bytes, merged)))
    }

    /// For a root without any bundle: Mozilla's roots, and ours.
    fn public_roots(&mut self) -> Result<(), Error> {
        let path = Path::new(BUNDLES[0]);
        if self.root.exists(path) || self.root.is_link(path) {
            return Ok(());
        }
        self.directories(Path::new("/etc/ssl/certs"))?;
        let public: String = webpki_root_certs::TLS_SERVER_ROOT_CERTS
            .iter()
            .map(certificate_pem)
            .collect();
        self.make(path, &bundle::merge(public.as_bytes(), self.anchors))
    }

    /// Makes those parts of `path` that are not there.
    fn directories(&mut self, path: &Path) -> Result<(), Error> {
        let mut above: Vec<&Path> = path.ancestors().filter(|path| path.parent().is_some()).collect();
        above.reverse();
        for path in above {
            if self.root.exists(path) {
                continue;
            }
            let change = Change {
                path: path.to_owned(),
                what: What::Directory,
                before: State::Absent,
                after: Some(State::Directory),
                kept: None,
            };
            let place = self
                .root
                .place(path)?
                .ok_or_else(|| Error::NoPlace { path: path.into() })?;
            (self.step)();
            self.journal.add(change, &[])?;
            (self.step)();
            place.make_directory()?;
        }
        Ok(())
    }

    /// Makes a file that is not there.
    fn make(&mut self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        let place = self
            .root
            .place(path)?
            .ok_or_else(|| Error::NoPlace { path: path.into() })?;
        let (before, old) = place.read()?;
        if old == bytes {
            return Ok(());
        }
        self.change(&place.path, What::Pem, before, &old, bytes)
    }

    fn change(
        &mut self,
        path: &Path,
        what: What,
        before: State,
        old: &[u8],
        new: &[u8],
    ) -> Result<(), Error> {
        let place = self
            .root
            .place(path)?
            .ok_or_else(|| Error::NoPlace { path: path.into() })?;
        let kept = match &before {
            State::File { kept, .. } => kept.clone(),
            State::Absent => Attributes::public(),
            State::Link { .. } | State::Directory => {
                return Err(Error::Kind {
                    path: path.to_owned(),
                });
            }
        };
        let change = Change {
            path: path.to_owned(),
            what,
            before: before.clone(),
            after: Some(State::File {
                sha256: super::root::digest_of(new),
                kept: kept.clone(),
            }),
            kept: None,
        };
        (self.step)();
        self.journal.add(change, old)?;
        (self.step)();
        place.clear()?;
        place.replace(new, &kept, false, &before)?;
        self.done.changed.push(path.to_owned());
        Ok(())
    }
}

fn anchor_file(distribution: &Distribution, name: &str) -> PathBuf {
    Path::new(distribution.anchors).join(format!("{name}.{}", distribution.extension))
}

/// Whether there is, or may be, something to take out of `root`.
pub fn is_installed(root: &Root) -> bool {
    journal::exists(root)
}

#[cfg(test)]
mod tests;

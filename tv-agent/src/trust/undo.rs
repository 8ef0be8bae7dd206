//! Taking out of a root what was put into it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::journal::{self, Change, Journal, What};
use super::place::{Place, State};
use super::root::Root;
use super::{Anchor, Anchors, Error, Unreached, bundle, copies, keystore, layout, packages, tool};

/// What was put back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Paths inside the root, as they were before.
    pub restored: Vec<PathBuf>,
    /// Stores that others had changed meanwhile: ours was taken out, the rest stays as they made it.
    pub taken_out: Vec<PathBuf>,
    /// Stores that others had changed meanwhile in a way that hides ours.
    pub left: Vec<Unreached>,
}

/// Takes everything out of `root` that [`super::install`] has put in, also where that ended midway.
///
/// # Errors
/// When a store cannot be written; what is not put back stays recorded, and can be tried again.
pub fn uninstall(root: &Root) -> Result<Removed, Error> {
    uninstall_in_steps(root, &|| ())
}

pub(super) fn uninstall_in_steps(root: &Root, step: &dyn Fn()) -> Result<Removed, Error> {
    packages::idle(root)?;
    if !journal::exists(root) {
        return Ok(Removed::default());
    }
    undo(root, Journal::open(root)?, step)
}

pub(super) fn undo(root: &Root, journal: Journal<'_>, step: &dyn Fn()) -> Result<Removed, Error> {
    let mut undo = Undo {
        root,
        journal,
        step,
        done: Removed::default(),
    };
    let mut failed = None;
    for change in undo.journal.record.changes.clone().iter().rev() {
        if let Err(error) = undo.one(change)
            && let Some(earlier) = failed.replace(error)
        {
            tracing::error!("{earlier}");
        }
    }
    if let Some(error) = failed {
        return Err(Error::Undo { source: error.into() });
    }
    undo.links()?;
    undo.as_the_distribution_has_it()?;
    step();
    undo.journal.forget()?;
    Ok(undo.done)
}

/// Whether every store is as the installation left it.
pub(super) fn in_place(root: &Root, journal: &Journal<'_>) -> Result<bool, Error> {
    if !journal.record.complete {
        return Ok(false);
    }
    // The last change of each counts.
    let last: HashMap<&Path, &Change> = journal
        .record
        .changes
        .iter()
        .map(|change| (change.path.as_path(), change))
        .collect();
    for change in last.into_values() {
        let now = match root.place(&change.path)? {
            Some(place) => place.state()?,
            None => State::Absent,
        };
        if !change.after.as_ref().is_some_and(|after| now.is_like(after)) {
            return Ok(false);
        }
    }
    Ok(true)
}

struct Undo<'a> {
    root: &'a Root,
    journal: Journal<'a>,
    step: &'a dyn Fn(),
    done: Removed,
}

impl Undo<'_> {
    fn one(&mut self, change: &Change) -> Result<(), Error> {
        let Some(place) = self.root.place(&change.path)? else {
            return Ok(());
        };
        place.clear()?;
        let (now, bytes) = place.read()?;
        if now.is_like(&change.before) {
            return Ok(());
        }
        let untouched = change.after.as_ref().is_none_or(|after| now.is_like(after));
        (self.step)();
        match (&change.before, &now) {
            (State::Absent, State::Directory) if change.what == What::Directory => place.remove()?,
            (State::Absent, _) if untouched => place.remove()?,
            (State::Link { target }, _) if untouched => place.link(target, &now)?,
            (State::File { kept: before, .. }, State::File { kept, .. }) if untouched => {
                let old = self.journal.kept(change)?;
                // Somebody may have changed nothing but the rights.
                let rights = |of: &super::place::Attributes| (of.mode, of.uid, of.gid);
                let same = match &change.after {
                    Some(State::File { kept: after, .. }) => rights(after) == rights(kept),
                    _ => true,
                };
                place.restore(&old, if same { before } else { kept }, same, &now)?;
            }
            (_, State::File { .. }) => return self.take_out(change, &place, &now, &bytes),
            // Others have removed it, or put something else there.
            _ => return Ok(()),
        }
        self.done.restored.push(change.path.clone());
        Ok(())
    }

    /// From a store that others have changed since.
    fn take_out(&mut self, change: &Change, place: &Place, now: &State, bytes: &[u8]) -> Result<(), Error> {
        let anchors = Anchors::from_pem(&self.journal.record.anchors)?;
        let path = || change.path.clone();
        let rest = match change.what {
            What::Pem => bundle::remove(bytes, &anchors),
            What::Java => match keystore::remove(bytes, &anchors) {
                Ok(rest) => rest,
                Err(source) => {
                    let error = Error::Keystore { path: path(), source };
                    self.done.left.push(copies::unreached(&error));
                    return Ok(());
                }
            },
            What::Link | What::Directory => return Ok(()),
        };
        let State::File { kept, .. } = now else {
            return Ok(());
        };
        if change.before == State::Absent && !bundle::has_certificate(&rest) {
            place.remove()?;
        } else if rest != bytes {
            place.replace(&rest, kept, false, now)?;
        } else {
            return Ok(());
        }
        self.done.taken_out.push(path());
        Ok(())
    }

    /// Links to ours that a tool made, or gave another number, while nobody looked.
    fn links(&self) -> Result<(), Error> {
        if self.journal.is_empty() {
            return Ok(());
        }
        let anchors = Anchors::from_pem(&self.journal.record.anchors)?;
        for path in layout::DIRECTORIES {
            let Some(found) = self
                .root
                .find(Path::new(path))?
                .filter(|found| found.metadata.is_dir())
            else {
                continue;
            };
            for entry in found.entries()? {
                let target = entry.link.unwrap_or_default();
                let to_ours = |anchor: &Anchor| target.to_string_lossy().contains(&anchor.name());
                if anchors.iter().any(to_ours)
                    && let Some(place) = self.root.place(&found.path.join(&entry.name))?
                {
                    place.remove()?;
                }
            }
        }
        Ok(())
    }

    /// Where stores of this process's own root were changed by others, its tool has the last word.
    fn as_the_distribution_has_it(&self) -> Result<(), Error> {
        let root = self.root;
        if self.done.taken_out.is_empty() || !root.is_own()? {
            return Ok(());
        }
        match layout::distribution(&mut |path| root.exists(Path::new(path))) {
            Some(distribution) if tool::is_there(root, distribution) => tool::run(distribution),
            _ => Ok(()),
        }
    }
}

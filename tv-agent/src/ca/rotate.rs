//! `ca rotate`: the steps of [`super::rotation`] on disk. `rotation.json` is written last, or before the moves that
//! [`super::files`] finishes, so a step is made whole or not at all.

use std::path::Path;

use serde::Serialize;
use time::OffsetDateTime;

use super::Error;
use super::authority::Authority;
use super::files::{self, Paths, exists, read_certificate, write};
use super::init;
use super::issue::Issued;
use super::rotation::{self, Rotation, Step, Witness};
use super::source::{Loaded, Source};
use super::subtree::Subtrees;
use crate::encode::certificate_pem;

/// A step that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advanced {
    pub rotation: Rotation,
    /// What the operator should do next.
    pub advice: String,
}

/// The rotation under way in `dir`, or the last one.
///
/// # Errors
/// [`Error::Missing`], or when its file cannot be read.
pub fn rotation(dir: &Path) -> Result<Option<Rotation>, Error> {
    let paths = Paths::new(dir);
    let _lock = files::lock_shared(&paths)?;
    files::read_rotation(&paths)
}

/// What speaks against the step after `rotation`, a sentence each; `witnesses` are None where no daemon tells.
pub fn objections(rotation: Option<&Rotation>, witnesses: Option<&[Witness]>) -> Vec<String> {
    rotation::against(rotation, witnesses, OffsetDateTime::now_utc())
}

/// Makes the step after `before`, which is what [`rotation`] told. Whether it may be made is the caller's question,
/// see [`objections`]. `source`: the next root, at the first step; without it one is made.
///
/// # Errors
/// [`Error::WentOn`] when somebody else made a step meanwhile; nothing is changed then, nor with any other error.
pub fn advance(dir: &Path, before: Option<&Rotation>, source: Option<&Source>) -> Result<Advanced, Error> {
    advance_at(dir, before, source, OffsetDateTime::now_utc())
}

pub(super) fn advance_at(
    dir: &Path,
    before: Option<&Rotation>,
    source: Option<&Source>,
    now: OffsetDateTime,
) -> Result<Advanced, Error> {
    let paths = Paths::new(dir);
    if !exists(&paths.root)? {
        return Err(Error::Missing { dir: dir.to_owned() });
    }
    let _lock = files::lock(&paths)?;
    let present = files::read_rotation(&paths)?;
    let place = |rotation: Option<&Rotation>| rotation.map(|r| (r.step, r.new.clone()));
    if let Some(present) = &present
        && place(Some(present)) != place(before)
    {
        return Err(Error::WentOn { step: present.step });
    }
    let step = Step::after(present.as_ref().map(|r| r.step));
    if let (Some(present), true) = (&present, source.is_some() && step != Step::Published) {
        return Err(Error::RootChosen { step: present.step });
    }
    let rotation = match (step, present) {
        (Step::Published, _) | (_, None) => publish(&paths, source, now)?,
        (_, Some(present)) => take(&paths, &present, now)?,
    };
    Ok(Advanced {
        advice: advice(step).to_owned(),
        rotation,
    })
}

fn take(paths: &Paths, present: &Rotation, now: OffsetDateTime) -> Result<Rotation, Error> {
    let mut rotation = present.after(now);
    match rotation.step {
        Step::Issuing => {
            prepare_issuing(paths, now)?;
            files::write_rotation(paths, &rotation)?;
            files::finish_filing(paths)?;
            rotation.filing = None;
        }
        Step::Retiring => {
            let old = paths.old();
            files::remove(&old.root_key)?;
            files::remove(&old.issuer)?;
            files::write_rotation(paths, &rotation)?;
        }
        Step::Removed => {
            files::write_rotation(paths, &rotation)?;
            files::remove_tree(&paths.old().dir)?;
        }
        Step::Published | Step::Trusted => files::write_rotation(paths, &rotation)?,
    }
    Ok(rotation)
}

fn publish(paths: &Paths, source: Option<&Source>, now: OffsetDateTime) -> Result<Rotation, Error> {
    let next = paths.next();
    let loaded = match source {
        Some(source) => {
            let loaded = Loaded::new(source, now)?;
            let root = loaded.root.0.clone();
            // What cannot issue is refused now, not when it is in every store.
            Issued::new(loaded, &permitted(paths, now)?, now, &next)?;
            Some((source, root))
        }
        None if exists(&paths.issuer)? => return Err(Error::NextRootNeeded),
        None => None,
    };
    let old = read_certificate(&paths.root)?.1.facts.sha256;
    if let Some((_, root)) = &loaded
        && *root == read_certificate(&paths.root)?.0
    {
        return Err(Error::SameRoot);
    }
    // Of a beginning that was killed before it counted.
    files::remove_tree(&next.dir)?;
    files::remove_tree(&paths.old().dir)?;
    files::make_directory(&next.dir)?;
    match loaded {
        Some((source, root)) => {
            files::write_source(&next, source)?;
            write(&next.root, certificate_pem(&root).as_bytes(), 0o644)?;
        }
        None => init::make_own_root(&next, now)?,
    }
    let new = read_certificate(&next.root)?.1.facts.sha256;
    let rotation = Rotation::begin(old, new, now);
    files::write_rotation(paths, &rotation)?;
    Ok(rotation)
}

/// The intermediate under the next root, and a copy of the old root to go on trusting.
pub(super) fn prepare_issuing(paths: &Paths, now: OffsetDateTime) -> Result<(), Error> {
    let next = paths.next();
    let source = next.source()?;
    let loaded = Loaded::new(&source, now)?;
    if loaded.root.0 != read_certificate(&next.root)?.0 {
        return Err(Error::OtherRoot {
            source_path: source.certificate,
            root: next.root,
        });
    }
    Issued::new(loaded, &permitted(paths, now)?, now, &next)?.write(&next)?;
    Authority::load_one(&next, now)?;
    let old = read_certificate(&paths.root)?.0;
    let kept = paths.old();
    files::make_directory(&kept.dir)?;
    write(&kept.root, certificate_pem(&old).as_bytes(), 0o644)
}

/// What the present intermediate may sign for: a rotation changes no routes.
fn permitted(paths: &Paths, now: OffsetDateTime) -> Result<Subtrees, Error> {
    Subtrees::parse(Authority::load_one(paths, now)?.permitted())
}

fn advice(step: Step) -> &'static str {
    match step {
        Step::Published => {
            "Let every workload get the new root (`tv-agent trust list`), then run `tv-agent ca rotate` again."
        }
        Step::Trusted => {
            "Run `tv-agent ca rotate` again to let the new root sign; the agent follows in seconds."
        }
        Step::Issuing => {
            "Watch that workloads go on; then run `tv-agent ca rotate` again, which removes the old root's key."
        }
        Step::Retiring => {
            "When the old root's leaves have ended, three days after the new one began, run `tv-agent ca rotate` again."
        }
        Step::Removed => "The old root leaves the stores. The rotation is done.",
    }
}

//! `ca init` and the daemon's renewal: making what is missing, importing, and issuing intermediates anew.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use time::{Duration, OffsetDateTime};

use super::authority::{self, Authority};
use super::files::{self, Paths, exists, lock, make_directory, read_ca, read_certificate, read_key, write};
use super::issue::{self, Issued};
use super::profile::{self, CaKey};
use super::rotation::Step;
use super::source::{Loaded, Source};
use super::subtree::Subtrees;
use super::{Error, rfc3339};
use crate::addr::HostName;
use crate::encode::certificate_pem;
use crate::https::causes;

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

/// Makes what is missing in `dir`: a root if there is none, and an intermediate constrained to `permitted` if
/// there is none that is good. Calling it again changes nothing; two at once take turns.
///
/// # Errors
/// [`Error::RootKeyNeeded`] when an intermediate has to be issued and the issuing key is not on the node,
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
    let mut advice = Vec::from_iter(root_ends_soon(&paths, now)?);
    let intermediate = tend(&paths, &wanted, now, &mut advice)?;
    if exists(&paths.root_key)? {
        advice.push(format!(
            "Move {} off this node and keep it safe: serving does not need it. The agent renews the intermediate by \
             itself only while it is there; otherwise put it back for `tv-agent ca init` every three weeks.",
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

/// Issues the intermediate anew if that is due or `permitted` needs it, and says in its advice what it could not do.
/// Makes no root.
///
/// # Errors
/// As [`init`]; [`Error::Missing`] where there is no CA.
pub fn renew(dir: &Path, permitted: &[String]) -> Result<Initialised, Error> {
    renew_at(dir, permitted, OffsetDateTime::now_utc())
}

pub(super) fn renew_at(dir: &Path, permitted: &[String], now: OffsetDateTime) -> Result<Initialised, Error> {
    let wanted = Subtrees::parse(permitted)?;
    let paths = Paths::new(dir);
    // Most often there is nothing to do, and a directory that cannot be written is as good as another.
    let look = files::lock_shared(&paths)?;
    if files::read_rotation(&paths)?.is_none_or(|rotation| rotation.filing.is_none())
        && matches!(need(&paths, &wanted, now)?, Need::Nothing)
    {
        let mut done = Initialised::nothing(dir);
        done.advice.extend(root_ends_soon(&paths, now)?);
        return Ok(done);
    }
    drop(look);
    let _lock = lock(&paths)?;
    let mut done = Initialised::nothing(dir);
    done.advice.extend(root_ends_soon(&paths, now)?);
    done.intermediate = tend(&paths, &wanted, now, &mut done.advice)?;
    Ok(done)
}

/// As [`init`], with the root and the issuing key of `source`, which stay where they are and are remembered.
///
/// Everything is read, made and proven before the first file is written.
///
/// # Errors
/// As [`init`]; [`Error::OtherRoot`] when `dir` has a root already, [`Error::NoRoot`], [`Error::CannotIssue`],
/// [`Error::Excludes`] and others for each way in which a source can be bad.
pub fn import(dir: &Path, permitted: &[String], source: &Source) -> Result<Initialised, Error> {
    import_at(dir, permitted, source, OffsetDateTime::now_utc())
}

pub(super) fn import_at(
    dir: &Path,
    permitted: &[String],
    source: &Source,
    now: OffsetDateTime,
) -> Result<Initialised, Error> {
    let wanted = Subtrees::parse(permitted)?;
    let paths = Paths::new(dir);
    let loaded = Loaded::new(source, now)?;
    let root = loaded.root.0.clone();
    let issued = Issued::new(loaded, &wanted, now, &paths)?;
    make_directory(dir)?;
    let _lock = lock(&paths)?;
    if let Some(rotation) = files::read_rotation(&paths)?.filter(|r| r.step != Step::Removed) {
        return Err(Error::RotationUnderWay { step: rotation.step });
    }
    let kept = exists(&paths.root)?;
    if kept && read_certificate(&paths.root)?.0 != root {
        return Err(Error::OtherRoot {
            source_path: source.certificate.clone(),
            root: paths.root,
        });
    }
    files::write_source(&paths, source)?;
    write(&paths.root, certificate_pem(&root).as_bytes(), 0o644)?;
    issued.write(&paths)?;
    let made = |reason: &str| Outcome::Made {
        reason: reason.into(),
    };
    Ok(Initialised {
        dir: dir.to_owned(),
        root: if kept { Outcome::Kept } else { made("imported") },
        intermediate: made("imported"),
        advice: vec![format!(
            "Keep {} where it is, readable by root only: intermediates are issued with it.",
            source.key.display()
        )],
    })
}

impl Initialised {
    fn nothing(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            root: Outcome::Kept,
            intermediate: Outcome::Kept,
            advice: Vec::new(),
        }
    }
}

/// Whether an intermediate has to be issued.
enum Need {
    Nothing,
    /// The present one still serves, until then.
    Soon(String, OffsetDateTime),
    Now(String),
}

/// A new intermediate is worth its while if it lives as much longer.
const GAIN: Duration = Duration::HOUR;

fn tend(
    paths: &Paths,
    wanted: &Subtrees,
    now: OffsetDateTime,
    advice: &mut Vec<String>,
) -> Result<Outcome, Error> {
    let (reason, serves_until) = match need(paths, wanted, now)? {
        Need::Nothing => return Ok(Outcome::Kept),
        Need::Soon(reason, until) => (reason, Some(until)),
        Need::Now(reason) => (reason, None),
    };
    let source = paths.source()?;
    let loaded = match load_issuer(paths, &source, now) {
        Ok(loaded) => loaded,
        Err(Error::Io { source: cause, .. }) if cause.kind() == io::ErrorKind::NotFound => {
            let path = source.key;
            if serves_until.is_some() {
                advice.push(format!(
                    "A new intermediate is due ({reason}): put the issuing key back at {} and run `tv-agent ca init`.",
                    path.display()
                ));
                return Ok(Outcome::Kept);
            }
            return Err(Error::RootKeyNeeded { reason, path });
        }
        Err(error) if serves_until.is_some() => {
            advice.push(format!(
                "A new intermediate is due ({reason}), but cannot be issued: {}",
                causes(&error)
            ));
            return Ok(Outcome::Kept);
        }
        Err(error) => return Err(error),
    };
    if let Some(until) = serves_until {
        let present = files::read_chain(&paths.intermediate)?;
        let same = loaded.signs_leaves_only()? && present[0].0 == loaded.issuer().0;
        let ends_soon = until - now < profile::INTERMEDIATE_RENEWAL;
        if same || ends_soon && issue::not_after(&loaded, now) - until < GAIN {
            if ends_soon {
                advice.push(format!(
                    "The CA in {} ends at {}: renew it, and the intermediate follows.",
                    source.certificate.display(),
                    rfc3339(loaded.not_after())
                ));
            }
            return Ok(Outcome::Kept);
        }
    }
    Issued::new(loaded, wanted, now, paths)?.write(paths)?;
    Authority::load_one(paths, now)?;
    Ok(Outcome::Made { reason })
}

/// What to do about a root that ends soon.
fn root_ends_soon(paths: &Paths, now: OffsetDateTime) -> Result<Option<String>, Error> {
    let end = read_certificate(&paths.root)?.1.not_after;
    Ok((end - now < profile::ROOT_RENEWAL).then(|| {
        format!(
            "The root {} ends at {}: replace it by `tv-agent ca rotate`.",
            paths.root.display(),
            rfc3339(end)
        )
    }))
}

fn load_issuer(paths: &Paths, source: &Source, now: OffsetDateTime) -> Result<Loaded, Error> {
    let loaded = Loaded::new(source, now)?;
    if loaded.root.0 != read_ca(&paths.root, now)?.0 {
        return Err(Error::OtherRoot {
            source_path: source.certificate.clone(),
            root: paths.root.clone(),
        });
    }
    Ok(loaded)
}

fn need(paths: &Paths, wanted: &Subtrees, now: OffsetDateTime) -> Result<Need, Error> {
    let (_, root) = read_ca(&paths.root, now).map_err(|error| match error {
        // Its own advice is to issue a new one, which is what failed.
        Error::Expired { path, at } => Error::RootWornOut { path, at },
        error => error,
    })?;
    let present = match Authority::load_one(paths, now) {
        Ok(authority) => authority,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(Need::Now("there was none".into()));
        }
        // A new intermediate does not mend these.
        Err(error @ (Error::Io { .. } | Error::KeyMode { .. } | Error::NotYetValid { .. })) => {
            return Err(error);
        }
        Err(error) => return Ok(Need::Now(causes(&error))),
    };
    let missing: Vec<&str> = wanted
        .permitted
        .iter()
        .filter(|name| !HostName::parse(name).is_some_and(|host| present.permits(&host)))
        .map(String::as_str)
        .collect();
    Ok(if !missing.is_empty() {
        Need::Now(format!("the present one does not permit {}", missing.join(", ")))
    } else if present.permitted() != wanted.permitted {
        let reason = "the present one permits more than the routes need";
        Need::Soon(reason.into(), present.not_after())
    } else if present.not_after() - now < profile::INTERMEDIATE_RENEWAL
        && present.not_after() < root.not_after
    {
        let reason = format!("the present one expires at {}", rfc3339(present.not_after()));
        Need::Soon(reason, present.not_after())
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
    if exists(&paths.issuer)? {
        // An import was killed in between.
        let loaded = Loaded::new(&paths.source()?, now)?;
        return write(&paths.root, certificate_pem(&loaded.root.0).as_bytes(), 0o644);
    }
    make_own_root(paths, now)
}

/// A root of our own, with its key on the node.
pub(super) fn make_own_root(paths: &Paths, now: OffsetDateTime) -> Result<(), Error> {
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

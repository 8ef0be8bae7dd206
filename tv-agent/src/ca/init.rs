//! `ca init` and `ca show`: making what is missing, and telling what is there.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{Issuer, PublicKeyData as _};
use serde::Serialize;
use time::OffsetDateTime;

use super::authority::{self, Authority};
use super::facts::Facts;
use super::files::{
    Paths, certificate_pem, exists, lock, lock_shared, make_directory, read_ca, read_certificate, read_key,
    write,
};
use super::profile::{self, CaKey};
use super::subtree::Subtrees;
use super::{Error, rfc3339};
use crate::addr::HostName;

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

/// Whether an intermediate has to be issued.
enum Need {
    Nothing,
    /// The present one still serves.
    Soon(String),
    Now(String),
}

fn need(paths: &Paths, wanted: &Subtrees, now: OffsetDateTime) -> Result<Need, Error> {
    let (_, root) = read_ca(&paths.root, now).map_err(|error| match error {
        // Its own advice is to issue a new one, which is what failed.
        Error::Expired { path, at } => Error::RootWornOut { path, at },
        error => error,
    })?;
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
        .filter(|name| !HostName::parse(name).is_some_and(|host| present.permits(&host)))
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

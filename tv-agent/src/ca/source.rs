//! Where an issuing CA comes from: PEM files, a Kubernetes TLS secret, cert-manager's layout, or our own root.
//!
//! Keys are never copied: a directory that was imported is remembered, and read again when an intermediate has to be
//! issued. What is in a mounted secret so stays in one place, and a CA that cert-manager renewed is taken up.

use std::path::{Path, PathBuf};

use rcgen::PublicKeyData as _;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Error;
use super::facts::Parsed;
use super::files::{self, Chain};
use super::profile::CaKey;
use super::subtree::Subtrees;

/// The files of a CA that may issue intermediates. Absolute paths, or they would mean something else to the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The root, or a CA below it, with those between them after it.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// The root, where the certificate's file does not end with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
}

impl Source {
    /// A directory with `tls.crt`, `tls.key` and perhaps `ca.crt`: a Kubernetes secret of type `kubernetes.io/tls`, as
    /// cert-manager writes it too.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be looked into.
    pub fn directory(dir: &Path) -> Result<Self, Error> {
        let dir = absolute(dir)?;
        let root = dir.join("ca.crt");
        Ok(Self {
            certificate: dir.join("tls.crt"),
            key: dir.join("tls.key"),
            root: files::exists(&root)?.then_some(root),
        })
    }

    /// # Errors
    /// [`Error::Io`] when there is no working directory that the paths could be relative to.
    pub fn files(certificate: &Path, key: &Path) -> Result<Self, Error> {
        Ok(Self {
            certificate: absolute(certificate)?,
            key: absolute(key)?,
            root: None,
        })
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Error> {
    // Not canonical: a mounted secret is swapped by its links.
    std::path::absolute(path).map_err(|source| Error::Io {
        action: "find",
        path: path.to_owned(),
        source,
    })
}

/// A source that was read, every certificate of it a CA that is valid now, its key fitting.
pub(super) struct Loaded {
    pub(super) root: (CertificateDer<'static>, Parsed),
    /// The CAs below the root, the one with the key first; empty when the root itself issues.
    pub(super) below: Chain,
    pub(super) key: CaKey,
    path: PathBuf,
}

impl Loaded {
    pub(super) fn new(source: &Source, now: OffsetDateTime) -> Result<Self, Error> {
        let path = &source.certificate;
        let mut below = files::read_chain(path)?;
        for (_, parsed) in &below {
            parsed.check_ca(path, now)?;
            parsed.check_key(path)?;
        }
        let key = files::read_key(&source.key)?;
        if key.subject_public_key_info() != below[0].1.spki {
            return Err(Error::KeyMismatch {
                key: source.key.clone(),
                certificate: path.clone(),
            });
        }
        let ends_with_root = below.last().is_some_and(|(_, top)| top.issuer == top.subject);
        let root = match (&source.root, ends_with_root) {
            (None, true) => below.pop(),
            (None, false) => None,
            (Some(file), _) => {
                let root = files::read_ca(file, now)?;
                root.1.check_key(file)?;
                if root.1.issuer != root.1.subject {
                    return Err(Error::NotSelfSigned {
                        path: file.clone(),
                        issuer: root.1.facts.issuer.clone(),
                    });
                }
                if ends_with_root {
                    below.pop_if(|(der, _)| *der == root.0);
                }
                Some(root)
            }
        };
        let issuer_of_top = below.last().map(|(_, top)| (&top.issuer, &top.facts.issuer));
        let fits = |root: &Parsed| issuer_of_top.is_none_or(|(issuer, _)| *issuer == root.subject);
        let Some(root) = root.filter(|(_, root)| fits(root)) else {
            return Err(Error::NoRoot {
                path: path.clone(),
                issuer: issuer_of_top.map(|(_, name)| name.clone()).unwrap_or_default(),
            });
        };
        Ok(Self {
            root,
            below,
            key,
            path: path.clone(),
        })
    }

    /// The one that the key belongs to.
    pub(super) fn issuer(&self) -> &(CertificateDer<'static>, Parsed) {
        self.below.first().unwrap_or(&self.root)
    }

    /// Whether it can only serve as the node's intermediate itself: a path length of 0, and bound by constraints.
    ///
    /// # Errors
    /// [`Error::CannotIssue`]: a path length of 0 without them, or a root.
    pub(super) fn signs_leaves_only(&self) -> Result<bool, Error> {
        let issuer = &self.issuer().1;
        match issuer.path_length {
            Some(0) if self.below.is_empty() || issuer.subtrees.permitted.is_empty() => {
                Err(Error::CannotIssue {
                    path: self.path.clone(),
                })
            }
            length => Ok(length == Some(0)),
        }
    }

    /// Whether the path lengths (RFC 5280 §4.2.1.9) leave room for what is to be issued. Told apart here, since not
    /// every client looks at a root's.
    ///
    /// # Errors
    /// [`Error::TooDeep`] with the first CA that has no room.
    pub(super) fn check_depth(&self, itself: bool) -> Result<(), Error> {
        let first = if itself { 0 } else { 1 };
        for (below, (_, ca)) in (first..).zip(self.below.iter().chain([&self.root])) {
            if ca.path_length.is_some_and(|length| length < below) {
                return Err(Error::TooDeep {
                    path: self.path.clone(),
                    subject: ca.facts.subject.clone(),
                });
            }
        }
        Ok(())
    }

    /// What of `wanted` may be signed for: all of it, less what a CA excludes below it.
    ///
    /// # Errors
    /// [`Error::Excludes`] with the first name of `wanted` that may not.
    pub(super) fn within(&self, wanted: &Subtrees) -> Result<Subtrees, Error> {
        let mut subtrees = wanted.clone();
        for (_, ca) in self.below.iter().chain([&self.root]) {
            if let Some(subtree) = wanted.permitted.iter().find(|name| !ca.limits.allow(name)) {
                return Err(Error::Excludes {
                    path: self.path.clone(),
                    subtree: subtree.clone(),
                });
            }
            subtrees.excluded.extend(ca.limits.excluded.iter().cloned());
        }
        subtrees.excluded.sort();
        subtrees.excluded.dedup();
        Ok(subtrees)
    }

    /// When the first of its certificates ends.
    pub(super) fn not_after(&self) -> OffsetDateTime {
        let below = self.below.iter().map(|(_, ca)| ca.not_after);
        below.fold(self.root.1.not_after, std::cmp::Ord::min)
    }
}

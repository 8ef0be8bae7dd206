//! Making a node's intermediate, proven before anything is written.

use rcgen::Issuer;
use rustls_pki_types::CertificateDer;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::Error;
use super::authority::{self, Authority};
use super::files::{self, Paths};
use super::profile::{self, CaKey};
use super::source::Loaded;
use super::subtree::Subtrees;
use crate::encode::certificate_pem;

/// An intermediate that a TLS client would accept, not yet on disk.
pub(super) struct Issued {
    key_pem: Zeroizing<String>,
    chain: Vec<CertificateDer<'static>>,
}

/// A CA that ends within this is not issued under: the clients' clocks alone need a day.
const SHORTEST: Duration = Duration::DAY;

impl Issued {
    /// A new intermediate under what was loaded; where that signs leaves only, itself.
    ///
    /// # Errors
    /// [`Error::RootWornOut`], [`Error::Excludes`], [`Error::CannotIssue`], [`Error::Make`], and
    /// [`Error::Unusable`] when clients would refuse what it signs.
    pub(super) fn new(
        loaded: Loaded,
        wanted: &Subtrees,
        now: OffsetDateTime,
        root_path: &Paths,
    ) -> Result<Self, Error> {
        let least = if loaded.below.is_empty() {
            profile::INTERMEDIATE_RENEWAL
        } else {
            SHORTEST
        };
        if loaded.not_after() - now < least {
            return Err(Error::RootWornOut {
                path: root_path.root.clone(),
                at: loaded.not_after(),
            });
        }
        let subtrees = loaded.within(wanted)?;
        let itself = loaded.signs_leaves_only()?;
        loaded.check_depth(itself)?;
        let end = not_after(&loaded, now);
        let Loaded { root, below, key, .. } = loaded;
        let mut chain: Vec<_> = below.iter().map(|(der, _)| der.clone()).collect();
        let (key, subtrees) = if itself {
            (key, below[0].1.subtrees.clone())
        } else {
            let issuer = chain.first().unwrap_or(&root.0);
            let issuer = Issuer::from_ca_cert_der(issuer, key).map_err(|source| Error::Make {
                what: "issuer of intermediates",
                source,
            })?;
            let (made, key) = authority::new_intermediate(now, end, &subtrees, &issuer)?;
            chain.insert(0, made);
            (key, subtrees)
        };
        let key_pem = key.to_pem();
        let again = CaKey::from_pem(&key_pem).map_err(|source| Error::Make {
            what: "intermediate",
            source,
        })?;
        Authority::assemble(
            root.0,
            chain.clone(),
            again,
            subtrees,
            vec![("intermediate", end)],
        )?
        .prove(now)
        .map_err(|source| Error::Unusable {
            path: root_path.intermediate.clone(),
            source,
        })?;
        Ok(Self { key_pem, chain })
    }

    pub(super) fn write(&self, paths: &Paths) -> Result<(), Error> {
        let chain: String = self.chain.iter().map(certificate_pem).collect();
        files::write_intermediate(paths, &chain, &self.key_pem)
    }
}

/// Until when an intermediate that is issued now would live.
pub(super) fn not_after(loaded: &Loaded, now: OffsetDateTime) -> OffsetDateTime {
    match loaded.signs_leaves_only() {
        Ok(true) => loaded.not_after(),
        _ => loaded.not_after().min(now + profile::INTERMEDIATE_LIFE),
    }
}

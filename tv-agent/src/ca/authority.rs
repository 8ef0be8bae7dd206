//! The issuer of leaves: a node's intermediate with its key, and the root certificate that workloads trust.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::{Issuer, PublicKeyData};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;

use super::files::{self, Paths};
use super::profile::{self, CaKey};
use super::subtree::Subtrees;
use super::{Error, rfc3339};
use crate::addr::HostName;

/// A node's intermediate (certificate and key) and the root's certificate. The root's key is never in it.
pub struct Authority {
    issuer: Issuer<'static, CaKey>,
    intermediate: CertificateDer<'static>,
    root: CertificateDer<'static>,
    root_pem: String,
    subtrees: Subtrees,
    not_after: OffsetDateTime,
}

impl Authority {
    /// A CA for one run, in memory only. The root's key signs the intermediate and is wiped at once.
    ///
    /// `permitted`: DNS subtrees (`googleapis.com` stands for itself and all names below it).
    ///
    /// # Errors
    /// [`Error::Subtree`], [`Error::NoSubtrees`], or [`Error::Make`] when the cryptography fails.
    pub fn ephemeral(permitted: &[String]) -> Result<Self, Error> {
        let subtrees = Subtrees::parse(permitted)?;
        let now = OffsetDateTime::now_utc();
        let root = new_root(
            now,
            profile::EPHEMERAL_LIFE,
            CaKey::generate().map_err(make_root)?,
        )?;
        let (intermediate, key) =
            new_intermediate(now, now + profile::EPHEMERAL_LIFE, &subtrees, &root.issuer)?;
        Self::assemble(
            root.certificate,
            intermediate,
            key,
            &subtrees,
            now + profile::EPHEMERAL_LIFE,
        )
    }

    /// Loads `root.pem`, `intermediate.pem` and `intermediate-key.pem` from `dir` and proves that a TLS client
    /// which trusts the root accepts what the intermediate signs.
    ///
    /// # Errors
    /// One of its own for each way in which the files can be bad; see [`Error`].
    pub fn load(dir: &Path) -> Result<Self, Error> {
        Self::load_at(dir, OffsetDateTime::now_utc())
    }

    pub(super) fn load_at(dir: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        let paths = Paths::new(dir);
        let _lock = files::lock_shared(&paths)?;
        Self::load_locked(&paths, now)
    }

    pub(super) fn load_locked(paths: &Paths, now: OffsetDateTime) -> Result<Self, Error> {
        let (root_der, root) = files::read_ca(&paths.root, now)?;
        let (intermediate_der, intermediate) = files::read_ca(&paths.intermediate, now)?;
        if intermediate.path_length != Some(0) {
            return Err(Error::PathLength {
                path: paths.intermediate.clone(),
            });
        }
        if intermediate.subtrees.permitted.is_empty() {
            return Err(Error::Unconstrained {
                path: paths.intermediate.clone(),
            });
        }
        let key = files::read_key(&paths.intermediate_key)?;
        if key.subject_public_key_info() != intermediate.spki {
            return Err(Error::KeyMismatch {
                key: paths.intermediate_key.clone(),
                certificate: paths.intermediate.clone(),
            });
        }
        let foreign = || Error::NotIssuedByRoot {
            intermediate: paths.intermediate.clone(),
            root: paths.root.clone(),
        };
        if intermediate.issuer != root.subject {
            return Err(foreign());
        }
        let authority = Self::assemble(
            root_der,
            intermediate_der,
            key,
            &intermediate.subtrees,
            intermediate.not_after.min(root.not_after),
        )?;
        authority.prove(now).map_err(|source| match source {
            rustls::Error::InvalidCertificate(rustls::CertificateError::BadSignature) => foreign(),
            source => Error::Unusable {
                path: paths.intermediate.clone(),
                source,
            },
        })?;
        Ok(authority)
    }

    /// The root's certificate as workloads are given it.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The root's certificate; the agent takes it out of the roots that it trusts upstream.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The certificate that is sent after each leaf.
    pub fn intermediate_der(&self) -> &CertificateDer<'static> {
        &self.intermediate
    }

    /// Whether the intermediate's name constraints let it sign for `host`.
    pub fn permits(&self, host: &HostName) -> bool {
        self.subtrees.permit(host)
    }

    /// The DNS subtrees that the intermediate may sign for, sorted.
    pub fn permitted(&self) -> &[String] {
        &self.subtrees.permitted
    }

    /// When the intermediate, or the root if sooner, ends. Leaves never outlive it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// Signs a leaf for `host` and `key`. Whether it *may* be signed is the caller's question.
    pub(super) fn sign(
        &self,
        host: &HostName,
        key: &impl PublicKeyData,
        now: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        let params = profile::leaf(now, not_after, host)?;
        Ok(params.signed_by(key, &self.issuer)?.into())
    }

    fn assemble(
        root: CertificateDer<'static>,
        intermediate: CertificateDer<'static>,
        key: CaKey,
        subtrees: &Subtrees,
        not_after: OffsetDateTime,
    ) -> Result<Self, Error> {
        // From the certificate, not from its parameters: leaves must repeat the key identifier that stands in it.
        let issuer = Issuer::from_ca_cert_der(&intermediate, key).map_err(|source| Error::Make {
            what: "issuer of leaves",
            source,
        })?;
        Ok(Self {
            issuer,
            root_pem: files::certificate_pem(&root),
            root,
            intermediate,
            subtrees: subtrees.clone(),
            not_after,
        })
    }

    /// Signs a leaf for a permitted name and verifies it as a client does, signatures and constraints included.
    fn prove(&self, now: OffsetDateTime) -> Result<(), rustls::Error> {
        let name = self.subtrees.permitted[0].trim_start_matches('.');
        let odd = |what: String| rustls::Error::General(what);
        let host = HostName::parse(&format!("tv-agent-self-test.{name}"))
            .or_else(|| HostName::parse(name))
            .ok_or_else(|| odd(format!("the permitted name {name:?} is no DNS name")))?;
        let key = CaKey::generate().map_err(|e| odd(e.to_string()))?;
        let leaf = self
            .sign(&host, &key, now, self.not_after)
            .map_err(|e| odd(e.to_string()))?;
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| odd(e.to_string()))?;
        let server = ServerName::try_from(host.as_str()).map_err(|e| odd(e.to_string()))?;
        let seconds = u64::try_from(now.unix_timestamp()).unwrap_or_default();
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        verifier.verify_server_cert(&leaf, std::slice::from_ref(&self.intermediate), &server, &[], at)?;
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("permitted", &self.subtrees.permitted)
            .field("not_after", &rfc3339(self.not_after))
            .finish_non_exhaustive()
    }
}

/// A root with its key, for as long as it takes to sign an intermediate.
pub(super) struct Root {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) issuer: Issuer<'static, CaKey>,
}

pub(super) fn new_root(now: OffsetDateTime, life: time::Duration, key: CaKey) -> Result<Root, Error> {
    let params = profile::root(now, life);
    let certificate = params.self_signed(&key).map_err(make_root)?.into();
    Ok(Root {
        certificate,
        issuer: Issuer::new(params, key),
    })
}

pub(super) fn new_intermediate(
    now: OffsetDateTime,
    not_after: OffsetDateTime,
    subtrees: &Subtrees,
    root: &Issuer<'_, CaKey>,
) -> Result<(CertificateDer<'static>, CaKey), Error> {
    let make = |source| Error::Make {
        what: "intermediate",
        source,
    };
    let key = CaKey::generate().map_err(make)?;
    let certificate = profile::intermediate(now, not_after, subtrees)
        .signed_by(&key, root)
        .map_err(make)?;
    Ok((certificate.into(), key))
}

fn make_root(source: rcgen::Error) -> Error {
    Error::Make { what: "root", source }
}

//! The issuer of leaves: a node's intermediate with its key, and the root certificates that workloads trust.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rcgen::Issuer;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::files::{self, Paths};
use super::mint::{Elsewhere, Mint, Minted, Request};
use super::profile::{self, CaKey};
use super::show;
use super::subtree::Subtrees;
use super::{Error, rfc3339};
use crate::addr::HostName;
use crate::encode::certificate_pem;

/// A node's intermediate (certificate and key), the CAs above it, and the roots' certificates. No root's key is in it.
pub struct Authority {
    signer: Signer,
    subtrees: Subtrees,
    not_after: OffsetDateTime,
    /// The intermediate, and the CAs between it and the root.
    chain: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    root_pem: String,
    /// The root, then the others that workloads are to trust.
    anchors: Vec<CertificateDer<'static>>,
    ends: Vec<(&'static str, OffsetDateTime)>,
}

enum Signer {
    Here(Box<Mint>),
    Elsewhere(Arc<dyn Elsewhere>),
}

/// An [`Authority`] without its key, for a process that has leaves signed by another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Public {
    /// DER, as [`Authority::chain`] and [`Authority::anchors`].
    chain: Vec<Vec<u8>>,
    anchors: Vec<Vec<u8>>,
    subtrees: Subtrees,
    /// Seconds since 1970.
    not_after: i64,
    ends: Vec<(String, i64)>,
}

/// The parts that [`Authority::ends`] may name.
const PARTS: [&str; 5] = ["root", "intermediate", "issuing", "next_root", "old_root"];

impl Authority {
    /// The same without the key.
    pub fn public(&self) -> Public {
        let der = |all: &[CertificateDer<'_>]| all.iter().map(|der| der.to_vec()).collect();
        let ends = self.ends.iter();
        Public {
            chain: der(&self.chain),
            anchors: der(&self.anchors),
            subtrees: self.subtrees.clone(),
            not_after: self.not_after.unix_timestamp(),
            ends: ends
                .map(|(part, end)| ((*part).to_owned(), end.unix_timestamp()))
                .collect(),
        }
    }

    /// One whose leaves `signer` signs. None where a part is missing.
    pub fn elsewhere(public: Public, signer: Arc<dyn Elsewhere>) -> Option<Self> {
        let der = |all: Vec<Vec<u8>>| all.into_iter().map(CertificateDer::from).collect::<Vec<_>>();
        let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).ok();
        let (chain, anchors) = (der(public.chain), der(public.anchors));
        let root = anchors.first()?.clone();
        chain.first()?;
        let part = |name: String| PARTS.into_iter().find(|part| *part == name);
        let ends = public.ends.into_iter();
        Some(Self {
            signer: Signer::Elsewhere(signer),
            subtrees: public.subtrees,
            not_after: at(public.not_after)?,
            chain,
            root_pem: certificate_pem(&root),
            root,
            anchors,
            ends: ends
                .map(|(name, end)| Some((part(name)?, at(end)?)))
                .collect::<Option<_>>()?,
        })
    }

    /// Signs a leaf, here or where the key is.
    ///
    /// # Errors
    /// As [`Mint::answer`]; [`Error::Elsewhere`].
    pub fn sign(&self, request: &Request<'_>, now: OffsetDateTime) -> Result<Minted, Error> {
        match &self.signer {
            Signer::Here(mint) => mint.answer(request, now),
            Signer::Elsewhere(other) => {
                other
                    .answer(request, &self.chain[0])
                    .map_err(|reason| Error::Elsewhere {
                        host: request.host.clone(),
                        reason,
                    })
            }
        }
    }

    /// A CA for one run, in memory only. The root's key signs the intermediate and is wiped at once.
    ///
    /// `permitted`: DNS subtrees (`googleapis.com` stands for itself and all names below it).
    ///
    /// # Errors
    /// [`Error::Subtree`], [`Error::NoSubtrees`], or [`Error::Make`] when the cryptography fails.
    pub fn ephemeral(permitted: &[String]) -> Result<Self, Error> {
        let subtrees = Subtrees::parse(permitted)?;
        let now = OffsetDateTime::now_utc();
        let until = now + profile::EPHEMERAL_LIFE;
        let root = new_root(
            now,
            profile::EPHEMERAL_LIFE,
            CaKey::generate().map_err(make_root)?,
        )?;
        let (intermediate, key) = new_intermediate(now, until, &subtrees, &root.issuer)?;
        let ends = vec![("root", until), ("intermediate", until)];
        Self::assemble(root.certificate, vec![intermediate], key, subtrees, ends)
    }

    /// Loads `root.pem`, `intermediate.pem` and `intermediate-key.pem` from `dir`, during a rotation the other root
    /// too, and proves that a TLS client which trusts the root accepts what the intermediate signs.
    ///
    /// # Errors
    /// One of its own for each way in which the files can be bad; see [`Error`].
    pub fn load(dir: &Path) -> Result<Self, Error> {
        Self::load_at(dir, OffsetDateTime::now_utc())
    }

    pub(super) fn load_at(dir: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        let _lock = files::lock_shared(&Paths::new(dir))?;
        Self::load_locked(dir, now)
    }

    pub(super) fn load_locked(dir: &Path, now: OffsetDateTime) -> Result<Self, Error> {
        let mut authority = Self::load_one(&Paths::in_force(dir)?, now)?;
        for (what, der, parsed) in show::other_roots(dir)? {
            authority.ends.push((what, parsed.not_after));
            if !authority.anchors.contains(&der) {
                authority.anchors.push(der);
            }
        }
        Ok(authority)
    }

    /// As it would be with the files of `paths` alone.
    pub(super) fn load_one(paths: &Paths, now: OffsetDateTime) -> Result<Self, Error> {
        let (root_der, root) = files::read_ca(&paths.root, now)?;
        let chain = files::read_chain(&paths.intermediate)?;
        for (_, ca) in &chain {
            ca.check_ca(&paths.intermediate, now)?;
        }
        let (intermediate, top) = (&chain[0].1, &chain[chain.len() - 1].1);
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
        let key = files::read_intermediate_key(paths, intermediate)?;
        let foreign = || Error::NotIssuedByRoot {
            intermediate: paths.intermediate.clone(),
            root: paths.root.clone(),
        };
        if top.issuer != root.subject {
            return Err(foreign());
        }
        let mut ends = vec![("root", root.not_after), ("intermediate", intermediate.not_after)];
        ends.extend(chain[1..].iter().map(|(_, ca)| ("issuing", ca.not_after)));
        let subtrees = intermediate.subtrees.clone();
        let chain = chain.into_iter().map(|(der, _)| der).collect();
        let authority = Self::assemble(root_der, chain, key, subtrees, ends)?;
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

    /// The root's certificate; the issuing one.
    pub fn root_der(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// Every root that workloads are to trust now: the issuing one, then the next, then the retiring one. The agent
    /// takes them out of the roots that it trusts upstream.
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// The same as PEM.
    pub fn anchors_pem(&self) -> String {
        self.anchors.iter().map(certificate_pem).collect()
    }

    /// The certificate that is sent after each leaf.
    pub fn intermediate_der(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// What is sent after each leaf: the intermediate, and the CAs between it and the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Whether the intermediate's name constraints let it sign for `host`.
    pub fn permits(&self, host: &HostName) -> bool {
        self.subtrees.permit(host)
    }

    /// The DNS subtrees that the intermediate may sign for, sorted.
    pub fn permitted(&self) -> &[String] {
        &self.subtrees.permitted
    }

    /// When the first certificate of the chain, the root included, ends. Leaves never outlive it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }

    /// When each certificate ends, by its part: `root`, `intermediate`, `issuing`, `next_root`, `old_root`.
    pub fn ends(&self) -> &[(&'static str, OffsetDateTime)] {
        &self.ends
    }

    /// What signs; only for tests, which play the thief of the key.
    #[cfg(test)]
    pub(super) fn mint(&self) -> &Mint {
        match &self.signer {
            Signer::Here(mint) => mint,
            Signer::Elsewhere(_) => panic!("the key is elsewhere"),
        }
    }

    pub(super) fn assemble(
        root: CertificateDer<'static>,
        chain: Vec<CertificateDer<'static>>,
        key: CaKey,
        subtrees: Subtrees,
        ends: Vec<(&'static str, OffsetDateTime)>,
    ) -> Result<Self, Error> {
        let make = |source| Error::Make {
            what: "issuer of leaves",
            source,
        };
        let not_after = ends.iter().map(|(_, end)| *end).min();
        let not_after = not_after.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        Ok(Self {
            signer: Signer::Here(
                Mint::new(&chain[0], key, subtrees.clone(), not_after)
                    .map_err(make)?
                    .into(),
            ),
            subtrees,
            not_after,
            root_pem: certificate_pem(&root),
            anchors: vec![root.clone()],
            root,
            chain,
            ends,
        })
    }

    /// Signs a leaf for a permitted name and verifies it as a client does, signatures and constraints included.
    pub(super) fn prove(&self, now: OffsetDateTime) -> Result<(), rustls::Error> {
        let subtrees = &self.subtrees;
        let name = subtrees.permitted[0].trim_start_matches('.');
        let odd = |what: String| rustls::Error::General(what);
        let host = HostName::parse(&format!("tv-agent-self-test.{name}"))
            .filter(|host| subtrees.permit(host))
            .or_else(|| HostName::parse(name))
            .ok_or_else(|| odd(format!("the permitted name {name:?} is no DNS name")))?;
        let key = CaKey::generate().map_err(|e| odd(e.to_string()))?;
        let Signer::Here(mint) = &self.signer else {
            return Err(odd("the key is elsewhere".to_owned()));
        };
        let leaf = mint
            .sign(&host, &key, now, self.not_after())
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
        verifier.verify_server_cert(&leaf, &self.chain, &server, &[], at)?;
        Ok(())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("permitted", &self.permitted())
            .field("not_after", &rfc3339(self.not_after()))
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

//! Leaves: one certificate per server name, minted at its first ClientHello and kept while it is young.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use rcgen::{KeyPair, PKCS_RSA_SHA256, PublicKeyData as _, RsaKeySize};
use rustls::SignatureScheme;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tokio::runtime::{Handle, RuntimeFlavor};
use zeroize::Zeroize as _;

use super::mint::{KeyKind, Request};
use super::{Authority, Error, profile};
use crate::addr::HostName;
use crate::limits;
use crate::metrics::Metrics;

/// Whether a route names the host now. Asked at every handshake, since routes can be reloaded.
pub type MayMint = Arc<dyn Fn(&HostName) -> bool + Send + Sync>;

/// Mints and keeps leaves; a [`ResolvesServerCert`] by SNI and what the client can verify.
///
/// All leaves share one P-256 key, made here, or one RSA key, made when the first client needs it; both are kept in
/// memory only. At most [`limits::LEAVES`] are kept, each for a third of its life at most, and however many callers
/// wait for a name, it is minted once.
pub struct Leaves {
    authority: ArcSwap<Authority>,
    may_mint: MayMint,
    metrics: Metrics,
    p256: LeafKey,
    rsa: OnceLock<LeafKey>,
    cache: moka::sync::Cache<(HostName, KeyKind), Leaf>,
}

struct LeafKey {
    key: Arc<dyn SigningKey>,
    /// SubjectPublicKeyInfo, DER.
    public_key: Vec<u8>,
}

#[derive(Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    /// On the wall clock: the cache's own clock stands still while a machine sleeps. Before it, the clock was set back,
    /// and the workloads' clocks with it.
    good: Range<OffsetDateTime>,
    /// Who signed it: another one may have come.
    authority: Arc<Authority>,
}

impl Leaves {
    /// # Errors
    /// [`Error::Make`] or [`Error::LeafKey`] when the leaf key cannot be made.
    pub fn new(authority: Arc<Authority>, may_mint: MayMint, metrics: Metrics) -> Result<Self, Error> {
        Ok(Self {
            authority: ArcSwap::new(authority),
            may_mint,
            metrics,
            p256: LeafKey::new(KeyKind::P256)?,
            rsa: OnceLock::new(),
            cache: moka::sync::Cache::builder()
                .max_capacity(limits::LEAVES)
                .time_to_live(Duration::from_secs(renewal_seconds()))
                .build(),
        })
    }

    /// The leaf for `host`, with the CAs below the root after it.
    ///
    /// # Errors
    /// [`Error::Refused`] when no route names the host, [`Error::NotPermitted`] when the CA's constraints do not
    /// cover it, [`Error::AuthorityExpired`], [`Error::Mint`].
    pub fn get(&self, host: &HostName) -> Result<Arc<CertifiedKey>, Error> {
        self.get_at(host, KeyKind::P256, OffsetDateTime::now_utc())
    }

    pub(super) fn get_at(
        &self,
        host: &HostName,
        kind: KeyKind,
        now: OffsetDateTime,
    ) -> Result<Arc<CertifiedKey>, Error> {
        if !(self.may_mint)(host) {
            return Err(Error::Refused { host: host.clone() });
        }
        let authority = self.authority.load_full();
        if !authority.permits(host) {
            return Err(Error::NotPermitted { host: host.clone() });
        }
        if now >= authority.not_after() {
            return Err(Error::AuthorityExpired {
                host: host.clone(),
                at: authority.not_after(),
            });
        }
        let place = (host.clone(), kind);
        let bad = |leaf: Leaf| !leaf.good.contains(&now) || !Arc::ptr_eq(&leaf.authority, &authority);
        if self.cache.get(&place).is_some_and(bad) {
            self.cache.invalidate(&place);
        }
        self.cache
            .try_get_with_by_ref(&place, || self.mint(host, kind, &authority, now))
            .map(|leaf| leaf.key)
            .map_err(|error| Error::NotMinted {
                host: host.clone(),
                source: error,
            })
    }

    /// The CA that signs them.
    pub fn authority(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// From now on `authority` signs; handshakes that have their leaf go on with it.
    pub fn replace(&self, authority: Arc<Authority>) {
        self.authority.store(authority);
        self.cache.invalidate_all();
    }

    /// Leaves kept now, after pending evictions.
    pub fn len(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn mint(
        &self,
        host: &HostName,
        kind: KeyKind,
        authority: &Arc<Authority>,
        now: OffsetDateTime,
    ) -> Result<Leaf, Error> {
        let LeafKey { key, public_key } = self.key(kind)?;
        let request = Request {
            host,
            kind,
            public_key,
        };
        let minted = authority.sign(&request, now)?;
        self.metrics.leaves.inc();
        let chain = [&[minted.leaf], authority.chain()].concat();
        Ok(Leaf {
            key: Arc::new(CertifiedKey::new(chain, key.clone())),
            good: now - profile::BACKDATE..now + (minted.not_after - now) / RENEW_AFTER,
            authority: authority.clone(),
        })
    }

    fn key(&self, kind: KeyKind) -> Result<&LeafKey, Error> {
        match (kind, self.rsa.get()) {
            (KeyKind::P256, _) => Ok(&self.p256),
            (KeyKind::Rsa, Some(key)) => Ok(key),
            (KeyKind::Rsa, None) => {
                // Who comes second at the same time throws its own away.
                let made = off_the_runtime(|| LeafKey::new(kind))?;
                Ok(self.rsa.get_or_init(|| made))
            }
        }
    }
}

impl LeafKey {
    fn new(kind: KeyKind) -> Result<Self, Error> {
        let made = match kind {
            KeyKind::P256 => KeyPair::generate(),
            KeyKind::Rsa => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
        };
        let mut pair = made.map_err(|source| Error::Make {
            what: "leaf key",
            source,
        })?;
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialized_der()));
        let key = any_supported_type(&pkcs8).map_err(|source| Error::LeafKey { source });
        let public_key = pair.subject_public_key_info();
        pair.zeroize();
        Ok(Self {
            key: key?,
            public_key,
        })
    }
}

/// Runs what takes a tenth of a second so that no other connection waits for it.
fn off_the_runtime<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current() {
        Ok(handle) if handle.runtime_flavor() == RuntimeFlavor::MultiThread => {
            tokio::task::block_in_place(work)
        }
        _ => work(),
    }
}

/// What the client can verify in a handshake: P-256 if it can, else RSA if it can.
///
/// rustls has taken out what does not go with the client's cipher suites. Clients of before TLS 1.2's extension count
/// as RSA and ECDSA with SHA-1 (RFC 5246 §7.4.1.4.1), which rustls does not sign with.
fn kind_for(schemes: &[SignatureScheme]) -> KeyKind {
    let rsa = |scheme: &SignatureScheme| {
        matches!(
            scheme,
            SignatureScheme::RSA_PSS_SHA256
                | SignatureScheme::RSA_PSS_SHA384
                | SignatureScheme::RSA_PSS_SHA512
                | SignatureScheme::RSA_PKCS1_SHA256
                | SignatureScheme::RSA_PKCS1_SHA384
                | SignatureScheme::RSA_PKCS1_SHA512
        )
    };
    if !schemes.contains(&SignatureScheme::ECDSA_NISTP256_SHA256) && schemes.iter().any(rsa) {
        KeyKind::Rsa
    } else {
        KeyKind::P256
    }
}

/// A leaf is renewed when one third of its life from minting is over.
const RENEW_AFTER: i32 = 3;

fn renewal_seconds() -> u64 {
    (profile::LEAF_LIFE / RENEW_AFTER).whole_seconds().unsigned_abs()
}

impl ResolvesServerCert for Leaves {
    /// `None`, which ends the handshake with an alert, when there is no SNI or no leaf for it.
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = HostName::parse(client_hello.server_name()?)?;
        let kind = kind_for(client_hello.signature_schemes());
        self.get_at(&host, kind, OffsetDateTime::now_utc())
            .inspect_err(|error| tracing::warn!(%host, error = error as &dyn std::error::Error, "no leaf"))
            .ok()
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("authority", &*self.authority.load())
            .field("kept", &self.cache.entry_count())
            .finish_non_exhaustive()
    }
}

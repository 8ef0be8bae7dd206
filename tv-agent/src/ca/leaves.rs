//! Leaves: one certificate per server name, minted at its first ClientHello and kept while it is young.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{KeyPair, PublicKeyData as _, SubjectPublicKeyInfo};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use zeroize::Zeroize as _;

use super::{Authority, Error, profile};
use crate::addr::HostName;
use crate::limits;
use crate::metrics::Metrics;

/// Whether a route names the host now. Asked at every handshake, since routes can be reloaded.
pub type MayMint = Arc<dyn Fn(&HostName) -> bool + Send + Sync>;

/// Mints and keeps leaves; a [`ResolvesServerCert`] by SNI.
///
/// All leaves share one P-256 key, made here and kept in memory only. At most [`limits::LEAVES`] are kept, each
/// for a third of its life at most, and however many callers wait for a name, it is minted once.
pub struct Leaves {
    authority: Arc<Authority>,
    may_mint: MayMint,
    metrics: Metrics,
    key: Arc<dyn SigningKey>,
    public_key: SubjectPublicKeyInfo,
    cache: moka::sync::Cache<HostName, Leaf>,
}

#[derive(Clone)]
struct Leaf {
    key: Arc<CertifiedKey>,
    /// On the wall clock: the cache's own clock stands still while a machine sleeps. Before it, the clock was set back,
    /// and the workloads' clocks with it.
    good: Range<OffsetDateTime>,
}

impl Leaves {
    /// # Errors
    /// [`Error::Make`] or [`Error::LeafKey`] when the leaf key cannot be made.
    pub fn new(authority: Arc<Authority>, may_mint: MayMint, metrics: Metrics) -> Result<Self, Error> {
        let make = |source| Error::Make {
            what: "leaf key",
            source,
        };
        let mut pair = KeyPair::generate().map_err(make)?;
        let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialized_der()));
        let key = any_ecdsa_type(&pkcs8).map_err(|source| Error::LeafKey { source });
        let public_key = SubjectPublicKeyInfo::from_der(&pair.subject_public_key_info()).map_err(make);
        pair.zeroize();
        Ok(Self {
            authority,
            may_mint,
            metrics,
            key: key?,
            public_key: public_key?,
            cache: moka::sync::Cache::builder()
                .max_capacity(limits::LEAVES)
                .time_to_live(Duration::from_secs(renewal_seconds()))
                .build(),
        })
    }

    /// The leaf for `host`, with the intermediate after it.
    ///
    /// # Errors
    /// [`Error::Refused`] when no route names the host, [`Error::NotPermitted`] when the CA's constraints do not
    /// cover it, [`Error::AuthorityExpired`], [`Error::Mint`].
    pub fn get(&self, host: &HostName) -> Result<Arc<CertifiedKey>, Error> {
        self.get_at(host, OffsetDateTime::now_utc())
    }

    pub(super) fn get_at(&self, host: &HostName, now: OffsetDateTime) -> Result<Arc<CertifiedKey>, Error> {
        if !(self.may_mint)(host) {
            return Err(Error::Refused { host: host.clone() });
        }
        if !self.authority.permits(host) {
            return Err(Error::NotPermitted { host: host.clone() });
        }
        if now >= self.authority.not_after() {
            return Err(Error::AuthorityExpired {
                host: host.clone(),
                at: self.authority.not_after(),
            });
        }
        if self.cache.get(host).is_some_and(|leaf| !leaf.good.contains(&now)) {
            self.cache.invalidate(host);
        }
        self.cache
            .try_get_with_by_ref(host, || self.mint(host, now))
            .map(|leaf| leaf.key)
            .map_err(|source| Error::Mint {
                host: host.clone(),
                source: rcgen::Error::clone(&source),
            })
    }

    /// The CA that signs them.
    pub fn authority(&self) -> &Arc<Authority> {
        &self.authority
    }

    /// Leaves kept now, after pending evictions.
    pub fn len(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.entry_count()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn mint(&self, host: &HostName, now: OffsetDateTime) -> Result<Leaf, rcgen::Error> {
        let not_after = self.authority.not_after().min(now + profile::LEAF_LIFE);
        let leaf = self.authority.sign(host, &self.public_key, now, not_after)?;
        self.metrics.leaves.inc();
        let chain = vec![leaf, self.authority.intermediate_der().clone()];
        Ok(Leaf {
            key: Arc::new(CertifiedKey::new(chain, self.key.clone())),
            good: now - profile::BACKDATE..now + (not_after - now) / RENEW_AFTER,
        })
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
        self.get(&host)
            .inspect_err(|error| tracing::warn!(%host, error = error as &dyn std::error::Error, "no leaf"))
            .ok()
    }
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves")
            .field("authority", &self.authority)
            .field("kept", &self.cache.entry_count())
            .finish_non_exhaustive()
    }
}

//! The one place that signs leaves. What goes in is a [`Request`], what comes out a chain; nothing else leads to the
//! key, so a process of its own could answer the same requests over a socket.

use rcgen::{Issuer, PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

use super::Error;
use super::profile::{self, CaKey};
use super::subtree::Subtrees;
use crate::addr::HostName;

/// The kinds of key that a leaf can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyKind {
    P256,
    /// 2048 bits.
    Rsa,
}

/// One leaf to be made. How long it lives and what it may be used for is not for the asker to say.
pub struct Request<'a> {
    pub host: &'a HostName,
    pub kind: KeyKind,
    /// SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), DER.
    pub public_key: &'a [u8],
}

/// A leaf, and until when it is valid.
pub struct Minted {
    pub leaf: CertificateDer<'static>,
    pub not_after: OffsetDateTime,
}

/// Signs leaves where this process has no key; its calls block.
pub trait Elsewhere: Send + Sync {
    /// `issuer`: the certificate under which the leaf shall stand.
    ///
    /// # Errors
    /// What was said there, in words.
    fn answer(&self, request: &Request<'_>, issuer: &CertificateDer<'_>) -> Result<Minted, String>;
}

/// A node's intermediate with its key.
pub(super) struct Mint {
    issuer: Issuer<'static, CaKey>,
    subtrees: Subtrees,
    not_after: OffsetDateTime,
}

impl Mint {
    /// # Errors
    /// When the certificate is none that rcgen can issue under.
    pub(super) fn new(
        intermediate: &CertificateDer<'_>,
        key: CaKey,
        subtrees: Subtrees,
        not_after: OffsetDateTime,
    ) -> Result<Self, rcgen::Error> {
        Ok(Self {
            // From the certificate, not from its parameters: leaves must repeat the key identifier that stands in it.
            issuer: Issuer::from_ca_cert_der(intermediate, key)?,
            subtrees,
            not_after,
        })
    }

    /// # Errors
    /// [`Error::NotPermitted`], [`Error::AuthorityExpired`], [`Error::ForeignKey`], or [`Error::Mint`] when the
    /// cryptography fails.
    pub(super) fn answer(&self, request: &Request<'_>, now: OffsetDateTime) -> Result<Minted, Error> {
        let host = || request.host.clone();
        if !self.subtrees.permit(request.host) {
            return Err(Error::NotPermitted { host: host() });
        }
        if now >= self.not_after {
            return Err(Error::AuthorityExpired {
                host: host(),
                at: self.not_after,
            });
        }
        if !request.kind.is_of(request.public_key) {
            return Err(Error::ForeignKey {
                host: host(),
                wanted: request.kind.name(),
            });
        }
        let failed = |source| Error::Mint { host: host(), source };
        let key = SubjectPublicKeyInfo::from_der(request.public_key).map_err(failed)?;
        let not_after = self.not_after.min(now + profile::LEAF_LIFE);
        let leaf = self.sign(request.host, &key, now, not_after).map_err(failed)?;
        Ok(Minted { leaf, not_after })
    }

    /// Signs whatever it is given. Outside of this module only for tests, which play the thief of the key.
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
}

impl KeyKind {
    fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::Rsa => "RSA of 2048 bits",
        }
    }

    fn is_of(self, public_key: &[u8]) -> bool {
        let Ok((&[], key)) = ParsedKey::from_der(public_key) else {
            return false;
        };
        match (self, key.parsed()) {
            (Self::P256, Ok(PublicKey::EC(point))) => point.key_size() == 256,
            (Self::Rsa, Ok(PublicKey::RSA(key))) => key.key_size() == 2048,
            _ => false,
        }
    }
}

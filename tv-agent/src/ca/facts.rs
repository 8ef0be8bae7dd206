//! What a certificate says about itself, as far as the CA has to know or show it.

use std::path::Path;

use rustls_pki_types::CertificateDer;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use x509_parser::extensions::{GeneralName, GeneralSubtree};
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::subtree::Subtrees;
use super::{Error, rfc3339};
use crate::encode::hex;

/// A certificate for people and for `-o json`. Times are RFC 3339, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    /// Hexadecimal, as `openssl x509 -serial` prints it.
    pub serial: String,
    /// SHA-256 of the DER form, lower-case hexadecimal.
    pub sha256: String,
    pub not_before: String,
    pub not_after: String,
    /// DNS subtrees it may sign for; empty when it is not constrained.
    pub permitted: Vec<String>,
}

/// The same, as the checks need it.
pub(super) struct Parsed {
    pub(super) facts: Facts,
    pub(super) subject: Vec<u8>,
    pub(super) issuer: Vec<u8>,
    pub(super) spki: Vec<u8>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// CA:TRUE in critical basic constraints, and keyCertSign.
    pub(super) signs: bool,
    pub(super) path_length: Option<u32>,
    /// Only what critical name constraints say.
    pub(super) subtrees: Subtrees,
    /// What name constraints say, critical or not.
    pub(super) limits: Subtrees,
    /// Why the key is none that clients verify everywhere.
    odd_key: Option<String>,
}

impl Parsed {
    /// `None`: not a well-formed certificate.
    pub(super) fn new(der: &CertificateDer<'_>) -> Option<Self> {
        let (rest, x509) = x509_parser::parse_x509_certificate(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        let basic = x509.basic_constraints().ok()?;
        let usage = x509.key_usage().ok()?;
        let constraints = x509.name_constraints().ok()?;
        let critical = constraints.as_ref().is_some_and(|c| c.critical);
        let limits = constraints.map_or_else(Subtrees::default, |c| Subtrees {
            permitted: dns_names(c.value.permitted_subtrees.as_deref()),
            excluded: dns_names(c.value.excluded_subtrees.as_deref()),
        });
        let subtrees = if critical {
            limits.clone()
        } else {
            Subtrees::default()
        };
        let not_before = x509.validity().not_before.to_datetime();
        let not_after = x509.validity().not_after.to_datetime();
        Some(Self {
            facts: Facts {
                subject: x509.subject().to_string(),
                issuer: x509.issuer().to_string(),
                serial: hex(x509.raw_serial()),
                sha256: hex(&Sha256::digest(der)),
                not_before: rfc3339(not_before),
                not_after: rfc3339(not_after),
                permitted: subtrees.permitted.clone(),
            },
            subject: x509.subject().as_raw().to_vec(),
            issuer: x509.issuer().as_raw().to_vec(),
            spki: x509.public_key().raw.to_vec(),
            not_before,
            not_after,
            signs: basic.as_ref().is_some_and(|b| b.critical && b.value.ca)
                && usage.is_some_and(|u| u.value.key_cert_sign()),
            path_length: basic.and_then(|b| b.value.path_len_constraint),
            subtrees,
            limits,
            odd_key: odd_key(x509.public_key()),
        })
    }

    /// Whether clients verify what such a key signs.
    pub(super) fn check_key(&self, path: &Path) -> Result<(), Error> {
        match &self.odd_key {
            None => Ok(()),
            Some(kind) => Err(Error::KeyKind {
                path: path.to_owned(),
                kind: kind.clone(),
            }),
        }
    }

    /// Checks that do not depend on the role: a CA, valid now.
    pub(super) fn check_ca(&self, path: &Path, now: OffsetDateTime) -> Result<(), Error> {
        let path = || path.to_owned();
        if !self.signs {
            return Err(Error::NotACa { path: path() });
        }
        if now < self.not_before {
            return Err(Error::NotYetValid {
                path: path(),
                at: self.not_before,
            });
        }
        if now >= self.not_after {
            return Err(Error::Expired {
                path: path(),
                at: self.not_after,
            });
        }
        Ok(())
    }
}

fn odd_key(key: &SubjectPublicKeyInfo<'_>) -> Option<String> {
    match key.parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < 2048 => Some(format!("RSA of {} bits", key.key_size())),
        Ok(PublicKey::RSA(_)) => None,
        Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => None,
        Ok(PublicKey::EC(point)) => Some(format!("an elliptic curve of {} bits", point.key_size())),
        _ => Some(format!("of the algorithm {}", key.algorithm.algorithm)),
    }
}

fn dns_names(subtrees: Option<&[GeneralSubtree<'_>]>) -> Vec<String> {
    subtrees
        .unwrap_or_default()
        .iter()
        .filter_map(|subtree| match &subtree.base {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect()
}

//! The root certificates that workloads are to trust: one, or several while a root is replaced.

use std::collections::BTreeSet;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use super::{Error, fingerprint, hash};
use crate::encode::certificate_pem;
use crate::limits;

/// Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchors(Vec<Anchor>);

/// One root certificate, in the forms in which stores take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anchor {
    pem: String,
    der: Vec<u8>,
    hash: String,
    sha256: String,
}

impl Anchors {
    /// All certificates of `pem`; one that comes twice counts once.
    ///
    /// # Errors
    /// [`Error::Ca`] when there is none, or one is no CA certificate with a subject.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let mut anchors: Vec<Anchor> = Vec::new();
        for der in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let anchor = Anchor::from_der(&der.map_err(|_| Error::Ca)?)?;
            if !anchors.contains(&anchor) {
                anchors.push(anchor);
            }
        }
        if anchors.is_empty() {
            return Err(Error::Ca);
        }
        if anchors.len() > limits::TRUST_ANCHORS {
            return Err(Error::TooManyAnchors);
        }
        Ok(Self(anchors))
    }

    pub fn pem(&self) -> String {
        self.iter().map(Anchor::pem).collect()
    }

    /// SHA-256 of each, hexadecimal, as [`super::Installation`] has them.
    pub fn fingerprints(&self) -> BTreeSet<String> {
        self.iter().map(|anchor| anchor.sha256.clone()).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Anchor> {
        self.0.iter()
    }
}

impl Anchor {
    fn from_der(der: &CertificateDer<'_>) -> Result<Self, Error> {
        let (_, x509) = x509_parser::parse_x509_certificate(der).map_err(|_| Error::Ca)?;
        if !x509.is_ca() {
            return Err(Error::Ca);
        }
        Ok(Self {
            pem: certificate_pem(der),
            der: der.to_vec(),
            hash: hash::subject_hash(x509.subject()).ok_or(Error::Ca)?,
            sha256: fingerprint(der),
        })
    }

    /// Ends with a newline.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }

    /// Base name of its link in an OpenSSL certificate directory.
    pub fn subject_hash(&self) -> &str {
        &self.hash
    }

    /// Hexadecimal, lower case.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// What its file in a system's directory of anchors, and its entry in a key store, are called.
    pub(super) fn name(&self) -> String {
        format!("tv-agent-{}", &self.sha256[..16])
    }
}

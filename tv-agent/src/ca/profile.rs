//! What the certificates look like: the profile that strict verifiers (OpenSSL `-x509_strict`, Python 3.13)
//! accept, and the keys that sign them.

use std::net::{Ipv4Addr, Ipv6Addr};

use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
    SignatureAlgorithm, SigningKey,
};
use time::{Duration, OffsetDateTime};
use zeroize::{Zeroize, Zeroizing};

use super::subtree::Subtrees;
use crate::addr::HostName;

/// Life of a root made by `ca init`.
pub(super) const ROOT_LIFE: Duration = Duration::days(5 * 365);
/// A root with less than this left should be replaced: every workload has to get the next one.
pub(super) const ROOT_RENEWAL: Duration = Duration::days(90);
/// Life of a node's intermediate.
pub(super) const INTERMEDIATE_LIFE: Duration = Duration::days(30);
/// An intermediate with less than this left is issued anew by `ca init`.
pub(super) const INTERMEDIATE_RENEWAL: Duration = Duration::days(10);
/// Life of the CA of one `exec`, which nobody renews: longer than any session is left open.
pub(super) const EPHEMERAL_LIFE: Duration = Duration::days(365);
/// Life of a leaf from now on; with [`BACKDATE`] far below the 200 days that browsers allow.
pub(super) const LEAF_LIFE: Duration = Duration::hours(72);
/// Every certificate begins this long ago, for workloads whose clock is late.
pub(super) const BACKDATE: Duration = Duration::hours(24);

/// A CA's private key: it signs, is wiped on drop, and has no `Debug`.
pub(super) struct CaKey(KeyPair);

impl CaKey {
    /// A new P-256 key.
    pub(super) fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate().map(Self)
    }

    pub(super) fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        KeyPair::from_pem(pem).map(Self)
    }

    pub(super) fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }
}

impl Drop for CaKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for CaKey {
    fn sign(&self, msg: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(msg)
    }
}

/// A root: path length 1, so that it signs intermediates that sign leaves, and no more.
pub(super) fn root(now: OffsetDateTime, life: Duration) -> CertificateParams {
    let mut params = ca(now, now + life, "root", 1);
    // Optional on a self-signed certificate (RFC 5280 §4.2.1.1), but some verifiers ask for it everywhere.
    params.use_authority_key_identifier_extension = true;
    params
}

/// A node's intermediate for `subtrees`; no address at all, no use but TLS servers.
pub(super) fn intermediate(
    now: OffsetDateTime,
    not_after: OffsetDateTime,
    subtrees: &Subtrees,
) -> CertificateParams {
    let mut params = ca(now, not_after, "intermediate", 0);
    params.use_authority_key_identifier_extension = true;
    // Clients take an intermediate's extended key usage as a bound on what it issues.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let dns = |names: &[String]| -> Vec<_> { names.iter().cloned().map(GeneralSubtree::DnsName).collect() };
    let mut excluded_subtrees = dns(&subtrees.excluded);
    for everything in [
        CidrSubnet::from_addr_prefix(Ipv4Addr::UNSPECIFIED.into(), 0),
        CidrSubnet::from_addr_prefix(Ipv6Addr::UNSPECIFIED.into(), 0),
    ] {
        excluded_subtrees.push(GeneralSubtree::IpAddress(everything));
    }
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: dns(&subtrees.permitted),
        excluded_subtrees,
    });
    params
}

/// A leaf for exactly `host`. One name and no wildcard, or an HTTP/2 client reuses the connection for another
/// host (RFC 9113 §9.1.1). The subject is empty, so the SAN is critical (RFC 5280 §4.2.1.6).
pub(super) fn leaf(
    now: OffsetDateTime,
    not_after: OffsetDateTime,
    host: &HostName,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = not_after;
    params.serial_number = Some(serial());
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca(now: OffsetDateTime, not_after: OffsetDateTime, role: &str, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = not_after;
    params.serial_number = Some(serial());
    params.distinguished_name = DistinguishedName::new();
    // The suffix keeps two CAs apart in a store that is looked up by subject.
    let suffix: u32 = rand::rng().random();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("tv-agent {role} {suffix:08x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// 128 random bits, positive and of full length. Never left to rcgen, which derives it from the public key:
/// all leaves share one, and NSS refuses two certificates with the same issuer and serial.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::rng().random();
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}

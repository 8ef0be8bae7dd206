//! A public certificate authority of the fakes: one root, good leaves, and every kind of bad one.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

/// A root that signs the fakes' certificates, as a web PKI root would.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    root_pem: String,
}

/// A certificate chain with its key, ready for a TLS server.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// What is wrong with a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Ended yesterday.
    Expired,
    /// Starts tomorrow.
    NotYetValid,
    /// Signed by its own key.
    SelfSigned,
    /// Good, but for `wrong-name.example`.
    WrongName,
    /// Signed by a root that nobody trusts.
    UnknownIssuer,
}

impl Flaw {
    pub const ALL: [Self; 5] = [
        Self::Expired,
        Self::NotYetValid,
        Self::SelfSigned,
        Self::WrongName,
        Self::UnknownIssuer,
    ];
}

impl Pki {
    /// A new root whose common name is `name`.
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a P-256 key");
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("a root");
        Self {
            root: root.der().clone(),
            root_pem: root.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// A good certificate for `names` (DNS names or IP addresses).
    pub fn leaf(&self, names: &[&str]) -> Identity {
        self.sign(leaf_params(names))
    }

    /// A certificate for `names` with one flaw.
    pub fn flawed(&self, flaw: Flaw, names: &[&str]) -> Identity {
        let now = OffsetDateTime::now_utc();
        let mut params = leaf_params(names);
        match flaw {
            Flaw::Expired => {
                params.not_before = now - Duration::days(30);
                params.not_after = now - Duration::days(1);
            }
            Flaw::NotYetValid => {
                params.not_before = now + Duration::days(1);
                params.not_after = now + Duration::days(30);
            }
            Flaw::SelfSigned => {
                let key = KeyPair::generate().expect("a P-256 key");
                let cert = params.self_signed(&key).expect("a certificate");
                return identity(cert.der().clone(), &key);
            }
            Flaw::WrongName => params = leaf_params(&["wrong-name.example"]),
            Flaw::UnknownIssuer => return Self::new("Unknown Root").sign(params),
        }
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().expect("a P-256 key");
        let cert = params.signed_by(&key, &self.issuer).expect("a certificate");
        identity(cert.der().clone(), &key)
    }
}

fn leaf_params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).expect("names that fit a certificate");
    params.distinguished_name = common_name(names.first().expect("at least one name"));
    // Node and Go refuse a leaf without it; rustls and OpenSSL do not care.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(30);
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    dn
}

fn identity(cert: CertificateDer<'static>, key: &KeyPair) -> Identity {
    Identity {
        chain: vec![cert],
        key: PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

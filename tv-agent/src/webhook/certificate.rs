//! The server's certificate: read from files, and again when they change, without a connection being dropped.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why files cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}; tls.certificate and tls.key name PEM files", path.display())]
    Read {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("certificate {} and key {} do not go together", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        source: rustls::Error,
    },
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
}

#[derive(Debug)]
pub struct Certificate(ArcSwap<CertifiedKey>);

impl Certificate {
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, Error> {
        Ok(Self(ArcSwap::from_pointee(read(certificate, key)?)))
    }

    /// True: another certificate is served from now on.
    pub fn renew(&self, certificate: &Path, key: &Path) -> Result<bool, Error> {
        let fresh = read(certificate, key)?;
        // A key that changes gets another certificate.
        let other = fresh.cert != self.0.load().cert;
        if other {
            self.0.store(fresh.into());
        }
        Ok(other)
    }

    /// When it ends, seconds since 1970; 0 when it does not say so in a way that is understood.
    pub fn ends(&self) -> i64 {
        let current = self.0.load();
        let parsed = current
            .cert
            .first()
            .map(|der| x509_parser::parse_x509_certificate(der));
        match parsed {
            Some(Ok((_, parsed))) => parsed.validity().not_after.timestamp(),
            _ => 0,
        }
    }

    /// TLS for all connections; what they are shown is the current one.
    pub fn tls(self: &Arc<Self>) -> Result<Arc<ServerConfig>, Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(Error::Tls)?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(tls))
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

fn read(certificate: &Path, key: &Path) -> Result<CertifiedKey, Error> {
    let failed = |path: &Path, source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|source| failed(certificate, source))?;
    if chain.is_empty() {
        return Err(Error::Empty {
            path: certificate.to_owned(),
        });
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| failed(key, source))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, private, &provider).map_err(|source| Error::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let (certificate, key) = (directory.join("tls.crt"), directory.join("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn a_pair_is_taken_up_when_it_is_whole_and_another() {
        let directory = tempfile::tempdir().unwrap();
        let (certificate, key) = write(directory.path(), "one.example");
        let served = Certificate::load(&certificate, &key).unwrap();
        assert!(served.ends() > 0);
        assert!(!served.renew(&certificate, &key).unwrap());
        let old_key = std::fs::read(&key).unwrap();
        write(directory.path(), "two.example");
        let new_key = std::fs::read(&key).unwrap();
        std::fs::write(&key, old_key).unwrap();
        assert!(matches!(
            served.renew(&certificate, &key),
            Err(Error::Pair { .. })
        ));
        std::fs::write(&key, new_key).unwrap();
        assert!(served.renew(&certificate, &key).unwrap());
        std::fs::write(&certificate, "").unwrap();
        assert!(matches!(
            served.renew(&certificate, &key),
            Err(Error::Empty { .. })
        ));
        std::fs::remove_file(&certificate).unwrap();
        assert!(matches!(
            served.renew(&certificate, &key),
            Err(Error::Read { .. })
        ));
    }
}

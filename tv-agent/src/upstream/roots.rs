//! Whom we believe: the system's roots and the configured ones, never our own CA. No switch turns it off.

use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::files;

/// Why there is no set of roots.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}; extra_roots must name readable PEM files", path.display())]
    Read {
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{} holds no certificate; extra_roots must name PEM files with CA certificates", path.display())]
    Empty { path: PathBuf },
    #[error("{} holds something that is no usable CA certificate", path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error(
        "there is no root certificate at all: install the system's (package ca-certificates), or name some in extra_roots"
    )]
    None,
}

/// System ∪ `extra`, without `own`.
pub fn compose(extra: &[PathBuf], own: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    // Unreadable files among the system's are common and harmless: what is left counts.
    let system = rustls_native_certs::load_native_certs().certs;
    roots.add_parsable_certificates(system.into_iter().filter(|cert| !own.contains(cert)));
    for path in extra {
        for cert in read(path)?.into_iter().filter(|cert| !own.contains(cert)) {
            roots.add(cert).map_err(|source| Error::Unusable {
                path: path.clone(),
                source,
            })?;
        }
    }
    if roots.is_empty() {
        Err(Error::None)
    } else {
        Ok(roots)
    }
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read_error = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let file = files::open(path).map_err(|error| read_error(rustls_pki_types::pem::Error::Io(error)))?;
    let certs: Vec<_> = CertificateDer::pem_reader_iter(file)
        .collect::<Result<_, _>>()
        .map_err(|source| Error::Read {
            path: path.to_owned(),
            source,
        })?;
    if certs.is_empty() {
        Err(Error::Empty {
            path: path.to_owned(),
        })
    } else {
        Ok(certs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca() -> (CertificateDer<'static>, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec![]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap();
        (cert.der().clone(), cert.pem())
    }

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tv-roots-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn our_own_ca_is_never_believed() {
        let (own, own_pem) = ca();
        let (other, other_pem) = ca();
        let both = file("both", &format!("{own_pem}{other_pem}"));
        let with = compose(std::slice::from_ref(&both), &[]).unwrap().len();
        let without = compose(std::slice::from_ref(&both), std::slice::from_ref(&own))
            .unwrap()
            .len();
        assert_eq!(with, without + 1);
        // During a rotation there are two.
        match compose(std::slice::from_ref(&both), &[own, other]) {
            Ok(roots) => assert_eq!(with, roots.len() + 2),
            Err(error) => assert!(matches!(error, Error::None) && with == 2),
        }
        std::fs::remove_file(both).unwrap();
    }

    #[test]
    fn broken_files_are_named() {
        let empty = file("empty", "nothing here\n");
        let garbage = file(
            "garbage",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        );
        let missing = PathBuf::from("/nonexistent/roots.pem");
        assert!(matches!(
            compose(std::slice::from_ref(&empty), &[]),
            Err(Error::Empty { .. })
        ));
        assert!(matches!(
            compose(std::slice::from_ref(&garbage), &[]),
            Err(Error::Unusable { .. })
        ));
        assert!(matches!(compose(&[missing], &[]), Err(Error::Read { .. })));
        [empty, garbage]
            .iter()
            .for_each(|p| std::fs::remove_file(p).unwrap());
    }
}

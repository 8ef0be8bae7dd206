//! What a ConfigMap of ours holds: our roots, and a bundle of the public ones with ours. Never a key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::files_of;
use super::needs::{BUNDLE, ROOTS};
use crate::encode::{certificate_pem, hex};
use crate::limits;
use crate::trust::{Anchors, bundle};

/// Why there is nothing to give to pods.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}; `roots` and `public_roots` name PEM files, or directories of such", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} holds a private key; take it out, only certificates are for everybody", path.display())]
    Key { path: PathBuf },
    #[error("`roots` names no usable root")]
    Roots(#[source] crate::trust::Error),
    #[error("{} holds no certificate; `public_roots` names a PEM bundle", path.display())]
    NoPublic { path: PathBuf },
    #[error(
        "roots and public roots together have {bytes} bytes, a ConfigMap of ours has {} at most; name fewer",
        limits::WEBHOOK_CONTENT_BYTES
    )]
    TooLarge { bytes: usize },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    roots: String,
    bundle: String,
    /// SHA-256 of each root, the first 16 digits, parted by commas.
    pub fingerprints: String,
    /// Of both files.
    pub digest: String,
}

impl Content {
    /// Of our roots, and a bundle of public ones: those of a file, or Mozilla's.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn read(roots: &[PathBuf], public: Option<&Path>) -> Result<Self, Error> {
        let mut ours = String::new();
        for path in roots {
            let files = files_of(path).map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
            for file in files {
                ours.push_str(&read(&file)?);
                ours.push('\n');
            }
        }
        let public = match public {
            Some(path) => {
                let text = read(path)?;
                if !text.contains("-----BEGIN CERTIFICATE-----") {
                    return Err(Error::NoPublic {
                        path: path.to_owned(),
                    });
                }
                text
            }
            None => webpki_root_certs::TLS_SERVER_ROOT_CERTS
                .iter()
                .map(certificate_pem)
                .collect(),
        };
        Self::new(&ours, &public)
    }

    /// # Errors
    /// When `roots` holds no root of a CA, or all of it is too large.
    pub fn new(roots: &str, public: &str) -> Result<Self, Error> {
        let anchors = Anchors::from_pem(roots).map_err(Error::Roots)?;
        let bundle = bundle::merge(public.as_bytes(), &anchors);
        let bundle = String::from_utf8(bundle).expect("both are text");
        let roots = anchors.pem();
        let bytes = roots.len() + bundle.len();
        if bytes > limits::WEBHOOK_CONTENT_BYTES {
            return Err(Error::TooLarge { bytes });
        }
        let fingerprints = anchors.fingerprints();
        let fingerprints: Vec<&str> = fingerprints.iter().map(|hex| &hex[..16]).collect();
        let mut content = Self {
            roots,
            bundle,
            fingerprints: fingerprints.join(","),
            digest: String::new(),
        };
        content.digest = digest(&content.data());
        Ok(content)
    }

    pub fn data(&self) -> BTreeMap<String, String> {
        [(ROOTS, &self.roots), (BUNDLE, &self.bundle)]
            .map(|(name, text)| (name.to_owned(), text.clone()))
            .into()
    }
}

/// Of our two files in a ConfigMap's data; what else is in there is no matter of ours.
pub fn digest(data: &BTreeMap<String, String>) -> String {
    let mut hash = Sha256::new();
    for name in [ROOTS, BUNDLE] {
        let text = data.get(name).map(String::as_str).unwrap_or_default();
        hash.update((text.len() as u64).to_be_bytes());
        hash.update(text);
    }
    hex(&hash.finalize())
}

fn read(path: &Path) -> Result<String, Error> {
    use std::io::Read as _;
    let failed = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let limit = limits::WEBHOOK_CONTENT_BYTES as u64 + 1;
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limit).read_to_string(&mut text).map_err(failed)?;
    if text.contains("PRIVATE KEY-----") {
        return Err(Error::Key {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(name: &str) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec![]).unwrap();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.self_signed(&key).unwrap().pem()
    }

    #[test]
    fn the_bundle_has_the_public_roots_and_ours() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("root.pem");
        std::fs::write(&file, root("one")).unwrap();
        std::fs::write(directory.path().join(".hidden"), "no certificate").unwrap();
        let content = Content::read(&[directory.path().to_owned()], None).unwrap();
        let data = content.data();
        assert_eq!(data[ROOTS].matches("BEGIN CERTIFICATE").count(), 1);
        assert!(data[BUNDLE].matches("BEGIN CERTIFICATE").count() > 100);
        assert_eq!(content.fingerprints.len(), 16);
        assert_eq!(content.digest, digest(&data));
        // Two roots while one takes the other's place; what else lies in the map does not count.
        std::fs::write(directory.path().join("next.pem"), root("two")).unwrap();
        let both = Content::read(&[directory.path().to_owned()], None).unwrap();
        assert_eq!(both.fingerprints.len(), 33);
        assert_ne!(both.digest, content.digest);
        let mut more = both.data();
        more.insert("other".to_owned(), "x".to_owned());
        assert_eq!(digest(&more), both.digest);
    }

    #[test]
    fn what_cannot_be_given_to_everybody_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.pem");
        let at = std::slice::from_ref(&path);
        assert!(matches!(Content::read(at, None), Err(Error::Read { .. })));
        std::fs::write(&path, "").unwrap();
        assert!(matches!(Content::read(at, None), Err(Error::Roots(_))));
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(&path, root("one") + &key).unwrap();
        assert!(matches!(Content::read(at, None), Err(Error::Key { .. })));
        std::fs::write(&path, root("one")).unwrap();
        let empty = directory.path().join("empty.pem");
        std::fs::write(&empty, "# nothing\n").unwrap();
        assert!(matches!(
            Content::read(at, Some(&empty)),
            Err(Error::NoPublic { .. })
        ));
        let large = format!(
            "{}{}",
            root("public"),
            "#\n".repeat(limits::WEBHOOK_CONTENT_BYTES / 2)
        );
        std::fs::write(&empty, large).unwrap();
        assert!(matches!(
            Content::read(at, Some(&empty)),
            Err(Error::TooLarge { .. })
        ));
    }
}

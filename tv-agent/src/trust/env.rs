//! Which variables runtimes read instead of the system's store.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::Error;
use super::store::Store;

/// A variable whose file *replaces* the runtime's own roots.
struct Replaces {
    name: &'static str,
    /// What the runtime reads when the first is not set, in turn. Since we set the first, what the caller has
    /// put there (a corporate bundle, say) must get into it.
    else_reads: &'static [&'static str],
}

const fn replaces(name: &'static str, else_reads: &'static [&'static str]) -> Replaces {
    Replaces { name, else_reads }
}

const REPLACES: [Replaces; 11] = [
    // OpenSSL, Go, Ruby, PHP, httpx, rustls-native-certs, .NET.
    replaces(SSL_CERT_FILE, &[]),
    replaces("CURL_CA_BUNDLE", &[SSL_CERT_FILE]),
    // Python requests; pip; AWS CLI and boto3.
    replaces("REQUESTS_CA_BUNDLE", &["CURL_CA_BUNDLE"]),
    replaces("PIP_CERT", &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]),
    replaces("AWS_CA_BUNDLE", &["REQUESTS_CA_BUNDLE"]),
    // Also git with GnuTLS, which knows no other variable.
    replaces("GIT_SSL_CAINFO", &[]),
    // gRPC's C core, gcloud, httplib2.
    replaces("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", &[]),
    replaces("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", &[]),
    replaces("HTTPLIB2_CA_CERTS", &[]),
    replaces("NIX_SSL_CERT_FILE", &[SSL_CERT_FILE]),
    replaces("CARGO_HTTP_CAINFO", &[SSL_CERT_FILE]),
];

/// Variables whose file is *added* to the roots that the runtime has compiled in.
const ADDS: [&str; 2] = ["NODE_EXTRA_CA_CERTS", "DENO_CERT"];

pub(super) const SSL_CERT_FILE: &str = "SSL_CERT_FILE";
const SSL_CERT_DIR: &str = "SSL_CERT_DIR";

/// The variables to set, given the copy of the system's bundle, a file with the anchors alone, and the caller's
/// environment.
pub(super) fn variables(
    store: &mut Store<'_>,
    system: Option<&PathBuf>,
    ca_only: &Path,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, Error> {
    // An empty value names nothing; runtimes treat it as unset, or fail on it.
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let mut own = |name: &'static str| match set(name) {
        Some(value) => store
            .merge_named(name, Path::new(&value))
            .map(|copy| Some(copy.into_os_string()))
            .map_err(|e| variable(name, e)),
        None => Ok(None),
    };
    let named = own(SSL_CERT_FILE)?;
    let system = system.map(|bundle| bundle.clone().into_os_string());
    let bundle = system.or(named).ok_or(Error::NoStore)?;
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    for Replaces { name, else_reads } in REPLACES {
        let mut value = own(name)?;
        for other in else_reads {
            if value.is_none() {
                value = own(other)?;
            }
        }
        env.push((name.into(), value.unwrap_or_else(|| bundle.clone())));
    }
    for name in ADDS {
        let own = own(name)?;
        env.push((name.into(), own.unwrap_or_else(|| ca_only.as_os_str().to_owned())));
    }
    // Set by the caller only: the default directory is mounted over.
    if let Some(list) = set(SSL_CERT_DIR) {
        let mut copies = Vec::new();
        for path in std::env::split_paths(&list).filter(|p| !p.as_os_str().is_empty()) {
            let copy = store.copy_named_directory(SSL_CERT_DIR, &path);
            copies.extend(copy.map_err(|e| variable(SSL_CERT_DIR, e))?);
        }
        // Like OpenSSL, pass over directories that are not there; but some place must hold the CA.
        if copies.is_empty() {
            copies.push(store.ca_directory()?);
        }
        let joined = std::env::join_paths(copies).expect("made from a list that was split at the separator");
        env.push((SSL_CERT_DIR.into(), joined));
    }
    Ok(env)
}

fn variable(name: &'static str, source: Error) -> Error {
    Error::Variable {
        name,
        source: Box::new(source),
    }
}

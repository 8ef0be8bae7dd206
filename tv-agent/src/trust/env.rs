//! Which variables make runtimes trust the CA, and what becomes of those that the caller has set.

pub mod java;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Error;
use super::store::Store;

/// What a runtime does with the file that a variable names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Trusts it *instead* of its own roots: the file must hold the public roots too.
    Replaces,
    /// Trusts it *besides* its own roots, which are compiled in.
    Adds,
}
use Effect::{Adds, Replaces};

struct Variable {
    name: &'static str,
    effect: Effect,
    /// What the runtime reads when the first is not set, in turn. Since we set the first, what the caller has
    /// put there (a corporate bundle, say) must get into it.
    else_reads: &'static [&'static str],
}

const fn replaces(name: &'static str, else_reads: &'static [&'static str]) -> Variable {
    Variable {
        name,
        effect: Replaces,
        else_reads,
    }
}

const fn adds(name: &'static str) -> Variable {
    Variable {
        name,
        effect: Adds,
        else_reads: &[],
    }
}

const VARIABLES: [Variable; 13] = [
    // OpenSSL, Go, Ruby, PHP, httpx, rustls-native-certs, .NET.
    replaces(SSL_CERT_FILE, &[]),
    replaces("CURL_CA_BUNDLE", &[SSL_CERT_FILE]),
    // Python requests; pip; AWS CLI and boto3.
    replaces("REQUESTS_CA_BUNDLE", &["CURL_CA_BUNDLE"]),
    replaces("PIP_CERT", &["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]),
    replaces("AWS_CA_BUNDLE", &["REQUESTS_CA_BUNDLE"]),
    // Also git with GnuTLS, which knows no other variable.
    replaces("GIT_SSL_CAINFO", &[]),
    // gRPC's C core and gRPC for Node, gcloud, httplib2.
    replaces("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", &[]),
    replaces("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", &[]),
    replaces("HTTPLIB2_CA_CERTS", &[]),
    replaces("NIX_SSL_CERT_FILE", &[SSL_CERT_FILE]),
    replaces("CARGO_HTTP_CAINFO", &[SSL_CERT_FILE]),
    // Node and Bun; Deno. Both add to whichever store NODE_OPTIONS (--use-openssl-ca, --use-system-ca) or
    // DENO_TLS_CA_STORE choose, so those stay as they are.
    adds("NODE_EXTRA_CA_CERTS"),
    adds("DENO_CERT"),
];

pub(super) const SSL_CERT_FILE: &str = "SSL_CERT_FILE";
const SSL_CERT_DIR: &str = "SSL_CERT_DIR";

/// Every variable that names a file.
pub fn files() -> impl Iterator<Item = &'static str> {
    VARIABLES.iter().map(|variable| variable.name)
}

/// What runtimes do with the variable `name`.
pub fn effect(name: &str) -> Effect {
    let variable = VARIABLES.iter().find(|variable| variable.name == name);
    variable.map_or(Replaces, |variable| variable.effect)
}

/// A variable that a process is to have, and what its value must name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub name: &'static str,
    pub effect: Effect,
    pub source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The system's bundle, with our roots.
    Bundle,
    /// A file with our roots and nothing else.
    Anchors,
    /// What the caller's `variable` names, a file or an OpenSSL directory, with our roots added.
    Own { variable: &'static str, path: PathBuf },
    /// Those of these OpenSSL directories that exist, with our roots added.
    OwnDirectories(Vec<PathBuf>),
}

/// What a process with this environment needs, each variable once. Pure: nothing is looked up.
///
/// `SSL_CERT_DIR` is there only when the caller has set it: the default directory has our roots.
pub fn assignments(environment: &dyn Fn(&str) -> Option<OsString>) -> Vec<Assignment> {
    // An empty value names nothing; runtimes treat it as unset, or fail on it.
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let own = |variable: &'static str| {
        let path = set(variable)?.into();
        Some(Source::Own { variable, path })
    };
    let mut assignments: Vec<Assignment> = VARIABLES
        .iter()
        .map(|variable| Assignment {
            name: variable.name,
            effect: variable.effect,
            source: own(variable.name)
                .or_else(|| variable.else_reads.iter().find_map(|other| own(other)))
                .unwrap_or(match variable.effect {
                    Replaces => Source::Bundle,
                    Adds => Source::Anchors,
                }),
        })
        .collect();
    if let Some(list) = set(SSL_CERT_DIR) {
        let directories = std::env::split_paths(&list).filter(|path| !path.as_os_str().is_empty());
        assignments.push(Assignment {
            name: SSL_CERT_DIR,
            effect: Replaces,
            source: Source::OwnDirectories(directories.collect()),
        });
    }
    assignments
}

/// Files as the process will name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// The public roots and ours.
    pub bundle: PathBuf,
    /// Ours alone, or the bundle again.
    pub anchors: PathBuf,
    /// A key store for Java, where the runtime's own has not got our roots.
    pub keystore: Option<PathBuf>,
}

/// A variable with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub name: &'static str,
    pub effect: Effect,
    pub value: OsString,
}

/// The settings for a process whose own values stay as they are, and the names of those; their files must hold our
/// roots too.
pub fn settings(
    environment: &dyn Fn(&str) -> Option<OsString>,
    paths: &Paths,
) -> (Vec<Setting>, Vec<&'static str>) {
    let mut settings = Vec::new();
    let mut kept = Vec::new();
    for Assignment { name, effect, source } in assignments(environment) {
        let value = match source {
            Source::Bundle => paths.bundle.clone(),
            Source::Anchors => paths.anchors.clone(),
            Source::OwnDirectories(_) => {
                kept.push(name);
                continue;
            }
            Source::Own { variable, path } => {
                if variable == name {
                    kept.push(name);
                    continue;
                }
                path
            }
        };
        settings.push(Setting {
            name,
            effect,
            value: value.into(),
        });
    }
    if let Some(keystore) = &paths.keystore {
        let own = environment(java::OPTIONS).unwrap_or_default();
        match java::with_trust_store(&own.to_string_lossy(), keystore) {
            Some(value) => settings.push(Setting {
                name: java::OPTIONS,
                effect: Replaces,
                value: value.into(),
            }),
            None => kept.push(java::OPTIONS),
        }
    }
    (settings, kept)
}

/// The variables to set, given the copy of the system's bundle, a file with the anchors alone, and the caller's environment,
/// whose own files are copied.
pub(super) fn variables(
    store: &mut Store<'_>,
    system: Option<&PathBuf>,
    ca_only: &Path,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<Vec<(OsString, OsString)>, Error> {
    let mut bundle = system.cloned();
    let mut variables = Vec::new();
    for Assignment { name, source, .. } in assignments(environment) {
        let value = match source {
            Source::Bundle => bundle.clone().ok_or(Error::NoStore)?.into_os_string(),
            Source::Anchors => ca_only.as_os_str().to_owned(),
            Source::Own { variable, path } => {
                let copy = store.merge_named(variable, &path);
                let copy = copy.map_err(|e| named(variable, e))?;
                // SSL_CERT_FILE, the first of the table, is the bundle of a system that has none.
                bundle.get_or_insert_with(|| copy.clone());
                copy.into_os_string()
            }
            Source::OwnDirectories(paths) => directories(store, &paths)?,
        };
        variables.push((name.into(), value));
    }
    Ok(variables)
}

fn directories(store: &mut Store<'_>, paths: &[PathBuf]) -> Result<OsString, Error> {
    let mut copies = Vec::new();
    for path in paths {
        let copy = store.copy_named_directory(SSL_CERT_DIR, path);
        copies.extend(copy.map_err(|e| named(SSL_CERT_DIR, e))?);
    }
    // Like OpenSSL, pass over directories that are not there; but some place must hold the CA.
    if copies.is_empty() {
        copies.push(store.ca_directory()?);
    }
    Ok(std::env::join_paths(copies).expect("made from a list that was split at the separator"))
}

fn named(name: &'static str, source: Error) -> Error {
    Error::Variable {
        name,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests;

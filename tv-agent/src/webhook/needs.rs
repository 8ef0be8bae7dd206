//! What a container needs to trust the CA from its first connection on: a mount and variables. Pure; who asks, a webhook
//! or a plugin of the container runtime, is no matter.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::trust::env::{self, Effect, Source};

/// File with our roots alone, below the mount.
pub const ROOTS: &str = "roots.pem";
/// File with the public roots and ours.
pub const BUNDLE: &str = "bundle.pem";

/// Variables of runtimes whose own default is a public bundle that they bring along or have compiled in: nothing private
/// is lost when another takes its place. Those that read the system's store get our roots there, by the node's agent.
pub const VARIABLES: [&str; 8] = [
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "HTTPLIB2_CA_CERTS",
    "NODE_EXTRA_CA_CERTS",
    "DENO_CERT",
];

/// What every container is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Where the files lie in a container.
    pub path: PathBuf,
    /// Of [`env::files`].
    pub variables: Vec<String>,
}

/// A container, as far as it matters here.
pub struct Seen<'a> {
    /// The value of a variable; of one that is set, but whose value is not known, any value that is not empty.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// There are variables of which not even the name is known: none is set, or one of those might be overridden.
    pub more_variables: bool,
    /// Where something is mounted, whether it is read-only, and whether it is ours.
    pub mounts: &'a [Mounted<'a>],
}

#[derive(Clone, Copy, Debug)]
pub struct Mounted<'a> {
    pub path: &'a str,
    pub read_only: bool,
    pub ours: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    pub mount: bool,
    pub variables: Vec<(&'static str, String)>,
    /// Variables would have been set, had all names been known.
    pub withheld: bool,
}

/// Why a container gets nothing: mounting there would keep it from starting, or hide what it has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Left {
    #[error("something else is mounted at {0}")]
    Taken(String),
    #[error("{0} is mounted read-only, so nothing can be mounted below it")]
    ReadOnly(String),
}

/// # Errors
/// When the container is to be left alone.
pub fn needs(container: &Seen<'_>, plan: &Plan) -> Result<Needs, Left> {
    let mut mount = true;
    for mounted in container.mounts {
        let path = plain(Path::new(mounted.path));
        if path == plan.path && mounted.ours {
            mount = false;
        } else if path.starts_with(&plan.path) {
            return Err(Left::Taken(mounted.path.to_owned()));
        } else if mounted.read_only && plan.path.starts_with(&path) {
            return Err(Left::ReadOnly(mounted.path.to_owned()));
        }
    }
    let set = |name: &str| (container.variable)(name).map(OsString::from);
    let mut variables = Vec::new();
    for assignment in env::assignments(&set) {
        // Set to nothing is set, too.
        if set(assignment.name).is_some() || !plan.variables.iter().any(|name| name == assignment.name) {
            continue;
        }
        let file = match (assignment.source, assignment.effect) {
            (Source::Anchors, _) => ROOTS,
            (Source::Bundle, Effect::Adds | Effect::Replaces) => BUNDLE,
            // The runtime reads what the workload names elsewhere.
            (Source::Own { .. } | Source::OwnDirectories(_), _) => continue,
        };
        variables.push((assignment.name, plan.path.join(file).display().to_string()));
    }
    let withheld = container.more_variables && !variables.is_empty();
    if withheld {
        variables.clear();
    }
    Ok(Needs {
        mount,
        variables,
        withheld,
    })
}

/// Without `.`, doubled and trailing slashes; `..` is refused by the API server.
fn plain(path: &Path) -> PathBuf {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.collect()
}

#[cfg(test)]
mod tests;

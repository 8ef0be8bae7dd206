//! What is known of a pod besides its UID. The cgroup's path does not say it: somebody who knows has to.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::identity::is_pod_uid;
use crate::{files, limits};

/// The facts of one pod, by their Kubernetes names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Those of `prefix`, by their whole names.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// Names of its containers by their ids.
    #[serde(default)]
    pub containers: BTreeMap<String, String>,
    /// What the names of our annotations begin with, before the slash.
    #[serde(default = "default_prefix")]
    pub prefix: String,
}

/// Unless `kubernetes.prefix` says another.
pub const DEFAULT_PREFIX: &str = "tv-agent.io";

fn default_prefix() -> String {
    DEFAULT_PREFIX.to_owned()
}

/// Pod UID → facts. None: not known, or not known yet; whoever asks must not take that for a pod without facts.
pub trait PodFacts: Send + Sync {
    fn of(&self, uid: &str) -> Option<Arc<Pod>>;
}

/// No source: nothing is ever known.
pub struct NoFacts;

impl PodFacts for NoFacts {
    fn of(&self, _: &str) -> Option<Arc<Pod>> {
        None
    }
}

/// How long a file is believed without another look: what a change, or a file that comes late, may wait.
const KEPT: Duration = Duration::from_secs(1);
const KNOWN: u64 = 16 * 1024;

/// A directory with a file `UID.yaml` or `UID.json` for each pod, written by whoever knows the pods of the node.
///
/// A file is read when its pod connects. Write it under another name and rename it.
pub struct Directory {
    path: PathBuf,
    known: moka::sync::Cache<String, Option<Arc<Pod>>>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    #[error("it is larger than {} bytes", limits::POD_FACTS_BYTES)]
    TooLarge,
    #[error("it has to say namespace, name, service_account and, if there are any, labels: {0}")]
    Form(String),
}

impl Directory {
    pub fn new(path: PathBuf) -> Self {
        let known = moka::sync::Cache::builder()
            .max_capacity(KNOWN)
            .time_to_live(KEPT)
            .build();
        Self { path, known }
    }

    fn look(&self, uid: &str) -> Option<Arc<Pod>> {
        for extension in ["yaml", "json"] {
            let file = self.path.join(format!("{uid}.{extension}"));
            match read(&file) {
                Ok(pod) => return Some(Arc::new(pod)),
                Err(Error::Read(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(file = %file.display(), %error, "the pod stays unknown; correct its file");
                    return None;
                }
            }
        }
        None
    }
}

impl PodFacts for Directory {
    fn of(&self, uid: &str) -> Option<Arc<Pod>> {
        // It becomes part of a path.
        if !is_pod_uid(uid) {
            return None;
        }
        self.known.get_with_by_ref(uid, || self.look(uid))
    }
}

fn read(file: &Path) -> Result<Pod, Error> {
    let mut text = String::new();
    let limit = limits::POD_FACTS_BYTES;
    files::open(file)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(Error::TooLarge);
    }
    serde_saphyr::from_str(&text).map_err(|error| Error::Form(error.without_snippet().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";

    #[test]
    fn a_file_that_comes_late_or_changes_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Directory::new(dir.path().into());
        let expire = || facts.known.invalidate_all();
        assert_eq!(facts.of(UID), None);
        let json = r#"{"namespace":"shop","name":"cart-0","service_account":"cart","labels":{"app":"cart"}}"#;
        std::fs::write(dir.path().join(format!("{UID}.json")), json).unwrap();
        assert_eq!(facts.of(UID), None, "believed for a moment");
        expire();
        let pod = facts.of(UID).unwrap();
        assert_eq!(
            (pod.namespace.as_str(), pod.labels["app"].as_str()),
            ("shop", "cart")
        );
        let yaml = "namespace: shop\nname: cart-0\nservice_account: other\n";
        std::fs::write(dir.path().join(format!("{UID}.yaml")), yaml).unwrap();
        expire();
        assert_eq!(facts.of(UID).unwrap().service_account, "other");
    }

    #[test]
    fn what_is_no_facts_file_stays_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Directory::new(dir.path().into());
        let file = dir.path().join(format!("{UID}.yaml"));
        let good = "namespace: a\nname: b\nservice_account: c\n";
        let long = format!(
            "{good}#{}",
            "x".repeat(usize::try_from(limits::POD_FACTS_BYTES).unwrap())
        );
        for text in [
            "",
            "namespace: a\nname: b\n",
            &format!("{good}extra: d\n"),
            "[]",
            &long,
        ] {
            std::fs::write(&file, text).unwrap();
            facts.known.invalidate_all();
            assert_eq!(facts.of(UID), None, "{text:.80}");
        }
        std::fs::write(dir.path().join("x.yaml"), good).unwrap();
        for uid in ["x", "../x", "", &format!("{UID}/../x")] {
            assert_eq!(facts.of(uid), None, "{uid}");
        }
    }
}

//! What is kept of the API server's objects. Pure: one object's JSON in, the few facts that matter out.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::limits;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    Pods,
    Namespaces,
}

impl Resource {
    pub fn label(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Namespaces => "namespaces",
        }
    }
}

/// A pod as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The UID that its cgroup is named by: of a mirror pod the hash of its file, which is not the object's own.
    pub uid: String,
    /// The object's UID.
    pub object_uid: String,
    pub namespace: String,
    pub name: String,
    pub service_account: String,
    pub labels: BTreeMap<String, String>,
    /// Those of our prefix, by their whole names.
    pub annotations: BTreeMap<String, String>,
    /// Names of all its containers, as specified.
    pub names: Vec<String>,
    /// Containers that run or ran: id → name.
    pub containers: BTreeMap<String, String>,
    pub host_network: bool,
    /// It has come to its end.
    pub terminated: bool,
}

/// A namespace's name, and the value of our label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub name: String,
    pub enrol: Option<String>,
}

/// Why an object is not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skipped {
    #[error("it is malformed: {0}")]
    Malformed(String),
    #[error(
        "its labels, our annotations and its containers take more than {} bytes",
        limits::POD_BYTES
    )]
    TooLarge,
    #[error(
        "there are more than can be kept ({} pods, {} namespaces)",
        limits::PODS,
        limits::NAMESPACES_KNOWN
    )]
    TooMany,
}

impl Skipped {
    pub fn label(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
            Self::TooMany => "too_many",
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object<S = (), T = ()> {
    metadata: Metadata,
    spec: Option<S>,
    status: Option<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: Option<String>,
    uid: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    resource_version: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodSpec {
    service_account_name: Option<String>,
    #[serde(default)]
    host_network: bool,
    containers: Vec<Named>,
    init_containers: Option<Vec<Named>>,
    ephemeral_containers: Option<Vec<Named>>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    container_statuses: Option<Vec<ContainerStatus>>,
    init_container_statuses: Option<Vec<ContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<ContainerStatus>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
}

/// `metadata` of whatever object, for its place in time and for messages.
#[derive(Default, Debug, PartialEq, Eq)]
pub struct Marks {
    pub resource_version: Option<String>,
    pub key: String,
}

/// What can be told of an object that may be malformed otherwise.
pub fn marks(json: &str) -> Marks {
    let Ok(object) = serde_json::from_str::<Object<serde::de::IgnoredAny, serde::de::IgnoredAny>>(json)
    else {
        return Marks::default();
    };
    let metadata = object.metadata;
    Marks {
        key: match metadata.namespace {
            Some(namespace) => format!("{namespace}/{}", metadata.name),
            None => metadata.name,
        },
        resource_version: metadata.resource_version,
    }
}

/// # Errors
/// When the object is no pod, or too much would have to be kept.
pub fn pod(json: &str, prefix: &str) -> Result<Seen, Skipped> {
    let malformed = |error: serde_json::Error| Skipped::Malformed(error.to_string());
    let object: Object<PodSpec, PodStatus> = serde_json::from_str(json).map_err(malformed)?;
    let lacks = |what: &str| Skipped::Malformed(format!("it has no {what}"));
    let metadata = object.metadata;
    let spec = object.spec.ok_or_else(|| lacks("spec"))?;
    let object_uid = metadata
        .uid
        .filter(|uid| !uid.is_empty())
        .ok_or_else(|| lacks("uid"))?;
    let mut annotations = metadata.annotations.unwrap_or_default();
    let file = annotations.remove("kubernetes.io/config.hash");
    annotations.retain(|name, _| ours(name, prefix));
    let status = object.status.unwrap_or(PodStatus {
        phase: None,
        container_statuses: None,
        init_container_statuses: None,
        ephemeral_container_statuses: None,
    });
    let statuses = [
        status.container_statuses,
        status.init_container_statuses,
        status.ephemeral_container_statuses,
    ];
    let containers = statuses.into_iter().flatten().flatten();
    let named = [
        Some(spec.containers),
        spec.init_containers,
        spec.ephemeral_containers,
    ];
    let seen = Seen {
        uid: file.unwrap_or_else(|| object_uid.clone()),
        object_uid,
        namespace: metadata.namespace.ok_or_else(|| lacks("namespace"))?,
        name: metadata.name,
        service_account: spec.service_account_name.unwrap_or_else(|| "default".to_owned()),
        labels: metadata.labels.unwrap_or_default(),
        annotations,
        names: named
            .into_iter()
            .flatten()
            .flatten()
            .map(|named| named.name)
            .collect(),
        containers: containers
            .filter_map(|container| Some((id_of(container.container_id.as_deref()?)?, container.name)))
            .collect(),
        host_network: spec.host_network,
        terminated: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
    };
    if !crate::workload::is_pod_uid(&seen.uid) {
        return Err(Skipped::Malformed(format!("{:.64?} is no UID", seen.uid)));
    }
    if seen.bytes() > limits::POD_BYTES {
        return Err(Skipped::TooLarge);
    }
    Ok(seen)
}

impl Seen {
    fn bytes(&self) -> usize {
        let maps = [&self.labels, &self.annotations, &self.containers];
        let pairs = maps.into_iter().flatten();
        let pairs: usize = pairs.map(|(key, value)| key.len() + value.len()).sum();
        let texts = [&self.uid, &self.namespace, &self.name, &self.service_account];
        pairs
            + texts
                .into_iter()
                .chain(&self.names)
                .map(String::len)
                .sum::<usize>()
    }
}

/// # Errors
/// When the object is no namespace's metadata.
pub fn namespace(json: &str, prefix: &str) -> Result<Namespace, Skipped> {
    let object: Object<serde::de::IgnoredAny, serde::de::IgnoredAny> =
        serde_json::from_str(json).map_err(|error| Skipped::Malformed(error.to_string()))?;
    let mut labels = object.metadata.labels.unwrap_or_default();
    let enrol = labels.remove(&format!("{prefix}/enrol"));
    // A label's value has 63 bytes (Kubernetes, "Syntax and character set").
    if object.metadata.name.len() + enrol.as_ref().map_or(0, String::len) > 512 {
        return Err(Skipped::TooLarge);
    }
    Ok(Namespace {
        name: object.metadata.name,
        enrol,
    })
}

/// Whether a label or annotation is one of `PREFIX/…`.
pub fn ours(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// `containerd://<id>` → `<id>`.
fn id_of(text: &str) -> Option<String> {
    let id = text.rsplit_once("://").map_or(text, |(_, id)| id);
    let is_id = id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";
    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn object() -> serde_json::Value {
        json!({
            "kind": "Pod",
            "metadata": {
                "name": "cart-0", "namespace": "shop", "uid": UID, "resourceVersion": "7",
                "labels": { "app": "cart" },
                "annotations": { "tv-agent.io/connection": "work", "tv-agent.iox/a": "b", "other": "x" },
                "managedFields": [{ "manager": "kubelet" }],
            },
            "spec": {
                "serviceAccountName": "cart", "nodeName": "n1",
                "containers": [{ "name": "app", "image": "x" }, { "name": "istio-proxy" }],
                "initContainers": [{ "name": "init" }],
            },
            "status": { "phase": "Running", "containerStatuses": [
                { "name": "app", "containerID": format!("containerd://{ID}") },
                { "name": "istio-proxy" }, { "name": "odd", "containerID": "docker://x" },
            ] },
        })
    }

    #[test]
    fn only_what_matters_is_kept() {
        let seen = pod(&object().to_string(), "tv-agent.io").unwrap();
        let map = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(
            seen,
            Seen {
                uid: UID.into(),
                object_uid: UID.into(),
                namespace: "shop".into(),
                name: "cart-0".into(),
                service_account: "cart".into(),
                labels: map(&[("app", "cart")]),
                annotations: map(&[("tv-agent.io/connection", "work")]),
                names: vec!["app".into(), "istio-proxy".into(), "init".into()],
                containers: map(&[(ID, "app")]),
                host_network: false,
                terminated: false,
            }
        );
        let marks = marks(&object().to_string());
        assert_eq!(
            (marks.key.as_str(), marks.resource_version.as_deref()),
            ("shop/cart-0", Some("7"))
        );
    }

    #[test]
    fn a_mirror_pod_goes_by_the_hash_of_its_file() {
        let hash = "0123456789abcdef0123456789abcdef";
        let mut object = object();
        object["metadata"]["annotations"]["kubernetes.io/config.hash"] = hash.into();
        let seen = pod(&object.to_string(), "tv-agent.io").unwrap();
        assert_eq!((seen.uid.as_str(), seen.object_uid.as_str()), (hash, UID));
    }

    #[test]
    fn what_is_malformed_or_too_large_is_told() {
        let cases: [fn(&mut serde_json::Value); 7] = [
            |o| o["metadata"]["labels"] = json!(["a"]),
            |o| o["metadata"]["uid"] = json!("../../x"),
            |o| o["metadata"]["uid"] = json!(""),
            |o| o["spec"] = json!(null),
            |o| o["spec"]["containers"] = json!({}),
            |o| o["metadata"]["namespace"] = json!(null),
            |o| *o = json!([]),
        ];
        for spoil in cases {
            let mut object = object();
            spoil(&mut object);
            let skipped = pod(&object.to_string(), "tv-agent.io").unwrap_err();
            assert_eq!(skipped.label(), "malformed", "{object}");
        }
        let mut large = object();
        large["metadata"]["annotations"]["tv-agent.io/x"] = "x".repeat(limits::POD_BYTES).into();
        assert_eq!(pod(&large.to_string(), "tv-agent.io"), Err(Skipped::TooLarge));
        // What is not ours is not kept, and may be of any size.
        large["metadata"]["annotations"] = json!({ "other": "x".repeat(limits::POD_BYTES) });
        assert!(pod(&large.to_string(), "tv-agent.io").is_ok());
    }

    #[test]
    fn of_a_namespace_one_label_is_kept() {
        let of = |labels: serde_json::Value| {
            let object = json!({ "metadata": { "name": "shop", "labels": labels } });
            namespace(&object.to_string(), "tv-agent.io").unwrap().enrol
        };
        assert_eq!(
            of(json!({ "tv-agent.io/enrol": "true", "a": "b" })).as_deref(),
            Some("true")
        );
        assert_eq!(of(json!({ "enrol": "true" })), None);
        assert_eq!(of(json!(null)), None);
        assert!(namespace("{}", "tv-agent.io").is_err());
        let long = json!({ "metadata": { "name": "x".repeat(600) } });
        assert_eq!(namespace(&long.to_string(), "p"), Err(Skipped::TooLarge));
    }
}

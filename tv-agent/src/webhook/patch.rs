//! A pod → the JSON patch (RFC 6902) that gives its containers what they need. Pure. A pod that has it all gets none.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use crate::kubernetes::{Asking, Rules, asked};

use super::needs::{Left, Mounted, Plan, Seen, needs};

/// The volume's name in pods, unless something else is called so.
const VOLUME: &str = "tv-agent-ca";
/// Most warnings of one answer; the API server shows them to whoever created the pod.
const WARNINGS: usize = 8;

/// How pods are given trust.
#[derive(Clone, Debug)]
pub struct Rulebook {
    pub rules: Rules,
    pub plan: Plan,
    /// Name of the ConfigMap in each pod's namespace.
    pub config_map: String,
}

/// A pod, as far as it matters here.
#[derive(Deserialize, Default, Debug)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: Spec,
}

#[derive(Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    pub name: Option<String>,
    pub generate_name: Option<String>,
    pub labels: Option<BTreeMap<String, String>>,
    pub annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default, Debug)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub containers: Option<Vec<Container>>,
    pub init_containers: Option<Vec<Container>>,
    pub volumes: Option<Vec<Volume>>,
    pub node_selector: Option<BTreeMap<String, String>>,
    pub os: Option<Os>,
    pub host_network: Option<bool>,
}

#[derive(Deserialize, Debug)]
pub struct Os {
    pub name: String,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub env: Option<Vec<Variable>>,
    pub env_from: Option<Vec<IgnoredAny>>,
    pub volume_mounts: Option<Vec<VolumeMount>>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Variable {
    pub name: String,
    pub value: Option<String>,
    pub value_from: Option<IgnoredAny>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    pub name: String,
    pub mount_path: String,
    pub read_only: Option<bool>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub struct Volume {
    pub name: String,
    pub config_map: Option<ConfigMap>,
}

#[derive(Deserialize, Debug)]
pub struct ConfigMap {
    pub name: Option<String>,
    pub items: Option<Vec<IgnoredAny>>,
}

/// Why a pod stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unchanged {
    NotAsked,
    /// Windows, or a static pod's mirror.
    OtherKind,
    /// It has all that it needs, or no container can take it.
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub operations: Result<Vec<Value>, Unchanged>,
    pub warnings: Vec<String>,
}

/// `namespace`: what is to become of a pod that says nothing of its own; `roots`: fingerprints of those that it will trust.
pub fn decide(pod: &Pod, namespace: bool, book: &Rulebook, roots: &str) -> Decision {
    let unchanged = |why, warnings| Decision {
        operations: Err(why),
        warnings,
    };
    let none = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&none);
    let windows = |selector: &BTreeMap<String, String>| {
        let labels = ["kubernetes.io/os", "beta.kubernetes.io/os"];
        labels
            .iter()
            .any(|label| selector.get(*label).is_some_and(|os| os == "windows"))
    };
    if pod.spec.os.as_ref().is_some_and(|os| os.name == "windows")
        || pod.spec.node_selector.as_ref().is_some_and(windows)
        || annotations.contains_key("kubernetes.io/config.mirror")
    {
        return unchanged(Unchanged::OtherKind, Vec::new());
    }
    let containers: Vec<(&str, usize, &Container)> = pod.spec.containers().collect();
    let asked = asked(
        Asking {
            labels: pod.metadata.labels.as_ref().unwrap_or(&none),
            annotations,
            host_network: pod.spec.host_network.unwrap_or_default(),
            containers: &containers.iter().map(|(_, _, it)| it.name.as_str()).collect(),
        },
        &book.rules,
    );
    let mut warnings = asked.warnings;
    if !asked.enrol.unwrap_or(namespace) {
        return unchanged(Unchanged::NotAsked, warnings);
    }
    let volumes = pod.spec.volumes.as_deref();
    let own = volumes
        .unwrap_or_default()
        .iter()
        .find(|volume| is_ours(volume, book));
    let volume = own.map_or_else(|| free_name(volumes.unwrap_or_default()), |own| own.name.clone());
    let mut operations = Vec::new();
    let mut reached = false;
    for (list, at, container) in containers {
        if asked.exclude.contains(&container.name) {
            continue;
        }
        match operations_for(container, &format!("/spec/{list}/{at}"), &volume, book) {
            Ok((more, withheld)) => {
                reached = true;
                operations.extend(more);
                if withheld {
                    warnings.push(format!(
                        "container {}: it takes variables by envFrom, so none is set for the CA",
                        container.name
                    ));
                }
            }
            Err(left) => warnings.push(format!(
                "container {} is left without the CA: {left}",
                container.name
            )),
        }
    }
    if !reached {
        return unchanged(Unchanged::Nothing, bounded(warnings));
    }
    if own.is_none() {
        let volume = json!({
            "name": volume,
            // Optional: whoever takes it away keeps no pod from starting.
            "configMap": { "name": book.config_map, "defaultMode": 0o444, "optional": true },
        });
        operations.push(append("/spec/volumes", volumes.is_some(), volume));
    }
    operations.extend(annotate(pod, &book.rules.prefix, roots));
    Decision {
        operations: match operations.is_empty() {
            true => Err(Unchanged::Nothing),
            false => Ok(operations),
        },
        warnings: bounded(warnings),
    }
}

impl Spec {
    /// Each with the name of its list and its place there.
    fn containers(&self) -> impl Iterator<Item = (&'static str, usize, &Container)> {
        let lists = [
            ("initContainers", &self.init_containers),
            ("containers", &self.containers),
        ];
        lists.into_iter().flat_map(|(name, list)| {
            let list = list.iter().flatten().enumerate();
            list.map(move |(at, container)| (name, at, container))
        })
    }
}

fn operations_for(
    container: &Container,
    path: &str,
    volume: &str,
    book: &Rulebook,
) -> Result<(Vec<Value>, bool), Left> {
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    let mounted: Vec<Mounted<'_>> = mounts
        .iter()
        .map(|mount| Mounted {
            path: &mount.mount_path,
            read_only: mount.read_only.unwrap_or_default(),
            ours: mount.name == volume,
        })
        .collect();
    let variable = |name: &str| {
        // The last one counts.
        let found = container.env.iter().flatten().rfind(|it| it.name == name)?;
        let unknown = found.value_from.is_some().then(|| "?".to_owned());
        Some(unknown.or_else(|| found.value.clone()).unwrap_or_default())
    };
    let needs = needs(
        &Seen {
            variable: &variable,
            more_variables: container.env_from.as_ref().is_some_and(|list| !list.is_empty()),
            mounts: &mounted,
        },
        &book.plan,
    )?;
    let mut operations = Vec::new();
    if needs.mount {
        let mount = json!({ "name": volume, "mountPath": book.plan.path, "readOnly": true });
        let list = format!("{path}/volumeMounts");
        operations.push(append(&list, container.volume_mounts.is_some(), mount));
    }
    let mut there = container.env.is_some();
    for (name, value) in needs.variables {
        let variable = json!({ "name": name, "value": value });
        operations.push(append(&format!("{path}/env"), there, variable));
        there = true;
    }
    Ok((operations, needs.withheld))
}

/// Adds to a list, or makes it.
fn append(list: &str, there: bool, item: Value) -> Value {
    match there {
        true => json!({ "op": "add", "path": format!("{list}/-"), "value": item }),
        false => json!({ "op": "add", "path": list, "value": [item] }),
    }
}

/// For people, and for the node's agent: what this pod trusts from its start.
fn annotate(pod: &Pod, prefix: &str, roots: &str) -> Vec<Value> {
    let wanted = [
        (format!("{prefix}/trust"), "injected"),
        (format!("{prefix}/trust-roots"), roots),
    ];
    let Some(annotations) = &pod.metadata.annotations else {
        let all: BTreeMap<String, &str> = wanted.into();
        return vec![json!({ "op": "add", "path": "/metadata/annotations", "value": all })];
    };
    let missing = wanted
        .iter()
        .filter(|(name, value)| annotations.get(name).is_none_or(|found| found != value));
    missing
        .map(|(name, value)| {
            let name = name.replace('~', "~0").replace('/', "~1");
            json!({ "op": "add", "path": format!("/metadata/annotations/{name}"), "value": value })
        })
        .collect()
}

fn is_ours(volume: &Volume, book: &Rulebook) -> bool {
    volume.config_map.as_ref().is_some_and(|map| {
        map.name.as_ref() == Some(&book.config_map) && map.items.as_ref().is_none_or(Vec::is_empty)
    })
}

fn free_name(volumes: &[Volume]) -> String {
    let taken: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let names = (2..).map(|number| format!("{VOLUME}-{number}"));
    std::iter::once(VOLUME.to_owned())
        .chain(names)
        .find(|name| !taken.contains(name.as_str()))
        .expect("there are more names than volumes")
}

fn bounded(mut warnings: Vec<String>) -> Vec<String> {
    let more = warnings.len().saturating_sub(WARNINGS);
    if more > 0 {
        warnings.truncate(WARNINGS);
        warnings.push(format!("{more} more of this kind"));
    }
    warnings
}

#[cfg(test)]
mod tests;

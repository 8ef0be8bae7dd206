//! What the server has: its kinds of objects by discovery, where an object lies, and all objects that there are.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Api;

/// One kind, in one version of its group.
#[derive(Clone, Debug)]
pub struct Kind {
    /// `GROUP/VERSION`, or `v1`.
    pub version: String,
    pub kind: String,
    /// The resource, with `/SUBRESOURCE` if it is one.
    pub resource: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
}

pub struct Kinds(Vec<Kind>);

impl Kinds {
    /// Those of all groups, in the version that the server prefers.
    pub fn of(api: &Api) -> Self {
        let groups = api.get("/apis").expect_code(200);
        let groups = groups["groups"].as_array().expect("groups");
        let versions = groups
            .iter()
            .map(|group| text(&group["preferredVersion"]["groupVersion"]));
        let mut kinds = Vec::new();
        for version in std::iter::once("v1".to_owned()).chain(versions) {
            let list = api.get(&root(&version)).expect_code(200);
            for resource in list["resources"].as_array().expect("resources") {
                kinds.push(Kind {
                    version: version.clone(),
                    kind: text(&resource["kind"]),
                    resource: text(&resource["name"]),
                    namespaced: resource["namespaced"] == true,
                    verbs: resource["verbs"]
                        .as_array()
                        .into_iter()
                        .flatten()
                        .map(text)
                        .collect(),
                });
            }
        }
        Self(kinds)
    }

    pub fn all(&self) -> &[Kind] {
        &self.0
    }

    /// Where an object lies, or is to be put; `None` when the server knows no such kind.
    pub fn path(&self, object: &Value) -> Option<String> {
        let kind = self.0.iter().find(|kind| {
            object["apiVersion"] == kind.version.as_str()
                && object["kind"] == kind.kind.as_str()
                && !kind.resource.contains('/')
        })?;
        let metadata = &object["metadata"];
        Some(kind.path(metadata["namespace"].as_str(), &text(&metadata["name"])))
    }

    /// `KIND NAMESPACE/NAME` of everything that there is and that `wanted` takes.
    pub fn objects(&self, api: &Api, wanted: impl Fn(&str) -> bool) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for kind in self
            .0
            .iter()
            .filter(|kind| kind.verbs.iter().any(|verb| verb == "list"))
        {
            let list = api
                .get(&format!("{}/{}", root(&kind.version), kind.resource))
                .expect_code(200);
            for item in list["items"].as_array().into_iter().flatten() {
                let metadata = &item["metadata"];
                let namespace = metadata["namespace"].as_str().unwrap_or_default();
                let line = format!("{} {namespace}/{}", kind.kind, text(&metadata["name"]));
                if wanted(&line) {
                    found.insert(line);
                }
            }
        }
        found
    }
}

impl Kind {
    /// Without its version.
    pub fn group(&self) -> &str {
        self.version.rsplit_once('/').map_or("", |(group, _)| group)
    }

    pub fn path(&self, namespace: Option<&str>, name: &str) -> String {
        let root = root(&self.version);
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}/{name}", self.resource),
            None => format!("{root}/{}/{name}", self.resource),
        }
    }
}

fn root(version: &str) -> String {
    match version.contains('/') {
        true => format!("/apis/{version}"),
        false => format!("/api/{version}"),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

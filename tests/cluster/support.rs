//! Releases of the chart, and what becomes of their objects on the server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tv_tests::cluster::{Api, Kinds};
use tv_tests::helm;

/// One way to install the chart: name, namespace, values over those of ci/values.yaml.
pub type Release<'a> = (&'a str, &'a str, Value);

/// The objects of each release, as Helm renders them.
pub fn rendered(releases: &[Release<'_>]) -> Vec<Vec<Value>> {
    let request = |(name, namespace, over): &Release<'_>| json!({"name": name, "namespace": namespace, "values": helm::values(over)});
    let requests: Vec<Value> = releases.iter().map(request).collect();
    let answer = helm::render(&json!({"requests": requests, "versions": []})).unwrap();
    let of = |rendered: &Value| {
        assert!(rendered["error"].is_null(), "{rendered}");
        rendered["objects"].as_array().unwrap().clone()
    };
    answer["rendered"].as_array().unwrap().iter().map(of).collect()
}

/// The documents of a file of manifests, read as kubectl does: YAML 1.1, where 0400 is octal.
pub fn documents(text: &str) -> Vec<Value> {
    let options = serde_saphyr::options! { legacy_octal_numbers: true };
    serde_saphyr::from_multiple_with_options(text, options).unwrap()
}

/// What this server does not have: other people's kinds, and kinds and fields that are younger. The schemas of 1.30 and
/// later, in `tests/deploy`, have the latter.
pub const UNKNOWN_KINDS: [&str; 3] = [
    "monitoring.coreos.com/v1 PrometheusRule",
    "monitoring.coreos.com/v1 ServiceMonitor",
    // 1.21
    "policy/v1 PodDisruptionBudget",
];
pub const UNKNOWN_FIELDS: [(&str, &str); 3] = [
    // 1.30
    ("DaemonSet", "appArmorProfile"),
    // 1.22
    ("DaemonSet", "maxSurge"),
    // 1.24; a webhook's own is known.
    ("DaemonSet", "namespaceSelector"),
];

/// `VERSION KIND`
pub fn kind(object: &Value) -> String {
    let text = |key: &str| object[key].as_str().unwrap_or_default();
    format!("{} {}", text("apiVersion"), text("kind"))
}

/// The objects without what the server does not know, so that it takes them.
pub fn known(objects: Vec<Value>) -> Vec<Value> {
    let is_known = |object: &Value| !UNKNOWN_KINDS.contains(&kind(object).as_str());
    let mut objects: Vec<Value> = objects.into_iter().filter(is_known).collect();
    for object in &mut objects {
        let fields = UNKNOWN_FIELDS.iter().filter(|(kind, _)| object["kind"] == *kind);
        let fields: Vec<&str> = fields.map(|(_, field)| *field).collect();
        strip(object, &fields);
        // Who may not be too many must be too few.
        let few = object.pointer_mut("/spec/updateStrategy/rollingUpdate/maxUnavailable");
        if let Some(few) = few.filter(|few| **few == 0) {
            *few = json!(1);
        }
    }
    objects
}

fn strip(value: &mut Value, fields: &[&str]) {
    match value {
        Value::Object(object) => {
            object.retain(|key, _| !fields.contains(&key.as_str()));
            object.values_mut().for_each(|value| strip(value, fields));
        }
        Value::Array(array) => array.iter_mut().for_each(|value| strip(value, fields)),
        _ => {}
    }
}

/// As [`rendered`], of what the server knows.
pub fn releases(releases: &[Release<'_>]) -> Vec<Vec<Value>> {
    rendered(releases).into_iter().map(known).collect()
}

/// Waits until `holds`.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `KIND NAMESPACE/NAME`
pub fn line(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!(
        "{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

/// Applies all of them; what the server has then, by line.
#[track_caller]
pub fn install(api: &Api, kinds: &Kinds, objects: &[Value]) -> BTreeMap<String, Value> {
    let apply = |object: &Value| {
        let path = kinds
            .path(object)
            .unwrap_or_else(|| panic!("no kind of {}", line(object)));
        let answer = api.apply(&path, object, false);
        assert!(
            [200, 201].contains(&answer.code),
            "{}: {}",
            line(object),
            answer.text
        );
        (line(object), answer.body)
    };
    objects.iter().map(apply).collect()
}

/// Removes what is in `old` and not in `new`, as Helm does.
#[track_caller]
pub fn remove(api: &Api, kinds: &Kinds, old: &[Value], new: &[Value]) {
    let stay: Vec<String> = new.iter().map(line).collect();
    for object in old.iter().filter(|object| !stay.contains(&line(object))) {
        let path = kinds.path(object).unwrap();
        api.delete(&path).expect_code(200);
    }
}

/// The version of each object.
pub fn versions(objects: &BTreeMap<String, Value>) -> BTreeMap<&str, &str> {
    objects
        .iter()
        .map(|(line, object)| {
            (
                line.as_str(),
                object["metadata"]["resourceVersion"].as_str().unwrap(),
            )
        })
        .collect()
}

/// Where `kept` is not what `sent` says; elements of lists are told apart by their place only.
pub fn lost(sent: &Value, kept: &Value, path: &str, found: &mut Vec<String>) {
    match (sent, kept) {
        (Value::Object(sent), Value::Object(kept)) => {
            for (key, sent) in sent {
                let path = format!("{path}.{key}");
                lost(sent, kept.get(key).unwrap_or(&Value::Null), &path, found);
            }
        }
        (Value::Array(sent), Value::Array(kept)) if sent.len() == kept.len() => {
            for (sent, kept) in sent.iter().zip(kept) {
                lost(sent, kept, &format!("{path}[]"), found);
            }
        }
        (sent, kept) if sent == kept => {}
        (_, Value::Null) => found.push(path.to_owned()),
        (sent, kept) => found.push(format!("{path}: {sent} is {kept}")),
    }
}

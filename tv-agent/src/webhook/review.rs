//! AdmissionReview (admission.k8s.io/v1): what is asked, and the answer to it. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::patch::{Decision, Pod, Rulebook, Unchanged, decide};

const VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// Longest uid that is echoed, bytes; a usual one has 36.
const UID_BYTES: usize = 256;

/// Why a request is no review, for whoever sent it.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("the body is no AdmissionReview: {0}")]
    Json(serde_json::Error),
    #[error("it is {found}; this webhook understands {VERSION} {KIND}")]
    Version { found: String },
    #[error("it has no request")]
    NoRequest,
    #[error("request.uid is missing, or longer than {UID_BYTES} bytes")]
    Uid,
    #[error("request.namespace is missing")]
    NoNamespace,
    #[error("request.object is no pod: {0}")]
    Object(serde_json::Error),
    #[error("request.object is missing")]
    NoObject,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Envelope<'a> {
    api_version: String,
    kind: String,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Request<'a> {
    uid: String,
    kind: GroupKind,
    operation: String,
    namespace: Option<String>,
    name: Option<String>,
    sub_resource: Option<String>,
    dry_run: Option<bool>,
    #[serde(borrow)]
    object: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GroupKind {
    group: String,
    kind: String,
}

/// A review of a pod that is to be created; or of something else, which is allowed as it is.
#[derive(Debug)]
pub struct Review {
    pub uid: String,
    pub namespace: String,
    /// For the log.
    pub name: String,
    pub dry_run: bool,
    pub pod: Option<Pod>,
}

/// # Errors
/// When the body is none, with what is wrong.
pub fn read(body: &[u8]) -> Result<Review, Malformed> {
    let envelope: Envelope<'_> = serde_json::from_slice(body).map_err(Malformed::Json)?;
    if envelope.api_version != VERSION || envelope.kind != KIND {
        let found = format!("{:.64} {:.64}", envelope.api_version, envelope.kind);
        return Err(Malformed::Version { found });
    }
    let request = envelope.request.ok_or(Malformed::NoRequest)?;
    if request.uid.is_empty() || request.uid.len() > UID_BYTES {
        return Err(Malformed::Uid);
    }
    let is_new_pod = request.operation == "CREATE"
        && request.kind.group.is_empty()
        && request.kind.kind == "Pod"
        && request.sub_resource.as_deref().unwrap_or_default().is_empty();
    let pod: Option<Pod> = match (is_new_pod, request.object) {
        (true, Some(object)) => Some(serde_json::from_str(object.get()).map_err(Malformed::Object)?),
        (true, None) => return Err(Malformed::NoObject),
        (false, _) => None,
    };
    let namespace = request.namespace.unwrap_or_default();
    if pod.is_some() && namespace.is_empty() {
        return Err(Malformed::NoNamespace);
    }
    let metadata = pod.as_ref().map(|pod| &pod.metadata);
    let name = request.name.filter(|name| !name.is_empty());
    let name = name.or_else(|| metadata?.name.clone().or_else(|| metadata?.generate_name.clone()));
    Ok(Review {
        uid: request.uid,
        namespace,
        name: name.unwrap_or_default(),
        dry_run: request.dry_run.unwrap_or_default(),
        pod,
    })
}

impl Review {
    /// `namespace`: what is to become of a pod that says nothing of its own.
    pub fn decide(&self, namespace: bool, book: &Rulebook, roots: &str) -> Decision {
        match &self.pod {
            Some(pod) => decide(pod, namespace, book, roots),
            None => Decision {
                operations: Err(Unchanged::OtherKind),
                warnings: Vec::new(),
            },
        }
    }
}

/// The answer: always allowed, patched or as it is.
pub fn answer(uid: &str, patch: Option<&[Value]>, warnings: &[String]) -> Vec<u8> {
    let mut response = json!({ "uid": uid, "allowed": true });
    if let Some(patch) = patch {
        let patch = serde_json::to_vec(patch).expect("plain data serialises");
        response["patchType"] = "JSONPatch".into();
        response["patch"] = STANDARD.encode(patch).into();
    }
    if !warnings.is_empty() {
        let warnings: Vec<String> = warnings
            .iter()
            .map(|text| format!("tv-agent: {text:.240}"))
            .collect();
        response["warnings"] = warnings.into();
    }
    let review = json!({ "apiVersion": VERSION, "kind": KIND, "response": response });
    serde_json::to_vec(&review).expect("plain data serialises")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(request: Value) -> Vec<u8> {
        let review = json!({ "apiVersion": VERSION, "kind": KIND, "request": request });
        serde_json::to_vec(&review).unwrap()
    }

    fn pod() -> Value {
        json!({
            "uid": "u-1", "operation": "CREATE", "namespace": "shop",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "object": { "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "app" }] } },
        })
    }

    #[test]
    fn a_review_of_a_new_pod_is_read() {
        let read = read(&review(pod())).unwrap();
        assert_eq!(
            (read.uid.as_str(), read.namespace.as_str(), read.name.as_str()),
            ("u-1", "shop", "web-")
        );
        assert!(read.pod.is_some() && !read.dry_run);
    }

    #[test]
    fn reviews_of_anything_else_are_no_matter_of_ours() {
        for (key, value) in [
            ("operation", json!("UPDATE")),
            ("operation", json!("CONNECT")),
            ("subResource", json!("ephemeralcontainers")),
            ("kind", json!({ "group": "apps", "kind": "Deployment" })),
            ("kind", json!({ "group": "metrics.k8s.io", "kind": "Pod" })),
        ] {
            let mut request = pod();
            request[key] = value.clone();
            request["object"] = Value::Null;
            let read = read(&review(request)).unwrap();
            assert!(read.pod.is_none(), "{key} {value}");
        }
    }

    #[test]
    fn what_is_no_review_is_told() {
        let with = |key: &str, value: Value| {
            let mut request = pod();
            request[key] = value;
            review(request)
        };
        let old = json!({ "apiVersion": "admission.k8s.io/v1beta1", "kind": KIND, "request": pod() });
        for (body, told) in [
            (b"".to_vec(), "no AdmissionReview"),
            (b"[]".to_vec(), "this webhook understands"),
            (b"{}".to_vec(), "this webhook understands"),
            (b"\xff\xfe".to_vec(), "no AdmissionReview"),
            ("[".repeat(100_000).into_bytes(), "no AdmissionReview"),
            (serde_json::to_vec(&old).unwrap(), "v1beta1"),
            (review(Value::Null), "no request"),
            (with("uid", json!("")), "request.uid"),
            (with("uid", json!("u".repeat(257))), "request.uid"),
            (with("uid", json!(7)), "no AdmissionReview"),
            (with("namespace", Value::Null), "request.namespace"),
            (with("object", Value::Null), "request.object is missing"),
            (with("object", json!([])), "request.object is no pod"),
            (
                with("object", json!({ "metadata": {} })),
                "request.object is no pod",
            ),
            (
                with("object", json!({ "metadata": {}, "spec": { "containers": 3 } })),
                "no pod",
            ),
            (
                with(
                    "object",
                    json!({ "metadata": {}, "spec": { "containers": [{}] } }),
                ),
                "no pod",
            ),
            (
                with(
                    "object",
                    json!({ "metadata": { "labels": { "a": 1 } }, "spec": {} }),
                ),
                "no pod",
            ),
        ] {
            let error = read(&body).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn an_answer_echoes_the_uid_and_is_always_yes() {
        let patch = [json!({ "op": "add", "path": "/spec/volumes", "value": [] })];
        let text: Value = serde_json::from_slice(&answer("u-1", Some(&patch), &[])).unwrap();
        assert_eq!(text["apiVersion"], VERSION);
        assert_eq!(text["response"]["uid"], "u-1");
        assert_eq!(text["response"]["allowed"], true);
        assert_eq!(text["response"]["patchType"], "JSONPatch");
        let decoded = STANDARD
            .decode(text["response"]["patch"].as_str().unwrap())
            .unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&decoded).unwrap(), json!(patch));
        assert!(text["response"]["warnings"].is_null());

        let long = ["w".repeat(4096)];
        let text: Value = serde_json::from_slice(&answer("u-2", None, &long)).unwrap();
        assert!(text["response"]["patch"].is_null() && text["response"]["patchType"].is_null());
        assert!(text["response"]["warnings"][0].as_str().unwrap().len() < 256);
    }
}

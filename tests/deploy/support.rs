//! The chart, rendered once for all tests.

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use serde_json::{Value, json};
use tv_tests::helm;

/// All that the chart says it is for and there are schemas of.
const VERSIONS: [&str; 8] = ["1.30", "1.31", "1.32", "1.33", "1.34", "1.35", "1.36", "1.37"];

/// One way to install the chart.
pub struct Release {
    name: &'static str,
    namespace: &'static str,
    /// Over those of ci/values.yaml.
    values: Value,
}

/// In the order of [`RENDERED`], which goes on with [`MISTAKES`].
pub static RELEASES: LazyLock<Vec<(&'static str, Release)>> = LazyLock::new(|| {
    let release = |name, namespace, values| Release {
        name,
        namespace,
        values,
    };
    let plain = |values| release("tv-agent", "tv-agent", values);
    vec![
        ("plain", plain(json!({}))),
        (
            "all",
            plain(json!({
                "kubernetes": {"enabled": true},
                "serviceMonitor": {"enabled": true},
                "prometheusRule": {"enabled": true, "additionalRules": [{"alert": "More", "expr": "vector(1)"}]},
                "grafanaDashboard": {"enabled": true},
                "ca": {"existingSecret": "tv-agent-root"},
                "env": [{"name": "AUTH0_CLIENT_SECRET",
                         "valueFrom": {"secretKeyRef": {"name": "auth0", "key": "client-secret"}}}],
                "envFrom": [{"secretRef": {"name": "more"}}],
                "imagePullSecrets": [{"name": "registry"}],
                "commonLabels": {"team": "platform"},
                "commonAnnotations": {"owner": "platform"},
                "podAnnotations": {"seen": "true"},
                "image": {"digest": format!("sha256:{}", "0".repeat(64))},
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
            })),
        ),
        ("privileged", plain(json!({"privileged": true}))),
        ("cleanup", plain(json!({"mode": "cleanup"}))),
        (
            "hidden",
            plain(json!({"metrics": {"exposed": false}, "ca": {"init": false}})),
        ),
        (
            "bound",
            plain(json!({"kubernetes": {"enabled": true}, "rbac": {"create": false}})),
        ),
        (
            "sibling",
            release("tv-agent", "other", json!({"kubernetes": {"enabled": true}})),
        ),
        (
            "named",
            release("blue", "tv-agent", json!({"kubernetes": {"enabled": true}})),
        ),
        (
            "moved",
            plain(json!({"namespaceOverride": "elsewhere", "kubernetes": {"enabled": true}})),
        ),
        ("settled", plain(json!({"drainSeconds": 60}))),
        (
            "routed",
            plain(json!({"config": {"intercept": {"cgroups": ["/kubepods"]}}})),
        ),
        ("webhook", plain(webhook(json!({})))),
        (
            "webhook-all",
            plain(all_pods(webhook(json!({
                "configMap": "roots",
                "replicas": 3,
                "excludedNamespaces": ["kube-system", "tv-agent"],
                "roots": {"configMap": "both-roots"},
                "publicRoots": {"configMap": "public"},
                "certificate": {"secret": "webhook-tls", "injectFrom": "tv-agent/webhook"},
                "tolerations": [{"operator": "Exists"}],
            })))),
        ),
        (
            "webhook-sibling",
            release("tv-agent", "other", webhook(json!({}))),
        ),
        (
            "webhook-named",
            release(
                "blue",
                "tv-agent",
                webhook(json!({"certificate": {"secret": "tls", "caBundle": "PEM"}})),
            ),
        ),
        (
            "webhook-cleanup",
            plain(json!({"mode": "cleanup", "webhook": {"enabled": true}})),
        ),
    ]
});

fn webhook(values: Value) -> Value {
    let mut all = json!({"ca": {"existingSecret": "tv-agent-root"}, "webhook": values});
    all["webhook"]["enabled"] = true.into();
    all
}

fn all_pods(mut values: Value) -> Value {
    values["kubernetes"] = json!({"enrol": "all", "prefix": "agent.example"});
    values
}

/// What a mistake in the values has to be told as.
pub static MISTAKES: LazyLock<Vec<(Value, &'static str)>> = LazyLock::new(|| {
    vec![
        (json!({"config": {"routes": []}}), "/config/routes"),
        (json!({"config": {"vaults": null}}), "vaults"),
        (json!({"config": {"admin": {"metrics": "off"}}}), "/config"),
        (
            json!({"config": {"intercept": {"cgroups": ["kubepods"]}}}),
            "/config/intercept/cgroups/0",
        ),
        (json!({"mode": "stop"}), "/mode"),
        (json!({"drainSeconds": 3601}), "/drainSeconds"),
        (json!({"metrics": {"port": 0}}), "/metrics/port"),
        (json!({"capabilities": ["CAP_SYS_ADMIN"]}), "/capabilities/0"),
        (
            json!({"secrets": [{"name": "a/b", "secretName": "c"}]}),
            "/secrets/0/name",
        ),
        (json!({"image": {"digest": "latest"}}), "/image/digest"),
        (json!({"tolerrations": []}), "tolerrations"),
        (json!({"kubernetes": {"enabled": "yes"}}), "/kubernetes/enabled"),
        (
            json!({"serviceMonitor": {"enabled": true}, "metrics": {"exposed": false}}),
            "serviceMonitor.enabled needs metrics.exposed",
        ),
        (
            json!({"webhook": {"enabled": true}}),
            "webhook.enabled needs ca.existingSecret or webhook.roots.configMap",
        ),
        (
            webhook(json!({"certificate": {"secret": "tls"}})),
            "webhook.certificate.secret needs webhook.certificate.caBundle",
        ),
        (
            webhook(json!({"failurePolicy": "Maybe"})),
            "/webhook/failurePolicy",
        ),
        (webhook(json!({"timeoutSeconds": 31})), "/webhook/timeoutSeconds"),
        (webhook(json!({"mountPath": "run"})), "/webhook/mountPath"),
        (json!({"kubernetes": {"prefix": "a/b"}}), "/kubernetes/prefix"),
    ]
});

static RENDERED: LazyLock<Value> = LazyLock::new(|| {
    let request = |name: &str, namespace: &str, over: &Value| json!({"name": name, "namespace": namespace, "values": helm::values(over)});
    let right = RELEASES
        .iter()
        .map(|(_, it)| request(it.name, it.namespace, &it.values));
    let wrong = MISTAKES
        .iter()
        .map(|(over, _)| request("tv-agent", "tv-agent", over));
    let requests: Vec<Value> = right.chain(wrong).collect();
    helm::render(&json!({"requests": requests, "versions": VERSIONS})).unwrap()
});

/// What Helm's lint says.
pub fn lint() -> &'static Value {
    &RENDERED["lint"]
}

/// Everything of one of [`RELEASES`].
#[track_caller]
pub fn rendered(which: &str) -> &'static Value {
    let at = RELEASES.iter().position(|(name, _)| *name == which).unwrap();
    let rendered = &RENDERED["rendered"][at];
    assert!(rendered["error"].is_null(), "{which}: {rendered}");
    rendered
}

/// The error of each of [`MISTAKES`].
pub fn refused(at: usize) -> Option<&'static str> {
    RENDERED["rendered"][RELEASES.len() + at]["error"].as_str()
}

/// Its objects of one kind.
pub fn objects(which: &str, kind: &str) -> Vec<&'static Value> {
    let all = rendered(which)["objects"].as_array().unwrap().iter();
    all.filter(|object| object["kind"] == kind).collect()
}

#[track_caller]
pub fn only(which: &str, kind: &str) -> &'static Value {
    let found = objects(which, kind);
    assert_eq!(found.len(), 1, "{which}: {kind}");
    found[0]
}

/// The pod of the DaemonSet.
pub fn pod(which: &str) -> &'static Value {
    &only(which, "DaemonSet")["spec"]["template"]["spec"]
}

/// A place in the repository.
pub fn directory(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Compares a file of the repository with what it has to be; writes it where TV_BLESS is set.
#[track_caller]
pub fn kept_in_step(path: &str, wanted: &str) {
    let file = directory(path);
    if std::env::var_os("TV_BLESS").is_some() {
        fs::write(&file, wanted).unwrap();
    }
    let found = fs::read_to_string(&file).unwrap_or_default();
    assert!(
        found == wanted,
        "{path} is out of step; write it with: TV_BLESS=1 cargo xtask test deploy"
    );
}

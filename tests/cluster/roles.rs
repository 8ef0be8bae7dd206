//! What the chart's roles allow, and that they allow nothing else: every verb on every resource is asked about.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tv_tests::cluster::{self, Api, Cluster, Kinds};

use crate::support::{install, releases};
use crate::watches::pod;

/// A service account of the chart: what its name ends in, after the release's, and what it may do: `VERB
/// GROUP/RESOURCE PLACE`, the place being `*` (every namespace, or none), or `own`, its own namespace alone.
///
/// An account of the chart that is not in this table fails the test.
const ACCOUNTS: [(&str, &[&str]); 1] = [(
    "",
    &[
        "create events.k8s.io/events *",
        "get /namespaces *",
        "get /pods *",
        "list /namespaces *",
        "list /pods *",
        "patch events.k8s.io/events *",
        "watch /namespaces *",
        "watch /pods *",
    ],
)];
/// With everything that has an account.
fn values() -> Value {
    json!({"kubernetes": {"enabled": true}})
}

/// What everybody may who has a name: ask about themselves.
const EVERYBODY: [&str; 2] = [
    "create authorization.k8s.io/selfsubjectaccessreviews *",
    "create authorization.k8s.io/selfsubjectrulesreviews *",
];
/// Those of objects, and those that give power over others.
const VERBS: [&str; 13] = [
    "get",
    "list",
    "watch",
    "create",
    "update",
    "patch",
    "delete",
    "deletecollection",
    "impersonate",
    "bind",
    "escalate",
    "approve",
    "sign",
];
/// Resources of RBAC that are no objects.
const UNLISTED: [(&str, &str); 4] = [
    ("", "users"),
    ("", "groups"),
    ("authentication.k8s.io", "userextras"),
    ("certificates.k8s.io", "signers"),
];

/// A release of the chart, and its namespace.
fn installed(cluster: &Cluster) -> (String, Vec<Value>) {
    let namespace = cluster.namespace("roles");
    let objects = releases(&[("tv-agent", &namespace, values())]).remove(0);
    let api = cluster.admin();
    install(&api, &Kinds::of(&api), &objects);
    (namespace, objects)
}

/// All that a service account may do, as a line of [`ACCOUNTS`] says it.
fn granted(api: &Api, kinds: &Kinds, namespace: &str, account: &str) -> BTreeSet<String> {
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let groups = [
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".into(),
    ];
    let listed = kinds
        .all()
        .iter()
        .map(|kind| (kind.group(), kind.resource.as_str(), kind.namespaced));
    let unlisted = UNLISTED
        .iter()
        .map(|(group, resource)| (*group, *resource, false));
    let mut found = BTreeSet::new();
    for (group, resource, namespaced) in listed.chain(unlisted) {
        let (name, part) = resource.split_once('/').unwrap_or((resource, ""));
        for verb in VERBS {
            let may = |place: &str| {
                let what = json!({"verb": verb, "group": group, "resource": name, "subresource": part, "namespace": place});
                api.allowed(&user, &groups, &what)
            };
            let places: &[&str] = if namespaced {
                &["", namespace, "kube-system"]
            } else {
                &[""]
            };
            let allowed: Vec<&str> = places.iter().copied().filter(|place| may(place)).collect();
            let place = match allowed.as_slice() {
                [] => continue,
                all if all.len() == places.len() => "*".to_owned(),
                [own] if *own == namespace => "own".to_owned(),
                other => format!("{other:?}"),
            };
            found.insert(format!("{verb} {group}/{resource} {place}"));
        }
    }
    found
}

#[test]
fn an_account_may_do_what_it_needs_and_nothing_else() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
    let (namespace, objects) = installed(&cluster);
    let accounts = objects.iter().filter(|object| object["kind"] == "ServiceAccount");
    let names: Vec<&str> = accounts
        .map(|object| object["metadata"]["name"].as_str().unwrap())
        .collect();
    let known: Vec<String> = ACCOUNTS
        .iter()
        .map(|(suffix, _)| format!("tv-agent{suffix}"))
        .collect();
    assert_eq!(
        names, known,
        "an account that ACCOUNTS does not know, or the other way"
    );
    for (name, (_, may)) in names.iter().zip(ACCOUNTS) {
        let wanted: BTreeSet<String> = may
            .iter()
            .chain(&EVERYBODY)
            .map(|&line| line.to_owned())
            .collect();
        assert_eq!(granted(&api, &kinds, &namespace, name), wanted, "{name}");
    }
    // Without the role it is nobody.
    remove_roles(&api, &kinds, &objects);
    let wanted: BTreeSet<String> = EVERYBODY.iter().map(|&line| line.to_owned()).collect();
    assert_eq!(granted(&api, &kinds, &namespace, "tv-agent"), wanted);
}

fn remove_roles(api: &Api, kinds: &Kinds, objects: &[Value]) {
    let bindings = objects
        .iter()
        .filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding"));
    for binding in bindings {
        api.delete(&kinds.path(binding).unwrap()).expect_code(200);
    }
}

/// With the token that its pod is given, on the real paths.
#[test]
fn the_agents_token_opens_what_it_watches_and_nothing_else() {
    let Some(cluster) = cluster::shared() else { return };
    let (admin, (namespace, _)) = (cluster.admin(), installed(&cluster));
    let elsewhere = cluster.namespace("roles-elsewhere");
    let pods = format!("/api/v1/namespaces/{elsewhere}/pods");
    admin
        .create(&pods, &pod("victim", Some("node-r")))
        .expect_code(201);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "secret"}});
    admin
        .create(&format!("/api/v1/namespaces/{elsewhere}/secrets"), &secret)
        .expect_code(201);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-r"}});
    admin.create("/api/v1/nodes", &node).expect_code(201);
    let token = cluster.token(&namespace, "tv-agent");
    let agent = cluster.api(&token);

    let of_node = "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-r";
    let list = agent.get(of_node).expect_code(200);
    assert_eq!(list["items"][0]["metadata"]["name"], "victim");
    let (code, events) = agent.watch(&format!("{of_node}&watch=true"), |event| event["type"] == "ADDED");
    assert_eq!((code, events.len()), (200, 1));
    for path in [
        format!("{pods}/victim"),
        "/api/v1/namespaces".into(),
        format!("/api/v1/namespaces/{elsewhere}"),
    ] {
        agent.get(&path).expect_code(200);
    }
    let watch = "/api/v1/namespaces?watch=true&timeoutSeconds=1";
    assert_eq!(agent.watch(watch, |_| true).0, 200);
    let events = format!("/apis/events.k8s.io/v1/namespaces/{elsewhere}/events");
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "refused"},
        "eventTime": "2024-01-01T00:00:00.000000Z", "type": "Warning", "reason": "Refused", "action": "Connect",
        "note": "as the agent says it", "reportingController": "tv-agent.io/agent", "reportingInstance": "node-r",
        "regarding": {"apiVersion": "v1", "kind": "Pod", "namespace": elsewhere, "name": "victim"},
    });
    agent.create(&events, &event).expect_code(201);
    let again = json!({"series": {"count": 2, "lastObservedTime": "2024-01-01T00:00:01.000000Z"}});
    agent.merge(&format!("{events}/refused"), &again).expect_code(200);

    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mine"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "tv-agent", "namespace": namespace}],
    });
    let request =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
    let labels = json!({"metadata": {"labels": {"tv-agent.io/enrol": "true"}}});
    let refused = [
        (
            "secret",
            agent.get(&format!("/api/v1/namespaces/{elsewhere}/secrets/secret")),
        ),
        ("secrets", agent.get("/api/v1/secrets")),
        (
            "own secrets",
            agent.get(&format!("/api/v1/namespaces/{namespace}/secrets")),
        ),
        ("config maps", agent.get("/api/v1/configmaps")),
        ("nodes", agent.get("/api/v1/nodes")),
        ("events", agent.get(&events)),
        ("an event's end", agent.delete(&format!("{events}/refused"))),
        ("a pod's end", agent.delete(&format!("{pods}/victim"))),
        ("a pod", agent.create(&pods, &pod("mine", Some("node-r")))),
        ("a pod's labels", agent.merge(&format!("{pods}/victim"), &labels)),
        (
            "a pod's status",
            agent.merge(
                &format!("{pods}/victim/status"),
                &json!({"status": {"phase": "Failed"}}),
            ),
        ),
        (
            "a shell",
            agent.create(&format!("{pods}/victim/exec?command=sh"), &json!({})),
        ),
        ("a pod's log", agent.get(&format!("{pods}/victim/log"))),
        ("a node's labels", agent.merge("/api/v1/nodes/node-r", &labels)),
        (
            "a namespace's labels",
            agent.merge(&format!("/api/v1/namespaces/{elsewhere}"), &labels),
        ),
        (
            "a token",
            agent.create(
                &format!("/api/v1/namespaces/{namespace}/serviceaccounts/tv-agent/token"),
                &request,
            ),
        ),
        (
            "power",
            agent.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding),
        ),
    ];
    for (what, answer) in refused {
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (403, &json!("Forbidden")),
            "{what}: {}",
            answer.text
        );
    }
    admin.get(&format!("{pods}/victim")).expect_code(200);
    admin.delete("/api/v1/nodes/node-r").expect_code(200);
}

//! What the chart's roles allow, and that they allow nothing else: every verb on every resource is asked about.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tv_tests::cluster::{self, Answer, Api, Cluster, Kinds};

use crate::support::{install, releases};
use crate::watches::pod;

/// A service account of the chart. One that is not in [`ACCOUNTS`] fails the test.
struct Account {
    /// After the release's name.
    suffix: &'static str,
    /// Names of objects that its role allows by name; `NAMESPACE` stands for the release's.
    names: &'static [&'static str],
    /// `VERB GROUP/RESOURCE PLACE`, or `VERB GROUP/RESOURCE/NAME PLACE` for what is allowed by name only. The place is
    /// `*` (every namespace, or none), or `own`, its own namespace alone.
    may: &'static [&'static str],
}

const ACCOUNTS: [Account; 2] = [
    Account {
        suffix: "",
        names: &[],
        may: &[
            "create /events *",
            "get /namespaces *",
            "get /pods *",
            "list /namespaces *",
            "list /pods *",
            "patch /events *",
            "watch /namespaces *",
            "watch /pods *",
        ],
    },
    Account {
        suffix: "-webhook",
        names: &["NAMESPACE-tv-agent-ca"],
        may: &[
            // A name cannot be demanded of what is not there yet.
            "create /configmaps *",
            "list /configmaps/NAMESPACE-tv-agent-ca *",
            "patch /configmaps/NAMESPACE-tv-agent-ca *",
            "watch /configmaps/NAMESPACE-tv-agent-ca *",
        ],
    },
];
/// With everything that has an account.
fn values() -> Value {
    json!({
        "kubernetes": {"enabled": true},
        "ca": {"existingSecret": "tv-agent-root"},
        "webhook": {"enabled": true},
    })
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

/// All that a service account may do, as a line of [`Account::may`] says it.
fn granted(api: &Api, kinds: &Kinds, namespace: &str, account: &str, names: &[&str]) -> BTreeSet<String> {
    let user = format!("system:serviceaccount:{namespace}:{account}");
    let groups = [
        "system:serviceaccounts".into(),
        format!("system:serviceaccounts:{namespace}"),
        "system:authenticated".into(),
    ];
    let listed = kinds.all().iter();
    let listed = listed.map(|kind| (kind.group(), kind.resource.as_str(), kind.namespaced));
    let unlisted = UNLISTED
        .iter()
        .map(|(group, resource)| (*group, *resource, false));
    let mut found = BTreeSet::new();
    for (group, resource, namespaced) in listed.chain(unlisted) {
        let (plural, part) = resource.split_once('/').unwrap_or((resource, ""));
        let places: &[&str] = if namespaced {
            &["", namespace, "kube-system"]
        } else {
            &[""]
        };
        for verb in VERBS {
            let place = |name: &str| {
                let may = |place: &&&str| {
                    let what = json!({"verb": verb, "group": group, "resource": plural, "subresource": part,
                                      "namespace": place, "name": name});
                    api.allowed(&user, &groups, &what)
                };
                match *places.iter().filter(may).copied().collect::<Vec<_>>() {
                    [] => None,
                    ref all if all.len() == places.len() => Some("*".to_owned()),
                    [own] if own == namespace => Some("own".to_owned()),
                    ref other => Some(format!("{other:?}")),
                }
            };
            if let Some(place) = place("") {
                found.insert(format!("{verb} {group}/{resource} {place}"));
                continue;
            }
            for name in names {
                if let Some(place) = place(&name.replace("NAMESPACE", namespace)) {
                    found.insert(format!("{verb} {group}/{resource}/{name} {place}"));
                }
            }
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
        .map(|account| format!("tv-agent{}", account.suffix))
        .collect();
    assert_eq!(
        names, known,
        "an account that ACCOUNTS does not know, or the other way"
    );
    let lines = |may: &[&str]| -> BTreeSet<String> { may.iter().map(|&line| line.to_owned()).collect() };
    for (name, account) in names.iter().zip(&ACCOUNTS) {
        let found = granted(&api, &kinds, &namespace, name, account.names);
        assert_eq!(found, lines(&[account.may, &EVERYBODY].concat()), "{name}");
    }
    // Without its role it is nobody.
    remove_roles(&api, &kinds, &objects);
    for (name, account) in names.iter().zip(&ACCOUNTS) {
        let found = granted(&api, &kinds, &namespace, name, account.names);
        assert_eq!(found, lines(&EVERYBODY), "{name}");
    }
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
    let events = format!("/api/v1/namespaces/{elsewhere}/events");
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "refused", "namespace": elsewhere},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": elsewhere, "name": "victim",
                           "uid": list["items"][0]["metadata"]["uid"]},
        "reason": "Refused", "message": "as the agent says it", "type": "Warning",
        "source": {"component": "tv-agent", "host": "node-r"},
        "reportingComponent": "tv-agent", "reportingInstance": "node-r",
        "firstTimestamp": "2026-01-31T12:00:00Z", "lastTimestamp": "2026-01-31T12:00:00Z", "count": 1,
    });
    agent.create(&events, &event).expect_code(201);
    let again = json!({"count": 2, "lastTimestamp": "2026-01-31T12:00:01Z", "message": "once more"});
    let counted = agent.merge(&format!("{events}/refused"), &again).expect_code(200);
    assert_eq!(
        (&counted["count"], &counted["message"]),
        (&json!(2), &json!("once more"))
    );

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
    must_be_refused(refused);
    admin.get(&format!("{pods}/victim")).expect_code(200);
    admin.delete("/api/v1/nodes/node-r").expect_code(200);
}

/// As above.
#[test]
fn the_webhooks_token_opens_its_config_maps_and_nothing_else() {
    let Some(cluster) = cluster::shared() else { return };
    let (admin, (namespace, _)) = (cluster.admin(), installed(&cluster));
    let elsewhere = cluster.namespace("roles-elsewhere");
    let maps = format!("/api/v1/namespaces/{elsewhere}/configmaps");
    let map = |name: &str, value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"key": value}});
    admin.create(&maps, &map("other", "a")).expect_code(201);
    let webhook = cluster.api(&cluster.token(&namespace, "tv-agent-webhook"));

    let name = format!("{namespace}-tv-agent-ca");
    let own = format!("{maps}/{name}");
    webhook.apply(&own, &map(&name, "a"), false).expect_code(201);
    webhook.apply(&own, &map(&name, "b"), false).expect_code(200);
    let of_name = format!("/api/v1/configmaps?fieldSelector=metadata.name%3D{name}");
    let list = webhook.get(&of_name).expect_code(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    assert_eq!(list["items"][0]["data"]["key"], "b");
    let (code, events) = webhook.watch(&format!("{of_name}&watch=true"), |event| event["type"] == "ADDED");
    assert_eq!((code, events.len()), (200, 1));

    let pods = format!("/api/v1/namespaces/{elsewhere}/pods");
    let refused = [
        ("all config maps", webhook.get("/api/v1/configmaps")),
        ("those of a namespace", webhook.get(&maps)),
        ("another", webhook.get(&format!("{maps}/other"))),
        (
            "a change of another",
            webhook.apply(&format!("{maps}/other"), &map("other", "b"), false),
        ),
        (
            "another's name",
            webhook.get("/api/v1/configmaps?fieldSelector=metadata.name%3Dother"),
        ),
        ("its own's end", webhook.delete(&own)),
        (
            "its roots",
            webhook.get(&format!("/api/v1/namespaces/{namespace}/secrets")),
        ),
        ("secrets", webhook.get("/api/v1/secrets")),
        ("pods", webhook.get("/api/v1/pods")),
        ("a pod", webhook.create(&pods, &pod("mine", None))),
        ("namespaces", webhook.get("/api/v1/namespaces")),
        (
            "its registration",
            webhook.get("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"),
        ),
    ];
    must_be_refused(refused);
    let other = admin.get(&format!("{maps}/other")).expect_code(200);
    assert_eq!(other["data"]["key"], "a");
}

#[track_caller]
fn must_be_refused<'a>(answers: impl IntoIterator<Item = (&'a str, Answer)>) {
    for (what, answer) in answers {
        assert_eq!(
            (answer.code, &answer.body["reason"]),
            (403, &json!("Forbidden")),
            "{what}: {}",
            answer.text
        );
    }
}

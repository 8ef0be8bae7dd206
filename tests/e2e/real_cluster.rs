//! Pods adopted through the watch of a real API server; where there is none (`cargo xtask cluster`), this is skipped.

use std::time::Duration;

use serde_json::{Value, json};
use tv_agent::encode::certificate_pem;
use tv_tests::cluster::{self, Api, Cluster};
use tv_tests::world::World;

use crate::kubernetes::{Lodging, container_id, programs};
use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, wait_for};

const LIMIT: Duration = Duration::from_secs(30);
const NODE: &str = "node-of-the-test";

/// What the chart gives the agent, as `tests/cluster/roles.rs` holds it to.
fn account(api: &Api, namespace: &str) {
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "agent"},
        "rules": [
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        ],
    });
    api.create(&format!("{rbac}/clusterroles"), &role)
        .expect_code(201);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "agent"}});
    api.create(
        &format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
        &account,
    )
    .expect_code(201);
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "agent"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "agent"},
        "subjects": [{"kind": "ServiceAccount", "name": "agent", "namespace": namespace}],
    });
    api.create(&format!("{rbac}/clusterrolebindings"), &binding)
        .expect_code(201);
}

fn followed(world: &World, cluster: &Cluster, namespace: &str) -> Value {
    let server = cluster.config(&cluster.token(namespace, "agent"));
    let roots = server.root_cert.unwrap();
    let ca: String = roots
        .into_iter()
        .map(|der| certificate_pem(&der.into()))
        .collect();
    let file = |name: &str, text: &str| {
        let path = world.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mut config = world.config();
    config["kubernetes"] = json!({
        "node": NODE, "api_server": server.cluster_url.to_string(),
        "token_file": file("token", &cluster.token(namespace, "agent")), "ca_file": file("cluster.pem", &ca),
    });
    config
}

/// Makes a pod of the test's node; its UID.
fn pod(api: &Api, namespace: &str, name: &str, labels: &Value) -> String {
    let object = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": NODE, "containers": [{"name": "app", "image": "example.com/none"}]},
    });
    let made = api
        .create(&format!("/api/v1/namespaces/{namespace}/pods"), &object)
        .expect_code(201);
    made["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_is_adopted_by_its_label() {
    if !cluster::is_there() {
        eprintln!("skipped: there is no API server; make it with: cargo xtask cluster");
        return;
    }
    World::run(|world| {
        let user = alice(world);
        // In this world's network, where the agent finds it.
        let cluster = cluster::start().unwrap();
        let api = cluster.admin();
        let namespace = cluster.namespace("shop");
        account(&api, &namespace);
        let daemon = world
            .daemon("kubepods-real", followed(world, &cluster, &namespace))
            .unwrap();
        let asks = json!({"tv-agent.io/enrol": "true"});
        let plain = Lodging::of(&daemon, 2, &pod(&api, &namespace, "plain", &json!({})));
        let cart = Lodging::of(&daemon, 1, &pod(&api, &namespace, "cart", &asks));
        let app = container_id(1);
        cart.ask(world, &app, &bearer(&user), false).expect_success();
        let requests = world.github.requests();
        assert_eq!((requests.len(), requests[0].peer.ip()), (1, cart.address()));
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_eq!(programs(&plain.directory), 0);

        // What is refused is told to the pod, by an Event that the server takes.
        let refused = cart.ask(world, &app, "x-nothing: here", true);
        assert!(refused.stdout.contains(" 401 "), "{}", refused.stdout);
        let events = format!("/api/v1/namespaces/{namespace}/events");
        wait_for("an Event", LIMIT, || {
            let list = api.get(&events).expect_code(200);
            let all = list["items"].as_array().unwrap();
            all.iter()
                .any(|event| event["reason"] == "TvAgentRefused" && event["involvedObject"]["name"] == "cart")
        });

        // The label goes from one to the other.
        let label = |name: &str, value: Value| {
            let change = json!({"metadata": {"labels": {"tv-agent.io/enrol": value}}});
            api.merge(&format!("/api/v1/namespaces/{namespace}/pods/{name}"), &change)
                .expect_code(200);
        };
        label("cart", Value::Null);
        label("plain", json!("true"));
        wait_for("the labels are followed", LIMIT, || {
            programs(&cart.directory) == 0 && programs(&plain.directory) > 4
        });
        assert_eq!(
            cart.ask(world, &app, &bearer(&user), false).code(),
            60,
            "natively"
        );
        assert_unseen(world, &user);
    });
}

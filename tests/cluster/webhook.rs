//! `tv-agent webhook` beside the real server, with the chart's registration, configuration and role.

mod world;

use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::fakes::pki::Pki;

use crate::support::wait_for;
use world::{LIMIT, World, must_be_alone, must_be_as_sent, must_reach, pod};

/// For new roots: files are looked at every 5 s, on a machine that has other work.
const ROTATION: Duration = Duration::from_secs(60);

#[test]
fn pods_that_ask_get_trust_and_the_others_never_come_by() {
    let Some(world) = World::new() else { return };
    let (asking, quiet) = (world.asking("shop"), world.cluster.namespace("quiet"));

    let (reviews, first) = world.reviews_of(|| world.create(&asking, &pod("first")));
    assert_eq!(reviews, 1);
    world.must_have_trust(&first);
    let map = world.config_map(&asking).unwrap();
    // Revisions are etcd's, of all objects: the ConfigMap was there before the pod was.
    let revision = |object: &Value| -> u64 {
        let text = object["metadata"]["resourceVersion"].as_str().unwrap();
        text.parse().unwrap()
    };
    assert!(revision(&map) < revision(&first));
    let root = std::fs::read_to_string(world.directory.path().join("roots/root.pem")).unwrap();
    assert_eq!(map["data"]["roots.pem"].as_str().unwrap().trim(), root.trim());
    let bundle = map["data"]["bundle.pem"].as_str().unwrap();
    assert!(bundle.contains(root.trim()) && bundle.matches("BEGIN CERTIFICATE").count() > 100);
    let (reviews, second) = world.reviews_of(|| world.create(&asking, &pod("second")));
    assert_eq!(reviews, 1);
    world.must_have_trust(&second);
    assert_eq!(
        world.config_map(&asking).unwrap()["metadata"]["resourceVersion"],
        map["metadata"]["resourceVersion"]
    );

    // Who does not ask, or says no, or has been given all of it.
    assert!(world.config_map(&quiet).is_none());
    let (reviews, ()) = world.reviews_of(|| {
        must_be_as_sent(&world.create(&quiet, &pod("silent")));
        must_be_as_sent(&world.create(&quiet, &world.labelled("not", "false")));
        must_be_as_sent(&world.create(&asking, &world.labelled("not", "false")));
    });
    assert_eq!(reviews, 0);
    assert!(world.config_map(&quiet).is_none());

    let (reviews, labelled) = world.reviews_of(|| world.create(&quiet, &world.labelled("labelled", "true")));
    assert_eq!(reviews, 1);
    world.must_have_trust(&labelled);
    assert!(world.config_map(&quiet).is_some());

    // By its annotation, and in part.
    let mut not = pod("not-by-annotation");
    not["metadata"]["annotations"] = json!({world.key("enrol"): "false"});
    let not = world.create(&asking, &not);
    assert!(not["spec"]["volumes"].is_null(), "{not}");
    must_be_alone(&not["spec"]["containers"][0]);
    let mut part = pod("in-part");
    part["metadata"]["annotations"] = json!({world.key("exclude-containers"): "first"});
    let proxy = json!({"name": "istio-proxy", "image": "example.com/none"});
    part["spec"]["containers"].as_array_mut().unwrap().push(proxy);
    let part = world.create(&asking, &part);
    must_be_alone(&part["spec"]["initContainers"][0]);
    must_reach(&part["spec"]["containers"][0]);
    must_be_alone(&part["spec"]["containers"][1]);
}

#[test]
fn a_dry_run_writes_nothing_and_a_large_pod_is_no_matter() {
    let Some(world) = World::new() else { return };
    let asking = world.asking("shop");
    world.must_have_trust(&world.create_dry(&asking, &pod("dry")));
    assert!(world.config_map(&asking).is_none());

    // The server's bound for annotations is 256 KiB.
    let mut large = pod("large");
    large["metadata"]["annotations"] = json!({"note": "x".repeat(250_000)});
    world.must_have_trust(&world.create(&asking, &large));
    assert!(world.config_map(&asking).is_some());
}

#[test]
fn new_roots_reach_every_namespace_and_a_lost_config_map_comes_back() {
    let Some(world) = World::new() else { return };
    let namespaces = [world.asking("shop"), world.asking("pay"), world.asking("ship")];
    let roots = |namespace: &String| {
        let map = world.config_map(namespace)?;
        Some(map["data"]["roots.pem"].as_str().unwrap().trim().to_owned())
    };
    let mut marks = Vec::new();
    for namespace in &namespaces {
        let pod = world.create(namespace, &pod("before"));
        marks.push(pod["metadata"]["annotations"][world.key("trust-roots")].clone());
    }
    let second = Pki::new("tv-agent CA, the second");
    let at = world.directory.path();
    std::fs::write(at.join("fresh.pem"), second.root_pem()).unwrap();
    std::fs::rename(at.join("fresh.pem"), at.join("roots/root.pem")).unwrap();
    let there = |namespace: &String| roots(namespace).as_deref() == Some(second.root_pem().trim());
    wait_for("the new root everywhere", ROTATION, || {
        namespaces.iter().all(there)
    });
    for (namespace, mark) in namespaces.iter().zip(&marks) {
        let pod = world.create(namespace, &pod("after"));
        assert_ne!(pod["metadata"]["annotations"][world.key("trust-roots")], *mark);
    }

    // Taken away, and changed by somebody.
    world.api.delete(&world.map_path(&namespaces[0])).expect_code(200);
    let other = json!({"data": {"roots.pem": "mine"}});
    world
        .api
        .merge(&world.map_path(&namespaces[1]), &other)
        .expect_code(200);
    wait_for("both as they were", LIMIT, || namespaces.iter().all(there));
}

#[test]
fn with_the_webhook_gone_pods_start_as_they_are() {
    let Some(mut world) = World::new() else { return };
    let asking = world.asking("shop");
    world.must_have_trust(&world.create(&asking, &pod("before")));
    world.running.kill();
    let answer = world.send(&asking, &pod("after"));
    must_be_as_sent(&answer.expect_code(201));
    must_be_as_sent(&world.create(&asking, &world.labelled("by-label", "true")));
}

#[test]
fn without_its_role_pods_start_and_their_owner_is_told() {
    let Some(world) = World::new() else { return };
    let namespaces = [world.asking("shop"), world.asking("pay")];
    world.must_have_trust(&world.create(&namespaces[0], &pod("before")));

    let path = format!(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/{}-tv-agent-webhook",
        world.namespace
    );
    let mut binding = world.api.get(&path).expect_code(200);
    world.api.delete(&path).expect_code(200);
    let user = format!("system:serviceaccount:{}:tv-agent-webhook", world.namespace);
    let may = json!({"verb": "create", "resource": "configmaps", "namespace": namespaces[1]});
    wait_for("the role's end", LIMIT, || !world.api.allowed(&user, &[], &may));

    let answer = world.send(&namespaces[1], &pod("denied"));
    let [warning] = answer.warnings.as_slice() else {
        panic!("{:?}", answer.warnings)
    };
    assert!(warning.contains("tv-agent"), "{warning}");
    must_be_as_sent(&answer.expect_code(201));
    assert!(world.config_map(&namespaces[1]).is_none());
    assert_eq!(world.reviews()["failed_open"], 1);
    // Where the ConfigMap is there already, nothing is to be written.
    world.must_have_trust(&world.create(&namespaces[0], &pod("after")));

    let metadata = binding["metadata"].as_object_mut().unwrap();
    metadata.retain(|key, _| key == "name" || key == "labels");
    let bindings = path.rsplit_once('/').unwrap().0;
    world.api.create(bindings, &binding).expect_code(201);
    wait_for("the role again", LIMIT, || world.api.allowed(&user, &[], &may));
    world.must_have_trust(&world.create(&namespaces[1], &pod("allowed")));
}

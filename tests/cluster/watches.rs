//! What the watch of a node's pods relies on, as the real server does it; a fake one has to do the same.

use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::cluster::{self, Api};

/// A pod that nothing runs, of a node or of none yet.
pub fn pod(name: &str, node: Option<&str>) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": [{"name": "main", "image": "example.com/none"}]},
    })
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn of_node(node: &str) -> String {
    format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")
}

/// What a list says that it is of.
fn version(list: &Value) -> String {
    list["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

/// `TYPE NAME`
fn told(events: &[Value]) -> Vec<String> {
    let of = |event: &Value| {
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap_or_default())
    };
    events.iter().map(of).collect()
}

fn is(kind: &'static str, name: &'static str) -> impl Fn(&Value) -> bool {
    move |event| event["type"] == kind && event["object"]["metadata"]["name"] == name
}

fn create(api: &Api, namespace: &str, pod: &Value) {
    api.create(&pods(namespace), pod).expect_code(201);
}

#[test]
fn a_nodes_watch_has_its_pods_and_no_others() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, namespace) = (cluster.admin(), cluster.namespace("node-watch"));
    let node = of_node("node-a");
    create(&api, &namespace, &pod("first", Some("node-a")));
    create(&api, &namespace, &pod("elsewhere", Some("node-b")));
    let list = api.get(&node).expect_code(200);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
    // Which kind the items are is said for the whole list only.
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&json!("PodList"), &Value::Null)
    );

    let first = format!("{}/first", pods(&namespace));
    api.merge(&first, &json!({"metadata": {"annotations": {"a": "b"}}}))
        .expect_code(200);
    create(&api, &namespace, &pod("other", Some("node-b")));
    create(&api, &namespace, &pod("later", None));
    // The scheduler's way: the pod comes to the node.
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "later"},
                         "target": {"apiVersion": "v1", "kind": "Node", "name": "node-a"}});
    api.create(&format!("{}/later/binding", pods(&namespace)), &binding)
        .expect_code(201);
    // The kubelet's: a pod that ends is told before it is gone, and once more when its time is cut short.
    let grace = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 5});
    api.delete_with(&first, &grace).expect_code(200);
    api.delete(&first).expect_code(200);
    let watch = format!("{node}&watch=true&resourceVersion={}", version(&list));
    let (code, events) = api.watch(&watch, is("DELETED", "first"));
    assert_eq!(code, 200);
    assert_eq!(
        told(&events),
        [
            "MODIFIED first",
            "ADDED later",
            "MODIFIED first",
            "MODIFIED first",
            "DELETED first"
        ]
    );
    assert_eq!(events[0]["object"]["kind"], "Pod");
    assert_eq!(events[0]["object"]["metadata"]["annotations"]["a"], "b");
    assert!(events[2]["object"]["metadata"]["deletionTimestamp"].is_string());
    // The object of a deletion is the last one, in a version of its own: a watch goes on from it.
    let versions: Vec<u64> = events
        .iter()
        .map(|event| {
            event["object"]["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
    let watch = format!("{node}&watch=true&resourceVersion={}", versions[1]);
    let (_, events) = api.watch(&watch, is("DELETED", "first"));
    assert_eq!(
        told(&events),
        ["MODIFIED first", "MODIFIED first", "DELETED first"]
    );
}

/// Without a version: what there is comes as additions, in no particular order, and then what happens.
#[test]
fn a_watch_from_nowhere_begins_with_what_there_is() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, namespace) = (cluster.admin(), cluster.namespace("from-nowhere"));
    create(&api, &namespace, &pod("one", Some("node-c")));
    create(&api, &namespace, &pod("two", Some("node-c")));
    for version in ["", "&resourceVersion=0"] {
        let watch = format!("{}&watch=true&timeoutSeconds=1{version}", of_node("node-c"));
        let (code, events) = api.watch(&watch, |_| false);
        let mut told = told(&events);
        told.sort();
        assert_eq!(
            (code, told),
            (200, vec!["ADDED one".into(), "ADDED two".into()]),
            "{version}"
        );
    }
}

/// A bookmark is a pod with a version and nothing else. One comes before the time that the client asked for ends, and
/// each minute; but only when something has happened, to any pod of the cluster.
#[test]
fn bookmarks_tell_how_far_a_quiet_watch_is() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, namespace) = (cluster.admin(), cluster.namespace("bookmarks"));
    let list = api.get(&of_node("node-d")).expect_code(200);
    let from = version(&list);
    let watch = format!(
        "{}&watch=true&allowWatchBookmarks=true&timeoutSeconds=6&resourceVersion={from}",
        of_node("node-d")
    );
    let (code, events) = std::thread::scope(|scope| {
        scope.spawn(|| {
            // While the watch is under way.
            std::thread::sleep(Duration::from_secs(1));
            create(&cluster.admin(), &namespace, &pod("elsewhere", Some("node-e")));
        });
        api.watch(&watch, |_| false)
    });
    let bookmarks = told(&events).iter().all(|line| line == "BOOKMARK ");
    assert!(
        code == 200 && !events.is_empty() && bookmarks,
        "{code} {events:?}"
    );
    let object = &events[0]["object"];
    assert_eq!(
        (&object["kind"], &object["metadata"]["uid"]),
        (&json!("Pod"), &Value::Null)
    );
    // What a strict reader of pods stumbles over.
    assert_eq!(object["spec"], json!({"containers": null}));
    let number = |version: &str| version.parse::<u64>().unwrap();
    let at = object["metadata"]["resourceVersion"].as_str().unwrap();
    assert!(number(at) > number(&from), "{at} {from}");
    let watch = format!(
        "{}&watch=true&timeoutSeconds=1&resourceVersion={at}",
        of_node("node-d")
    );
    assert_eq!(
        api.watch(&watch, |_| false),
        (200, vec![]),
        "a watch that ends says nothing"
    );
}

#[test]
fn a_version_that_is_too_old_is_gone() {
    // Of its own: compaction is everybody's.
    let Some(mut cluster) = cluster::start() else {
        return;
    };
    let (api, namespace) = (cluster.admin(), cluster.namespace("too-old"));
    for name in ["one", "two", "three"] {
        create(&api, &namespace, &pod(name, Some("node-f")));
    }
    // The first part of a list, whose rest is lost.
    let part = api.get(&format!("{}?limit=1", pods(&namespace))).expect_code(200);
    let rest = part["metadata"]["continue"].as_str().unwrap().to_owned();
    create(&api, &namespace, &pod("four", Some("node-f")));
    cluster.compact();
    let answer = api.get(&format!("{}?limit=1&continue={rest}", pods(&namespace)));
    let status = answer.expect_code(410);
    assert_eq!(
        (&status["reason"], &status["code"]),
        (&json!("Expired"), &json!(410))
    );
    assert!(
        status["metadata"]["continue"].is_string(),
        "another way to go on, of a later version"
    );

    // It remembers what it saw itself, whatever etcd forgot.
    let watch = format!("{}&watch=true&resourceVersion=1", of_node("node-f"));
    let (_, events) = api.watch(&watch, is("ADDED", "four"));
    assert_eq!(events.len(), 4);
    // A new one does not. It takes the watch, and refuses it in its only event.
    cluster.restart();
    let (code, events) = api.watch(&watch, |_| false);
    assert_eq!((code, events.len()), (200, 1), "{events:?}");
    let (kind, status) = (&events[0]["type"], &events[0]["object"]);
    assert_eq!(
        (kind, &status["kind"], &status["code"], &status["reason"]),
        (&json!("ERROR"), &json!("Status"), &json!(410), &json!("Expired"))
    );
    let message = status["message"].as_str().unwrap();
    assert!(message.starts_with("too old resource version: 1 ("), "{message}");
}

/// After a server came back with less than it had, from a backup or another etcd.
#[test]
fn a_version_of_the_future_is_no_list() {
    let Some(cluster) = cluster::shared() else { return };
    let api = cluster.admin();
    let list = format!("{}&resourceVersion=999999999", of_node("node-g"));
    let answer = api.get(&list).expect_code(504);
    assert_eq!(answer["reason"], "Timeout");
    assert_eq!(
        answer["details"]["causes"][0]["reason"],
        "ResourceVersionTooLarge"
    );
    // As a watch it waits, and says nothing at all.
    let (code, events) = api.watch(&format!("{list}&watch=true&timeoutSeconds=2"), |_| false);
    assert_eq!((code, events), (200, vec![]));
}

#[test]
fn who_may_not_watch_is_told_before_the_watch() {
    let Some(cluster) = cluster::shared() else { return };
    let namespace = cluster.namespace("nobody");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts");
    cluster.admin().create(&path, &account).expect_code(201);
    let watch = format!("{}&watch=true", of_node("node-h"));
    let token = cluster.token(&namespace, "nobody");
    for (token, code, reason) in [(token.as_str(), 403, "Forbidden"), ("wrong", 401, "Unauthorized")] {
        let status = cluster.api(token).get(&watch).expect_code(code);
        assert_eq!(
            (&status["kind"], &status["reason"]),
            (&json!("Status"), &json!(reason))
        );
    }
}

//! What follows from what was heard.

use serde_json::{Value, json};
use url::Url;

use super::*;
use crate::kubernetes::asked::{Enrol, Rules};
use crate::kubernetes::notes;
use crate::kubernetes::settings::{Pace, Server, Unknown};

fn table() -> (
    Table,
    watch::Receiver<Arc<Orders>>,
    tokio::sync::mpsc::Receiver<Note>,
    Metrics,
) {
    let settings = Settings {
        node: "n1".into(),
        server: Server {
            url: Url::parse("https://127.0.0.1").unwrap(),
            name: None,
            token: None,
            ca: None,
            identity: None,
        },
        rules: Rules {
            prefix: "tv-agent.io".into(),
            enrol: Enrol::Asked,
            exclude: Default::default(),
        },
        unknown: Unknown::Enrol,
        events: true,
        pace: Pace::default(),
    };
    let metrics = Metrics::new();
    let (teller, notes) = notes::channel(metrics.clone());
    let (table, orders) = Table::new(Arc::new(settings), teller, metrics.clone());
    (table, orders, notes, metrics)
}

fn uid(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

fn pod(number: usize, labels: &Value) -> String {
    let name = format!("p{number}");
    json!({
        "metadata": { "name": name, "namespace": "shop", "uid": uid(number), "labels": labels },
        "spec": { "containers": [{ "name": "app" }] },
    })
    .to_string()
}

fn namespace(labels: &Value) -> String {
    json!({ "metadata": { "name": "shop", "labels": labels } }).to_string()
}

#[test]
fn a_pod_waits_for_its_namespace_and_follows_its_label() {
    let (table, orders, ..) = table();
    table.change(Resource::Pods, Change::Put, &pod(1, &json!({})));
    assert!(
        !orders.borrow().pods.contains_key(&uid(1)),
        "the namespace is not known"
    );
    assert!(table.of(&uid(1)).is_some());
    let says = |labels: Value| {
        table.change(Resource::Namespaces, Change::Put, &namespace(&labels));
        orders.borrow().pods.get(&uid(1)).map(|order| order.enrol)
    };
    assert_eq!(says(json!({})), Some(false));
    assert_eq!(says(json!({ "tv-agent.io/enrol": "true" })), Some(true));
    assert_eq!(says(json!({ "other": "x" })), Some(false));
    table.change(
        Resource::Pods,
        Change::Put,
        &pod(1, &json!({ "tv-agent.io/enrol": "true" })),
    );
    assert_eq!(
        says(json!({ "tv-agent.io/enrol": "false" })),
        Some(true),
        "the pod wins"
    );
    table.change(Resource::Pods, Change::Gone, &pod(1, &json!({})));
    assert!(orders.borrow().pods.is_empty());
    assert!(table.of(&uid(1)).is_none());
}

#[test]
fn a_list_replaces_what_was_known() {
    let (table, orders, ..) = table();
    table.change(Resource::Namespaces, Change::Put, &namespace(&json!({})));
    table.change(Resource::Pods, Change::Put, &pod(1, &json!({})));
    assert!(!orders.borrow().listed);
    let mut listing = Listing::of(Resource::Pods);
    table.list(&mut listing, &pod(2, &json!({})));
    table.list(&mut listing, "{}");
    assert!(table.of(&uid(1)).is_some(), "until the list is whole");
    table.replace(listing);
    assert!(table.of(&uid(1)).is_none() && table.of(&uid(2)).is_some());
    assert!(!orders.borrow().listed, "namespaces are not");
    table.replace(Listing::of(Resource::Namespaces));
    assert!(orders.borrow().listed);
}

#[test]
fn what_cannot_be_taken_is_counted_and_leaves_the_rest() {
    let (table, orders, _notes, metrics) = table();
    table.change(Resource::Namespaces, Change::Put, &namespace(&json!({})));
    for number in 0..limits::PODS + 3 {
        table.change(Resource::Pods, Change::Put, &pod(number, &json!({})));
    }
    assert_eq!(orders.borrow().pods.len(), limits::PODS);
    table.change(Resource::Pods, Change::Put, &pod(5, &json!([])));
    assert!(table.of(&uid(5)).is_some(), "what was known of it stays");
    let text = metrics.render();
    for (reason, count) in [("too_many", 3), ("malformed", 1)] {
        let line = format!(
            "tv_agent_kubernetes_skipped_objects_total{{resource=\"pods\",reason=\"{reason}\"}} {count}"
        );
        assert!(text.contains(&line), "{text}");
    }
}

#[test]
fn a_bad_label_is_told_once() {
    let (table, orders, mut notes, _) = table();
    let bad = pod(1, &json!({ "tv-agent.io/enrol": "yes" }));
    for _ in 0..3 {
        table.change(Resource::Pods, Change::Put, &bad);
        let mut listing = Listing::of(Resource::Pods);
        table.list(&mut listing, &bad);
        table.replace(listing);
    }
    assert!(!orders.borrow().pods[&uid(1)].enrol);
    let note = notes.try_recv().unwrap();
    assert_eq!((note.reason, note.pod), (Reason::BadAnnotation, uid(1)));
    assert!(notes.try_recv().is_err());
}

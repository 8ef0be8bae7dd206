//! Routes for some workloads only: who gets them, and what becomes of those of whom too little is known.

use std::io::ErrorKind;

use serde_json::{Value, json};
use tv_agent::flows::Flow as Record;
use tv_tests::flow::{Dial, Flow, HOST, PROVIDER, SUBJECT, Setup, eventually};

const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";
const OTHER: &str = "00000000-1b2c-4d3e-9f00-aabbccddeeff";
const H1: &[&str] = &["http/1.1"];

async fn limited(workloads: Value) -> Flow {
    let flow = Setup::default().start().await;
    let routes = json!([{
        "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
        "workloads": workloads,
    }]);
    flow.agent.reload(flow.config(routes)).unwrap();
    flow
}

fn from<'a>(flow: &Flow, cgroup: u64) -> Dial<'a> {
    Dial {
        cgroup,
        ..flow.dial(HOST, H1)
    }
}

/// The caller's request goes out with the provider's token.
async fn is_swapped(flow: &Flow, cgroup: u64) {
    let answer = flow.call(from(flow, cgroup)).await.get("/headers").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().contains(PROVIDER) && !answer.text().contains(SUBJECT));
}

/// Neither opened nor let through.
async fn is_refused(flow: &Flow, cgroup: u64) {
    let before = flow.origin.count();
    let error = flow.tls_trusting(from(flow, cgroup), flow.pki.root()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    flow.ended("refuse", "workload_unknown").await;
    assert_eq!(flow.origin.count(), before);
}

/// TLS with the origin itself.
async fn is_tunnelled(flow: &Flow, cgroup: u64) {
    let stream = flow.tls_trusting(from(flow, cgroup), flow.pki.root()).await;
    stream.expect("the origin's own certificate");
}

fn pod(flow: &Flow, uid: &str) -> u64 {
    flow.cgroup(&format!("kubepods/burstable/pod{uid}/container"))
}

fn last(flow: &Flow, kind: &str) -> Record {
    let (kept, _) = flow.agent.flows().follow();
    let found = kept.iter().rev().find(|record| record.kind == kind);
    (**found.expect("a record")).clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_refused_until_its_facts_are_known() {
    let flow = limited(json!([{ "namespace": "shop", "labels": { "app": "cart" } }])).await;
    let cart = pod(&flow, UID);
    is_refused(&flow, cart).await;
    let facts = |namespace| json!({ "namespace": namespace, "name": "cart-0", "service_account": "cart", "labels": { "app": "cart" } });
    flow.know_pod(UID, facts("shop"));
    // What is not known is asked for again after a moment.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    is_swapped(&flow, cart).await;
    let record = last(&flow, "request");
    assert_eq!(record.pod.as_deref(), Some(UID));
    let said = (record.pod_namespace, record.pod_name, record.service_account);
    assert_eq!(
        said,
        (Some("shop".into()), Some("cart-0".into()), Some("cart".into()))
    );
    // Another namespace is another matter, and so is what is no pod at all.
    flow.know_pod(OTHER, facts("bank"));
    is_tunnelled(&flow, pod(&flow, OTHER)).await;
    is_tunnelled(&flow, flow.cgroup("system.slice/billing.service")).await;
    // Out of sight: it might be that pod.
    is_refused(&flow, 7).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn units_containers_users_and_paths_select_too() {
    let container = "0123456789abcdef".repeat(4);
    let flow = limited(json!([
        "/system.slice/cron*",
        { "unit": "billing.service", "uid": 1000 },
        { "unit": "root.service", "user": "root" },
        { "container": container[..12] },
        { "pod": UID },
    ]))
    .await;
    for cgroup in [
        "system.slice/cron.service",
        "system.slice/billing.service",
        &format!("system.slice/docker-{container}.scope"),
        &format!("kubepods/pod{UID}/{container}"),
    ] {
        is_swapped(&flow, flow.cgroup(cgroup)).await;
    }
    for cgroup in ["system.slice/other.service", "system.slice/root.service"] {
        is_tunnelled(&flow, flow.cgroup(cgroup)).await;
    }
    // A tunnel is recorded when it ends, and not always in the order in which the clients went.
    let recorded = || {
        let (kept, _) = flow.agent.flows().follow();
        kept.iter()
            .any(|record| record.unit.as_deref() == Some("root.service") && record.uid == 1000)
    };
    assert!(eventually(recorded).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_that_leaves_it_open_refuses_the_next_request() {
    let flow = Setup::default().start().await;
    let cart = pod(&flow, UID);
    let mut caller = flow.call(from(&flow, cart)).await;
    assert_eq!(caller.get("/headers").await.status, 200);
    let routes = json!([{
        "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
        "workloads": [{ "namespace": "shop" }],
    }]);
    flow.agent.reload(flow.config(routes)).unwrap();
    assert_eq!(caller.get("/headers").await.status, 421);
}

//! The client library's watcher on the real server: what it tells when the server goes, forgets and comes back.

use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::ResourceExt;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use tv_tests::cluster;

use crate::watches::pod;

const PATIENCE: Duration = Duration::from_secs(60);
const NODE: &str = "node-w";

/// Watches, and says a line for each event.
async fn tell<K: ResourceExt>(events: impl Stream<Item = watcher::Result<Event<K>>>, lines: Sender<String>) {
    let mut events = pin!(events.default_backoff());
    while let Some(event) = events.next().await {
        let name = |object: K| object.name_any();
        let line = match event {
            Ok(Event::Init) => "begin".to_owned(),
            Ok(Event::InitApply(pod)) => format!("has {}", name(pod)),
            Ok(Event::InitDone) => "complete".to_owned(),
            Ok(Event::Apply(pod)) => format!("apply {}", name(pod)),
            Ok(Event::Delete(pod)) => format!("delete {}", name(pod)),
            Err(error) => format!("error {error}"),
        };
        // Nobody listens any more: the test is over.
        if lines.send(line).is_err() {
            return;
        }
    }
}

/// The lines up to and with the `last`.
#[track_caller]
fn until(lines: &Receiver<String>, last: impl Fn(&str) -> bool) -> Vec<String> {
    let (began, mut found) = (Instant::now(), Vec::<String>::new());
    while !found.last().is_some_and(|line| last(line)) {
        match lines.recv_timeout(PATIENCE.saturating_sub(began.elapsed())) {
            Ok(line) => found.push(line),
            Err(_) => panic!("it said no more than {found:?}"),
        }
    }
    found
}

#[test]
fn a_pod_that_went_unseen_is_gone_from_the_next_complete_list() {
    let Some(mut cluster) = cluster::start() else {
        return;
    };
    let (api, namespace) = (cluster.admin(), cluster.namespace("watcher"));
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    for name in ["one", "two"] {
        api.create(&pods, &pod(name, Some(NODE))).expect_code(201);
    }
    let (sender, lines) = channel();
    let of_node = watcher::Config::default().fields(&format!("spec.nodeName={NODE}"));
    let watch = watcher(kube::Api::<Pod>::all(api.client()), of_node);
    cluster.runtime().spawn(tell(watch, sender));
    let mut first = until(&lines, |line| line == "complete");
    first[1..3].sort();
    assert_eq!(first, ["begin", "has one", "has two", "complete"]);
    api.create(&pods, &pod("three", Some(NODE))).expect_code(201);
    assert_eq!(until(&lines, |_| true), ["apply three"]);

    // A server that comes back goes on with the watch where it was, unless somebody wrote anything at all since the last
    // pod's change: then its memory begins later, and the list comes anew.
    cluster.restart();
    let api = cluster.admin();
    api.create(&pods, &pod("four", Some(NODE))).expect_code(201);
    let found = until(&lines, |line| line.ends_with(" four"));
    assert!(found.iter().all(|line| !line.starts_with("delete")), "{found:?}");

    // One that forgot: what is not in the new list is gone, and no deletion says so.
    cluster.stop();
    cluster.lose(&format!("/registry/pods/{namespace}/two"));
    cluster.compact();
    cluster.go_on();
    // The first list may have been under way.
    let mut found = until(&lines, |line| line.contains("too old resource version"));
    found.extend(until(&lines, |line| line == "begin"));
    assert!(found.iter().all(|line| !line.starts_with("delete")), "{found:?}");
    let mut has = until(&lines, |line| line == "complete");
    has.pop();
    has.sort();
    assert_eq!(has, ["has four", "has one", "has three"]);
}

/// Labels are all that is wanted of a namespace: its metadata comes alone, also in a watch.
#[test]
fn namespaces_are_watched_by_their_metadata() {
    let Some(cluster) = cluster::shared() else { return };
    let (api, namespace) = (cluster.admin(), cluster.namespace("labelled"));
    let (sender, lines) = channel();
    let namespaces = kube::Api::<PartialObjectMeta<Namespace>>::all(api.client());
    let watch = watcher(namespaces, watcher::Config::default());
    let watching = cluster.runtime().spawn(tell(watch, sender));
    let first = until(&lines, |line| line == "complete");
    assert!(first.contains(&format!("has {namespace}")), "{first:?}");
    let labels = json!({"metadata": {"labels": {"tv-agent.io/enrol": "true"}}});
    api.merge(&format!("/api/v1/namespaces/{namespace}"), &labels)
        .expect_code(200);
    // Others' come and go.
    until(&lines, |line| line == format!("apply {namespace}"));
    watching.abort();
}

//! The watch of a node's pods against an API server that fails in every way it can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tv_agent::dial::{Dialer, Unflagged};
use tv_agent::kubernetes::{
    Enrol, Material, Node, Note, Orders, Pace, Reason, Rules, Server, Settings, Unknown, probe,
};
use tv_agent::metrics::Metrics;
use tv_agent::secret::Secret;
use tv_agent::workload::PodFacts as _;
use tv_tests::api_server::{ApiServer, Fault, namespace, pod};
use tv_tests::fakes::pki::Pki;

const NODE: &str = "n1";
const LIMIT: Duration = Duration::from_secs(20);

fn uid(number: usize) -> String {
    format!("00000000-0000-0000-0000-{number:012}")
}

fn settings(api: &ApiServer, pki: Option<&Pki>, token: Option<&str>) -> Settings {
    let inline = |text: &str| Material::Inline(Arc::new(Secret::new(text.to_owned())));
    Settings {
        node: NODE.into(),
        server: Server {
            url: api.url().parse().unwrap(),
            name: None,
            token: token.map(inline),
            ca: pki.map(|pki| inline(pki.root_pem())),
            identity: None,
        },
        rules: Rules {
            prefix: "tv-agent.io".into(),
            enrol: Enrol::Asked,
            exclude: Default::default(),
        },
        unknown: Unknown::Enrol,
        events: true,
        pace: Pace {
            answer: Duration::from_millis(500),
            page: Duration::from_secs(5),
            watch: Duration::from_secs(1),
            grace: Duration::from_millis(300),
            first: Duration::from_millis(20),
            most: Duration::from_millis(400),
            credentials: Duration::from_millis(200),
        },
    }
}

fn plain() -> ApiServer {
    ApiServer::start("127.0.0.1:0".parse().unwrap(), None).unwrap()
}

fn node(settings: Settings, metrics: &Metrics) -> Node {
    let dialer = Dialer::new(Arc::new(Unflagged), Duration::from_secs(1));
    Node::start(settings, dialer, metrics.clone())
}

async fn until(node: &Node, what: &str, mut holds: impl FnMut(&Orders) -> bool) {
    let mut orders = node.orders();
    let waited = tokio::time::timeout(LIMIT, orders.wait_for(|orders| holds(orders))).await;
    assert!(
        waited.is_ok(),
        "{what}: {:?}, {:?}",
        node.orders().borrow(),
        node.health().status()
    );
}

fn enrolled(orders: &Orders, number: usize) -> Option<bool> {
    orders.pods.get(&uid(number)).map(|order| order.enrol)
}

fn asks() -> serde_json::Value {
    json!({ "tv-agent.io/enrol": "true", "app": "cart" })
}

#[tokio::test(flavor = "multi_thread")]
async fn only_this_nodes_pods_are_known_and_their_changes_followed() {
    let pki = Pki::new("Cluster");
    let identity = pki.leaf(&["127.0.0.1"]);
    let api = ApiServer::start("127.0.0.1:0".parse().unwrap(), Some(&identity)).unwrap();
    api.demand("sesame");
    api.put("namespaces", namespace("shop", &json!({})));
    for number in 0..450 {
        let on = if number % 2 == 0 { NODE } else { "other" };
        api.put(
            "pods",
            pod(on, "shop", &format!("p{number}"), &uid(number), &asks()),
        );
    }
    let node = node(settings(&api, Some(&pki), Some("sesame")), &Metrics::new());
    until(&node, "all pages", |orders| orders.pods.len() == 225).await;
    assert!(api.count("list pods") >= 2, "a list has pages");
    let facts = node.table().of(&uid(4)).unwrap();
    assert_eq!(
        (facts.name.as_str(), facts.labels["app"].as_str()),
        ("p4", "cart")
    );
    assert!(node.table().of(&uid(5)).is_none());
    api.put(
        "pods",
        pod(
            NODE,
            "shop",
            "p4",
            &uid(4),
            &json!({ "tv-agent.io/enrol": "false" }),
        ),
    );
    until(&node, "the label", |orders| enrolled(orders, 4) == Some(false)).await;
    api.put("pods", pod(NODE, "shop", "p4", &uid(4), &json!({})));
    api.put("namespaces", namespace("shop", &asks()));
    until(&node, "the namespace", |orders| enrolled(orders, 4) == Some(true)).await;
    api.remove("pods", "shop/p4");
    until(&node, "the end", |orders| enrolled(orders, 4).is_none()).await;
    // Watches end in time and begin where they were: nothing is listed again.
    let lists = api.count("list pods");
    let watches = api.count("watch pods");
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(api.count("list pods"), lists);
    assert!(api.count("watch pods") > watches);
    api.put("pods", pod(NODE, "shop", "late", &uid(900), &asks()));
    until(&node, "a later watch", |orders| {
        enrolled(orders, 900) == Some(true)
    })
    .await;
}

/// Whatever goes wrong: what was known stays, the failure is told and counted, and what is new is known afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_known_stays_through_every_fault() {
    let labels = [
        (Fault::Expired, "expired"),
        (Fault::Gone, "expired"),
        (Fault::Throttled, "rate_limited"),
        (Fault::Broken, "server_error"),
        (Fault::Hangs, "connect"),
        (Fault::Silent, "silent"),
        (Fault::Cut, "broken"),
        (Fault::Garbage, "malformed"),
        (Fault::Away, "connect"),
    ];
    for (fault, label) in labels {
        let api = plain();
        api.put("namespaces", namespace("shop", &json!({})));
        api.put("pods", pod(NODE, "shop", "p1", &uid(1), &asks()));
        let metrics = Metrics::new();
        let node = node(settings(&api, None, None), &metrics);
        until(&node, "the first list", |orders| {
            enrolled(orders, 1) == Some(true)
        })
        .await;
        api.fail(fault);
        let line = format!("tv_agent_kubernetes_failures_total{{resource=\"pods\",reason=\"{label}\"}}");
        let began = Instant::now();
        while !metrics.render().contains(&line) {
            assert!(began.elapsed() < LIMIT, "{fault:?}: {}", metrics.render());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let asked = |api: &ApiServer| api.count("list pods") + api.count("watch pods") + api.count("429");
        let before = asked(&api);
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Two resources, 20 ms doubled up to 400, at least half of it each: no storm.
        let pace = asked(&api) - before;
        assert!(pace < 30, "{fault:?}: {pace} questions in a second");
        assert_eq!(enrolled(&node.orders().borrow(), 1), Some(true), "{fault:?}");
        assert!(node.table().of(&uid(1)).is_some(), "{fault:?}");
        api.put("pods", pod(NODE, "shop", "p2", &uid(2), &asks()));
        api.remove("pods", "shop/p1");
        api.fail(Fault::None);
        until(&node, &format!("after {fault:?}"), |orders| {
            enrolled(orders, 2) == Some(true) && enrolled(orders, 1).is_none()
        })
        .await;
        assert!(node.health().status().pods.failures > 0);
        api.unexpected().take();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_bytes_and_a_forgotten_past_are_no_faults() {
    let api = plain();
    api.fail(Fault::Slow);
    api.put("namespaces", namespace("shop", &json!({})));
    api.put("pods", pod(NODE, "shop", "p1", &uid(1), &asks()));
    let node = node(settings(&api, None, None), &Metrics::new());
    until(&node, "a slow list", |orders| enrolled(orders, 1) == Some(true)).await;
    api.put("pods", pod(NODE, "shop", "p2", &uid(2), &asks()));
    until(&node, "a slow watch", |orders| enrolled(orders, 2) == Some(true)).await;
    api.fail(Fault::None);
    let lists = api.count("list pods");
    api.forget();
    api.put("pods", pod(NODE, "shop", "p3", &uid(3), &asks()));
    until(&node, "a list anew", |orders| enrolled(orders, 3) == Some(true)).await;
    assert!(api.count("list pods") >= lists);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_api_server_that_is_away_at_the_start_is_found_later() {
    let api = plain();
    api.fail(Fault::Away);
    api.put("namespaces", namespace("shop", &json!({})));
    api.put("pods", pod(NODE, "shop", "p1", &uid(1), &asks()));
    let node = node(settings(&api, None, None), &Metrics::new());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let status = node.health().status();
    assert!(
        !status.pods.listed && status.pods.failures > 0 && status.pods.error.is_some(),
        "{status:?}"
    );
    assert_eq!(**node.orders().borrow(), Orders::default());
    api.fail(Fault::None);
    until(&node, "it is back", |orders| {
        enrolled(orders, 1) == Some(true) && orders.listed
    })
    .await;
    assert!(node.health().status().pods.current);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_changes_is_read_again() {
    let api = plain();
    api.demand("first");
    api.put("namespaces", namespace("shop", &json!({})));
    api.put("pods", pod(NODE, "shop", "p1", &uid(1), &asks()));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let mut settings = settings(&api, None, None);
    settings.server.token = Some(Material::File(file.clone()));
    let dialer = Dialer::new(Arc::new(Unflagged), Duration::from_secs(1));
    assert!(probe(&settings, dialer.clone()).await.is_ok());
    let node = node(settings, &Metrics::new());
    until(&node, "the first token", |orders| {
        enrolled(orders, 1) == Some(true)
    })
    .await;
    api.demand("second");
    api.put("pods", pod(NODE, "shop", "p2", &uid(2), &asks()));
    let began = Instant::now();
    while api.count("401") == 0 {
        assert!(began.elapsed() < LIMIT);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A file that is gone for a moment does not take the token away.
    std::fs::remove_file(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(node.health().status().credentials.is_some());
    std::fs::write(&file, "second").unwrap();
    api.put("pods", pod(NODE, "shop", "p3", &uid(3), &asks()));
    until(&node, "the second token", |orders| {
        enrolled(orders, 3) == Some(true)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_the_clusters_hears_no_token() {
    let (pki, other) = (Pki::new("Cluster"), Pki::new("Other"));
    let identity = other.leaf(&["127.0.0.1"]);
    let api = ApiServer::start("127.0.0.1:0".parse().unwrap(), Some(&identity)).unwrap();
    let settings = settings(&api, Some(&pki), Some("sesame"));
    let dialer = Dialer::new(Arc::new(Unflagged), Duration::from_secs(1));
    let refused = probe(&settings, dialer).await.unwrap_err();
    assert!(refused.contains("TLS failed"), "{refused}");
    assert!(!refused.contains("sesame"));
    assert_eq!(api.count("list pods"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_or_huge_object_costs_no_other() {
    let api = plain();
    api.put("namespaces", namespace("shop", &json!({})));
    let mut odd = pod(NODE, "shop", "odd", &uid(1), &asks());
    odd["spec"]["containers"] = json!("none");
    let mut huge = pod(NODE, "shop", "huge", &uid(2), &asks());
    huge["metadata"]["annotations"] = json!({ "tv-agent.io/x": "x".repeat(64 * 1024) });
    // An object that is large for reasons that do not matter here is as good as any.
    let mut large = pod(NODE, "shop", "large", &uid(3), &asks());
    large["metadata"]["annotations"] = json!({ "other": "x".repeat(3 * 1024 * 1024) });
    for object in [&odd, &huge, &large] {
        api.put("pods", object.clone());
    }
    let metrics = Metrics::new();
    let node = node(settings(&api, None, None), &metrics);
    until(&node, "by list", |orders| enrolled(orders, 3) == Some(true)).await;
    for object in [&odd, &huge] {
        api.put("pods", object.clone());
    }
    api.put("pods", pod(NODE, "shop", "p4", &uid(4), &asks()));
    until(&node, "by watch", |orders| enrolled(orders, 4) == Some(true)).await;
    assert_eq!(node.orders().borrow().pods.len(), 2);
    // A line that no API server sends ends the watch, and nothing else.
    let mut endless = pod(NODE, "shop", "endless", &uid(5), &asks());
    endless["metadata"]["annotations"] = json!({ "other": "x".repeat(5 * 1024 * 1024) });
    api.put("pods", endless);
    api.put("pods", pod(NODE, "shop", "p6", &uid(6), &asks()));
    until(&node, "after the endless line", |orders| {
        enrolled(orders, 6) == Some(true)
    })
    .await;
    let text = metrics.render();
    for line in [
        "skipped_objects_total{resource=\"pods\",reason=\"malformed\"} ",
        "skipped_objects_total{resource=\"pods\",reason=\"too_large\"} ",
        "failures_total{resource=\"pods\",reason=\"too_large\"} ",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_counted_up_paced_and_never_waited_for() {
    let api = plain();
    api.put("namespaces", namespace("shop", &json!({})));
    api.put(
        "pods",
        pod(
            NODE,
            "shop",
            "p1",
            &uid(1),
            &json!({ "tv-agent.io/enrol": "perhaps" }),
        ),
    );
    let metrics = Metrics::new();
    let node = node(settings(&api, None, None), &metrics);
    until(&node, "the list", |orders| orders.listed).await;
    let note = |pod: usize, about: &str| Note {
        pod: uid(pod),
        reason: Reason::Refused,
        about: about.to_owned(),
        text: "a request to api.github.com was refused\nnot a line of its own".to_owned(),
    };
    for _ in 0..5 {
        node.teller().tell(note(1, "github"));
    }
    node.teller().tell(note(77, "github"));
    let began = Instant::now();
    while api.events().len() < 2 {
        assert!(began.elapsed() < LIMIT, "{:?}", api.events());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let of = |reason: &str| {
        let events = api.events();
        events
            .into_iter()
            .find(|event| event["reason"] == reason)
            .unwrap_or_default()
    };
    let bad = of("TvAgentBadAnnotation");
    assert!(bad["message"].as_str().unwrap().contains("perhaps"), "{bad}");
    let refused = of("TvAgentRefused");
    assert_eq!(refused["involvedObject"]["name"], "p1");
    assert!(!refused["message"].as_str().unwrap().contains('\n'));
    node.teller().tell(note(1, "github"));
    let began = Instant::now();
    while of("TvAgentRefused")["count"] != 6 {
        assert!(began.elapsed() < LIMIT, "{:?}", api.events());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(api.events().len(), 2, "no Event of its own for the same again");
    // While the API server hangs, telling costs nothing.
    api.fail(Fault::Hangs);
    let began = Instant::now();
    for number in 0..10_000 {
        node.teller().tell(note(1, &number.to_string()));
    }
    assert!(began.elapsed() < Duration::from_secs(1));
    assert!(
        metrics
            .render()
            .contains("tv_agent_kubernetes_events_total{result=\"dropped\"}")
    );
}

//! What a provider says of a token makes the next one a fresh one: statuses and, per route, a value in JSON.

use std::sync::Arc;

use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use tv_tests::flow::{
    Caller, Dial, Flow, HOST, PROVIDER, SUBJECT, Setup, eventually, raw_origin, read_head, within,
};

use crate::inject::route;

const FRESH: &str = "provider-token-of-alice-0002";

/// A flow whose origin answers each request by `answer`, given the token that came.
async fn flow(
    rule: serde_json::Value,
    answer: impl Fn(&str) -> String + Send + Sync + 'static,
) -> (Flow, std::net::SocketAddr) {
    let flow = Setup::default().start().await;
    flow.agent
        .reload(flow.config(route(json!({ "purge": rule }))))
        .unwrap();
    let answer = Arc::new(answer);
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), &["http/1.1"], move |mut stream, _| {
        let answer = answer.clone();
        async move {
            loop {
                let head = read_head(&mut stream).await;
                let Some(token) = head.split("Bearer ").nth(1) else {
                    return;
                };
                let token = token.split('\r').next().unwrap();
                stream.write_all(answer(token).as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (flow, origin)
}

async fn caller(flow: &Flow, origin: std::net::SocketAddr) -> Caller {
    let dial = Dial {
        origin,
        ..flow.dial(HOST, &["http/1.1"])
    };
    flow.call(dial).await
}

fn http(status: &str, kind: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_the_route_throws_the_token_out_and_the_request_is_tried_once_more() {
    let (flow, origin) = flow(json!({ "statuses": [401, 403] }), |token| match token {
        FRESH => http("200 OK", "text/plain", "fresh"),
        _ => http("403 Forbidden", "text/plain", "expired"),
    })
    .await;
    let mut caller = caller(&flow, origin).await;
    flow.auth0.rotate_next(SUBJECT, "example", FRESH);
    // The first exchange gives the old token, so that the origin has something to refuse.
    let answer = caller.get("/").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, "fresh".to_owned()));
    assert_eq!(flow.auth0.count(SUBJECT), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_rule_only_401_counts() {
    let (flow, origin) = flow(json!({}), |_| http("403 Forbidden", "text/plain", "no")).await;
    let mut caller = caller(&flow, origin).await;
    for _ in 0..3 {
        assert_eq!(caller.get("/").await.status, 403);
    }
    assert_eq!(flow.auth0.count(SUBJECT), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_in_the_answer_throws_the_token_out() {
    let rule = json!({ "json": { "pointer": "/ok", "equals": false } });
    let (flow, origin) = flow(rule, |token| match token {
        PROVIDER => http(
            "200 OK",
            "application/json",
            r#"{"ok":false,"error":"token_expired"}"#,
        ),
        _ => http("200 OK", "application/json; charset=utf-8", r#"{"ok":true}"#),
    })
    .await;
    let mut caller = caller(&flow, origin).await;
    let answer = caller.get("/api/auth.test").await;
    assert_eq!(
        (answer.status.as_u16(), answer.ours()),
        (200, false),
        "the answer is the provider's own"
    );
    assert!(answer.text().contains("token_expired"));
    flow.auth0.connect(SUBJECT, "example", FRESH, 3600);
    assert!(
        eventually(|| flow.agent.tokens().is_empty()).await,
        "the refused token stays"
    );
    assert_eq!(caller.get("/api/auth.test").await.text(), r#"{"ok":true}"#);
    for _ in 0..3 {
        assert_eq!(caller.get("/api/auth.test").await.text(), r#"{"ok":true}"#);
    }
    assert_eq!(flow.auth0.count(SUBJECT), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_always_says_so_does_not_make_each_request_an_exchange() {
    let rule = json!({ "json": { "pointer": "/ok", "equals": false } });
    let (flow, origin) = flow(rule, |_| http("200 OK", "application/json", r#"{"ok":false}"#)).await;
    let mut caller = caller(&flow, origin).await;
    for _ in 0..20 {
        assert_eq!(caller.get("/").await.status, 200);
    }
    assert!(
        flow.auth0.count(SUBJECT) <= 2,
        "{} exchanges",
        flow.auth0.count(SUBJECT)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_long_or_no_json_or_something_else_changes_nothing() {
    let rule = json!({ "json": { "pointer": "/ok", "equals": false } });
    let long = format!(r#"{{"ok":false,"x":"{}"}}"#, "y".repeat(64 * 1024));
    let chunked = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    let answers = [
        http("200 OK", "application/json", &long),
        chunked,
        http("200 OK", "application/json", r#"{"ok":false"#),
        http("200 OK", "text/plain", r#"{"ok":false}"#),
        http("200 OK", "application/json", r#"{"ok":"false"}"#),
        http("200 OK", "application/json", r#"[{"ok":false}]"#),
        http("200 OK", "application/json", ""),
    ];
    let count = answers.len();
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (flow, origin) = flow(rule, move |_| {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        answers[n].clone()
    })
    .await;
    let mut caller = caller(&flow, origin).await;
    for _ in 0..count {
        assert_eq!(caller.get("/").await.status, 200);
    }
    assert_eq!(flow.auth0.count(SUBJECT), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_is_not_held_back_until_it_is_judged() {
    let rule = json!({ "json": { "pointer": "/ok", "equals": false } });
    let flow = Setup::default().start().await;
    flow.agent
        .reload(flow.config(route(json!({ "purge": rule }))))
        .unwrap();
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), &["http/1.1"], move |mut stream, _| {
        let wait = wait.clone();
        async move {
            let head = read_head(&mut stream).await;
            assert!(head.contains("accept-encoding: identity"), "{head}");
            let start =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{\"ok\"";
            stream.write_all(start.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
            wait.notified().await;
            stream.write_all(b":false}").await.unwrap();
            stream.flush().await.unwrap();
            read_head(&mut stream).await;
        }
    })
    .await;
    let mut caller = caller(&flow, origin).await;
    let request = caller.request("GET", "/").body(tv_tests::flow::empty()).unwrap();
    let mut body = caller.send(request).await.unwrap().into_body();
    let first = within(body.frame()).await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(
        &first[..],
        b"{\"ok\"",
        "the first part came before the last was sent"
    );
    assert_eq!(flow.agent.tokens().len(), 1);
    go.notify_one();
    let rest = within(body.collect()).await.unwrap().to_bytes();
    assert_eq!(&rest[..], b":false}");
    assert!(eventually(|| flow.agent.tokens().is_empty()).await);
}

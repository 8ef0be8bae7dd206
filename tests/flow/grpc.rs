//! gRPC over HTTP/2: one call, a stream in both directions, failures of the method's and of ours.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::pki::Flaw;
use tv_tests::flow::{Answer, Caller, Flow, HOST, PROVIDER, SUBJECT, Setup, whole, within};

/// A message with its five bytes of prefix.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    [&[0][..], &length, text.as_bytes()].concat().into()
}

fn call(caller: &Caller, token: Option<&str>, method: &str) -> http::request::Builder {
    let builder = caller
        .bare("POST", &format!("/tv.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    match token {
        Some(token) => builder.header("authorization", format!("Bearer {token}")),
        None => builder,
    }
}

/// The status of an answer that ends before any message: one header block, nothing after it.
fn trailers_only(answer: &Answer) -> (&str, &str) {
    assert_eq!(answer.status, 200);
    assert!(answer.body.is_empty() && answer.trailers.is_none(), "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/grpc"));
    let message = answer.header("grpc-message").unwrap();
    (answer.header("grpc-status").unwrap(), message)
}

async fn ask(flow: &Flow, token: Option<&str>, method: &str) -> Answer {
    let mut caller = flow.h2(HOST).await;
    let request = call(&caller, token, method).body(whole(message("ping"))).unwrap();
    caller.answer(request).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_ends_with_trailers() {
    let flow = Setup::default().start().await;
    let answer = ask(&flow, Some(SUBJECT), "Unary").await;
    assert_eq!((answer.status.as_u16(), &answer.body), (200, &message("ping")));
    assert_eq!(answer.trailers.as_ref().unwrap()["grpc-status"], "0");
    let received = &flow.origin.requests()[0];
    assert_eq!(received.header("te"), Some("trailers"));
    assert_eq!(received.token().as_deref(), Some(PROVIDER));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_go_both_ways_before_either_side_ends() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h2(HOST).await;
    let (mut sender, body) = Channel::<Bytes, Box<dyn std::error::Error + Send + Sync>>::new(1);
    let request = call(&caller, Some(SUBJECT), "Stream")
        .body(body.boxed_unsync())
        .unwrap();
    let response = caller.send(request).await.unwrap();
    assert_eq!(
        response.status(),
        200,
        "the header is here while the request goes on"
    );
    let mut body = response.into_body();
    for n in 0..20 {
        let sent = message(&format!("message {n}"));
        sender.send_data(sent.clone()).await.unwrap();
        let frame = within(body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), sent);
    }
    drop(sender);
    let frame = within(body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
    assert!(body.frame().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_the_method_passes_untouched() {
    let flow = Setup::default().start().await;
    let answer = ask(&flow, Some(SUBJECT), "Fail").await;
    assert_eq!(trailers_only(&answer), ("5", "no such thing"));
    assert!(!answer.ours());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_trailers_only_with_the_matching_status() {
    let flow = Setup {
        vault_timeout: 1,
        ..Setup::default()
    }
    .start()
    .await;
    let cases = [
        (None, Mode::Normal, "16", "unauthorized"),
        (
            Some("nobody-knows-me-0001"),
            Mode::Normal,
            "16",
            "token_exchange_failed",
        ),
        (
            Some("subject-token-new-0001"),
            Mode::ServerError,
            "14",
            "vault_unavailable",
        ),
        (
            Some("subject-token-new-0002"),
            Mode::NotJson,
            "13",
            "invalid_response",
        ),
        (Some("subject-token-new-0003"), Mode::Hang, "4", "vault_timeout"),
        (
            Some("subject-token-new-0004"),
            Mode::RateLimited { retry_after: Some(3) },
            "14",
            "rate_limited",
        ),
    ];
    for (token, mode, status, error) in cases {
        flow.auth0.set_mode(mode);
        let answer = ask(&flow, token, "Unary").await;
        assert!(answer.ours(), "{error}");
        let (code, message) = trailers_only(&answer);
        assert_eq!(code, status, "{error}");
        assert!(message.starts_with(error), "{message}");
    }
    assert_eq!(flow.origin.count(), 0);

    let flow = Setup {
        flaw: Some(Flaw::Expired),
        ..Setup::default()
    }
    .start()
    .await;
    let answer = ask(&flow, Some(SUBJECT), "Unary").await;
    let (code, message) = trailers_only(&answer);
    assert_eq!(
        (code, message.starts_with("upstream_tls_error")),
        ("14", true),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_stream_does_not_wait_for_the_callers_end() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h2(HOST).await;
    let (mut sender, body) = Channel::<Bytes, Box<dyn std::error::Error + Send + Sync>>::new(1);
    let request = call(&caller, None, "Stream").body(body.boxed_unsync()).unwrap();
    let response = tokio::time::timeout(Duration::from_secs(5), caller.send(request)).await;
    let answer = Answer::read(response.unwrap().unwrap()).await.unwrap();
    assert_eq!(trailers_only(&answer).0, "16");
    // Its side may still be talking.
    drop(sender.send_data(message("too late")).await);
    assert_eq!(
        caller.get("/headers").await.status,
        200,
        "and the connection goes on"
    );
}

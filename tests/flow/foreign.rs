//! Mixed workloads: tokens that the vault would not know, on hosts that are routed.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use serde_json::json;
use tv_tests::flow::{Flow, HOST, PROVIDER, SUBJECT, Setup, empty};

use tv_agent::policy::credentials::Issuer;

use crate::inject::route;

const OWN: &str = "ghp_a-token-of-the-providers-own-0001";

/// A JWT as another issuer would make it; nobody verifies its signature.
fn other_issuer() -> String {
    let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({ "iss": "https://accounts.google.com", "sub": "1" });
    format!("{}.{}.c2ln", part(json!({ "alg": "RS256" })), part(claims))
}

/// A flow whose vault is that of a tenant by its name, as `domain` in a configuration makes it.
async fn flow(more: serde_json::Value) -> Flow {
    let flow = Setup::default().start().await;
    let mut config = flow.config(route(more));
    config.routes[0].credentials.issuers = vec![Issuer::At("tenant.eu.auth0.com".into())];
    flow.agent.reload(config).unwrap();
    flow
}

async fn send(flow: &Flow, h2: bool, authorization: &str) -> tv_tests::flow::Answer {
    let mut caller = if h2 {
        flow.h2(HOST).await
    } else {
        flow.h1(HOST).await
    };
    let request = caller
        .bare("GET", "/headers")
        .header("authorization", authorization);
    caller.answer(request.body(empty()).unwrap()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_token_is_refused_by_default_and_told_how_to_be_allowed() {
    let flow = flow(json!({})).await;
    for (token, what) in [
        (OWN.to_owned(), "GitHub"),
        (other_issuer(), "https://accounts.google.com"),
    ] {
        for h2 in [false, true] {
            let answer = send(&flow, h2, &format!("Bearer {token}")).await;
            assert_eq!(answer.refusal(), (401, "invalid_token".to_owned()));
            for part in [
                what,
                "on_foreign_token",
                "passthrough",
                "exchange",
                "route example",
            ] {
                assert!(answer.text().contains(part), "{part}: {}", answer.text());
            }
            assert!(!answer.text().contains(&token));
        }
    }
    assert_eq!((flow.auth0.exchanges().len(), flow.origin.count()), (0, 0));
    assert_eq!(flow.requests("example", "invalid_token", "4xx"), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_token_may_pass_as_it_came_and_others_are_still_swapped() {
    let flow = flow(json!({ "on_foreign_token": "passthrough" })).await;
    flow.origin.accept(OWN, "bob");
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{OWN}:")));
    for authorization in [
        format!("Bearer {OWN}"),
        basic,
        format!("token {OWN}"),
        format!("Bearer {}", other_issuer()),
    ] {
        for h2 in [false, true] {
            let answer = send(&flow, h2, &authorization).await;
            assert!(!answer.ours(), "{authorization}: {}", answer.text());
            let received = flow.origin.requests().pop().unwrap();
            assert_eq!(received.header("authorization"), Some(&*authorization));
        }
    }
    assert_eq!(flow.auth0.exchanges().len(), 0);
    assert!(flow.requests("example", "passed_through", "2xx") >= 2);
    // A subject token is none of them: it never passes, whatever becomes of its exchange.
    assert_eq!(send(&flow, false, &format!("Bearer {SUBJECT}")).await.status, 200);
    let received = flow.origin.requests().pop().unwrap();
    assert_eq!(
        received.header("authorization"),
        Some(&*format!("Bearer {PROVIDER}"))
    );
    let before = flow.origin.count();
    let unknown = send(&flow, false, "Bearer opaque-and-unknown-0001").await;
    assert_eq!(unknown.refusal(), (401, "token_exchange_failed".to_owned()));
    let digest = send(&flow, false, "Digest username=x").await;
    assert_eq!(digest.refusal(), (401, "invalid_token".to_owned()));
    assert_eq!(flow.origin.count(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_token_may_be_exchanged_all_the_same() {
    let flow = flow(json!({ "on_foreign_token": "exchange" })).await;
    let token = other_issuer();
    flow.auth0.connect(&token, "example", PROVIDER, 3600);
    flow.origin.forbid(&token);
    for h2 in [false, true] {
        assert_eq!(send(&flow, h2, &format!("Bearer {token}")).await.status, 200);
    }
    assert_eq!(flow.auth0.count(&token), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_of_which_only_the_endpoint_is_known_takes_any_issuers_tokens() {
    let flow = Setup::default().start().await;
    let token = other_issuer();
    flow.auth0.connect(&token, "example", PROVIDER, 3600);
    flow.origin.forbid(&token);
    assert_eq!(send(&flow, false, &format!("Bearer {token}")).await.status, 200);
    assert_eq!(flow.auth0.count(&token), 1);
    assert_eq!(
        send(&flow, false, &format!("Bearer {OWN}")).await.refusal().0,
        401
    );
}

//! A certified OpenID provider issues the tokens: discovery, JWKS, introspection, client credentials, key rotation.

use std::sync::Arc;
use std::time::Duration;

use rustls::RootCertStore;
use serde_json::{Value, json};
use tv_agent::{https, limits};
use tv_tests::flow::{Flow, HOST, OPEN_HOST, PROVIDER, Setup, empty};
use tv_tests::provider::{CLIENT, Provider, SECRET};

use crate::kinds::{ask, received};

const JWT: &str = "https://api.test/jwt";
const OPAQUE: &str = "https://api.test/opaque";

/// An access token for `audience` by client credentials (RFC 6749 §4.4, RFC 8707); the vault and the origin learn of it.
async fn token(flow: &Flow, provider: &Provider, audience: &str, scope: &str) -> String {
    let mut roots = RootCertStore::empty();
    roots.add(flow.pki.root().clone()).unwrap();
    let client = https::client(Arc::new(roots)).unwrap();
    let form = [
        ("grant_type", "client_credentials"),
        ("resource", audience),
        ("scope", scope),
    ];
    let call = client
        .post(format!("{}/token", provider.issuer()))
        .basic_auth(CLIENT, Some(SECRET))
        .form(&form);
    let (mut answer, mut body) = (call.send().await.unwrap(), Vec::new());
    assert!(
        https::fill(&mut answer, &mut body, limits::TOKEN_RESPONSE_BYTES)
            .await
            .unwrap()
    );
    let answer: Value = serde_json::from_slice(&body).unwrap();
    let token = answer["access_token"]
        .as_str()
        .unwrap_or_else(|| panic!("{answer}"))
        .to_owned();
    flow.auth0.connect(&token, "example", PROVIDER, 3600);
    flow.origin.forbid(&token);
    token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certified_provider_is_understood() {
    let flow = Setup::default().start().await;
    let mut provider = Provider::start(&flow.pki);
    let routes = json!([
        { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
          "verify": "corp" },
    ]);
    let asks = json!({
        "client_id": CLIENT, "hint": "access_token",
        "client_auth": { "method": "client_secret_basic", "secret": { "env": "SECRET" } },
    });
    let mut corp = json!({
        "issuer": provider.issuer(), "audiences": [JWT, OPAQUE], "scopes": ["read"],
        "claim_paths": { "identity": ["client_id"] }, "introspection": asks,
    });
    let reload = |corp: &Value| {
        let config = flow.config_with(routes.clone(), json!({ "corp": corp }));
        flow.agent.reload(config).unwrap();
    };
    let ask = async |token: &str| {
        let answer = flow.h1(HOST).await.get_as(token, "/headers").await;
        if answer.ours() {
            answer.refusal()
        } else {
            (answer.status.as_u16(), String::new())
        }
    };
    let good = (200, String::new());
    let refused = |status: u16, error: &str| (status, error.to_owned());

    // The agent's client secret at the vault is not the one at this provider: our credentials are refused.
    reload(&corp);
    let jwt = token(&flow, &provider, JWT, "read").await;
    let opaque = token(&flow, &provider, OPAQUE, "read write").await;
    assert_eq!(jwt.matches('.').count(), 2);
    assert_eq!(opaque.matches('.').count(), 0);
    assert_eq!(ask(&jwt).await, good);
    assert_eq!(ask(&opaque).await, refused(502, "configuration_error"));
    let body = format!("{CLIENT}:{SECRET}");
    let basic = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, body);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("Basic {basic}\n")).unwrap();
    corp["introspection"] = json!({ "authorization": { "file": file.path() }, "hint": "access_token" });
    reload(&corp);
    assert_eq!(ask(&opaque).await, good);
    assert_eq!(
        ask("not-a-token-of-this-provider").await,
        refused(401, "invalid_token")
    );
    let poor = token(&flow, &provider, JWT, "write").await;
    assert_eq!(ask(&poor).await, refused(403, "insufficient_scope"));
    let poor = token(&flow, &provider, OPAQUE, "write").await;
    assert_eq!(ask(&poor).await, refused(403, "insufficient_scope"));
    let elsewhere = token(&flow, &provider, "https://other.test/jwt", "read").await;
    assert_eq!(ask(&elsewhere).await, refused(401, "invalid_token"));
    let (kept, _) = flow.agent.flows().follow();
    let named = kept
        .iter()
        .filter(|flow| flow.identity.as_deref() == Some(CLIENT))
        .count();
    assert_eq!(named, 2, "the requests that were let through");

    // The keys were fetched a moment ago; the new one is looked for as soon as the floor lets it.
    assert_eq!(ask(&jwt).await, good);
    let before = provider.kid().to_owned();
    provider.rotate();
    assert_ne!(provider.kid(), before);
    let new = token(&flow, &provider, JWT, "read").await;
    tokio::time::sleep(limits::METADATA_FLOOR + Duration::from_millis(500)).await;
    assert_eq!(ask(&new).await, good);
    assert_eq!(ask(&jwt).await, good, "the old key is still published");
    // Once the keys are fetched anew, a key that is gone is gone.
    provider.retire();
    reload(&corp);
    assert_eq!(ask(&new).await, good);
    assert_eq!(ask(&jwt).await, refused(401, "invalid_token"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_credentials_at_a_certified_provider_and_its_tokens_signed_anew() {
    let flow = Setup::default().start().await;
    let provider = Provider::start(&flow.pki);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), SECRET).unwrap();
    let load = |scope: &str| {
        let vault = json!({
            "kind": "client_credentials", "issuer": provider.issuer(), "client_id": CLIENT,
            "client_auth": { "method": "client_secret_basic", "secret": { "file": file.path() } },
            "resource": JWT, "scope": scope,
        });
        let verifier = json!({ "issuer": provider.issuer(), "audiences": [JWT], "scopes": ["read"],
            "claim_paths": { "identity": ["client_id"] } });
        let more = json!({
            "vaults": { "m2m": vault, "sign": { "kind": "jwt_signer", "keyset": "own", "issuer": "https://gateway.test" } },
            "verifiers": { "corp": verifier },
            "keysets_dir": flow.dir().join("keys"),
            "keysets": { "own": { "generate": { "algorithm": "PS256" } } },
        });
        let routes = json!([
            { "name": "m2m", "hosts": ["*.example.test"], "vault": "m2m" },
            { "name": "sign", "hosts": ["*.open.test"], "vault": "sign", "verify": "corp" },
        ]);
        flow.agent.reload(flow.config_more(more, routes)).unwrap();
    };
    load("read");
    let request = |host: &'static str| async {
        let mut caller = flow.h1(host).await;
        let request = caller.bare("GET", "/headers").body(empty()).unwrap();
        caller.answer(request).await
    };
    assert_eq!(request(HOST).await.status, 200);
    let given = received(&flow);
    let claims = |token: &str| {
        jsonwebtoken::dangerous::insecure_decode::<Value>(token)
            .unwrap()
            .claims
    };
    assert_eq!(
        (
            &claims(&given)["iss"],
            &claims(&given)["aud"],
            &claims(&given)["scope"]
        ),
        (&json!(provider.issuer()), &json!(JWT), &json!("read"))
    );
    // The same token, brought by a caller, becomes one of ours.
    assert_eq!(ask(&flow, OPEN_HOST, &given).await.status, 200);
    let ours = claims(&received(&flow));
    assert_eq!(
        (
            &ours["iss"],
            &ours["original_iss"],
            &ours["client_id"],
            &ours["exp"]
        ),
        (
            &json!("https://gateway.test"),
            &json!(provider.issuer()),
            &json!(CLIENT),
            &claims(&given)["exp"]
        )
    );
    // Credentials that the provider does not take are a defect of ours, and no caller's.
    std::fs::write(file.path(), "another-secret").unwrap();
    load("write");
    let refused = (502, "configuration_error".to_owned());
    assert_eq!(request(HOST).await.refusal(), refused);
}

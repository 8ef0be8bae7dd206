//! Routes whose vault signs: what leaves the node is ours, and tells what was verified.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as B64;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value, json};
use tv_tests::fakes::idp::{INTROSPECTION, Reply};
use tv_tests::fakes::oauth::dialect;
use tv_tests::flow::{Answer, Flow, HOST, SUBJECT, empty, eventually};

use crate::kinds::{ask, received};
use crate::steps::{Steps, last_request, now};

async fn steps() -> Steps {
    Steps::new(dialect::keycloak).await
}

/// The vault `sign` with `vault`'s settings and the key sets `a` and `b`.
fn load(steps: &Steps, vault: Value, route: Value, verifiers: Value) {
    let mut sign = json!({ "kind": "jwt_signer", "keyset": "a" });
    let entries = vault.as_object().unwrap();
    entries.iter().for_each(|(key, value)| sign[key] = value.clone());
    let mut whole = json!({ "vault": "sign" });
    let entries = route.as_object().unwrap();
    entries.iter().for_each(|(key, value)| whole[key] = value.clone());
    let more = json!({
        "keysets_dir": steps.flow.dir().join("keys"),
        "keysets": {
            "a": { "generate": { "algorithm": "ES256" } },
            "b": { "generate": { "algorithm": "EdDSA" } },
        },
        "vaults": { "sign": sign },
        "verifiers": verifiers,
    });
    steps.load(more, whole);
}

/// The claims of a token that a published key has signed.
fn claims(flow: &Flow, set: &str, token: &str) -> Map<String, Value> {
    let published = flow.agent.current().load().keysets.jwks(Some(set)).unwrap();
    let published: JwkSet = serde_json::from_value(published).unwrap();
    let header = decode_header(token).unwrap();
    let key = published
        .find(header.kid.as_ref().unwrap())
        .expect("a published key");
    let mut validation = Validation::new(header.alg);
    validation.validate_aud = false;
    decode(token, &DecodingKey::from_jwk(key).unwrap(), &validation)
        .unwrap()
        .claims
}

async fn send(flow: &Flow, headers: &[(&str, &str)]) -> Answer {
    let mut caller = flow.h1(HOST).await;
    let request = caller.bare("GET", "/headers");
    let request = headers
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    caller.answer(request.body(empty()).unwrap()).await
}

fn header(flow: &Flow, name: &str) -> Option<String> {
    flow.origin
        .requests()
        .last()
        .unwrap()
        .header(name)
        .map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_is_signed_anew_with_its_claims_edited() {
    let steps = steps().await;
    let vault = json!({
        "issuer": "https://gateway.example", "expiry_leeway_seconds": 60,
        "add_claims": { "sub": "nobody", "tier": { "name": "gold" } }, "set_claims": { "aud": ["orders"] },
        "remove_claims": ["email"], "original_token_header": "X-Original",
    });
    let route = json!({ "subject_from": [{ "cookie": "at" }] });
    load(&steps, vault, route, json!({}));
    let flow = &steps.flow;
    let end = now() + 300;
    let token = steps.token(json!({ "sub": "alice", "email": "a@b", "aud": "gateway", "exp": end }));
    let bearer = format!("Bearer {token}");
    let cookie = format!("at={token}; theme=dark");
    let answer = send(
        flow,
        &[
            ("authorization", &bearer),
            ("cookie", &cookie),
            ("x-original", "spoofed"),
        ],
    )
    .await;
    assert_eq!(answer.status, 200);
    let ours = received(flow);
    assert_ne!(ours, token);
    let claims = claims(flow, "a", &ours);
    for (name, expected) in [
        ("iss", json!("https://gateway.example")),
        ("original_iss", json!(steps.idp.issuer())),
        ("sub", json!("alice")),
        ("aud", json!(["orders"])),
        ("tier", json!({ "name": "gold" })),
        ("exp", json!(end + 60)),
    ] {
        assert_eq!(claims[name], expected, "{name}");
    }
    assert!(!claims.contains_key("email"), "{claims:?}");
    let last = flow.origin.requests().pop().unwrap();
    let all: Vec<_> = last
        .headers
        .iter()
        .filter(|(_, value)| value.contains(token.as_str()))
        .collect();
    assert_eq!(all.len(), 1, "one copy, where the operator wants it: {all:?}");
    assert_eq!(header(flow, "x-original").as_deref(), Some(token.as_str()));
    assert_eq!(header(flow, "cookie").as_deref(), Some("theme=dark"));
    let (record, _) = flow.agent.flows().follow();
    assert_eq!(last_request(&record).identity.as_deref(), Some("alice"));

    let counted = "tv_agent_identified_requests_total{identity=\"alice\"} 1";
    assert!(flow.metrics.render().contains(counted));

    // What cannot be signed, or was not verified, does not go out.
    let before = flow.origin.count();
    let over = steps.token(json!({ "sub": "alice", "exp": now() - 3600 }));
    let none = format!(
        "{}.{}.",
        B64.encode(r#"{"alg":"none"}"#),
        token.split('.').nth(1).unwrap()
    );
    for bad in [over.as_str(), none.as_str(), SUBJECT] {
        assert_eq!(
            ask(flow, HOST, bad).await.refusal(),
            (401, "invalid_token".to_owned())
        );
    }
    assert_eq!(send(flow, &[("x-original", "spoofed")]).await.refusal().0, 401);
    assert_eq!(flow.origin.count(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_and_channel_token_are_each_signed_and_neither_can_be_spoofed() {
    let steps = steps().await;
    let vault = json!({
        "original_token_header": "X-Original",
        "channel": { "keyset": "b", "header": "X-Channel-Signed", "issuer": "channels", "set_claims": { "seen": true },
            "original_token_header": "X-Channel-Original" },
    });
    let verify = json!({ "access": "corp", "optional": true,
        "channel": { "verifier": "partner", "header": "X-Channel", "optional": true } });
    let partner = json!({ "issuer": steps.idp.issuer(), "audiences": ["channel"] });
    let route = json!({ "verify": verify, "on_missing_token": "passthrough", "inject": { "header": "X-Access", "scheme": "none" } });
    load(&steps, vault, route, json!({ "partner": partner }));
    let flow = &steps.flow;
    let (access, channel) = (
        steps.token(json!({ "sub": "alice" })),
        steps.token(json!({ "sub": "shop", "aud": "channel" })),
    );
    let bearer = format!("Bearer {access}");
    let spoofed = [
        ("x-access", "spoofed"),
        ("x-original", "spoofed"),
        ("x-channel-signed", "spoofed"),
        ("x-channel-original", "spoofed"),
    ];
    let with = |more: &[(&'static str, String)]| {
        let mut all: Vec<(&str, String)> = spoofed.iter().map(|(n, v)| (*n, (*v).to_owned())).collect();
        all.extend(more.iter().cloned());
        all
    };
    let ask = async |more: &[(&'static str, String)]| {
        let all = with(more);
        let all: Vec<(&str, &str)> = all.iter().map(|(n, v)| (*n, v.as_str())).collect();
        send(flow, &all).await
    };
    assert_eq!(
        ask(&[("authorization", bearer.clone()), ("x-channel", channel.clone())])
            .await
            .status,
        200
    );
    let signed = header(flow, "x-access").unwrap();
    assert_eq!(claims(flow, "a", &signed)["sub"], "alice");
    let signed = header(flow, "x-channel-signed").unwrap();
    let of_channel = claims(flow, "b", &signed);
    assert_eq!(
        (&of_channel["sub"], &of_channel["iss"], &of_channel["seen"]),
        (&json!("shop"), &json!("channels"), &json!(true))
    );
    assert_eq!(header(flow, "x-original"), Some(access.clone()));
    assert_eq!(header(flow, "x-channel-original"), Some(channel.clone()));
    for gone in ["authorization", "x-channel"] {
        assert_eq!(header(flow, gone), None, "{gone}");
    }

    // Without a channel token nothing stands where ours would.
    assert_eq!(ask(&[("authorization", bearer.clone())]).await.status, 200);
    assert_eq!(header(flow, "x-original"), Some(access.clone()));
    for gone in ["x-channel", "x-channel-signed", "x-channel-original"] {
        assert_eq!(header(flow, gone), None, "{gone}");
    }
    // Nor without any.
    assert_eq!(ask(&[]).await.status, 200);
    for gone in ["x-access", "x-original", "x-channel-signed", "x-channel-original"] {
        assert_eq!(header(flow, gone), None, "{gone}");
    }
    // A bad one is refused, and names which.
    let before = flow.origin.count();
    let answer = ask(&[("authorization", bearer), ("x-channel", access)]).await;
    assert_eq!(answer.refusal(), (401, "invalid_token".to_owned()));
    assert!(answer.text().contains("channel token"), "{}", answer.text());
    assert_eq!(flow.origin.count(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opaque_token_is_signed_by_what_its_issuer_says_of_it() {
    let steps = steps().await;
    let asks = json!({ "client_id": "agent",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } } });
    let opaque = json!({ "opaque": { "issuer": steps.idp.issuer(), "introspection": asks } });
    load(&steps, json!({}), json!({ "verify": "opaque" }), opaque);
    let flow = &steps.flow;
    let token = "an-opaque-token-of-the-test-0001";
    steps.idp.set(
        INTROSPECTION,
        Reply::Json(json!({ "active": true, "sub": "alice", "exp": now() + 60, "scope": "read" })),
    );
    assert_eq!(ask(flow, HOST, token).await.status, 200);
    let claims = claims(flow, "a", &received(flow));
    assert_eq!(
        (&claims["sub"], &claims["scope"]),
        (&json!("alice"), &json!("read"))
    );
    steps
        .idp
        .set(INTROSPECTION, Reply::Json(json!({ "active": false })));
    let answer = ask(flow, HOST, "an-opaque-token-that-was-revoked").await;
    assert_eq!(answer.refusal(), (401, "invalid_token".to_owned()));
    steps.idp.set(INTROSPECTION, Reply::Status(500));
    assert_eq!(
        ask(flow, HOST, "an-opaque-token-nobody-knows-of")
            .await
            .refusal()
            .0,
        503
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_rotation_the_old_key_is_published_and_the_new_one_signs() {
    let steps = steps().await;
    load(&steps, json!({}), json!({}), json!({}));
    let flow = &steps.flow;
    let token = steps.token(json!({ "sub": "alice" }));
    assert_eq!(ask(flow, HOST, &token).await.status, 200);
    let first = received(flow);
    let keysets = flow.agent.current().load().keysets.clone();
    keysets.get("a").unwrap().rotate(now()).unwrap();
    assert_eq!(ask(flow, HOST, &token).await.status, 200);
    let second = received(flow);
    let kid = |token: &str| decode_header(token).unwrap().kid.unwrap();
    assert_ne!(kid(&first), kid(&second));
    for token in [&first, &second] {
        assert_eq!(claims(flow, "a", token)["sub"], "alice");
    }
    // A reload keeps both.
    load(&steps, json!({}), json!({}), json!({}));
    assert_eq!(claims(flow, "a", &first)["sub"], "alice");
    assert_eq!(ask(flow, HOST, &token).await.status, 200);
    assert_eq!(kid(&received(flow)), kid(&second));
    // Rotated twice, the first one's time is over.
    let keysets = flow.agent.current().load().keysets.clone();
    keysets.get("a").unwrap().rotate(now()).unwrap();
    let published = || {
        flow.agent
            .current()
            .load()
            .keysets
            .jwks(Some("a"))
            .unwrap()
            .to_string()
    };
    assert!(eventually(|| !published().contains(&kid(&first))).await);
    assert!(published().contains(&kid(&second)));
}

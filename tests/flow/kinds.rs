//! Every kind of vault end to end: the right token reaches the origin, and each refusal its caller.

use std::net::SocketAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tv_tests::fakes::oauth::{Call, TokenServer, Verdict, dialect};
use tv_tests::flow::{Answer, Flow, SUBJECT, Setup, empty, whole};

const CALLER: (&str, &str) = ("caller-1", "caller-secret-of-the-test-0001");

/// A running agent whose vault `kc` asks `judge`'s server.
pub async fn with(
    judge: impl Fn(&Call) -> Verdict + Send + Sync + 'static,
    vault: Value,
    routes: Value,
) -> (Flow, TokenServer) {
    let flow = Setup::default().start().await;
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = TokenServer::start(&[anywhere], &flow.pki.leaf(&["127.0.0.1"]), judge).unwrap();
    let mut settings = json!({ "token_endpoint": server.endpoint() });
    if vault.get("credentials").is_none() {
        settings["client_id"] = json!("client-1");
        settings["client_auth"] = json!({ "method": "client_secret_post", "secret": { "env": "SECRET" } });
    }
    settings
        .as_object_mut()
        .unwrap()
        .extend(vault.as_object().unwrap().clone());
    if vault.get("issuer").is_some() {
        settings["issuer"] = json!(server.issuer());
        settings.as_object_mut().unwrap().remove("token_endpoint");
    }
    let config = flow.config_vaults(json!({ "kc": settings }), routes);
    flow.agent.reload(config).unwrap();
    (flow, server)
}

pub fn route(host: &str, more: Value) -> Value {
    let mut route = json!({ "name": host, "hosts": [format!("*.{host}")], "vault": "kc" });
    route
        .as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    route
}

/// The bearer token that the origin received last.
pub fn received(flow: &Flow) -> String {
    flow.origin.requests().last().unwrap().token().unwrap()
}

pub async fn ask(flow: &Flow, host: &str, subject: &str) -> Answer {
    flow.h1(host).await.get_as(subject, "/headers").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_token_many_audiences() {
    let vault = json!({ "kind": "on_behalf_of" });
    let routes = json!([
        route(
            "example.test",
            json!({ "audience": "https://orders.example", "scope": "read:orders" })
        ),
        route("open.test", json!({ "audience": "https://stock.example" })),
        route("github.com", json!({ "audience": "https://forbidden.example" })),
    ]);
    let (flow, server) = with(dialect::auth0_obo, vault, routes).await;
    for (host, audience) in [("api.example.test", "orders"), ("api.open.test", "stock")] {
        for _ in 0..2 {
            assert_eq!(ask(&flow, host, SUBJECT).await.status, 200);
            assert_eq!(
                received(&flow),
                format!("obo-token-for-https://{audience}.example")
            );
        }
    }
    assert_eq!(server.count(), 2, "one exchange per audience");
    let calls = server.calls();
    assert_eq!(
        (calls[0].get("scope"), calls[1].get("scope")),
        (Some("read:orders"), None)
    );
    // Without permission for that audience: the caller's matter, and no gateway error.
    let answer = ask(&flow, "api.github.com", SUBJECT).await;
    assert_eq!(answer.refusal(), (403, "access_denied".to_owned()));
    let before = flow.origin.count();
    let answer = ask(&flow, "api.example.test", "chained-token-of-the-test-0001").await;
    assert_eq!(answer.refusal(), (403, "access_denied".to_owned()));
    assert_eq!(flow.origin.count(), before, "nothing reached the provider");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_us_is_a_gateway_error_and_a_bound_token_is_never_sent() {
    let routes = json!([
        route("example.test", json!({ "audience": "https://ungranted.example" })),
        route("open.test", json!({ "audience": "https://dpop.example" })),
    ]);
    let (flow, _server) = with(dialect::auth0_obo, json!({ "kind": "on_behalf_of" }), routes).await;
    let answer = ask(&flow, "api.example.test", SUBJECT).await;
    assert_eq!(answer.refusal(), (502, "configuration_error".to_owned()));
    let answer = ask(&flow, "api.open.test", SUBJECT).await;
    assert_eq!(answer.refusal(), (502, "invalid_response".to_owned()));
    assert_eq!(flow.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keycloak_and_its_refusals() {
    let vault = json!({ "kind": "token_exchange", "preset": "keycloak", "issuer": "discovered" });
    let routes = json!([
        route(
            "example.test",
            json!({ "audience": "orders", "scope": "profile" })
        ),
        route("open.test", json!({ "audience": "forbidden" })),
        route("github.com", json!({ "audience": "unknown" })),
    ]);
    let (flow, _server) = with(dialect::keycloak, vault, routes).await;
    assert_eq!(ask(&flow, "api.example.test", SUBJECT).await.status, 200);
    assert_eq!(received(&flow), "keycloak-token-for-orders");
    for (host, subject, status, error) in [
        ("api.open.test", SUBJECT, 403, "access_denied"),
        ("api.github.com", SUBJECT, 502, "configuration_error"),
        (
            "api.example.test",
            "foreign-token-of-the-test",
            403,
            "access_denied",
        ),
        (
            "api.example.test",
            "expired-token-of-the-test",
            401,
            "token_exchange_failed",
        ),
    ] {
        let answer = ask(&flow, host, subject).await;
        assert_eq!(answer.refusal(), (status, error.to_owned()), "{host} {subject}");
        assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
    }
    assert_eq!(flow.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rfc_8693_with_actors_and_many_targets() {
    let generic = |more: Value| {
        let mut vault =
            json!({ "kind": "token_exchange", "extra": { "tier": "gold" }, "requested_token_type": "omit" });
        vault
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        vault
    };
    let routes = || {
        json!([route(
            "example.test",
            json!({ "audience": ["a", "b"], "resource": "https://r" })
        )])
    };
    let header = generic(json!({ "actor": { "from": "header", "header": "X-Actor" } }));
    let (flow, server) = with(dialect::rfc8693, header, routes()).await;
    let mut caller = flow.h1("api.example.test").await;
    let request = caller
        .request("GET", "/headers")
        .header("x-actor", "Bearer actor-token-of-the-test");
    assert_eq!(caller.answer(request.body(empty()).unwrap()).await.status, 200);
    assert_eq!(
        received(&flow),
        "token-for-a+b+https://r-by-actor-token-of-the-test"
    );
    let last = flow.origin.requests().pop().unwrap();
    assert_eq!(
        last.header("x-actor"),
        None,
        "the actor's token is not the provider's"
    );
    assert_eq!(server.calls()[0].get("requested_token_type"), None);
    assert_eq!(server.calls()[0].get("tier"), Some("gold"));
    // Without an actor, or with a token that has ended.
    assert_eq!(
        caller.get("/headers").await.refusal(),
        (401, "unauthorized".to_owned())
    );
    let request = caller
        .bare("GET", "/headers")
        .header("authorization", "Bearer expired-token-of-the-test")
        .header("x-actor", "actor-token-of-the-test");
    let answer = caller.answer(request.body(empty()).unwrap()).await;
    assert_eq!(answer.refusal(), (401, "token_exchange_failed".to_owned()));

    let own = generic(json!({ "actor": { "from": "client_credentials" } }));
    let (flow, server) = with(dialect::rfc8693, own, routes()).await;
    for _ in 0..2 {
        assert_eq!(ask(&flow, "api.example.test", SUBJECT).await.status, 200);
        assert_eq!(
            received(&flow),
            "token-for-a+b+https://r-by-token-of-the-actor-itself"
        );
    }
    assert_eq!(
        server.count(),
        2,
        "the actor's own token and the exchange, both cached"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_user_has_to_do_reaches_the_caller() {
    let scope = json!([route(
        "example.test",
        json!({ "scope": "https://graph.microsoft.com/.default" })
    )]);
    let entra = json!({ "kind": "on_behalf_of", "preset": "entra_obo" });
    let (flow, _server) = with(dialect::entra, entra, scope.clone()).await;
    assert_eq!(ask(&flow, "api.example.test", SUBJECT).await.status, 200);
    assert_eq!(received(&flow), "entra-token");
    let answer = ask(&flow, "api.example.test", "stepup-token-of-the-test").await;
    assert_eq!(answer.refusal(), (401, "interaction_required".to_owned()));
    let challenge = answer.header("www-authenticate").unwrap();
    let encoded = BASE64_STANDARD.encode(dialect::entra_claims().to_string());
    assert!(
        challenge.contains("insufficient_claims") && challenge.contains(&encoded),
        "{challenge}"
    );

    let okta = json!({ "kind": "token_exchange", "preset": "okta" });
    let (flow, _server) = with(dialect::okta, okta, scope).await;
    assert_eq!(ask(&flow, "api.example.test", SUBJECT).await.status, 200);
    let answer = ask(&flow, "api.example.test", "unlinked-token-of-the-test").await;
    assert_eq!(answer.refusal(), (401, "connection_required".to_owned()));
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["connect_url"], "https://acme.okta.example/consent?ticket=1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_decide_what_is_exchanged_and_nothing_unverified_passes() {
    let jwt = |claims: Value| {
        let part = |text: String| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text);
        format!(
            "{}.{}.sig",
            part(r#"{"alg":"RS256","typ":"JWT"}"#.into()),
            part(claims.to_string())
        )
    };
    let vault = json!({ "kind": "token_exchange", "preset": "keycloak",
        "when": [{ "issuer": "https://idp", "missing_scopes": ["profile"] }] });
    let routes = json!([route("example.test", json!({ "audience": "orders" }))]);
    let (flow, server) = with(dialect::keycloak, vault, routes).await;
    let exchanged = jwt(json!({ "iss": "https://idp", "scope": "openid" }));
    assert_eq!(ask(&flow, "api.example.test", &exchanged).await.status, 200);
    for kept in [
        jwt(json!({ "iss": "https://idp", "scope": "openid profile" })),
        jwt(json!({ "iss": "https://other" })),
        SUBJECT.to_owned(),
    ] {
        let answer = ask(&flow, "api.example.test", &kept).await;
        assert_eq!(answer.refusal(), (401, "invalid_token".to_owned()));
    }
    assert_eq!((server.count(), flow.origin.count()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_client_credentials_need_no_caller() {
    let vault = json!({ "kind": "client_credentials", "audience": "https://api.example",
        "extra": { "organization": "org_1" } });
    let (flow, server) = with(
        dialect::client_credentials,
        vault,
        json!([route("example.test", json!({}))]),
    )
    .await;
    let mut caller = flow.h2("api.example.test").await;
    let request = caller.bare("GET", "/headers").body(empty()).unwrap();
    assert_eq!(caller.answer(request).await.status, 200);
    assert_eq!(received(&flow), "machine-token-for-https://api.example");
    // A caller's token is replaced, and costs no further call.
    assert_eq!(caller.get("/headers").await.status, 200);
    assert_eq!(received(&flow), "machine-token-for-https://api.example");
    assert_eq!(server.count(), 1);
    assert_eq!(server.calls()[0].get("organization"), Some("org_1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_client_credentials_are_used_and_stay_here() {
    let vault = json!({ "kind": "client_credentials", "audience": "https://api.example",
        "credentials": { "from": ["header", "query", "body"] } });
    let (flow, server) = with(
        dialect::client_credentials,
        vault,
        json!([route("example.test", json!({}))]),
    )
    .await;
    flow.origin.forbid(CALLER.1);
    let (id, secret) = CALLER;
    let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("{id}:{secret}")));
    let form = "application/x-www-form-urlencoded";
    let mut caller = flow.h1("api.example.test").await;
    let requests = [
        caller
            .bare("GET", "/headers")
            .header("authorization", &basic)
            .body(empty()),
        caller
            .bare(
                "GET",
                &format!("/headers?a=1&client_id={id}&client_secret={secret}&b=%20"),
            )
            .body(empty()),
        caller
            .bare("POST", "/echo")
            .header("content-type", form)
            .body(whole(format!("a=1&client_id={id}&client_secret={secret}&b=%20"))),
    ];
    for request in requests {
        let answer = caller.answer(request.unwrap()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(received(&flow), "callers-token-for-https://api.example");
    }
    assert_eq!(server.count(), 1, "one client, one token, wherever it stands");
    let echoed = caller
        .bare("POST", "/echo")
        .header("content-type", form)
        .body(whole(format!("a=1&client_id={id}&client_secret={secret}&b=%20")))
        .unwrap();
    let answer = caller.answer(echoed).await;
    assert_eq!(answer.text(), "a=1&b=%20");

    for (pair, status, error) in [
        ("caller-1:wrong", 401, "token_exchange_failed"),
        ("caller-2:caller-secret-of-the-test-0002", 403, "access_denied"),
    ] {
        let basic = format!("Basic {}", BASE64_STANDARD.encode(pair));
        let request = caller.bare("GET", "/headers").header("authorization", basic);
        let answer = caller.answer(request.body(empty()).unwrap()).await;
        assert_eq!(answer.refusal(), (status, error.to_owned()), "{pair}");
    }
    for (request, status) in [
        (caller.bare("GET", "/headers").body(empty()), 401),
        (
            caller
                .bare("GET", "/headers")
                .header("authorization", "Bearer x")
                .body(empty()),
            401,
        ),
        (caller.bare("GET", "/headers?client_id=only").body(empty()), 401),
        (
            caller
                .bare("POST", "/echo")
                .header("content-type", form)
                .body(whole("a".repeat(64 * 1024 + 1))),
            400,
        ),
    ] {
        let answer = caller.answer(request.unwrap()).await;
        assert_eq!(answer.refusal().0, status, "{}", answer.text());
        caller = flow.h1("api.example.test").await;
    }
}

/// Token Vault in the tests' own tenant, with these settings besides.
async fn token_vault(flow: &Flow, settings: Value, route_too: Value) -> Result<(), String> {
    let mut vault = json!({
        "kind": "auth0_token_vault",
        "token_endpoint": format!("https://{}/oauth/token", flow.auth0.addrs()[0]),
        "client_id": "client-1",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
    });
    vault
        .as_object_mut()
        .unwrap()
        .extend(settings.as_object().unwrap().clone());
    let mut route = route("example.test", json!({ "connection": "example" }));
    route
        .as_object_mut()
        .unwrap()
        .extend(route_too.as_object().unwrap().clone());
    let config = flow.config_vaults(json!({ "kc": vault }), json!([route]));
    flow.agent.reload(config).map_err(|error| error.to_string())
}

/// A key of the agent's client in a file, which the tenant knows.
fn client_key(flow: &Flow) -> std::path::PathBuf {
    let key = rcgen::KeyPair::generate().unwrap();
    flow.auth0.trust_key(&key.public_key_pem());
    let file = flow.dir().join("client-key.pem");
    std::fs::write(&file, key.serialize_pem()).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_vault_by_refresh_token_with_an_assertion_and_a_hint() {
    let flow = Setup::default().start().await;
    let auth =
        json!({ "method": "private_key_jwt", "key": client_key(&flow), "algorithm": "ES256", "kid": "k1" });
    let settings = json!({ "subject": "refresh_token", "client_auth": auth, "encoding": "json" });
    token_vault(
        &flow,
        settings,
        json!({ "login_hint": { "header": "X-Account" } }),
    )
    .await
    .unwrap();
    let mut caller = flow.h1("api.example.test").await;
    for (hint, expected) in [
        (None, None),
        (Some("me@work"), Some("me@work")),
        (Some("me@home"), Some("me@home")),
    ] {
        let mut request = caller.request("GET", "/headers");
        if let Some(hint) = hint {
            request = request.header("x-account", hint);
        }
        assert_eq!(caller.answer(request.body(empty()).unwrap()).await.status, 200);
        let asked = flow.auth0.exchanges().pop().unwrap();
        assert_eq!(asked.login_hint.as_deref(), expected);
        assert_eq!(
            asked.params["subject_token_type"],
            "urn:ietf:params:oauth:token-type:refresh_token"
        );
        assert_eq!(flow.origin.requests().pop().unwrap().header("x-account"), None);
    }
    // Each account has its own entry.
    assert_eq!(flow.auth0.exchanges().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_privileged_worker_works_for_absent_users() {
    let flow = Setup::default().start().await;
    flow.auth0
        .connect("auth0|1", "example", "provider-token-of-one", 3600);
    flow.auth0
        .connect("auth0|2", "example", "provider-token-of-two", 3600);
    let worker = json!({ "key": client_key(&flow), "algorithm": "ES256", "audit_context": "nightly sync",
        "user": { "header": "X-For-User" } });
    let settings = json!({ "subject": "privileged_worker", "privileged_worker": worker });
    token_vault(&flow, settings, json!({})).await.unwrap();
    let mut caller = flow.h1("api.example.test").await;
    for _ in 0..2 {
        for (user, token) in [
            ("auth0|1", "provider-token-of-one"),
            ("auth0|2", "provider-token-of-two"),
        ] {
            let request = caller.bare("GET", "/headers").header("x-for-user", user);
            assert_eq!(caller.answer(request.body(empty()).unwrap()).await.status, 200);
            assert_eq!(received(&flow), token);
            assert_eq!(flow.origin.requests().pop().unwrap().header("x-for-user"), None);
        }
    }
    assert_eq!(flow.auth0.exchanges().len(), 2);
    let request = caller.bare("GET", "/headers").body(empty()).unwrap();
    assert_eq!(
        caller.answer(request).await.refusal(),
        (401, "invalid_token".to_owned())
    );
    let request = caller
        .bare("GET", "/headers")
        .header("x-for-user", "auth0|3")
        .body(empty())
        .unwrap();
    assert_eq!(caller.answer(request).await.refusal().0, 401);
}

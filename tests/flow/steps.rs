//! The steps of a request together: what was verified decides what is asked, what goes out, and what passes.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tv_tests::fakes::idp::{Idp, SigningKey};
use tv_tests::fakes::oauth::{Call, TokenServer, Verdict, dialect};
use tv_tests::flow::{Flow, HOST, PROVIDER, SUBJECT, Setup, empty};

use crate::kinds::{ask, received};

/// A running agent, an issuer whose tokens it verifies as `corp`, and a token endpoint.
pub struct Steps {
    pub flow: Flow,
    pub idp: Idp,
    pub key: SigningKey,
    server: TokenServer,
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

impl Steps {
    pub async fn new(judge: impl Fn(&Call) -> Verdict + Send + Sync + 'static) -> Self {
        let flow = Setup::default().start().await;
        let key = SigningKey::new("k", Algorithm::ES256);
        let idp = Idp::start(&flow.pki, &[&key]).unwrap();
        let anywhere = "127.0.0.1:0".parse().unwrap();
        let server = TokenServer::start(&[anywhere], &flow.pki.leaf(&["127.0.0.1"]), judge).unwrap();
        Self {
            flow,
            idp,
            key,
            server,
        }
    }

    /// One route to [`HOST`], with the verifier `corp` and what `more` says at the top of the file.
    pub fn load(&self, mut more: Value, route: Value) {
        more["verifiers"]["corp"] = json!({ "issuer": self.idp.issuer() });
        let mut whole = json!({ "name": "r", "hosts": ["*.example.test"], "verify": "corp" });
        let entries = route.as_object().unwrap();
        entries.iter().for_each(|(key, value)| whole[key] = value.clone());
        let config = self.flow.config_more(more, json!([whole]));
        self.flow.agent.reload(config).unwrap();
    }

    /// As [`Steps::load`], with the vault `kc` at the token endpoint.
    fn load_vault(&self, vault: Value, route: Value) {
        let mut settings = json!({
            "token_endpoint": self.server.endpoint(),
            "client_id": "client-1",
            "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
        });
        let entries = vault.as_object().unwrap();
        entries
            .iter()
            .for_each(|(key, value)| settings[key] = value.clone());
        let mut whole = json!({ "vault": "kc" });
        let entries = route.as_object().unwrap();
        entries.iter().for_each(|(key, value)| whole[key] = value.clone());
        self.load(json!({ "vaults": { "kc": settings } }), whole);
    }

    /// A token of the issuer with these claims besides `iss` and `exp`.
    pub fn token(&self, more: Value) -> String {
        let mut claims = json!({ "iss": self.idp.issuer(), "exp": now() + 600 });
        let entries = more.as_object().unwrap();
        entries
            .iter()
            .for_each(|(key, value)| claims[key] = value.clone());
        self.key.sign(&claims)
    }
}

/// Connections are recorded too, when they end.
pub fn last_request(record: &[Arc<tv_agent::flows::Flow>]) -> &tv_agent::flows::Flow {
    let mut requests = record.iter().filter(|flow| flow.kind == "request");
    requests.next_back().expect("a request")
}

/// With another signature.
fn forged(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let flipped = if signature.starts_with('A') { "B" } else { "A" };
    format!("{signed}.{flipped}{}", &signature[1..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_login_hint_comes_from_a_claim_that_was_verified() {
    let steps = Steps::new(dialect::keycloak).await;
    let hint =
        json!({ "vault": "main", "connection": "example", "login_hint": { "claim": ["user", "email"] } });
    steps.load(json!({}), hint);
    let auth0 = &steps.flow.auth0;
    for (n, (user, expected)) in [
        (
            json!({ "email": "me+you@example.com" }),
            Some("me+you@example.com"),
        ),
        (json!({}), None),
        (json!({ "email": null }), None),
        (json!({ "email": 7 }), None),
        (json!("me@example.com"), None),
    ]
    .into_iter()
    .enumerate()
    {
        let token = steps.token(json!({ "user": user, "n": n }));
        auth0.connect(&token, "example", PROVIDER, 3600);
        assert_eq!(ask(&steps.flow, HOST, &token).await.status, 200, "{user}");
        let asked = auth0.exchanges().pop().unwrap();
        assert_eq!(asked.login_hint.as_deref(), expected, "{user}");
    }
    let count = auth0.exchanges().len();
    let token = forged(&steps.token(json!({ "user": { "email": "root@example.com" } })));
    let answer = ask(&steps.flow, HOST, &token).await;
    assert_eq!(answer.refusal(), (401, "invalid_token".to_owned()));
    assert_eq!(
        auth0.exchanges().len(),
        count,
        "the vault was asked for a forged token"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_identity_goes_along_with_our_own_credentials() {
    let steps = Steps::new(dialect::client_credentials).await;
    let vault = json!({ "kind": "client_credentials", "audience": "https://api.example",
        "forward_identity": { "header": "X-User", "claim": ["user", "name"] } });
    steps.load_vault(vault.clone(), json!({}));
    let flow = &steps.flow;
    let send = async |token: Option<String>| {
        let mut caller = flow.h1(HOST).await;
        let mut request = caller
            .bare("GET", "/headers")
            .header("x-user", "root")
            .header("X-User", "admin");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        caller.answer(request.body(empty()).unwrap()).await
    };
    let user = || {
        let last = flow.origin.requests().pop().unwrap();
        last.header("x-user").map(str::to_owned)
    };
    for (claim, expected) in [
        (json!({ "name": "alice" }), Some("alice")),
        // What the caller wrote there never goes out in its place.
        (json!({}), None),
        (json!({ "name": null }), None),
        (json!({ "name": ["alice"] }), None),
        (json!("alice"), None),
    ] {
        let token = steps.token(json!({ "user": claim }));
        assert_eq!(send(Some(token)).await.status, 200, "{claim}");
        assert_eq!(received(flow), "machine-token-for-https://api.example");
        assert_eq!(user().as_deref(), expected, "{claim}");
    }
    let (asked, reached) = (steps.server.count(), flow.origin.count());
    assert_eq!(asked, 1, "one token for all");
    // Nobody gets the machine's token whose own is not accepted.
    for token in [
        None,
        Some(SUBJECT.to_owned()),
        Some(forged(&steps.token(json!({ "sub": "a" })))),
    ] {
        let answer = send(token).await;
        assert_eq!(answer.refusal().0, 401);
    }
    assert_eq!(flow.origin.count(), reached);

    steps.load_vault(
        vault,
        json!({ "verify": { "access": "corp", "optional": true }, "on_foreign_token": "passthrough" }),
    );
    assert_eq!(send(None).await.status, 200);
    assert_eq!(
        (received(flow), user()),
        ("machine-token-for-https://api.example".to_owned(), None)
    );
    // A provider's own token goes on, the word about a user does not.
    let own = "ghp_a-token-of-the-providers-own-0001";
    flow.origin.accept(own, "bob");
    assert_eq!(send(Some(own.to_owned())).await.status, 200);
    assert_eq!((received(flow), user()), (own.to_owned(), None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_needs_no_exchange_passes_when_it_was_verified() {
    let steps = Steps::new(dialect::keycloak).await;
    let vault = json!({ "kind": "token_exchange", "preset": "keycloak", "when": [{ "missing_audience": ["orders"] }] });
    steps.load_vault(vault, json!({ "audience": "orders" }));
    let flow = &steps.flow;
    let kept = steps.token(json!({ "sub": "alice", "aud": ["orders", "stock"] }));
    flow.origin.accept(&kept, "alice");
    assert_eq!(ask(flow, HOST, &kept).await.status, 200);
    assert_eq!((received(flow), steps.server.count()), (kept.clone(), 0));
    let (record, _) = flow.agent.flows().follow();
    let last = last_request(&record);
    assert_eq!(
        (last.outcome.as_str(), last.identity.as_deref()),
        ("forwarded", Some("alice"))
    );

    let other = steps.token(json!({ "sub": "alice", "aud": "stock" }));
    assert_eq!(ask(flow, HOST, &other).await.status, 200);
    assert_ne!(received(flow), other);
    assert_eq!(steps.server.count(), 1);

    let before = flow.origin.count();
    assert_eq!(
        ask(flow, HOST, &forged(&kept)).await.refusal(),
        (401, "invalid_token".to_owned())
    );
    assert_eq!((flow.origin.count(), steps.server.count()), (before, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_vault_gives_is_verified_before_it_is_used() {
    let says = Arc::new(Mutex::new(String::new()));
    let give = says.clone();
    let steps = Steps::new(move |_: &Call| dialect::grant(&give.lock().unwrap())).await;
    let vault = json!({ "kind": "token_exchange", "audience": "orders", "validate": "given" });
    let mut settings = json!({
        "token_endpoint": steps.server.endpoint(),
        "client_id": "client-1",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
    });
    vault
        .as_object()
        .unwrap()
        .iter()
        .for_each(|(key, value)| settings[key] = value.clone());
    let given = json!({ "issuer": steps.idp.issuer(), "audiences": ["orders"] });
    steps.load(
        json!({ "vaults": { "kc": settings }, "verifiers": { "given": given } }),
        json!({ "vault": "kc" }),
    );
    let flow = &steps.flow;
    let subject = |n: u32| steps.token(json!({ "sub": "alice", "n": n }));
    let good = steps.token(json!({ "aud": "orders", "sub": "alice" }));
    for (n, bad) in [
        steps.token(json!({ "aud": "stock" })),
        steps.token(json!({ "aud": "orders", "exp": 1 })),
        forged(&good),
        "an-opaque-token-of-the-endpoint-0001".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        *says.lock().unwrap() = bad;
        let answer = ask(flow, HOST, &subject(n as u32)).await;
        assert_eq!(answer.refusal(), (502, "invalid_response".to_owned()), "{n}");
    }
    assert_eq!(flow.origin.count(), 0, "a token that was not accepted went out");
    *says.lock().unwrap() = good.clone();
    assert_eq!(ask(flow, HOST, &subject(9)).await.status, 200);
    assert_eq!(received(flow), good);
}

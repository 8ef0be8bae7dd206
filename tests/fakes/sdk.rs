//! Auth0's own SDK as a client of the stand-in, and its requests beside ours, field by field.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use rustls::RootCertStore;
use serde_json::{Value, json};
use tv_agent::config::Config;
use tv_agent::metrics::Metrics;
use tv_agent::policy::Wanted;
use tv_agent::secret::Secret;
use tv_agent::token::{Grant, Tokens, Vault};
use tv_tests::fakes::auth0::{Auth0, ClientAuth, Exchange, REFRESH_TOKEN};
use tv_tests::fakes::pki::Pki;

use super::LOCAL;

const SECRET: &str = "client-secret:with &+% signs";

/// What the SDK answers to each exchange of `asked`.
fn sdk(
    auth0: &Auth0,
    scripts: &std::path::Path,
    root: &std::path::Path,
    key: &std::path::Path,
    asked: &[Value],
) -> Vec<Value> {
    let mut node = Command::new("node")
        .arg("token-vault.mjs")
        .current_dir(scripts)
        .env("DOMAIN", auth0.addrs()[0].to_string())
        .env("CLIENT_ID", "client-1")
        .env("CLIENT_SECRET", SECRET)
        .env("KEY_FILE", key)
        .env("NODE_EXTRA_CA_CERTS", root)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("node");
    let mut input = node.stdin.take().unwrap();
    for line in asked {
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let output = node.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The same exchanges by the agent.
async fn ours(auth0: &Auth0, root: &std::path::Path, key: &std::path::Path, asked: &[Value]) -> Vec<Value> {
    let mut answers = Vec::new();
    for options in asked {
        let word = |name: &str| options[name].as_str();
        let auth = match word("client") {
            Some("key") => json!({ "method": "private_key_jwt", "key": key, "algorithm": "RS256" }),
            _ => json!({ "method": "client_secret_post", "secret": { "env": "SECRET" } }),
        };
        let subject = match word("subjectTokenType") {
            Some(REFRESH_TOKEN) => "refresh_token",
            _ => "access_token",
        };
        let document = json!({ "vaults": { "main": {
            "kind": "auth0_token_vault", "subject": subject, "client_id": "client-1", "client_auth": auth,
            "token_endpoint": format!("https://{}/oauth/token", auth0.addrs()[0]), "extra_roots": [root],
        } } });
        let env = |_: &str| Some(SECRET.to_owned());
        let mut config = Config::parse(&document.to_string(), "sdk.yaml".as_ref(), &env).unwrap();
        let vault = config.vaults.remove("main").unwrap();
        let roots = tv_agent::upstream::roots::compose(&vault.extra_roots, &[]).unwrap();
        let vault = Arc::new(Vault::new(vault.settings, Arc::<RootCertStore>::new(roots)).unwrap());
        let wanted = Arc::new(Wanted {
            scope: word("scope").map(str::to_owned),
            ..Wanted::connection(word("connection").unwrap())
        });
        let token = Arc::new(Secret::new(word("subjectToken").unwrap().to_owned()));
        let grant = Grant {
            login_hint: word("loginHint"),
            subject: Some(&token),
            ..Grant::new(&vault, &wanted)
        };
        answers.push(match Tokens::new(Metrics::new()).obtain(grant).await {
            Ok(obtained) => json!({ "accessToken": obtained.token.expose() }),
            Err(error) => json!({ "error": error.class().label() }),
        });
    }
    answers
}

/// The parameters as sent; of an assertion its header and claims, without what differs each time.
fn comparable(exchange: &Exchange) -> BTreeMap<String, Value> {
    let mut params: BTreeMap<String, Value> = exchange
        .params
        .iter()
        .map(|(name, value)| (name.clone(), Value::from(value.as_str())))
        .collect();
    if let Some(assertion) = exchange.params.get("client_assertion") {
        let part = |n: usize| -> Value {
            let part = assertion.split('.').nth(n).unwrap();
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
        };
        let claims = part(1);
        params.insert(
            "client_assertion".to_owned(),
            json!({
                "alg": part(0)["alg"], "iss": claims["iss"], "sub": claims["sub"], "aud": claims["aud"],
                "life": claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(),
                "has_id": claims["jti"].is_string(),
            }),
        );
    }
    params
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn auth0s_sdk_gets_its_tokens_and_asks_as_we_do() {
    let scripts = tv_tests::js::install().unwrap_or_else(|reason| panic!("{reason}"));
    let pki = Pki::new("SDK Root");
    let directory = tempfile::tempdir().unwrap();
    let (root, key) = (
        directory.path().join("root.pem"),
        directory.path().join("key.pem"),
    );
    std::fs::write(&root, pki.root_pem()).unwrap();
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    std::fs::write(&key, pair.serialize_pem()).unwrap();
    let auth0 = Auth0::start(&LOCAL, &pki.leaf(&["127.0.0.1"]), "client-1", SECRET).unwrap();
    auth0.trust_key(&pair.public_key_pem());
    auth0.connect("alice", "google-oauth2", "ya29.alice", 3600);
    auth0.connect("refresh-of-alice", "github", "gho_alice", 3600);
    auth0.know("bob");
    auth0.allow_param("scope");
    let asked = [
        json!({ "client": "secret", "connection": "google-oauth2", "subjectToken": "alice" }),
        json!({ "client": "secret", "connection": "google-oauth2", "subjectToken": "alice",
            "loginHint": "me+you@example.com" }),
        json!({ "client": "secret", "connection": "google-oauth2", "subjectToken": "alice", "scope": "a b" }),
        json!({ "client": "secret", "connection": "github", "subjectToken": "refresh-of-alice",
            "subjectTokenType": REFRESH_TOKEN }),
        json!({ "client": "key", "connection": "google-oauth2", "subjectToken": "alice" }),
        json!({ "client": "secret", "connection": "google-oauth2", "subjectToken": "bob" }),
        json!({ "client": "secret", "connection": "google-oauth2", "subjectToken": "mallory" }),
    ];
    let theirs = sdk(&auth0, &scripts, &root, &key, &asked);
    let their_requests = auth0.exchanges();
    auth0.clear();
    let own = ours(&auth0, &root, &key, &asked).await;
    let own_requests = auth0.exchanges();

    assert_eq!(theirs.len(), asked.len(), "{theirs:?}");
    for (n, (their, own)) in theirs.iter().zip(&own).enumerate() {
        assert_eq!(their["accessToken"], own["accessToken"], "{n}: {their} {own}");
    }
    assert_eq!(own[5]["error"], "connection_required");
    assert_eq!(
        theirs[5]["error"], "federated_connection_refresh_token_not_found",
        "{theirs:?}"
    );
    assert_eq!(
        (&own[6]["error"], &theirs[6]["error"]),
        (&json!("token_exchange_failed"), &json!("invalid_grant"))
    );
    assert_eq!(
        (their_requests.len(), own_requests.len()),
        (asked.len(), asked.len())
    );
    for (n, (their, own)) in their_requests.iter().zip(&own_requests).enumerate() {
        assert_eq!(comparable(own), comparable(their), "request {n}");
        assert_eq!(
            (own.client_auth, own.encoding, own.status),
            (their.client_auth, their.encoding, their.status)
        );
    }
    assert_eq!(own_requests[4].client_auth, ClientAuth::Assertion);
}

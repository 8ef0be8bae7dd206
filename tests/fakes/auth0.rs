//! The Auth0 stand-in answers as documented, and refuses what no correct client sends.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tv_tests::fakes::auth0::{
    ACCESS_TOKEN, Auth0, ClientAuth, Encoding, FEDERATED_ACCESS_TOKEN, GRANT, Mode,
};
use tv_tests::fakes::pki::Pki;

use super::{Curl, LOCAL};

const HOST: &str = "acme.eu.auth0.com";

fn start() -> (Auth0, Curl) {
    let pki = Pki::new("Test Root");
    let auth0 = Auth0::start(&LOCAL, &pki.leaf(&[HOST]), "client", "s:e cret").unwrap();
    let curl = Curl::new(&pki, HOST, auth0.addrs()[0]);
    (auth0, curl)
}

fn request(subject: &str, secret: &str) -> Value {
    json!({
        "grant_type": GRANT, "subject_token_type": ACCESS_TOKEN, "subject_token": subject,
        "requested_token_type": FEDERATED_ACCESS_TOKEN, "connection": "github",
        "client_id": "client", "client_secret": secret,
    })
}

fn post(curl: &Curl, body: &Value) -> (u16, Value) {
    let (status, text) = curl.get(
        "/oauth/token",
        &[
            "--header",
            "content-type: application/json",
            "--data",
            &body.to_string(),
        ],
    );
    (status, serde_json::from_str(&text).unwrap_or(Value::Null))
}

#[test]
fn exchanges_and_documented_refusals() {
    let (auth0, curl) = start();
    auth0.connect("alice", "github", "gho_1", 3600);
    auth0.know("bob");
    let (status, body) = post(&curl, &request("alice", "s:e cret"));
    assert_eq!((status, &body["access_token"]), (200, &json!("gho_1")));
    assert_eq!(body["expires_in"], 3600);
    assert_eq!(body["issued_token_type"], FEDERATED_ACCESS_TOKEN);
    auth0.connect("alice", "github", "gho_2", 100);
    assert_eq!(
        post(&curl, &request("alice", "s:e cret")).1["access_token"],
        "gho_2"
    );

    auth0.rotate_next("alice", "github", "gho_3");
    for token in ["gho_2", "gho_3", "gho_3"] {
        let body = post(&curl, &request("alice", "s:e cret")).1;
        assert_eq!(body["access_token"], token);
    }
    auth0.clear();

    let cases = [
        ("mallory", "s:e cret", "invalid_grant"),
        ("bob", "s:e cret", "federated_connection_refresh_token_not_found"),
        ("alice", "wrong", "invalid_client"),
    ];
    for (subject, secret, error) in cases {
        let (status, body) = post(&curl, &request(subject, secret));
        assert_eq!((status, &body["error"]), (401, &json!(error)), "{subject}");
    }
    assert_eq!(auth0.count("alice"), 1);
    let exchanges = auth0.exchanges();
    let kinds: Vec<_> = exchanges
        .iter()
        .map(|e| (e.encoding, e.client_auth, e.status))
        .collect();
    assert_eq!(kinds, [(Encoding::Json, ClientAuth::Post, Some(401)); 3]);
    assert!(!exchanges[0].params.contains_key("client_secret"));
}

#[test]
fn form_and_basic_are_taken_too() {
    let (auth0, curl) = start();
    auth0.connect("alice", "github", "gho_1", 3600);
    let mut args = vec!["--user".to_owned(), "client:s%3Ae+cret".to_owned()];
    for (name, value) in request("alice", "").as_object().unwrap() {
        if !name.starts_with("client_") {
            args.extend([
                "--data-urlencode".to_owned(),
                format!("{name}={}", value.as_str().unwrap()),
            ]);
        }
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (status, body) = curl.get("/oauth/token", &args);
    assert_eq!(status, 200, "{body}");
    let seen = auth0.exchanges().remove(0);
    assert_eq!(
        (seen.encoding, seen.client_auth),
        (Encoding::Form, ClientAuth::Basic)
    );
    assert_eq!(
        (seen.subject_token.as_str(), seen.connection.as_str()),
        ("alice", "github")
    );
}

#[test]
fn modes_change_the_answer() {
    let (auth0, curl) = start();
    auth0.connect("alice", "github", "gho_1", 3600);
    let ask = || post(&curl, &request("alice", "s:e cret"));

    auth0.set_mode(Mode::RateLimited { retry_after: Some(7) });
    let json = ["--header", "content-type: application/json", "--data"];
    let body = request("alice", "s:e cret").to_string();
    let answer = curl.run("/oauth/token", &[&["--include"], &json[..], &[&body]].concat());
    let answer = String::from_utf8_lossy(&answer.stdout).to_ascii_lowercase();
    assert!(
        answer.contains("retry-after: 7") && answer.contains("too_many_requests"),
        "{answer}"
    );

    auth0.set_mode(Mode::ServerError);
    assert_eq!(ask().0, 500);
    auth0.set_mode(Mode::Refuse(403, "unauthorized_client", "no"));
    assert_eq!(
        ask(),
        (
            403,
            json!({ "error": "unauthorized_client", "error_description": "no" })
        )
    );
    auth0.set_mode(Mode::NotJson);
    assert_eq!(ask(), (200, Value::Null));
    auth0.set_mode(Mode::NoAccessToken);
    assert_eq!(ask().1.get("access_token"), None);
    for value in [json!("3600"), json!(0), json!(-1), json!(1e18)] {
        auth0.set_mode(Mode::ExpiresIn(Some(value.clone())));
        assert_eq!(ask().1["expires_in"], value);
    }
    auth0.set_mode(Mode::ExpiresIn(None));
    assert_eq!(ask().1.get("expires_in"), None);

    auth0.set_mode(Mode::Huge(10 << 20));
    let answer = curl.run("/oauth/token", &[&json[..], &[&body]].concat());
    assert_eq!(answer.stdout.len(), 10 << 20);
    assert!(
        serde_json::from_slice::<Value>(&answer.stdout).is_ok(),
        "valid but for its size"
    );

    auth0.set_mode(Mode::Slow(Duration::from_millis(300)));
    let start = Instant::now();
    assert_eq!(ask().0, 200);
    assert!(start.elapsed() >= Duration::from_millis(300));

    let impatient = [&["--max-time", "1"], &json[..], &[&body]].concat();
    auth0.set_mode(Mode::Hang);
    let answer = curl.run("/oauth/token", &impatient);
    assert_eq!((answer.status.code(), answer.stdout.len()), (Some(28), 0));
    auth0.set_mode(Mode::Endless);
    let answer = curl.run("/oauth/token", &impatient);
    assert_eq!(answer.status.code(), Some(28));
    assert!(answer.stdout.len() > 1024, "{} bytes", answer.stdout.len());
}

#[test]
fn the_unexpected_is_refused_and_remembered() {
    let (auth0, curl) = start();
    auth0.connect("alice", "github", "gho_1", 3600);
    let change = |name: &str, value: &str| {
        let mut body = request("alice", "s:e cret");
        body[name] = json!(value);
        post(&curl, &body).0
    };
    assert_eq!(change("audience", "https://api.example"), 599);
    assert_eq!(change("grant_type", "client_credentials"), 599);
    assert_eq!(change("requested_token_type", ACCESS_TOKEN), 599);
    assert_eq!(change("connection", ""), 599);
    assert_eq!(curl.get("/authorize", &[]).0, 599);
    let calls = auth0.unexpected().take();
    assert_eq!(calls.len(), 5, "{calls:?}");
    assert!(
        calls[0].contains("audience") && calls[4].starts_with("GET /authorize"),
        "{calls:?}"
    );
    assert_eq!(auth0.count("alice"), 0);
    auth0.allow_param("audience");
    assert_eq!(change("audience", "https://api.example"), 200);
}

#[test]
#[should_panic(expected = "GET /nowhere")]
fn an_unexpected_call_fails_the_test() {
    let (_auth0, curl) = start();
    curl.get("/nowhere", &[]);
}

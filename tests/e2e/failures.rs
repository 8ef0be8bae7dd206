//! What a workload sees when something behind the agent is wrong: a clear refusal, and nothing sent anywhere.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::pki::Flaw;
use tv_tests::process::Finished;
use tv_tests::world::{GITHUB_API, GOOGLE, UNROUTED, World};

use crate::support::{GITHUB_TOKEN, alice, bearer, curl, curl_include, user_url};

/// An answer that curl printed with its head.
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: Value,
    text: String,
}

impl Answer {
    #[track_caller]
    fn of(finished: &Finished) -> Self {
        let text = finished.expect_success().to_owned();
        let (head, body) = text.split_once("\r\n\r\n").expect("an answer");
        Self {
            status: head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .expect("a status"),
            head: head.to_ascii_lowercase(),
            body: serde_json::from_str(body).unwrap_or(Value::Null),
            text: text.clone(),
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// Status, `error`, and that it is told to be the agent's own answer.
    #[track_caller]
    fn is_refusal(&self, status: u16, error: &str) {
        assert_eq!(
            (self.status, &self.body["error"]),
            (status, &json!(error)),
            "{}",
            self.text
        );
        let by = self.header("proxy-status").unwrap_or_default();
        assert!(by.starts_with("tv-agent; error="), "{}", self.text);
        assert!(
            self.body["error_description"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{}",
            self.text
        );
        assert_eq!(self.header("cache-control"), Some("no-store"), "{}", self.text);
    }
}

#[test]
fn an_origin_whose_certificate_is_bad_gets_nothing() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("flaws", world.config()).unwrap();
        let (root, header) = (world.agent_root().display().to_string(), bearer(&user));
        for flaw in Flaw::ALL {
            let name = format!("{flaw:?}.googleapis.com").to_ascii_lowercase();
            let origin = world.origin(&name, &world.pki.flawed(flaw, &[&name])).unwrap();
            let url = format!("https://{name}/headers");
            for http in ["--http1.1", "--http2"] {
                let client = curl_include(&[http, "--cacert", &root, "--header", &header, &url]);
                let answer = Answer::of(&daemon.run(&client).unwrap());
                answer.is_refusal(502, "upstream_tls_error");
                assert_eq!(answer.body["connection"], "google-oauth2", "{flaw:?}");
                assert!(
                    answer
                        .header("proxy-status")
                        .unwrap()
                        .contains("tls_certificate_error"),
                    "{flaw:?}"
                );
            }
            assert_eq!(
                (origin.count(), origin.connections().established()),
                (0, 0),
                "{flaw:?}"
            );
            assert!(!origin.connections().failures().is_empty(), "{flaw:?}");
        }
        let told = r#"tv_agent_requests_total{route="google",result="upstream_tls_error",code="5xx"}"#;
        assert_eq!(
            daemon.metric(told).unwrap(),
            2 * Flaw::ALL.len() as u64,
            "{}",
            daemon.metrics().unwrap()
        );
        assert!(
            world.auth0.exchanges().is_empty(),
            "no token is fetched for a host that is not believed"
        );
        // The others are served as before.
        let (root, url) = (world.agent_root().display().to_string(), user_url());
        daemon
            .run(&curl(&["--cacert", &root, "--header", &header, &url]))
            .unwrap()
            .expect_success();
    });
}

#[test]
fn a_vault_that_misbehaves_is_told_apart() {
    World::run(|world| {
        let daemon = world.daemon("vault", world.config()).unwrap();
        let root = world.agent_root().display().to_string();
        let url = user_url();
        let cases = [
            (Mode::RateLimited { retry_after: Some(2) }, 503, "rate_limited"),
            (Mode::ServerError, 503, "vault_unavailable"),
            (Mode::Hang, 504, "vault_timeout"),
            (Mode::Huge(10 << 20), 502, "invalid_response"),
            (Mode::Endless, 502, "invalid_response"),
            (Mode::NotJson, 502, "invalid_response"),
            (Mode::NoAccessToken, 502, "invalid_response"),
            (
                Mode::Refuse(401, "invalid_client", "Unauthorized"),
                502,
                "configuration_error",
            ),
            (
                Mode::Refuse(401, "invalid_grant", "Invalid or expired"),
                401,
                "token_exchange_failed",
            ),
            (
                Mode::Refuse(401, "federated_connection_refresh_token_not_found", "None"),
                401,
                "connection_required",
            ),
        ];
        let (mut last_wait, count) = (None, cases.len());
        for (number, (mode, status, error)) in cases.into_iter().enumerate() {
            // Another user each time: failures are remembered for a while.
            let user = world.user(&format!("user{number}"));
            world.connect_github(&user, "gho_never", "never");
            world.auth0.set_mode(mode.clone());
            if let Some(seconds) = last_wait.take() {
                // The vault is left alone for as long as it asked for.
                std::thread::sleep(Duration::from_secs(seconds + 1));
            }
            let started = Instant::now();
            let header = bearer(&user);
            let finished = daemon
                .run(&curl_include(&["--cacert", &root, "--header", &header, &url]))
                .unwrap();
            let (answer, took) = (Answer::of(&finished), started.elapsed().as_secs_f32());
            answer.is_refusal(status, error);
            assert_eq!(answer.body["connection"], "github", "{mode:?}");
            if status == 503 {
                let seconds: u64 = answer
                    .header("retry-after")
                    .expect("Retry-After")
                    .parse()
                    .unwrap();
                assert!((1..=60).contains(&seconds), "{mode:?}: {seconds}");
                last_wait = Some(seconds);
            }
            if status == 401 {
                let challenge = answer.header("www-authenticate").unwrap_or_default();
                assert!(challenge.starts_with("bearer "), "{mode:?}: {challenge}");
            }
            assert!(took < 7.0, "{mode:?}: {took} s");
            assert!(!matches!(mode, Mode::Hang) || took > 4.5, "{took} s");
            assert!(
                !answer.text.contains(&user) && !answer.text.contains("gho_never"),
                "{}",
                answer.text
            );
        }
        // One call each, but for the fault that may pass: that one is tried three times.
        let calls = count + 2;
        assert_eq!((world.github.count(), world.auth0.exchanges().len()), (0, calls));
        // And it recovers.
        world.auth0.set_mode(Mode::Normal);
        let user = alice(world);
        let header = bearer(&user);
        daemon
            .run(&curl(&["--cacert", &root, "--header", &header, &url]))
            .unwrap()
            .expect_success();
    });
}

#[test]
fn a_vault_that_is_down_or_not_believed_is_said() {
    World::run(|world| {
        let user = alice(world);
        let (header, url) = (bearer(&user), user_url());
        world.deserted("vault.example.org");
        let mut down = world.config();
        down["vaults"]["main"]["domain"] = json!("vault.example.org");
        // The token is of another tenant than that one.
        for route in down["routes"].as_array_mut().unwrap() {
            route["on_foreign_token"] = json!("exchange");
        }
        let mut unbelieved = world.config();
        unbelieved["vaults"]["main"]["extra_roots"] = json!([]);
        for (config, status) in [(down, 503), (unbelieved, 503)] {
            let finished = world
                .exec_with(&config, &curl_include(&["--header", &header, &url]))
                .unwrap();
            let answer = Answer::of(&finished);
            answer.is_refusal(status, "vault_unavailable");
            assert!(answer.header("retry-after").is_some(), "{}", answer.text);
        }
        assert_eq!((world.github.count(), world.auth0.exchanges().len()), (0, 0));
    });
}

#[test]
fn requests_that_may_not_be_forwarded_are_not() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("requests", world.config()).unwrap();
        let (root, header) = (world.agent_root().display().to_string(), bearer(&user));
        let ask = |more: &[&str]| {
            let client = curl_include(&[&["--cacert", &root], more].concat());
            Answer::of(&daemon.run(&client).unwrap())
        };
        let url = user_url();
        for http in ["--http1.1", "--http2"] {
            for host in [UNROUTED, GOOGLE] {
                let other = format!("Host: {host}");
                ask(&[http, "--header", &header, "--header", &other, &url])
                    .is_refusal(421, "misdirected_request");
            }
            ask(&[http, &url]).is_refusal(401, "unauthorized");
            ask(&[http, "--header", "authorization: Bearer", &url]).is_refusal(401, "invalid_token");
            let in_address = format!("{url}?access_token={user}");
            ask(&[http, "--header", &header, &in_address]).is_refusal(400, "bad_request");
        }
        assert_eq!(
            (world.github.count(), world.google.count(), world.unrouted.count()),
            (0, 0, 0)
        );

        // Who does not trust the CA is counted as such, and nothing is asked of anybody.
        let other_root = world.root_file().display().to_string();
        let finished = daemon
            .run(&curl(&["--cacert", &other_root, "--header", &header, &url]))
            .unwrap();
        assert_eq!(
            finished.code(),
            60,
            "curl: the certificate is not believed: {}",
            finished.stderr
        );
        let metrics = daemon.metrics().unwrap();
        let untrusted = r#"tv_agent_connections_total{decision="refuse",reason="untrusted"}"#;
        assert_eq!(daemon.metric(untrusted).unwrap(), 1, "{metrics}");
        let handshakes = r#"tv_agent_tls_handshakes_total{side="workload",result="untrusted"}"#;
        assert_eq!(daemon.metric(handshakes).unwrap(), 1, "{metrics}");

        // A host that no route names keeps its own answers and its own failures.
        let elsewhere = format!("https://{UNROUTED}/status/503");
        let client = curl_include(&[
            "--cacert",
            &other_root,
            "--header",
            "authorization: Bearer own",
            &elsewhere,
        ]);
        let answer = Answer::of(&daemon.run(&client).unwrap());
        assert_eq!(
            (answer.status, answer.header("proxy-status")),
            (503, None),
            "{}",
            answer.text
        );
        // And so does a provider, as its own.
        let gone = format!("https://{GITHUB_API}/status/404");
        let answer = ask(&["--header", &header, &gone]);
        assert_eq!(
            (answer.status, answer.header("proxy-status")),
            (404, None),
            "{}",
            answer.text
        );
    });
}

#[test]
fn a_provider_token_that_was_revoked_is_replaced() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("revoked", world.config()).unwrap();
        let (root, header, url) = (
            world.agent_root().display().to_string(),
            bearer(&user),
            user_url(),
        );
        let client = curl(&["--cacert", &root, "--header", &header, &url]);
        daemon.run(&client).unwrap().expect_success();
        world.github.revoke(GITHUB_TOKEN);
        world.connect_github(&user, "gho_fresh", "alice");
        daemon.run(&client).unwrap().expect_success();
        let tokens: Vec<_> = world.github.requests().iter().filter_map(|r| r.token()).collect();
        assert_eq!(
            tokens,
            [GITHUB_TOKEN, GITHUB_TOKEN, "gho_fresh"],
            "one retry with a fresh token"
        );
        assert_eq!(world.auth0.count(&user), 2);
        // When the fresh one is refused as well, the provider's own answer is the workload's.
        world.github.revoke("gho_fresh");
        let client = curl_include(&["--cacert", &root, "--header", &header, &url]);
        let answer = Answer::of(&daemon.run(&client).unwrap());
        assert_eq!(
            (answer.status, answer.header("proxy-status")),
            (401, None),
            "{}",
            answer.text
        );
        assert_eq!(answer.body["message"], "Bad credentials");
    });
}

//! What a workload is told when it cannot be served; and that the provider then gets nothing at all.

use serde_json::{Value, json};
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::pki::Flaw;
use tv_tests::world::{Answer, GITHUB, GITHUB_API, World};

/// One request by curl, with `token` as Bearer where there is one.
fn get(world: &World, config: &Value, url: &str, token: Option<&str>) -> Answer {
    let mut client = vec!["curl", "--silent", "--show-error", "--include", url];
    let header = token.map(|token| format!("authorization: Bearer {token}"));
    if let Some(header) = &header {
        client.extend(["--header", header]);
    }
    let finished = world.exec_with(config, &client).unwrap();
    Answer::parse(&finished).unwrap_or_else(|| panic!("{url}: {}", finished.stderr))
}

/// That the agent, and not the provider, refused with this status and error.
fn assert_refused(answer: &Answer, status: u16, error: &str) {
    let body = answer.json();
    assert_eq!(
        (answer.status, &body["error"]),
        (status, &json!(error)),
        "{answer:?}"
    );
    assert!(body["error_description"].is_string(), "{answer:?}");
    let proxy_status = answer.header("proxy-status").unwrap_or_default();
    assert!(proxy_status.starts_with("tv-agent"), "{answer:?}");
    if status == 401 {
        assert!(answer.header("www-authenticate").is_some(), "{answer:?}");
    }
}

#[test]
fn a_token_that_is_missing_or_refused() {
    World::run(|world| {
        let user = format!("https://{GITHUB_API}/user");
        let config = world.config();
        assert_refused(&get(world, &config, &user, None), 401, "unauthorized");
        assert_refused(
            &get(world, &config, &user, Some("expired")),
            401,
            "token_exchange_failed",
        );
        let bob = world.user("bob");
        let answer = get(world, &config, &user, Some(&bob));
        assert_refused(&answer, 401, "connection_required");
        assert_eq!(answer.json()["connection"], "github");
        assert_eq!(world.auth0.exchanges().len(), 2);
        assert_eq!(world.github.count(), 0);
    });
}

#[test]
fn git_is_offered_basic_where_it_speaks_it() {
    World::run(|world| {
        let url = format!("https://{GITHUB}/acme/demo.git/info/refs?service=git-upload-pack");
        let answer = get(world, &world.config(), &url, None);
        assert_refused(&answer, 401, "unauthorized");
        let mut challenges = answer
            .headers("www-authenticate")
            .into_iter()
            .flat_map(|value| value.split(','));
        assert!(
            challenges.any(|challenge| challenge.trim().starts_with("basic")),
            "{answer:?}"
        );
        assert_eq!(world.github.count(), 0);
    });
}

#[test]
fn a_vault_that_does_not_deliver() {
    World::run(|world| {
        let user = world.user("alice");
        world.connect_github(&user, "gho_1", "alice");
        let url = format!("https://{GITHUB_API}/user");
        let ask = |mode| {
            world.auth0.set_mode(mode);
            get(world, &world.config(), &url, Some(&user))
        };
        let limited = ask(Mode::RateLimited { retry_after: Some(7) });
        assert_refused(&limited, 503, "rate_limited");
        assert_eq!(limited.header("retry-after"), Some("7"));
        let down = ask(Mode::ServerError);
        assert_refused(&down, 503, "vault_unavailable");
        assert!(down.header("retry-after").is_some(), "{down:?}");
        assert_refused(&ask(Mode::Hang), 504, "vault_timeout");
        for mode in [Mode::NotJson, Mode::NoAccessToken, Mode::Huge(10 << 20)] {
            let answer = ask(mode);
            assert_eq!(answer.json()["error"], "invalid_response", "{answer:?}");
            assert!((500..600).contains(&answer.status), "{answer:?}");
        }
        world.auth0.set_mode(Mode::Normal);
        let wrong = world.dir().join("wrong-secret");
        std::fs::write(&wrong, "not the secret").unwrap();
        let mut config = world.config();
        config["vaults"]["main"]["client_auth"]["secret"]["file"] = json!(wrong);
        assert_refused(
            &get(world, &config, &url, Some(&user)),
            502,
            "configuration_error",
        );
        assert_eq!(world.github.count(), 0);
    });
}

#[test]
fn an_origin_with_a_flawed_certificate_gets_no_request() {
    World::run(|world| {
        let user = world.user("alice");
        world.connect_google(&user, "ya29.1", "alice");
        for (nth, flaw) in (0..).zip(Flaw::ALL) {
            let name = format!("{flaw:?}.googleapis.com").to_ascii_lowercase();
            let identity = world.pki.flawed(flaw, &[&name]);
            let origin = world.origin(nth, &name, &identity, &["h2", "http/1.1"]).unwrap();
            let answer = get(world, &world.config(), &format!("https://{name}/"), Some(&user));
            assert_refused(&answer, 502, "upstream_tls_error");
            assert_eq!(origin.count(), 0, "{flaw:?}");
        }
    });
}

#[test]
fn a_providers_own_refusal_passes_and_is_told_apart() {
    World::run(|world| {
        let user = world.user("alice");
        world.auth0.connect(&user, "github", "gho_revoked", 3600);
        let answer = get(
            world,
            &world.config(),
            &format!("https://{GITHUB_API}/user"),
            Some(&user),
        );
        assert_eq!(
            (answer.status, &answer.json()["message"]),
            (401, &json!("Bad credentials"))
        );
        assert_eq!(answer.header("proxy-status"), None);
        // The vault was asked once more, since the cached token was refused; it had no better one.
        assert_eq!(world.auth0.count(&user), 2);
        assert!(world.github.count() <= 2, "{}", world.github.count());
    });
}

#[test]
fn a_token_that_the_provider_revoked_is_exchanged_anew() {
    World::run(|world| {
        let user = world.user("alice");
        world.auth0.connect(&user, "github", "gho_revoked", 3600);
        world.auth0.rotate_next(&user, "github", "gho_fresh");
        world.github.accept("gho_fresh", "alice");
        let answer = get(
            world,
            &world.config(),
            &format!("https://{GITHUB_API}/user"),
            Some(&user),
        );
        assert_eq!((answer.status, &answer.json()["login"]), (200, &json!("alice")));
        let tokens: Vec<_> = world
            .github
            .requests()
            .iter()
            .map(|request| request.token())
            .collect();
        assert_eq!(
            tokens,
            [Some("gho_revoked".to_owned()), Some("gho_fresh".to_owned())]
        );
        assert_eq!(world.auth0.count(&user), 2);
    });
}

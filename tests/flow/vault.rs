//! Every way in which the vault can fail, and how many exchanges what costs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::origin::Site;
use tv_tests::flow::{Answer, Flow, GIT_HOST, HOST, PROVIDER, SUBJECT, Setup, empty, eventually, whole};

/// Another user whom the vault knows, so that nothing is remembered of the first.
fn user(flow: &Flow, n: usize) -> String {
    let subject = format!("subject-token-number-{n:04}");
    flow.auth0.connect(
        &subject,
        "example",
        &format!("provider-token-number-{n:04}"),
        3600,
    );
    flow.origin.forbid(&subject);
    subject
}

async fn ask(flow: &Flow, subject: &str) -> Answer {
    flow.h1(HOST).await.get_as(subject, "/headers").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_has_its_status_and_code() {
    let flow = Setup {
        vault_timeout: 2,
        ..Setup::default()
    }
    .start()
    .await;
    let refuse = Mode::Refuse;
    let cases: Vec<(Mode, u16, &str)> = vec![
        (
            refuse(401, "invalid_grant", "expired"),
            401,
            "token_exchange_failed",
        ),
        (
            refuse(400, "invalid_request", "The subject_token is malformed"),
            401,
            "token_exchange_failed",
        ),
        (refuse(403, "access_denied", "no"), 401, "connection_required"),
        (
            refuse(401, "federated_connection_refresh_token_not_found", "x"),
            401,
            "connection_required",
        ),
        (
            refuse(400, "federated_connection_refresh_token_flow_failed", "x"),
            401,
            "connection_required",
        ),
        (
            refuse(
                401,
                "federated_connection_refresh_token_flow_failed",
                "Refresh Token flow for the Federated Connection failed",
            ),
            401,
            "connection_required",
        ),
        (refuse(401, "tokenset_not_found", ""), 401, "connection_required"),
        (
            refuse(403, "invalid_grant", "Unknown or invalid refresh token."),
            401,
            "token_exchange_failed",
        ),
        (refuse(403, "expired_token", ""), 401, "token_exchange_failed"),
        (
            refuse(
                403,
                "unauthorized_client",
                "Grant type 'urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token' not \
                 allowed for the client.",
            ),
            502,
            "configuration_error",
        ),
        (
            refuse(401, "mfa_required", "Multifactor authentication required"),
            502,
            "configuration_error",
        ),
        (
            refuse(400, "invalid_request", "Missing required parameter: connection"),
            502,
            "configuration_error",
        ),
        (refuse(400, "use_dpop_nonce", "nonce"), 502, "configuration_error"),
        (refuse(401, "invalid_client", "x"), 502, "configuration_error"),
        (
            refuse(403, "unauthorized_client", "x"),
            502,
            "configuration_error",
        ),
        (
            refuse(400, "unsupported_grant_type", "x"),
            502,
            "configuration_error",
        ),
        (
            refuse(503, "temporarily_unavailable", "x"),
            503,
            "vault_unavailable",
        ),
        (Mode::ServerError, 503, "vault_unavailable"),
        (Mode::NotJson, 502, "invalid_response"),
        (Mode::NoAccessToken, 502, "invalid_response"),
        (Mode::ExpiresIn(Some(json!(-1))), 502, "invalid_response"),
        (Mode::ExpiresIn(Some(json!("soon"))), 502, "invalid_response"),
        (Mode::Huge(10 << 20), 502, "invalid_response"),
        (Mode::Endless, 502, "invalid_response"),
        (Mode::Hang, 504, "vault_timeout"),
    ];
    for (n, (mode, status, error)) in cases.iter().enumerate() {
        flow.auth0.set_mode(mode.clone());
        let subject = user(&flow, n);
        let answer = ask(&flow, &subject).await;
        assert_eq!(answer.refusal(), (*status, (*error).to_owned()), "{mode:?}");
        assert_eq!(answer.header("retry-after").is_some(), *status == 503, "{mode:?}");
        assert_eq!(
            answer.header("www-authenticate").is_some(),
            *status == 401,
            "{mode:?}"
        );
        // A fault in passing is worth two repetitions, and no more; anything else none.
        let calls = if *error == "vault_unavailable" { 3 } else { 1 };
        assert_eq!(flow.auth0.count(&subject), calls, "{mode:?}");
        // Remembered for a moment: the next caller does not cost the vault another call.
        if *status == 401 {
            assert_eq!(ask(&flow, &subject).await.refusal().0, 401);
            assert_eq!(flow.auth0.count(&subject), 1, "{mode:?}");
        }
        let series = format!("token_exchanges_total{{vault=\"main\",result=\"{error}\"}}");
        assert!(flow.metric(&series) > 0, "{series}");
    }
    assert_eq!(flow.origin.count(), 0, "nothing reached the provider");
    flow.auth0.set_mode(Mode::Normal);
    assert_eq!(ask(&flow, SUBJECT).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_limit_pauses_the_vault_but_not_those_who_have_a_token() {
    let flow = Setup::default().start().await;
    assert_eq!(ask(&flow, SUBJECT).await.status, 200);
    flow.auth0.set_mode(Mode::RateLimited {
        retry_after: Some(30),
    });
    for n in 0..3 {
        let answer = ask(&flow, &user(&flow, n)).await;
        assert_eq!(answer.refusal(), (503, "rate_limited".to_owned()));
        let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=30).contains(&after), "{after}");
    }
    assert_eq!(
        flow.auth0.exchanges().len(),
        2,
        "one before, one that was told to wait"
    );
    assert_eq!(ask(&flow, SUBJECT).await.status, 200);
    assert_eq!(flow.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_throttled_address_does_not_hammer() {
    let flow = Setup::default().start().await;
    flow.auth0
        .set_mode(Mode::Refuse(429, "too_many_attempts", "suspicious"));
    for n in 0..3 {
        let answer = ask(&flow, &user(&flow, n)).await;
        assert_eq!(answer.refusal(), (503, "rate_limited".to_owned()));
        let after: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((50..=60).contains(&after), "{after}");
    }
    assert_eq!(flow.auth0.exchanges().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_keeps_failing_is_left_alone_and_found_again() {
    let flow = Setup::default().start().await;
    let settings = json!({ "fragile": {
        "kind": "auth0_token_vault",
        "token_endpoint": format!("https://{}/oauth/token", flow.auth0.addrs()[0]),
        "client_id": "client-1",
        "client_auth": { "method": "client_secret_basic", "secret": { "env": "SECRET" } },
        "circuit_breaker": { "failures": 2, "open_seconds": 2 },
    } });
    let mut routes = tv_tests::flow::routes();
    routes[0]["vault"] = json!("fragile");
    flow.agent.reload(flow.config_vaults(settings, routes)).unwrap();
    assert_eq!(ask(&flow, SUBJECT).await.status, 200);
    let open = "vault_circuit_open{vault=\"fragile\"}";
    flow.auth0.set_mode(Mode::ServerError);
    for n in 0..2 {
        assert_eq!(
            ask(&flow, &user(&flow, n)).await.refusal(),
            (503, "vault_unavailable".to_owned())
        );
    }
    assert_eq!(flow.metric(open), 1);
    let sent = flow.auth0.exchanges().len();
    for n in 2..20 {
        let answer = ask(&flow, &user(&flow, n)).await;
        assert_eq!(answer.refusal(), (503, "vault_unavailable".to_owned()));
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(
        flow.auth0.exchanges().len(),
        sent,
        "nothing is sent while the circuit is open"
    );
    assert_eq!(ask(&flow, SUBJECT).await.status, 200, "who has a token is served");
    // It answers again: the next one that tries closes the circuit.
    flow.auth0.set_mode(Mode::Normal);
    let found = async {
        while ask(&flow, &user(&flow, 21)).await.status != 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tv_tests::flow::within(found).await;
    assert_eq!(flow.metric(open), 0);
    assert_eq!(flow.origin.count(), 3, "and nothing went out without its token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_the_vault_hangs() {
    let flow = Setup {
        vault_timeout: 2,
        ..Setup::default()
    }
    .start()
    .await;
    let mut caller = flow.h2(HOST).await;
    assert_eq!(caller.get("/headers").await.status, 200);
    flow.auth0.set_mode(Mode::Hang);
    let subject = user(&flow, 1);
    let mut other = caller.share();
    let hanging = tokio::spawn(async move { other.get_as(&subject, "/headers").await });
    assert!(eventually(|| flow.auth0.exchanges().len() == 2).await);
    let began = Instant::now();
    for _ in 0..5 {
        assert_eq!(caller.get("/headers").await.status, 200);
    }
    assert!(!hanging.is_finished() && began.elapsed() < Duration::from_secs(2));
    assert_eq!(
        hanging.await.unwrap().refusal(),
        (504, "vault_timeout".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vault_that_is_gone_is_unavailable() {
    let flow = Setup::default().start().await;
    let Flow {
        agent, auth0, origin, ..
    } = &flow;
    // Another agent's vault, which nobody listens for.
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut config = flow.config(tv_tests::flow::routes());
    let vault = config.vaults.get_mut("main").unwrap();
    vault.settings.token_endpoint.set_port(Some(free.port())).unwrap();
    agent.reload(config).unwrap();
    let answer = ask(&flow, SUBJECT).await;
    assert_eq!(answer.refusal(), (503, "vault_unavailable".to_owned()));
    assert!(answer.header("retry-after").is_some());
    assert_eq!((auth0.exchanges().len(), origin.count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lifetimes_by_the_vaults_word() {
    let flow = Setup::default().start().await;
    // What the vault says, and the exchanges that three requests cost.
    let cases: [(Option<Value>, usize); 8] = [
        (Some(json!(3600)), 1),
        (Some(json!("3600")), 1),
        (Some(json!(3600.5)), 1),
        (None, 1),
        (Some(json!(u64::MAX)), 1),
        (Some(json!(1e300)), 1),
        // Within the margin before its end, or over already: used once, never kept.
        (Some(json!(60)), 3),
        (Some(json!(0)), 3),
    ];
    for (n, (value, exchanges)) in cases.into_iter().enumerate() {
        flow.auth0.set_mode(Mode::ExpiresIn(value.clone()));
        let subject = user(&flow, n);
        for _ in 0..3 {
            assert_eq!(ask(&flow, &subject).await.status, 200, "{value:?}");
        }
        assert_eq!(flow.auth0.count(&subject), exchanges, "{value:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_the_provider_refuses_is_exchanged_anew_once() {
    let flow = Setup {
        site: Site::GitHub,
        ..Setup::default()
    }
    .start()
    .await;
    let mut caller = flow.h1(GIT_HOST).await;
    assert_eq!(caller.get("/user").await.status, 200);
    // The user connects again: the old provider token ends, the vault has a new one.
    flow.origin.revoke(PROVIDER);
    flow.origin.accept("provider-token-of-alice-0002", "alice");
    flow.auth0
        .connect(SUBJECT, "github", "provider-token-of-alice-0002", 3600);
    let answer = caller.get("/user").await;
    assert_eq!((answer.status.as_u16(), answer.ours()), (200, false));
    let tokens: Vec<_> = flow
        .origin
        .requests()
        .iter()
        .map(|r| r.token().unwrap())
        .collect();
    assert_eq!(tokens, [PROVIDER, PROVIDER, "provider-token-of-alice-0002"]);
    assert_eq!(flow.auth0.count(SUBJECT), 2);
    assert_eq!(flow.metric("token_cache_events_total{event=\"evicted\"}"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_with_a_body_is_not_sent_twice() {
    let flow = Setup {
        site: Site::GitHub,
        ..Setup::default()
    }
    .start()
    .await;
    for h2 in [false, true] {
        let subject = format!("subject-token-with-body-{h2}");
        flow.auth0
            .connect(&subject, "github", "provider-token-refused-0001", 3600);
        let mut caller = if h2 {
            flow.h2(GIT_HOST).await
        } else {
            flow.h1(GIT_HOST).await
        };
        let mut post = async |path: &str| {
            let request = caller
                .bare("POST", path)
                .header("authorization", format!("Bearer {subject}"));
            caller.answer(request.body(whole("{}")).unwrap()).await
        };
        assert_eq!(post("/upload").await.status, 200);
        let before = flow.origin.count();
        let answer = post("/status/401").await;
        assert_eq!(
            (answer.status.as_u16(), answer.ours()),
            (401, false),
            "the provider's own"
        );
        assert_eq!(flow.origin.count(), before + 1);
        assert_eq!(flow.auth0.count(&subject), 1);
        // But the refused token is gone: the next one is fresh.
        assert_eq!(post("/upload").await.status, 200);
        assert_eq!(flow.auth0.count(&subject), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_always_refuses_costs_few_exchanges() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h2(HOST).await;
    for _ in 0..20 {
        let answer = caller.get("/status/401").await;
        assert_eq!((answer.status.as_u16(), answer.ours()), (401, false));
    }
    let mut running = JoinSet::new();
    for _ in 0..20 {
        let mut caller = caller.share();
        running.spawn(async move { caller.get("/status/401").await.status.as_u16() });
    }
    assert!(running.join_all().await.iter().all(|status| *status == 401));
    assert!(flow.auth0.count(SUBJECT) <= 2, "{}", flow.auth0.count(SUBJECT));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_with_one_token_make_one_exchange() {
    let flow = Setup::default().start().await;
    flow.auth0.set_mode(Mode::Slow(Duration::from_millis(300)));
    let connections = [
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
    ];
    let mut running = JoinSet::new();
    for n in 0..1000 {
        let mut caller = connections[n % 4].share();
        running.spawn(async move { caller.get("/bytes/1").await.status.as_u16() });
    }
    let statuses = running.join_all().await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1000);
    assert_eq!((flow.auth0.exchanges().len(), flow.origin.count()), (1, 1000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_tokens_make_fifty_exchanges_and_keep_to_their_owners() {
    let flow = Setup::default().start().await;
    flow.auth0.set_mode(Mode::Slow(Duration::from_millis(50)));
    let connections = [
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
    ];
    let subjects: Vec<String> = (0..50).map(|n| user(&flow, n)).collect();
    let mut running = JoinSet::new();
    for n in 0..1000 {
        let (mut caller, subject) = (connections[n % 4].share(), subjects[n % 50].clone());
        running.spawn(async move {
            let request = caller
                .bare("GET", "/headers")
                .header("authorization", format!("Bearer {subject}"))
                .header("x-number", n % 50);
            caller
                .answer(request.body(empty()).unwrap())
                .await
                .status
                .as_u16()
        });
    }
    assert!(running.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(flow.auth0.exchanges().len(), 50);
    for received in flow.origin.requests() {
        let number: usize = received.header("x-number").unwrap().parse().unwrap();
        assert_eq!(
            received.token().unwrap(),
            format!("provider-token-number-{number:04}")
        );
    }
    assert_eq!(flow.origin.count(), 1000);
}

//! A storm of first requests against a vault that takes few: none is lost, and the vault is never pressed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::task::JoinSet;
use tv_tests::fakes::auth0::Mode;
use tv_tests::flow::{HOST, Setup, empty, routes};

const REQUESTS: usize = 10_000;
const SUBJECTS: usize = 500;
const CALLERS: usize = 200;

/// Calls per second that vault and agent are set to. `TV_STORM_RATE=5` is a free tenant, and takes minutes.
fn rate() -> usize {
    let given = std::env::var("TV_STORM_RATE")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or(50)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_of_five_hundred_subjects() {
    let rate = rate();
    let flow = Setup::default().start().await;
    let subject = |n: usize| format!("subject-token-number-{n:04}");
    for n in 0..SUBJECTS {
        let token = format!("provider-token-number-{n:04}");
        flow.auth0.connect(&subject(n), "example", &token, 3600);
        flow.origin.forbid(&subject(n));
    }
    flow.auth0.set_mode(Mode::PerSecond(rate));
    let settings = json!({ "storm": {
        "kind": "auth0_token_vault",
        "token_endpoint": format!("https://{}/oauth/token", flow.auth0.addrs()[0]),
        "client_id": "client-1",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
        "timeout_seconds": 10,
        // The vault counts by its own clock: a little below its limit, and no burst.
        "rate_limit": { "per_second": rate as f64 * 0.9, "burst": 1 },
    } });
    let mut routes = routes();
    routes[0]["vault"] = json!("storm");
    flow.agent.reload(flow.config_vaults(settings, routes)).unwrap();

    let connections = [
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
        flow.h2(HOST).await,
    ];
    let (next, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let mut running = JoinSet::new();
    for n in 0..CALLERS {
        let (mut caller, next, refused) = (connections[n % 4].share(), next.clone(), refused.clone());
        running.spawn(async move {
            let mut served = 0;
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= REQUESTS {
                    return served;
                }
                // As a well-behaved client does: told to wait, it waits and asks again.
                loop {
                    assert!(
                        began.elapsed() < Duration::from_secs(580),
                        "the storm does not end"
                    );
                    let subject = format!("subject-token-number-{:04}", number % SUBJECTS);
                    let request = caller
                        .bare("GET", "/bytes/1")
                        .header("authorization", format!("Bearer {subject}"));
                    let answer = caller.answer(request.body(empty()).unwrap()).await;
                    if answer.status == 200 {
                        served += 1;
                        break;
                    }
                    assert_eq!(answer.refusal(), (503, "rate_limited".to_owned()));
                    refused.fetch_add(1, Ordering::Relaxed);
                    let wait: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                    assert!((1..=60).contains(&wait), "{wait}");
                    tokio::time::sleep(Duration::from_secs(wait)).await;
                }
            }
        });
    }
    let served: usize = running.join_all().await.iter().sum();
    let took = began.elapsed();
    let exchanges = flow.auth0.exchanges();
    let granted = exchanges.iter().filter(|e| e.status == Some(200)).count();
    let limited = exchanges.iter().filter(|e| e.status == Some(429)).count();
    eprintln!(
        "{served} requests served of {SUBJECTS} subjects in {:.1} s: {} exchanges sent ({granted} granted, {limited} \
         told to wait), {} answers 503 with Retry-After",
        took.as_secs_f64(),
        exchanges.len(),
        refused.load(Ordering::Relaxed)
    );
    assert_eq!(served, REQUESTS, "none is lost");
    assert_eq!(granted, SUBJECTS, "one token per subject");
    assert!(limited <= SUBJECTS / 50, "the vault was pressed: {limited}");
    assert_eq!(flow.origin.count(), REQUESTS as u64);
}

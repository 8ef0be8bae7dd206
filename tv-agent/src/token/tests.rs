//! The service as its callers meet it, against a real HTTPS endpoint. Times are real and short: moka and the
//! pauses read the monotonic clock, which tokio's paused time does not move.

use std::collections::HashSet;
use std::error::Error as _;
use std::io;
use std::sync::Mutex;

use rustls_pki_types::CertificateDer;

use super::*;
use crate::class::{Class, Fault};
use crate::clock;
use fake::{Answer, Body, CLIENT_SECRET, Fake, grant, settings, subject};

pub mod fake;

const CANARY: &str = "CANARY";

fn tokens() -> (Tokens, Metrics) {
    let metrics = Metrics::new();
    (Tokens::new(metrics.clone()), metrics)
}

/// How often `event` of the cache was counted.
fn events(metrics: &Metrics, event: &str) -> u64 {
    sample(
        metrics,
        &format!("tv_agent_token_cache_events_total{{event=\"{event}\"}} "),
    )
}

fn exchanges(metrics: &Metrics, result: &str) -> u64 {
    sample(
        metrics,
        &format!("tv_agent_token_exchanges_total{{vault=\"main\",result=\"{result}\"}} "),
    )
}

fn sample(metrics: &Metrics, prefix: &str) -> u64 {
    let text = metrics.render();
    text.lines()
        .find_map(|line| line.strip_prefix(prefix))
        .map_or(0, |n| n.parse().unwrap())
}

async fn refused(tokens: &Tokens, grant: Grant<'_>) -> Error {
    match tokens.obtain(grant).await {
        Err(error) => error,
        Ok(_) => panic!("a token was given"),
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

#[tokio::test]
async fn the_second_request_comes_from_the_cache() {
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let ((tokens, metrics), vault, subject) = (tokens(), fake.vault(), subject("s"));
    let first = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    let second = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!((first.source, second.source), (Source::Exchange, Source::Cache));
    assert!(Arc::ptr_eq(&first.token, &second.token));
    assert_eq!(first.token.expose(), "provider");
    assert!(second.fetched.elapsed() < Duration::from_secs(60) && second.fetched == first.fetched);
    assert_eq!((fake.count(), tokens.len(), tokens.is_empty()), (1, 1, false));
    assert_eq!(
        (
            events(&metrics, "miss"),
            events(&metrics, "hit"),
            exchanges(&metrics, "ok")
        ),
        (1, 1, 1)
    );
    tokens.flush(&Filter::default());
    assert!(tokens.is_empty());
    tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!(fake.count(), 2);
}

/// 1,000 callers with `subjects` different tokens, all at once.
async fn crowd(subjects: usize) {
    let fake = Fake::start(|_, call| {
        Answer::token(&format!("for-{}", call.subject()), 3600).after(Duration::from_millis(100))
    })
    .await;
    let ((tokens, metrics), vault) = (tokens(), fake.vault());
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..1000 {
        let (tokens, vault) = (tokens.clone(), vault.clone());
        callers.spawn(async move {
            let name = format!("s{}", n % subjects);
            let subject = subject(&name);
            let obtained = tokens.obtain(grant(&vault, &subject)).await.unwrap();
            assert_eq!(obtained.token.expose(), format!("for-{name}"));
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    assert_eq!(fake.count(), subjects);
    assert_eq!(exchanges(&metrics, "ok"), subjects as u64);
    let asked: HashSet<String> = fake
        .calls()
        .iter()
        .map(|call| call.subject().to_owned())
        .collect();
    assert_eq!(asked.len(), subjects);
    assert!(tokens.0.is_idle());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_with_one_token_make_one_exchange() {
    crowd(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_thousand_callers_with_fifty_tokens_make_fifty() {
    crowd(50).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_cancel_the_exchange() {
    let fake = Fake::always(Answer::token("provider", 3600).after(Duration::from_millis(200))).await;
    let ((tokens, _), vault, subject) = (tokens(), fake.vault(), subject("s"));
    // The first caller starts the exchange and leaves.
    let hasty = tokio::time::timeout(Duration::from_millis(50), tokens.obtain(grant(&vault, &subject))).await;
    assert!(hasty.is_err());
    let patient = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!(patient.token.expose(), "provider");
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn who_boards_just_after_a_landing_gets_its_result() {
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let ((tokens, _), vault, subject) = (tokens(), fake.vault(), subject("s"));
    tokens.obtain(grant(&vault, &subject)).await.unwrap();
    // This caller looked into the cache before that exchange ended, and boards after it.
    let grant = grant(&vault, &subject);
    let boarding = Boarding {
        grant: &grant,
        own: false,
        key: Key::of(&grant, false).unwrap(),
    };
    let (_, source) = tokens.0.board(boarding).await.ok().unwrap();
    assert_eq!((source, fake.count()), (Source::Cache, 1));
}

#[tokio::test]
async fn every_waiter_of_a_failure_gets_it() {
    let failing = Answer::refusal(400, "invalid_grant", "dead").after(Duration::from_millis(100));
    let fake = Fake::always(failing).await;
    let ((tokens, metrics), vault, subject) = (tokens(), fake.vault(), subject("s"));
    let (a, b, c) = tokio::join!(
        refused(&tokens, grant(&vault, &subject)),
        refused(&tokens, grant(&vault, &subject)),
        refused(&tokens, grant(&vault, &subject)),
    );
    assert!(std::ptr::eq(a.kind(), b.kind()) && std::ptr::eq(b.kind(), c.kind()));
    assert_eq!(
        (fake.count(), exchanges(&metrics, "token_exchange_failed")),
        (1, 1)
    );
    // And so does who comes a little later.
    let later = refused(&tokens, grant(&vault, &subject)).await;
    assert!(std::ptr::eq(later.kind(), a.kind()));
    assert_eq!((fake.count(), events(&metrics, "negative_hit")), (1, 1));
}

#[tokio::test]
async fn connections_hints_and_subjects_do_not_mix() {
    let fake = Fake::start(|_, call| {
        let hint = call.fields.get("login_hint").map_or("-", String::as_str);
        Answer::token(
            &format!("{}/{}/{hint}", call.subject(), call.fields["connection"]),
            3600,
        )
    })
    .await;
    let ((tokens, _), vault) = (tokens(), fake.vault());
    for _ in 0..2 {
        for (who, connection, login_hint) in [
            ("a", "github", None),
            ("b", "github", None),
            ("a", "google", None),
            ("a", "github", Some("me")),
        ] {
            let subject = subject(who);
            let wanted = Arc::new(Wanted::connection(connection));
            let grant = Grant {
                login_hint,
                subject: Some(&subject),
                ..Grant::new(&vault, &wanted)
            };
            let obtained = tokens.obtain(grant).await.unwrap();
            let expected = format!("{who}/{connection}/{}", login_hint.unwrap_or("-"));
            assert_eq!(obtained.token.expose(), expected);
        }
    }
    assert_eq!(fake.count(), 4);
}

#[tokio::test]
async fn what_ends_within_the_margin_is_used_once() {
    for expires_in in [0, 59, 60] {
        let fake = Fake::always(Answer::token("provider", expires_in)).await;
        let ((tokens, _), vault, subject) = (tokens(), fake.vault(), subject("s"));
        for calls in 1..=2 {
            let obtained = tokens.obtain(grant(&vault, &subject)).await.unwrap();
            assert_eq!(
                (obtained.source, fake.count(), tokens.len()),
                (Source::Exchange, calls, 0),
                "{expires_in}"
            );
        }
    }
}

#[tokio::test]
async fn a_subject_that_has_ended_is_asked_for_but_never_cached() {
    use base64::Engine as _;
    let b64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let jwt = |exp: u64| subject(&format!("e30.{}.sig", b64.encode(format!("{{\"exp\":{exp}}}"))));
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let ((tokens, _), vault) = (tokens(), fake.vault());
    let ended = jwt(1_000_000_000);
    for calls in 1..=2 {
        tokens.obtain(grant(&vault, &ended)).await.unwrap();
        assert_eq!((fake.count(), tokens.len()), (calls, 0));
    }
    // One that ends soon takes its entry with it.
    let soon = jwt(clock::unix_now().as_secs() + 2);
    tokens.obtain(grant(&vault, &soon)).await.unwrap();
    assert_eq!(
        tokens.obtain(grant(&vault, &soon)).await.unwrap().source,
        Source::Cache
    );
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(
        tokens.obtain(grant(&vault, &soon)).await.unwrap().source,
        Source::Exchange
    );
}

#[tokio::test]
async fn a_rejection_takes_the_refused_token_and_no_other() {
    let fake = Fake::start(|n, _| Answer::token(&format!("t{n}"), 3600)).await;
    let ((tokens, metrics), vault, subject) = (tokens(), fake.vault(), subject("s"));
    let first = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert!(tokens.reject(&first));
    let second = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!(second.token.expose(), "t1");
    // Late news about the first one do not hurt the second, which is worth a try.
    assert!(tokens.reject(&first));
    assert_eq!(
        tokens.obtain(grant(&vault, &subject)).await.unwrap().source,
        Source::Cache
    );
    // The second refused as well: that is the provider's last word for a while.
    assert!(!tokens.reject(&second));
    assert_eq!(
        tokens.obtain(grant(&vault, &subject)).await.unwrap().source,
        Source::Cache
    );
    assert_eq!((fake.count(), events(&metrics, "evicted")), (2, 1));
}

#[tokio::test]
async fn a_vault_without_a_better_token_is_asked_once_more_only() {
    let fake = Fake::always(Answer::token("same", 3600)).await;
    let ((tokens, _), vault, subject) = (tokens(), fake.vault(), subject("s"));
    let first = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert!(tokens.reject(&first));
    for _ in 0..5 {
        let again = tokens.obtain(grant(&vault, &subject)).await.unwrap();
        assert!(!tokens.reject(&again));
    }
    assert_eq!(fake.count(), 2);
}

#[tokio::test]
async fn negative_entries_end_by_themselves() {
    // As often as one exchange tries.
    let fake = Fake::start(|n, _| match n {
        0..3 => Answer::new(500, "oops"),
        _ => Answer::token("provider", 3600),
    })
    .await;
    let ((tokens, _), vault, subject) = (tokens(), fake.vault(), subject("s"));
    for _ in 0..3 {
        let error = refused(&tokens, grant(&vault, &subject)).await;
        assert_eq!(error.class(), Class::VaultUnavailable);
        let wait = error.refusal().retry_after.unwrap();
        assert!(wait <= Duration::from_secs(1) && !wait.is_zero(), "{wait:?}");
    }
    assert_eq!(fake.count(), 3);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(tokens.obtain(grant(&vault, &subject)).await.is_ok());
}

#[tokio::test]
async fn a_rate_limit_pauses_the_whole_vault_and_only_it() {
    let limited = Fake::start(|n, _| match n {
        0 => Answer::token("provider", 3600),
        1 => Answer::refusal(429, "too_many_requests", "slow").header("retry-after", "3"),
        _ => Answer::token("after", 3600),
    })
    .await;
    let ((tokens, metrics), vault) = (tokens(), limited.vault());
    let cached = subject("cached");
    tokens.obtain(grant(&vault, &cached)).await.unwrap();
    let error = refused(&tokens, grant(&vault, &subject("a"))).await;
    assert!(matches!(error.kind(), ErrorKind::RateLimited { .. }), "{error}");
    // Nobody calls it now, whatever the token; what is cached goes on, and so do other vaults.
    for who in ["a", "b", "c"] {
        let error = refused(&tokens, grant(&vault, &subject(who))).await;
        assert_eq!(error.class(), Class::VaultRateLimited);
        let wait = error.refusal().retry_after.unwrap();
        assert!(
            wait <= Duration::from_secs(3) && wait > Duration::from_millis(500),
            "{wait:?}"
        );
    }
    assert_eq!(limited.count(), 2);
    assert_eq!(
        tokens.obtain(grant(&vault, &cached)).await.unwrap().source,
        Source::Cache
    );
    let other = Fake::always(Answer::token("other", 3600)).await;
    assert!(tokens.obtain(grant(&other.vault(), &subject("a"))).await.is_ok());
    // A reload does not lift the pause, nor does a flush.
    tokens.flush(&Filter::default());
    assert_eq!(
        refused(&tokens, grant(&limited.vault(), &subject("a")))
            .await
            .class(),
        Class::VaultRateLimited
    );
    tokio::time::sleep(Duration::from_millis(3100)).await;
    let obtained = tokens.obtain(grant(&vault, &subject("a"))).await.unwrap();
    assert_eq!((obtained.token.expose(), limited.count()), ("after", 3));
    assert_eq!(exchanges(&metrics, "rate_limited"), 1);
}

fn capped(fake: &Fake, at_once: usize, queued: usize, timeout: Duration) -> Arc<Vault> {
    let mut settings = fake.settings();
    settings.timeout = timeout;
    settings.pacing.at_once = at_once;
    Arc::new(Vault::with_queue(settings, Arc::new(RootCertStore::empty()), queued).unwrap())
}

/// The classes of `n` callers at once, each with its own token.
async fn many(tokens: &Tokens, vault: &Arc<Vault>, n: usize) -> Vec<Option<Class>> {
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..n {
        let (tokens, vault) = (tokens.clone(), vault.clone());
        callers.spawn(async move {
            let subject = subject(&format!("s{n}"));
            tokens
                .obtain(grant(&vault, &subject))
                .await
                .err()
                .map(|e| e.class())
        });
    }
    callers.join_all().await
}

#[tokio::test]
async fn no_more_exchanges_run_at_once_than_the_cap() {
    let fake = Fake::always(Answer::token("provider", 3600).after(Duration::from_millis(50))).await;
    let (tokens, _) = tokens();
    let classes = many(&tokens, &fake.vault(), limits::EXCHANGES_AT_ONCE * 3).await;
    assert!(classes.iter().all(Option::is_none), "{classes:?}");
    assert!(fake.peak() <= limits::EXCHANGES_AT_ONCE, "{}", fake.peak());
    assert!(fake.peak() > limits::EXCHANGES_AT_ONCE / 2, "{}", fake.peak());
}

#[tokio::test]
async fn the_wait_for_a_turn_is_bounded_and_so_is_the_queue() {
    let slow = Fake::always(Answer::token("provider", 3600).after(Duration::from_secs(60))).await;
    let (tokens, metrics) = tokens();
    let vault = capped(&slow, 1, 2, Duration::from_millis(200));
    let mut classes = many(&tokens, &vault, 3).await;
    classes.sort_by_key(|class| class.map(Class::label));
    let timeout = Some(Class::VaultTimeout);
    assert_eq!(classes, [timeout, timeout, Some(Class::VaultUnavailable)]);
    assert!(slow.count() <= 2);
    assert!(exchanges(&metrics, "vault_timeout") >= 1);
    // The queue is free again afterwards.
    assert_eq!(vault.queue.available_permits(), 2);
}

/// A vault whose tokens live `ttl` in the cache.
fn brief(fake: &Fake, ttl: Duration) -> Arc<Vault> {
    fake.vault_with(|s| s.ttl_max = ttl)
}

#[tokio::test]
async fn a_token_in_use_is_renewed_before_it_ends() {
    let fake = Fake::start(|n, _| {
        let wait = if n == 0 {
            Duration::ZERO
        } else {
            Duration::from_millis(100)
        };
        Answer::token(&format!("t{n}"), 3600).after(wait)
    })
    .await;
    let ((tokens, metrics), vault, subject) = (tokens(), brief(&fake, Duration::from_secs(4)), subject("s"));
    tokens.obtain(grant(&vault, &subject)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2000)).await;
    tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!(fake.count(), 1, "too early for a refresh");
    tokio::time::sleep(Duration::from_millis(1300)).await;
    // Many see that it is due; one refresh starts, and nobody waits for it.
    for _ in 0..20 {
        let obtained = tokens.obtain(grant(&vault, &subject)).await.unwrap();
        assert_eq!((obtained.token.expose(), obtained.source), ("t0", Source::Cache));
    }
    eventually("the refresh", || exchanges(&metrics, "ok") == 2).await;
    // Beyond the first one's end.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let renewed = tokens.obtain(grant(&vault, &subject)).await.unwrap();
    assert_eq!((renewed.token.expose(), renewed.source), ("t1", Source::Cache));
    assert_eq!((fake.count(), events(&metrics, "refresh")), (2, 1));
}

#[tokio::test]
async fn a_failed_refresh_keeps_the_token_and_does_not_hammer() {
    let fake = Fake::start(|n, _| match n {
        0 => Answer::token("t0", 3600),
        _ => Answer::refusal(400, "invalid_grant", "dead"),
    })
    .await;
    let ((tokens, metrics), vault, subject) = (tokens(), brief(&fake, Duration::from_secs(4)), subject("s"));
    tokens.obtain(grant(&vault, &subject)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(3300)).await;
    for _ in 0..5 {
        let obtained = tokens.obtain(grant(&vault, &subject)).await.unwrap();
        assert_eq!(obtained.source, Source::Cache);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("the refresh", || {
        exchanges(&metrics, "token_exchange_failed") == 1
    })
    .await;
    assert_eq!(
        tokens.obtain(grant(&vault, &subject)).await.unwrap().source,
        Source::Cache
    );
    assert_eq!(fake.count(), 2);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert_eq!(
        refused(&tokens, grant(&vault, &subject)).await.class(),
        Class::ExchangeRefused
    );
}

#[tokio::test]
async fn the_same_token_again_is_not_asked_for_a_third_time() {
    let same = Fake::always(Answer::token("same", 3600)).await;
    let ((tokens, metrics), vault, who) = (tokens(), brief(&same, Duration::from_secs(3)), subject("s"));
    tokens.obtain(grant(&vault, &who)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(2450)).await;
    tokens.obtain(grant(&vault, &who)).await.unwrap();
    eventually("the refresh", || exchanges(&metrics, "ok") == 2).await;
    tokio::time::sleep(Duration::from_millis(2450)).await;
    assert_eq!(
        tokens.obtain(grant(&vault, &who)).await.unwrap().source,
        Source::Cache
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(same.count(), 2);
}

#[tokio::test]
async fn a_paused_vault_is_not_asked_for_a_refresh() {
    let fake = Fake::always(Answer::token("t", 3600)).await;
    let ((tokens, _), vault, who) = (tokens(), brief(&fake, Duration::from_secs(3)), subject("s"));
    tokens.obtain(grant(&vault, &who)).await.unwrap();
    tokens.0.store.pause(vault.id, Duration::from_secs(30));
    tokio::time::sleep(Duration::from_millis(2450)).await;
    assert_eq!(
        tokens.obtain(grant(&vault, &who)).await.unwrap().source,
        Source::Cache
    );
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fake.count(), 1);
}

#[tokio::test]
async fn an_exchange_that_is_lost_is_told_and_forgotten() {
    let fake = Fake::always(Answer::token("t", 3600)).await;
    let ((tokens, _), vault, who) = (tokens(), fake.vault(), subject("s"));
    // Its task lives in a runtime that ends before it: to the waiter the same as a panic.
    let doomed = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut waiter = std::pin::pin!(tokens.obtain(grant(&vault, &who)));
    let pending = std::future::poll_fn(|context| {
        let _inside = doomed.enter();
        std::task::Poll::Ready(waiter.as_mut().poll(context).is_pending())
    });
    assert!(pending.await && !tokens.0.is_idle());
    doomed.shutdown_background();
    let error = waiter.await.err().unwrap();
    assert_eq!(error.class(), Class::Internal);
    assert!(tokens.0.is_idle());
    assert!(tokens.obtain(grant(&vault, &who)).await.is_ok());
}

#[test]
fn settings_that_cannot_work_are_named() {
    let root = rcgen::generate_simple_self_signed(vec!["x".into()])
        .unwrap()
        .cert
        .der()
        .clone();
    let build = |endpoint: &str, change: &dyn Fn(&mut VaultSettings)| {
        let mut settings = settings(endpoint, vec![root.clone()]);
        change(&mut settings);
        let error = Vault::new(settings, Arc::new(RootCertStore::empty()))
            .err()
            .expect("refused");
        let text = error.to_string();
        assert!(text.contains("\"main\"") && !text.contains(CANARY), "{text}");
        error
    };
    let url = "https://tenant.example/oauth/token";
    assert!(matches!(
        build("http://tenant.example/oauth/token", &|_| {}),
        BuildError::NotHttps { .. }
    ));
    assert!(matches!(
        build("file:///etc/passwd", &|_| {}),
        BuildError::NotHttps { .. }
    ));
    for bad in [
        "https://me@x.example/",
        "https://:CANARY@x.example/",
        "https://x.example/#f",
    ] {
        assert!(
            matches!(build(bad, &|_| {}), BuildError::ExtraUrlParts { .. }),
            "{bad}"
        );
    }
    assert!(matches!(
        build(url, &|s| s.client_id.clear()),
        BuildError::EmptyClientId { .. }
    ));
    assert!(matches!(
        build(url, &|s| s.client_auth =
            ClientAuth::SecretBasic(Secret::new(String::new()))),
        BuildError::EmptySecret { .. }
    ));
    assert!(matches!(
        build(url, &|s| s.timeout = Duration::ZERO),
        BuildError::ZeroTime { .. }
    ));
    assert!(matches!(
        build(url, &|s| s.ttl_max = Duration::ZERO),
        BuildError::ZeroTime { .. }
    ));
    assert!(matches!(
        build(url, &|s| s.extra_roots.clear()),
        BuildError::NoRoots { .. }
    ));
    let broken = build(url, &|s| s.extra_roots.push(CertificateDer::from(vec![1, 2, 3])));
    assert!(matches!(broken, BuildError::ExtraRoot { index: 1, .. }) && broken.source().is_some());
}

/// Collects everything that tracing says.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_secret_shows_in_logs_metrics_errors_or_refusals() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    const SUBJECT: &str = "CANARY-subject-token-0123456789";
    const PROVIDER: &str = "CANARY-provider-token-0123456789";
    let echo = format!("token {SUBJECT} of client {CLIENT_SECRET} is bad");
    let json = |text: &str| Answer::new(200, text.replace("TOKEN", PROVIDER));
    let answers = [
        Answer::token(PROVIDER, 3600),
        Answer::token(PROVIDER, 0),
        json(r#"{"access_token":"TOKEN","token_type":"DPoP"}"#),
        json(r#"{"access_token":"TOKEN","token_type":"TOKEN","expires_in":"TOKEN"}"#),
        json(r#"{"access_token":"TOKEN","expires_in":"TOKEN"}"#),
        json(r#"{"access_token":["TOKEN"]}"#),
        json(r#"{"access_token":"TOKEN\n"}"#),
        json(r#"{"access_token":"TOKEN","access_token":"TOKEN"}"#),
        json(r#"{"access_token":"TOKEN""#),
        json(r#"["TOKEN"]"#),
        json("TOKEN"),
        Answer::new(302, "").header("location", format!("https://elsewhere.example/?t={SUBJECT}")),
        Answer::refusal(400, "invalid_grant", &echo),
        Answer::refusal(401, "federated_connection_refresh_token_not_found", &echo),
        Answer::refusal(401, "federated_connection_refresh_token_flow_failed", &echo),
        Answer::refusal(401, "invalid_client", &echo),
        Answer::refusal(400, SUBJECT, ""),
        Answer::new(401, echo.clone()),
        Answer::new(500, echo.clone()),
        Answer::refusal(429, "too_many_requests", &echo).header("x-echo", SUBJECT),
        Answer::new(200, "").body(Body::Cut),
        Answer::new(200, "").body(Body::Long(10 << 20)),
        Answer::new(200, "").body(Body::Endless),
    ];
    let mut classes = HashSet::new();
    let mut said = String::new();
    let metrics = Metrics::new();
    for (client_auth, encoding) in [
        (ClientAuth::SecretPost as fn(Secret) -> ClientAuth, Encoding::Form),
        (ClientAuth::SecretBasic, Encoding::Json),
    ] {
        for answer in &answers {
            let fake = Fake::always(answer.clone()).await;
            let vault = fake.vault_with(|s| {
                s.client_auth = client_auth(Secret::new(CLIENT_SECRET.into()));
                s.encoding = encoding;
                s.timeout = Duration::from_millis(500);
            });
            // A service of its own each time, or the second one would be answered by the pause of the first.
            let tokens = Tokens::new(metrics.clone());
            let subject = subject(SUBJECT);
            for _ in 0..2 {
                let Err(error) = tokens.obtain(grant(&vault, &subject)).await else {
                    continue;
                };
                classes.insert(error.class());
                let refusal = error.refusal();
                assert_eq!(refusal.class, error.class());
                said += &format!("{error} {error:?} {:?} {}\n", error.kind(), refusal.description);
                let mut source = error.source();
                while let Some(cause) = source {
                    said += &format!("{cause} {cause:?}\n");
                    source = cause.source();
                }
            }
        }
    }
    let closed = settings(
        "https://127.0.0.1:1/oauth/token",
        vec![
            rcgen::generate_simple_self_signed(vec!["x".into()])
                .unwrap()
                .cert
                .der()
                .clone(),
        ],
    );
    let vault = Arc::new(Vault::new(closed, Arc::new(RootCertStore::empty())).unwrap());
    let error = refused(&Tokens::new(metrics.clone()), grant(&vault, &subject(SUBJECT))).await;
    said += &format!("{error:?} {}\n", crate::https::causes(&error));

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        log.contains("token exchange failed") && log.contains("vault=main"),
        "{log}"
    );
    for (what, text) in [("log", &log), ("errors", &said), ("metrics", &metrics.render())] {
        let found = text.lines().find(|line| line.contains(CANARY));
        assert_eq!(found, None, "in {what}");
        // Encoded too: the basic credentials, and the secret as a form has it.
        assert!(
            !text.contains("Y2xpZW50JTNBb25l") && !text.contains("secret%3A"),
            "in {what}"
        );
    }
    let expected: HashSet<Class> = Class::ALL
        .into_iter()
        .filter(|class| class.fault() == Fault::Vault || class.label() == "configuration_error")
        // The verify stage's own.
        .filter(|class| *class != Class::VerifierUnavailable)
        .chain([Class::ExchangeRefused, Class::ConnectionRequired])
        .collect();
    assert_eq!(classes, expected, "the canary must pass every way to fail");
}

#[tokio::test]
async fn a_refusal_says_how_to_connect_the_account() {
    let rows = [
        (
            "federated_connection_refresh_token_not_found",
            "has not connected",
        ),
        (
            "federated_connection_refresh_token_flow_failed",
            "no longer accepts",
        ),
    ];
    for (code, says) in rows {
        let fake = Fake::always(Answer::refusal(401, code, "raw words of the vault")).await;
        let ((tokens, _), vault) = (tokens(), fake.vault());
        let error = refused(&tokens, grant(&vault, &subject("a token"))).await;
        let refusal = error.refusal();
        assert_eq!(
            (refusal.class, refusal.retry_after),
            (Class::ConnectionRequired, None)
        );
        for part in [
            says,
            "\"github\"",
            "https://127.0.0.1/me/v1/connected-accounts/connect",
        ] {
            assert!(refusal.description.contains(part), "{}", refusal.description);
        }
        assert!(!refusal.description.contains("raw words"));
        // The log has them, one level at a time.
        assert!(!error.to_string().contains("raw words"));
        assert!(error.source().unwrap().to_string().contains("raw words"));
    }
}

#[tokio::test]
async fn the_list_says_whose_an_entry_is_and_a_flush_takes_what_is_meant() {
    let fake = Fake::always(Answer::token("provider", 3600)).await;
    let ((tokens, _), vault) = (tokens(), fake.vault());
    let (alice, bob) = (subject("subject-of-alice"), subject("subject-of-bob"));
    let ask = async |subject: &Arc<Secret>, connection: &str, route: &str| {
        let wanted = Arc::new(Wanted::connection(connection));
        let grant = Grant {
            wanted: &wanted,
            route,
            ..grant(&vault, subject)
        };
        tokens.obtain(grant).await.unwrap();
    };
    let fill = async || {
        ask(&alice, "github", "a").await;
        ask(&alice, "github", "b").await;
        ask(&alice, "google", "b").await;
        ask(&bob, "github", "a").await;
    };
    fill().await;
    let mut rows = tokens.list();
    rows.sort_by_key(|row| std::cmp::Reverse(row.hits));
    assert_eq!(rows.len(), 3);
    assert_eq!(
        (rows[0].hits, rows[0].routes.clone()),
        (1, vec!["a".to_owned(), "b".to_owned()])
    );
    assert!(rows[1..].iter().all(|row| row.hits == 0));
    assert!(
        rows.iter()
            .all(|row| row.vault == *vault.settings().name && row.subject.len() == 16)
    );
    let shown = format!("{rows:?}");
    assert!(
        !shown.contains("subject-of") && !shown.contains("provider"),
        "{shown}"
    );
    let whose = rows[0].subject.clone();
    assert_eq!(rows.iter().filter(|row| row.subject == whose).count(), 2);

    let by = |route: Option<&str>, vault: Option<&str>, subject: Option<&str>| {
        let own = |text: Option<&str>| text.map(str::to_owned);
        tokens.flush(&Filter {
            route: own(route),
            vault: own(vault),
            subject: own(subject),
        })
    };
    assert_eq!(by(Some("none"), None, None), 0);
    assert_eq!(by(None, Some("none"), None), 0);
    assert_eq!(by(None, None, Some("ffffffffffffffff")), 0);
    assert_eq!(
        by(Some("b"), Some("none"), None),
        0,
        "every part that is given counts"
    );
    // The entry that two routes share goes with either.
    assert_eq!(by(Some("b"), None, None), 2);
    assert_eq!(tokens.len(), 1);
    fill().await;
    assert_eq!(by(None, None, Some(&whose[..8].to_uppercase())), 2);
    assert_eq!(by(None, Some(&vault.settings().name), Some(&whose)), 0);
    assert_eq!(by(None, Some(&vault.settings().name), None), 1);
    assert!(tokens.is_empty());
    fill().await;
    assert_eq!(by(None, None, None), 3);
}

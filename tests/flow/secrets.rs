//! Canaries: whatever is logged, counted or answered, on success and on every refusal, no secret stands in it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use jsonwebtoken::Algorithm;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tracing::field::{Field, Visit};
use tracing::span;
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::idp::{INTROSPECTION, Idp, Reply, SigningKey};
use tv_tests::fakes::oauth::{Call, TokenServer, Verdict, dialect};
use tv_tests::fakes::origin::Site;
use tv_tests::fakes::pki::Flaw;
use tv_tests::flow::{
    CLIENT_SECRET, Caller, Dial, Flow, GIT_HOST, HOST, OPEN_HOST, PROVIDER, ReqBody, SUBJECT, Setup, empty,
    raw_origin, read_head, whole,
};

/// The events and spans of one thread at every level, as text.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<String>>);

impl Captured {
    fn write(&self, text: &str) {
        self.0.lock().unwrap().push_str(text);
    }
}

struct Fields<'a>(&'a Captured);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.write(&format!(" {field}={value:?}"));
    }
}

thread_local! {
    static HERE: RefCell<Option<Captured>> = const { RefCell::new(None) };
}

/// Hears every thread of this process, and hands on what the threads say that capture: a subscriber of one
/// thread alone can miss places in the code that another thread was the first to reach.
struct Listener;

impl Listener {
    fn hand_on(&self, take: impl FnOnce(&Captured)) {
        HERE.with_borrow(|captured| captured.as_ref().map(take));
    }
}

impl tracing::Subscriber for Listener {
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> tracing::subscriber::Interest {
        tracing::subscriber::Interest::sometimes()
    }

    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        HERE.with_borrow(Option::is_some)
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        self.hand_on(|captured| attributes.record(&mut Fields(captured)));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, values: &span::Record<'_>) {
        self.hand_on(|captured| values.record(&mut Fields(captured)));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let (level, target) = (event.metadata().level(), event.metadata().target());
        self.hand_on(|captured| {
            captured.write(&format!("\n{level} {target}"));
            event.record(&mut Fields(captured));
        });
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl log::Log for Listener {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        HERE.with_borrow(Option::is_some)
    }

    fn log(&self, record: &log::Record<'_>) {
        let (level, target, text) = (record.level(), record.target(), record.args());
        self.hand_on(|captured| captured.write(&format!("\n{level} {target} {text}")));
    }

    fn flush(&self) {}
}

/// Everything that workloads and operators get to see.
struct Seen {
    captured: Captured,
    answers: String,
}

impl Seen {
    /// The agent of this test runs on this very thread, the fakes on threads of their own.
    fn start() -> Self {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            tracing::subscriber::set_global_default(Listener).expect("no other subscriber in this process");
            log::set_logger(&Listener).expect("no other logger in this process");
            log::set_max_level(log::LevelFilter::Trace);
        });
        let captured = Captured::default();
        HERE.set(Some(captured.clone()));
        Self {
            captured,
            answers: String::new(),
        }
    }

    async fn ask(&mut self, caller: &mut Caller, request: Request<ReqBody>) -> u16 {
        let answer = caller.answer(request).await;
        write!(
            self.answers,
            "{} {:?} {}",
            answer.status,
            answer.headers,
            answer.text()
        )
        .unwrap();
        answer.status.as_u16()
    }

    /// Fails if a canary, or a good part of one, in clear or in base64, stands in anything seen.
    fn check(&self, flow: &Flow, canaries: &[&str]) {
        let logs = self.captured.0.lock().unwrap();
        assert!(logs.contains("tv_agent::audit"), "the audit record is captured");
        assert!(
            logs.contains("TRACE"),
            "so is what libraries say at the finest level"
        );
        let metrics = flow.metrics.render();
        for canary in canaries {
            let encoded = BASE64_STANDARD.encode(format!("x-access-token:{canary}"));
            // A good part: the first 20 characters.
            for needle in [&canary[..20], &encoded[20..]] {
                for (place, text) in [
                    ("logs", &*logs),
                    ("metrics", &metrics),
                    ("answers", &self.answers),
                ] {
                    if let Some(at) = text.find(needle) {
                        let line = text[..at].rfind('\n').map_or(0, |start| start + 1);
                        panic!("{needle} in {place}: {}", &text[line..(at + 60).min(text.len())]);
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn no_secret_shows_on_success_or_on_any_refusal() {
    let mut seen = Seen::start();
    let setup = Setup {
        site: Site::GitHub,
        vault_timeout: 1,
        ..Setup::default()
    };
    let flow = setup.start().await;
    let mut refused = vec![];
    for h2 in [false, true] {
        for host in [HOST, GIT_HOST] {
            let mut caller = if h2 {
                flow.h2(host).await
            } else {
                flow.h1(host).await
            };
            let bearer = format!("Bearer {SUBJECT}");
            let basic = format!(
                "Basic {}",
                BASE64_STANDARD.encode(format!("x-access-token:{SUBJECT}"))
            );
            // Accepted, sent twice, in the wrong scheme, in the address, in other headers, for another host.
            let requests = [
                caller.request("GET", "/headers").body(empty()),
                caller.request("POST", "/echo").body(whole("a body")),
                caller.request("GET", "/status/401").body(empty()),
                caller.request("GET", "/redirect-elsewhere").body(empty()),
                caller
                    .bare("GET", "/bytes/1")
                    .header("authorization", &basic)
                    .body(empty()),
                caller
                    .request("GET", "/")
                    .header("authorization", &bearer)
                    .body(empty()),
                caller
                    .bare("GET", "/")
                    .header("authorization", format!("Digest {SUBJECT}"))
                    .body(empty()),
                caller
                    .bare("GET", "/")
                    .header("authorization", SUBJECT)
                    .body(empty()),
                caller
                    .request("GET", &format!("/{SUBJECT}?t={SUBJECT}"))
                    .body(empty()),
                caller
                    .bare("GET", &format!("/{SUBJECT}"))
                    .header("authorization", SUBJECT)
                    .body(empty()),
                caller
                    .bare("GET", &format!("/{SUBJECT}"))
                    .header("authorization", &basic)
                    .body(empty()),
                caller
                    .request("GET", "/bytes/1")
                    .header("x-copy", SUBJECT)
                    .body(empty()),
                caller.request("TRACE", "/").body(empty()),
                caller
                    .request("GET", "/")
                    .header("host", "evil.test")
                    .body(empty()),
                caller
                    .request("GET", "/")
                    .header("x-big", "a".repeat(65 * 1024))
                    .body(empty()),
            ];
            for request in requests {
                refused.push(seen.ask(&mut caller, request.unwrap()).await);
            }
        }
    }
    assert!(
        refused.iter().filter(|status| **status == 200).count() >= 4,
        "{refused:?}"
    );
    assert!(
        [400, 401, 403, 421, 431]
            .iter()
            .all(|status| refused.contains(status)),
        "{refused:?}"
    );

    // The vault fails in every way, and repeats what it was sent in the worst of them.
    let echo = "subject-token-of-alice-0001 client-secret-of-the-agent-0001 are wrong";
    let modes = [
        Mode::Refuse(401, "invalid_grant", echo),
        Mode::Refuse(403, "access_denied", echo),
        Mode::Refuse(401, "invalid_client", echo),
        Mode::Refuse(400, "subject-token-of-alice-0001", echo),
        Mode::Refuse(503, "temporarily_unavailable", echo),
        Mode::ServerError,
        Mode::NotJson,
        Mode::NoAccessToken,
        Mode::ExpiresIn(Some(json!("never"))),
        Mode::Huge(1 << 20),
        Mode::Hang,
        Mode::RateLimited { retry_after: Some(1) },
    ];
    for mode in modes {
        flow.agent.tokens().flush(&tv_agent::token::Filter::default());
        flow.auth0.set_mode(mode.clone());
        let mut caller = flow.h2(HOST).await;
        let request = caller.request("GET", "/headers").body(empty()).unwrap();
        let status = seen.ask(&mut caller, request).await;
        assert!([401, 502, 503, 504].contains(&status), "{mode:?}: {status}");
    }
    flow.auth0.set_mode(Mode::Normal);
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;

    // Providers that repeat the token, break the protocol, or break off.
    let identity = flow.pki.leaf(&[HOST]);
    for n in 0..3 {
        let origin = raw_origin(&identity, &["http/1.1"], move |mut stream, _| async move {
            let head = read_head(&mut stream).await;
            let token = head.split("Bearer ").nth(1).unwrap().split('\r').next().unwrap();
            let answer = [
                format!("HTTP/1.1 200 OK\r\nx-token: {token}\r\ncontent-length: 0\r\n\r\n"),
                format!("HTTP/1.1 {token}\r\n\r\n"),
                format!("{token}\r\n\r\n"),
            ];
            drop(stream.write_all(answer[n].as_bytes()).await);
            stream.shutdown().await.ok();
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, &["http/1.1"])
            })
            .await;
        let request = caller.request("GET", "/").body(empty()).unwrap();
        assert_eq!(
            seen.ask(&mut caller, request).await,
            if n == 0 { 200 } else { 502 }
        );
    }
    let headers = flow.origin.requests();
    assert!(
        headers.iter().any(|r| r.token().as_deref() == Some(PROVIDER)),
        "the provider got its token"
    );
    assert!(flow.auth0.count(SUBJECT) > 0, "the vault got the subject token");
    // `/headers` and `/echo` of the fake tell the workload what came; that is the provider's doing in a body.
    seen.answers = seen.answers.replace(&format!("Bearer {PROVIDER}"), "");
    seen.check(&flow, &[SUBJECT, PROVIDER, CLIENT_SECRET]);

    // An origin that is not believed, with TLS's own words in the answer.
    let flow = Setup {
        flaw: Some(Flaw::SelfSigned),
        ..Setup::default()
    }
    .start()
    .await;
    let mut caller = flow.h1(HOST).await;
    let request = caller.request("GET", "/").body(empty()).unwrap();
    assert_eq!(seen.ask(&mut caller, request).await, 502);
    seen.check(&flow, &[SUBJECT, PROVIDER, CLIENT_SECRET]);
    HERE.set(None);
}

const ACTOR: &str = "actor-token-of-the-canary-0001";
const CALLER_SECRET: &str = "caller-secret-of-the-canary-0001";

/// An authorization server that repeats everything that it was sent, in grants and refusals.
fn echoing(n: &AtomicUsize, call: &Call) -> Verdict {
    let (id, secret) = call.client();
    let echo: Vec<&str> = call
        .params
        .iter()
        .map(|(_, v)| v.as_str())
        .chain([id, secret])
        .collect();
    let echo = echo.join(" ");
    match n.fetch_add(1, Ordering::Relaxed) % 7 {
        0 => dialect::refuse(401, "invalid_client", &echo),
        1 => dialect::refuse(400, "invalid_target", &echo),
        2 => Ok((
            400,
            json!({ "error": "interaction_required", "error_description": echo, "claims": json!({ "c": echo }).to_string(),
                "interaction_uri": format!("https://idp.example/?{}", echo.replace(' ', "&")) }),
        )),
        3 => Ok((200, json!({ "access_token": echo }))),
        4 => Ok((200, json!([echo]))),
        // Repeated at once, with what comes next.
        5 => dialect::refuse(503, "temporarily_unavailable", &echo),
        _ => dialect::grant("provider-token-of-the-canary-0001"),
    }
}

#[tokio::test]
async fn no_secret_of_the_other_kinds_shows() {
    let mut seen = Seen::start();
    let flow = Setup::default().start().await;
    let count = AtomicUsize::new(0);
    let anywhere = "127.0.0.1:0".parse().unwrap();
    let identity = flow.pki.leaf(&["127.0.0.1"]);
    let server = TokenServer::start(&[anywhere], &identity, move |call| echoing(&count, call)).unwrap();
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let file = flow.dir().join("key.pem");
    std::fs::write(&file, &key).unwrap();
    let secret = json!({ "env": "SECRET" });
    let own = |auth: serde_json::Value| {
        json!({ "kind": "token_exchange", "token_endpoint": server.endpoint(), "client_id": "client-1",
            "client_auth": auth, "actor": { "from": "header", "header": "x-actor" },
            "circuit_breaker": { "failures": 1000 } })
    };
    let vaults = json!({
        "basic": own(json!({ "method": "client_secret_basic", "secret": secret })),
        "key": own(json!({ "method": "private_key_jwt", "key": file, "algorithm": "ES256" })),
        "callers": { "kind": "client_credentials", "token_endpoint": server.endpoint(), "audience": "a",
            "credentials": { "from": ["header", "query", "body"] }, "circuit_breaker": { "failures": 1000 } },
    });
    let route =
        |host: &str, vault: &str| json!({ "name": vault, "hosts": [format!("*.{host}")], "vault": vault });
    let routes = json!([
        route("example.test", "basic"),
        route("github.com", "key"),
        route("open.test", "callers"),
    ]);
    flow.agent.reload(flow.config_vaults(vaults, routes)).unwrap();
    flow.origin.forbid(ACTOR);
    flow.origin.forbid(CALLER_SECRET);
    let mut statuses = vec![];
    for _ in 0..8 {
        for host in [HOST, GIT_HOST] {
            flow.agent.tokens().flush(&Default::default());
            let mut caller = flow.h2(host).await;
            let request = caller.request("GET", "/bytes/1").header("x-actor", ACTOR);
            statuses.push(seen.ask(&mut caller, request.body(empty()).unwrap()).await);
        }
        let mut caller = flow.h1(OPEN_HOST).await;
        let basic = format!("Basic {}", BASE64_STANDARD.encode(format!("me:{CALLER_SECRET}")));
        let query = format!("client_id=me&client_secret={CALLER_SECRET}");
        let requests = [
            caller
                .bare("GET", "/bytes/1")
                .header("authorization", &basic)
                .body(empty()),
            caller.bare("GET", &format!("/bytes/1?{query}")).body(empty()),
            caller
                .bare("GET", &format!("/bytes/1?client_id=a&{query}"))
                .body(empty()),
            caller
                .bare("POST", "/upload")
                .header("content-type", "application/x-www-form-urlencoded")
                .body(whole(query.clone())),
        ];
        for request in requests {
            flow.agent.tokens().flush(&Default::default());
            statuses.push(seen.ask(&mut caller, request.unwrap()).await);
        }
    }
    for status in [200, 401, 403, 502] {
        assert!(statuses.contains(&status), "{status} in {statuses:?}");
    }
    let assertions: Vec<String> = server
        .calls()
        .iter()
        .filter_map(|call| call.get("client_assertion").map(str::to_owned))
        // The header is the same in each, and no secret.
        .map(|jwt| jwt.split('.').nth(2).unwrap().to_owned())
        .collect();
    assert!(!assertions.is_empty());
    let mut canaries = vec![
        SUBJECT,
        ACTOR,
        CALLER_SECRET,
        CLIENT_SECRET,
        key.lines().nth(2).unwrap(),
    ];
    canaries.extend(assertions.iter().map(String::as_str));
    canaries.push("provider-token-of-the-canary-0001");
    seen.check(&flow, &canaries);
    HERE.set(None);
}

#[tokio::test]
async fn no_token_shows_when_it_is_verified() {
    const OPAQUE: &str = "CANARY-opaque-token-0123456789-0123456789";
    const INACTIVE: &str = "CANARY-inactive-token-0123456789-0123456789";
    let mut seen = Seen::start();
    let flow = Setup::default().start().await;
    let key = SigningKey::new("k", Algorithm::ES256);
    let idp = Idp::start(&flow.pki, &[&key]).unwrap();
    let asks = json!({
        "client_id": "agent",
        "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
    });
    let verifiers = json!({ "corp": { "issuer": idp.issuer(), "introspection": asks } });
    let routes = json!([
        { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
          "verify": { "access": "corp", "channel": { "verifier": "corp", "header": "x-channel", "optional": true } } },
    ]);
    flow.agent.reload(flow.config_with(routes, verifiers)).unwrap();
    flow.auth0.connect(OPAQUE, "example", PROVIDER, 3600);
    let jwt = key.sign(&json!({ "iss": idp.issuer(), "exp": 1 }));
    let mut caller = flow.h1(HOST).await;
    let mut statuses = vec![];
    for (reply, token, channel) in [
        (
            Reply::Json(json!({ "active": true, "token": OPAQUE })),
            OPAQUE,
            None,
        ),
        (
            Reply::Json(json!({ "active": false, "token": INACTIVE })),
            INACTIVE,
            None,
        ),
        (
            Reply::Status(401),
            "CANARY-third-token-0123456789-0123456789",
            None,
        ),
        (
            Reply::Redirect(format!("https://evil.test/?t={INACTIVE}")),
            "CANARY-fourth-token-0123456789",
            None,
        ),
        (
            Reply::Bytes(INACTIVE.into()),
            "CANARY-fifth-token-0123456789",
            None,
        ),
        (Reply::Status(500), jwt.as_str(), None),
        (Reply::Status(500), OPAQUE, Some(jwt.as_str())),
        (
            Reply::Status(500),
            OPAQUE,
            Some("CANARY-channel-token-0123456789 x"),
        ),
    ] {
        idp.set(INTROSPECTION, reply);
        let mut request = caller
            .bare("GET", "/bytes/1")
            .header("authorization", format!("Bearer {token}"));
        if let Some(channel) = channel {
            request = request.header("x-channel", channel);
        }
        statuses.push(seen.ask(&mut caller, request.body(empty()).unwrap()).await);
    }
    assert_eq!(statuses, [200, 401, 502, 503, 503, 401, 401, 401]);
    let (_, signature) = jwt.rsplit_once('.').unwrap();
    seen.check(
        &flow,
        &[OPAQUE, INACTIVE, CLIENT_SECRET, &jwt, signature, PROVIDER],
    );
    for tail in ["third", "fourth", "fifth", "channel"] {
        seen.check(&flow, &[&format!("CANARY-{tail}-token-0123456789")]);
    }
}

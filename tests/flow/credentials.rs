//! How the caller presents its token, how the provider's takes its place, and what never gets through.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncWriteExt as _;
use tv_tests::fakes::origin::Site;
use tv_tests::flow::{
    Dial, Flow, GIT_HOST, HOST, OPEN_HOST, PROVIDER, SUBJECT, Setup, empty, raw_origin, read_head,
};

/// The Authorization that the origin received last.
fn sent(flow: &Flow) -> String {
    let requests = flow.origin.requests();
    requests
        .last()
        .unwrap()
        .header("authorization")
        .unwrap()
        .to_owned()
}

fn basic(pair: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(pair))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_providers_token_goes_out_in_the_scheme_of_the_callers() {
    let flow = Setup::default().start().await;
    let theirs = basic(&format!("x-access-token:{PROVIDER}"));
    let bearer = format!("Bearer {PROVIDER}");
    let token = format!("token {PROVIDER}");
    let cases = [
        (HOST, format!("Bearer {SUBJECT}"), &bearer),
        (HOST, format!("bEARER   {SUBJECT}"), &bearer),
        (GIT_HOST, format!("BEARER {SUBJECT}"), &bearer),
        (GIT_HOST, format!("token {SUBJECT}"), &token),
        (GIT_HOST, format!("Token {SUBJECT}"), &token),
        (GIT_HOST, basic(&format!("x-access-token:{SUBJECT}")), &theirs),
        (GIT_HOST, basic(&format!("{SUBJECT}:")), &theirs),
        (GIT_HOST, basic(&format!("{SUBJECT}:x-oauth-basic")), &theirs),
    ];
    for (host, authorization, expected) in cases {
        for h2 in [false, true] {
            let mut caller = if h2 {
                flow.h2(host).await
            } else {
                flow.h1(host).await
            };
            let request = caller
                .bare("GET", "/headers")
                .header("authorization", &authorization);
            let answer = caller.answer(request.body(empty()).unwrap()).await;
            assert_eq!(answer.status, 200, "{authorization}");
            assert_eq!(&sent(&flow), expected, "{authorization}");
        }
    }
    // One per connection of the vault, whatever the scheme.
    assert_eq!(flow.auth0.count(SUBJECT), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_usable_credential_is_refused_before_the_vault_and_the_provider() {
    let flow = Setup::default().start().await;
    let long = format!("Bearer {}", "x".repeat(16 * 1024 + 1));
    let cases: [(&str, &[&str], &str); 10] = [
        (HOST, &[], "unauthorized"),
        (GIT_HOST, &[], "unauthorized"),
        (
            HOST,
            &["Bearer one-token-0001", "Bearer two-token-0001"],
            "invalid_token",
        ),
        (HOST, &["Basic eDp5"], "invalid_token"),
        (HOST, &["token abcdefgh"], "invalid_token"),
        (GIT_HOST, &["Digest username=x"], "invalid_token"),
        (GIT_HOST, &["Basic !!!"], "invalid_token"),
        (HOST, &["Bearer"], "invalid_token"),
        (HOST, &["Bearer two words"], "invalid_token"),
        (HOST, &[&long], "invalid_token"),
    ];
    for (host, values, error) in cases {
        for h2 in [false, true] {
            let mut caller = if h2 {
                flow.h2(host).await
            } else {
                flow.h1(host).await
            };
            let mut request = caller.bare("GET", "/headers");
            for value in values {
                request = request.header("authorization", *value);
            }
            let answer = caller.answer(request.body(empty()).unwrap()).await;
            assert_eq!(answer.refusal(), (401, error.to_owned()), "{host} {values:?}");
            let challenges: Vec<_> = answer.headers.get_all("www-authenticate").iter().collect();
            let offers = |scheme: &str| challenges.iter().any(|v| v.to_str().unwrap().starts_with(scheme));
            assert!(offers("Bearer"), "{challenges:?}");
            assert_eq!(offers("Basic"), host == GIT_HOST, "{challenges:?}");
            assert_eq!(answer.header("cache-control"), Some("no-store"));
        }
    }
    assert_eq!(flow.requests("example", "unauthorized", "4xx"), 2);
    assert_eq!(flow.requests("example", "invalid_token", "4xx"), 12);
    assert_eq!((flow.auth0.exchanges().len(), flow.origin.count()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_let_requests_without_a_token_pass() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h1(OPEN_HOST).await;
    let answer = caller
        .answer(caller.bare("GET", "/headers").body(empty()).unwrap())
        .await;
    assert_eq!((answer.status.as_u16(), answer.ours()), (200, false));
    assert_eq!(flow.origin.requests()[0].header("authorization"), None);
    assert_eq!(flow.auth0.exchanges().len(), 0);
    // With a token it is swapped, and a bad one still refused.
    assert_eq!(caller.get("/headers").await.status, 200);
    assert_eq!(sent(&flow), format!("Bearer {PROVIDER}"));
    let answer = caller.get_as("nobody-knows-me-0001", "/headers").await;
    assert_eq!(answer.refusal(), (401, "token_exchange_failed".to_owned()));
    assert_eq!(flow.requests("open", "passed_through", "2xx"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_of_the_subject_token_do_not_leave_the_node() {
    let flow = Setup::default().start().await;
    for h2 in [false, true] {
        let mut caller = if h2 {
            flow.h2(HOST).await
        } else {
            flow.h1(HOST).await
        };
        let encoded: String = SUBJECT.bytes().map(|b| format!("%{b:02x}")).collect();
        for path in [
            format!("/headers?access_token={SUBJECT}"),
            format!("/headers?access_token={encoded}"),
            format!("/bytes/1/{SUBJECT}"),
        ] {
            let answer = caller.get(&path).await;
            assert_eq!(answer.refusal(), (400, "bad_request".to_owned()));
            assert!(!answer.text().contains(SUBJECT));
        }
        let before = flow.origin.count();
        let request = caller
            .request("GET", "/headers")
            .header("x-forwarded-access-token", SUBJECT)
            .header("cookie", format!("session={SUBJECT}; theme=dark"))
            .header("x-kept", "yes");
        assert_eq!(caller.answer(request.body(empty()).unwrap()).await.status, 200);
        assert_eq!(flow.origin.count(), before + 1);
        let received = flow.origin.requests().pop().unwrap();
        assert_eq!(received.header("x-kept"), Some("yes"));
        assert!(!received.holds(SUBJECT), "{received:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_repeats_its_token_in_headers_does_not_tell_the_workload() {
    let flow = Setup::default().start().await;
    let origin = raw_origin(
        &flow.pki.leaf(&[HOST]),
        &["http/1.1"],
        |mut stream, _| async move {
            let head = read_head(&mut stream).await;
            let token = head.split("Bearer ").nth(1).unwrap().split('\r').next().unwrap();
            let answer = format!(
                "HTTP/1.1 302 Found\r\nlocation: https://elsewhere.test/?t={token}\r\nx-debug: {token}\r\n\
             set-cookie: t={token}\r\nx-kept: 1\r\nalt-svc: h3=\":443\"\r\ncontent-length: 0\r\n\r\n"
            );
            stream.write_all(answer.as_bytes()).await.unwrap();
            read_head(&mut stream).await;
        },
    )
    .await;
    let dial = Dial {
        origin,
        ..flow.dial(HOST, &["http/1.1"])
    };
    let mut caller = flow.call(dial).await;
    let answer = caller.get("/").await;
    assert_eq!(answer.status, 302);
    let mut names: Vec<&str> = answer.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-length", "x-kept"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_is_the_callers_to_follow_and_a_providers_refusal_its_own() {
    let flow = Setup {
        site: Site::GitHub,
        ..Setup::default()
    }
    .start()
    .await;
    let mut caller = flow.h2(GIT_HOST).await;
    let answer = caller.get("/redirect-elsewhere").await;
    assert_eq!(answer.status, 302);
    assert_eq!(answer.header("location"), Some("https://elsewhere.example/steal"));
    for status in [403, 404, 429, 500] {
        let answer = caller.get(&format!("/status/{status}")).await;
        assert_eq!((answer.status.as_u16(), answer.ours()), (status, false));
    }
    assert_eq!(flow.requests("github", "forwarded", "4xx"), 3);
}

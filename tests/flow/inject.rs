//! Where a route finds the caller's token, and where and how the provider's goes out.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tv_tests::fakes::origin::Site;
use tv_tests::flow::{Caller, Flow, HOST, PROVIDER, SUBJECT, Setup, empty, raw_origin};

/// One route to the usual host that says `more`.
pub fn route(more: Value) -> Value {
    let mut route = json!({
        "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
    });
    let more = more.as_object().expect("an object").clone();
    route.as_object_mut().expect("an object").extend(more);
    json!([route])
}

async fn flow(more: Value) -> Flow {
    let flow = Setup::default().start().await;
    flow.agent.reload(flow.config(route(more))).expect("a reload");
    flow
}

async fn callers(flow: &Flow) -> [Caller; 2] {
    [flow.h1(HOST).await, flow.h2(HOST).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_token_goes_out_in_the_header_and_scheme_of_the_route() {
    let pair = BASE64_STANDARD.encode(format!("oauth2:{PROVIDER}"));
    let cases = [
        (
            json!({ "scheme": "Basic", "user": "oauth2" }),
            "authorization",
            format!("Basic {pair}"),
        ),
        (
            json!({ "scheme": "token" }),
            "authorization",
            format!("token {PROVIDER}"),
        ),
        (
            json!({ "header": "X-Api-Key", "scheme": "none" }),
            "x-api-key",
            PROVIDER.to_owned(),
        ),
        (
            json!({ "header": "X-Api-Key" }),
            "x-api-key",
            format!("Bearer {PROVIDER}"),
        ),
    ];
    let flow = Setup::default().start().await;
    for (inject, header, expected) in cases {
        let config = flow.config(route(json!({ "inject": inject })));
        flow.agent.reload(config).expect("a reload");
        for caller in &mut callers(&flow).await {
            let request = caller
                .request("GET", "/bytes/1")
                .header("x-api-key", "the-callers-own-0001");
            caller.answer(request.body(empty()).unwrap()).await;
            let received = flow.origin.requests().pop().unwrap();
            assert_eq!(received.header(header), Some(&*expected), "{inject}");
            assert!(!received.holds(SUBJECT), "{received:?}");
            if header != "authorization" {
                assert_eq!(received.header("authorization"), None);
                assert!(!received.holds("the-callers-own-0001"), "{received:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_taken_from_each_place_and_leaves_it() {
    let flow = flow(json!({
        "subject_from": [{ "header": "X-Token" }, { "query": "access_token" }, { "cookie": "at" }],
    }))
    .await;
    let encoded: String = SUBJECT.bytes().map(|b| format!("%{b:02x}")).collect();
    let bearer = format!("Bearer {SUBJECT}");
    let cookie = format!("theme=dark; at={SUBJECT};  x=\"a b\"");
    let cases: Vec<(String, Vec<(&str, &str)>)> = vec![
        ("/headers".into(), vec![("x-token", SUBJECT)]),
        ("/headers".into(), vec![("x-token", &bearer)]),
        (format!("/headers?a=%20b&access_token={SUBJECT}&c"), vec![]),
        (format!("/headers?a=%20b&access%5Ftoken={encoded}&c"), vec![]),
        ("/headers".into(), vec![("cookie", &cookie)]),
        (
            format!("/headers?a=%20b&access_token={SUBJECT}&c"),
            vec![
                ("cookie", &cookie),
                ("x-token", SUBJECT),
                ("authorization", &bearer),
            ],
        ),
    ];
    for (path, lines) in &cases {
        for caller in &mut callers(&flow).await {
            let request = lines
                .iter()
                .fold(caller.bare("GET", path), |request, (name, value)| {
                    request.header(*name, *value)
                });
            let answer = caller.answer(request.body(empty()).unwrap()).await;
            assert_eq!(answer.status, 200, "{path} {lines:?}: {}", answer.text());
            let received = flow.origin.requests().pop().unwrap();
            assert_eq!(
                received.header("authorization"),
                Some(&*format!("Bearer {PROVIDER}"))
            );
            assert!(!received.holds(SUBJECT), "{received:?}");
            assert_eq!(received.header("x-token"), None);
            if path.contains('?') {
                assert_eq!(received.query.as_deref(), Some("a=%20b&c"));
            }
            if lines.iter().any(|(name, _)| *name == "cookie") {
                assert_eq!(received.header("cookie"), Some("theme=dark;  x=\"a b\""));
            }
        }
    }
    // Two tokens at one place, or one that is none: refused, and nothing is sent.
    let before = flow.origin.count();
    for (path, line) in [
        (
            "/headers?access_token=one-token-0001&access_token=two-token-0001",
            ("x", "y"),
        ),
        ("/headers?access_token=%ff%fe", ("x", "y")),
        ("/headers", ("cookie", "at=one-token-0001; at=two-token-0001")),
        ("/headers", ("x-token", "two words")),
    ] {
        let mut caller = flow.h1(HOST).await;
        let request = caller.bare("GET", path).header(line.0, line.1);
        let answer = caller.answer(request.body(empty()).unwrap()).await;
        assert_eq!(
            answer.refusal(),
            (401, "invalid_token".to_owned()),
            "{path} {line:?}"
        );
    }
    let mut caller = flow.h1(HOST).await;
    let answer = caller
        .answer(caller.bare("GET", "/headers").body(empty()).unwrap())
        .await;
    assert_eq!(answer.refusal(), (401, "unauthorized".to_owned()));
    assert_eq!(flow.origin.count(), before);
    assert_eq!(flow.auth0.count(SUBJECT), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_injected_header_is_never_indexed_on_http2() {
    // RFC 7541 §6.2.3: a literal that is never indexed begins with 0001. The origin looks at the bytes.
    let setup = Setup {
        site: Site::Plain,
        ..Setup::alpn(&["h2"])
    };
    let flow = setup.start().await;
    let config = flow.config(route(
        json!({ "inject": { "header": "X-Api-Key", "scheme": "none" } }),
    ));
    flow.agent.reload(config).expect("a reload");
    let (sender, mut seen) = tokio::sync::mpsc::channel(1);
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), &["h2"], move |mut stream, _| {
        let sender = sender.clone();
        async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            // Empty SETTINGS, then whatever comes until a HEADERS frame is whole.
            stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut got = Vec::new();
            loop {
                if let Some(block) = headers_frame(&got) {
                    sender.send(block).await.unwrap();
                    return;
                }
                if stream.read_buf(&mut got).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        }
    })
    .await;
    let dial = tv_tests::flow::Dial {
        origin,
        ..flow.dial(HOST, &["h2"])
    };
    let mut caller = flow.call(dial).await;
    let request = caller.request("GET", "/").body(empty()).unwrap();
    let asking = tokio::spawn(async move { drop(caller.send(request).await) });
    let block = tv_tests::flow::within(seen.recv()).await.expect("a header block");
    asking.abort();
    // A new name: 0x10, then the Huffman-coded name; with 0x40 the pair would enter the peer's table.
    let name = huffman_length("x-api-key");
    let at = |first: u8| block.windows(2).any(|pair| pair == [first, 0x80 | name]);
    assert!(at(0x10) && !at(0x40), "{block:02x?}");
}

/// The block of the first HEADERS frame (RFC 9113 §6.2) behind the client's preface; None while it is not whole.
fn headers_frame(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut rest = bytes.strip_prefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")?;
    loop {
        let (head, behind) = rest.split_at_checked(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (body, next) = behind.split_at_checked(length)?;
        if head[3] == 1 {
            return Some(body.to_vec());
        }
        rest = next;
    }
}

/// Bytes of `x-api-key` in HPACK's Huffman code (RFC 7541 appendix B): 7+6+5+6+5+6+7+5+7 bits.
fn huffman_length(name: &str) -> u8 {
    assert_eq!(name, "x-api-key");
    54u8.div_ceil(8)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_a_place_is_in_no_flow_and_no_metric() {
    let flow = flow(json!({ "subject_from": [{ "header": "X-Token" }] })).await;
    let mut caller = flow.h1(HOST).await;
    let request = caller
        .bare("GET", &format!("/bytes/1/{SUBJECT}"))
        .header("x-token", SUBJECT);
    let answer = caller.answer(request.body(empty()).unwrap()).await;
    assert_eq!(answer.refusal(), (400, "bad_request".to_owned()));
    let flows = format!("{:?}", flow.agent.flows().follow().0);
    assert!(flows.contains("withheld") && !flows.contains(SUBJECT), "{flows}");
    assert!(!flow.metrics.render().contains(SUBJECT));
    assert_eq!(flow.origin.count(), 0);
}

//! Requests that may not be forwarded: for another host, made for proxies, too large, or ambiguous in their framing.

use http::Request;
use tv_tests::flow::{Flow, HOST, PROVIDER, SUBJECT, Setup, empty, eventually, whole};

/// Status and JSON `error` in a raw HTTP/1.1 response; the error is empty where the body has none.
fn verdict(text: &str) -> (u16, String) {
    let status = text.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let error = text
        .split("\"error\":\"")
        .nth(1)
        .and_then(|s| s.split('"').next());
    (status, error.unwrap_or_default().to_owned())
}

fn head(flow: &Flow, first: &str, fields: &[&str]) -> String {
    let host = flow.authority_of(HOST);
    let fields: String = fields.iter().map(|field| format!("{field}\r\n")).collect();
    format!("{first}\r\nhost: {host}\r\nauthorization: Bearer {SUBJECT}\r\n{fields}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_for_another_host_is_misdirected() {
    let flow = Setup::default().start().await;
    let port = flow.origin.addrs()[0].port();
    let auth = format!("authorization: Bearer {SUBJECT}\r\n");
    let own = flow.authority_of(HOST);
    let cases = [
        (
            format!("GET / HTTP/1.1\r\nhost: other.example.test:{port}\r\n{auth}\r\n"),
            421,
            "misdirected_request",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: {HOST}:1\r\n{auth}\r\n"),
            421,
            "misdirected_request",
        ),
        (
            format!("GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{auth}\r\n"),
            421,
            "misdirected_request",
        ),
        (
            format!("GET http://evil.test/ HTTP/1.1\r\nhost: {own}\r\n{auth}\r\n"),
            421,
            "misdirected_request",
        ),
        (
            format!("GET https://{own}/ HTTP/1.1\r\nhost: evil.test\r\n{auth}\r\n"),
            421,
            "misdirected_request",
        ),
        (format!("GET / HTTP/1.1\r\n{auth}\r\n"), 400, "bad_request"),
        (
            format!("GET / HTTP/1.1\r\nhost: {own}\r\nhost: {own}\r\n{auth}\r\n"),
            400,
            "bad_request",
        ),
        (
            format!("TRACE / HTTP/1.1\r\nhost: {own}\r\n{auth}\r\n"),
            403,
            "forbidden",
        ),
        (
            format!("CONNECT {own} HTTP/1.1\r\nhost: {own}\r\n{auth}\r\n"),
            403,
            "forbidden",
        ),
    ];
    for (request, status, error) in &cases {
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert_eq!(
            verdict(&answer),
            (*status, (*error).to_owned()),
            "{request}\n{answer}"
        );
        assert!(answer.contains("proxy-status: tv-agent; error="), "{answer}");
    }
    assert_eq!(flow.requests("example", "misdirected_request", "4xx"), 5);
    assert_eq!(flow.requests("example", "forbidden", "4xx"), 2);
    assert_eq!((flow.origin.count(), flow.auth0.exchanges().len()), (0, 0));
    // Its own name in absolute form is what a proxy's client would send, and means the same.
    let answer = flow
        .raw(
            HOST,
            format!("GET https://{own}/headers HTTP/1.1\r\nhost: {own}\r\n{auth}\r\n").as_bytes(),
        )
        .await;
    assert_eq!(verdict(&answer).0, 200, "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_holds_for_http2() {
    let flow = Setup::default().start().await;
    let port = flow.origin.addrs()[0].port();
    let mut caller = flow.h2(HOST).await;
    let request = |method: &str, uri: String| {
        let builder = Request::builder().method(method).uri(uri);
        builder.header("authorization", format!("Bearer {SUBJECT}"))
    };
    for (uri, host) in [
        (format!("https://other.example.test:{port}/"), None),
        (format!("https://{HOST}:1/"), None),
        (format!("https://{HOST}:{port}/"), Some("evil.test")),
    ] {
        let mut builder = request("GET", uri.clone());
        if let Some(host) = host {
            builder = builder.header("host", host);
        }
        let answer = caller.answer(builder.body(empty()).unwrap()).await;
        assert_eq!(answer.refusal(), (421, "misdirected_request".to_owned()), "{uri}");
    }
    let builder = request("TRACE", format!("https://{HOST}:{port}/"));
    let answer = caller.answer(builder.body(empty()).unwrap()).await;
    assert_eq!(answer.refusal(), (403, "forbidden".to_owned()));
    let connect = Request::connect(flow.authority_of(HOST)).body(empty()).unwrap();
    assert_eq!(
        caller.answer(connect).await.refusal(),
        (403, "forbidden".to_owned())
    );
    // And the connection goes on.
    assert_eq!(caller.get("/headers").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_blocks_are_bounded_in_bytes_and_in_fields() {
    let flow = Setup::default().start().await;
    let many: String = (0..300).map(|n| format!("x-{n}: 1\r\n")).collect();
    for fields in [format!("x-big: {}\r\n", "a".repeat(70 * 1024)), many] {
        let request = head(&flow, "GET /headers HTTP/1.1", &[fields.trim_end()]);
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert_eq!(verdict(&answer).0, 431, "{answer}");
    }
    // hyper or the agent answers, by how the bytes arrive; either way it is counted once.
    let connection = "connections_total{decision=\"terminate\",reason=\"header_too_large\"}";
    let counted = || flow.requests("example", "header_too_large", "4xx") + flow.metric(connection);
    assert!(eventually(|| counted() == 2).await, "{}", flow.metrics.render());

    let mut caller = flow.h2(HOST).await;
    let big = caller
        .request("GET", "/headers")
        .header("x-big", "a".repeat(70 * 1024));
    let many = (0..300).fold(caller.request("GET", "/headers"), |r, n| {
        r.header(format!("x-{n}"), "1")
    });
    for request in [big, many] {
        let answer = caller.answer(request.body(empty()).unwrap()).await;
        assert_eq!(answer.refusal(), (431, "header_too_large".to_owned()));
    }
    assert_eq!(counted(), 4);
    assert_eq!((flow.origin.count(), flow.auth0.exchanges().len()), (0, 0));
    assert_eq!(caller.get("/headers").await.status, 200, "the connection goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_framing_never_becomes_a_second_request() {
    let flow = Setup::alpn(&["http/1.1"]).start().await;
    let smuggled = format!(
        "GET /smuggled HTTP/1.1\r\nhost: {}\r\n\r\n",
        flow.authority_of(HOST)
    );
    let length = |n: usize| format!("content-length: {n}");
    let post = "POST /upload HTTP/1.1";
    let refused: [(&str, String); 8] = [
        // Two lengths, none, a coding that is not the final one, an unknown one.
        (
            "CL, CL",
            head(&flow, post, &[&length(0), &length(smuggled.len())]) + &smuggled,
        ),
        (
            "CL list",
            head(&flow, post, &["content-length: 0, 5"]) + &smuggled,
        ),
        ("CL +", head(&flow, post, &["content-length: +5"]) + &smuggled),
        (
            "TE not final",
            head(&flow, post, &["transfer-encoding: chunked, identity"]) + "0\r\n\r\n" + &smuggled,
        ),
        (
            "TE odd",
            head(&flow, post, &["transfer-encoding: xchunked"]) + "0\r\n\r\n" + &smuggled,
        ),
        (
            "TE in 1.0",
            head(&flow, "POST /upload HTTP/1.0", &["transfer-encoding: chunked"]) + "0\r\n\r\n" + &smuggled,
        ),
        (
            "space",
            head(&flow, post, &["transfer-encoding : chunked"]) + "0\r\n\r\n" + &smuggled,
        ),
        (
            "fold",
            head(&flow, post, &["x-a: 1", " transfer-encoding: chunked"]) + "0\r\n\r\n" + &smuggled,
        ),
    ];
    for (name, request) in &refused {
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert_eq!(verdict(&answer).0, 400, "{name}: {answer}");
        assert_eq!(answer.matches("HTTP/1.").count(), 1, "{name}: {answer}");
        assert_eq!(flow.origin.count(), 0, "{name}");
    }
    flow.ended("terminate", "bad_request").await;
    // Chunks that lie about their size break the body, and with it the request.
    for chunks in [
        "5\r\nab\r\n0\r\n\r\n",
        "0x5\r\nabcde\r\n0\r\n\r\n",
        "-1\r\n\r\n",
        "ffffffffffffffffff\r\n",
    ] {
        let request = head(&flow, post, &["transfer-encoding: chunked"]) + chunks + &smuggled;
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert!(verdict(&answer).0 != 200, "{chunks}: {answer}");
    }
    // Both a coding and a length: the coding counts, the length does not leave, and the connection ends with
    // the answer, so that nothing can stand behind it (RFC 9112 §6.1, §6.3).
    let (coding, long) = ("transfer-encoding: chunked", length(100));
    for fields in [[coding, &long], [&long, coding]] {
        let request = head(&flow, post, &fields) + "3\r\nabc\r\n0\r\n\r\n" + &smuggled;
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert_eq!(
            (verdict(&answer).0, answer.matches("HTTP/1.").count()),
            (200, 1),
            "{answer}"
        );
        assert!(answer.contains("connection: close"), "{answer}");
        let received = flow.origin.requests().pop().unwrap();
        assert_eq!(
            (received.body.bytes, received.header("content-length")),
            (3, None)
        );
    }
    // No smuggled request ever arrived, or the origin would have remembered it as unexpected.
    assert!(flow.origin.requests().iter().all(|r| r.path == "/upload"));
    assert_eq!(flow.origin.unexpected().take(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_line_feeds_are_no_way_around_the_rules() {
    let flow = Setup::alpn(&["http/1.1"]).start().await;
    let host = flow.authority_of(HOST);
    // hyper takes a bare LF as a line's end (RFC 9112 §2.2 allows it), so nothing can hide behind one.
    let request = format!("GET /headers HTTP/1.1\nhost: {host}\nauthorization: Bearer {SUBJECT}\nx-a: 1\n\n");
    let answer = flow.raw(HOST, request.as_bytes()).await;
    assert_eq!(verdict(&answer).0, 200, "{answer}");
    let received = flow.origin.requests().pop().unwrap();
    assert_eq!(
        (received.header("x-a"), received.token().as_deref()),
        (Some("1"), Some(PROVIDER))
    );
    for hidden in ["x-a: 1\rhost: evil.test", "x-a: a\0b"] {
        let request = head(&flow, "GET /headers HTTP/1.1", &[hidden]);
        let answer = flow.raw(HOST, request.as_bytes()).await;
        assert_eq!(verdict(&answer).0, 400, "{hidden:?}: {answer}");
    }
    assert_eq!(flow.origin.count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pipelined_requests_are_answered_in_order_each_with_its_own_check() {
    let flow = Setup::alpn(&["http/1.1"]).start().await;
    let requests = head(&flow, "GET /bytes/3 HTTP/1.1", &[])
        + &format!("GET /bytes/3 HTTP/1.1\r\nhost: evil.test\r\nauthorization: Bearer {SUBJECT}\r\n\r\n")
        + &head(&flow, "GET /headers HTTP/1.1", &[]);
    let answer = flow.raw(HOST, requests.as_bytes()).await;
    let statuses: Vec<&str> = answer.split("HTTP/1.1 ").skip(1).map(|part| &part[..3]).collect();
    assert_eq!(statuses, ["200", "421", "200"], "{answer}");
    assert_eq!(flow.origin.count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_another_length_than_declared_is_not_forwarded_as_whole() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h2(HOST).await;
    let request = caller.request("POST", "/upload").header("content-length", "10");
    let answer = caller.send(request.body(whole("abc")).unwrap()).await;
    assert!(answer.is_err() || answer.unwrap().status() != 200);
    assert!(flow.origin.requests().iter().all(|r| r.body.sha256.is_none()));
}

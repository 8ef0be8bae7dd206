//! Which HTTP is spoken on which side, and what of a request leaves the node.

use http::Version;
use tv_tests::flow::{HOST, PROVIDER, SUBJECT, Setup, empty};

const H1: &[&str] = &["http/1.1"];
const H2: &[&str] = &["h2"];
const BOTH: &[&str] = &["h2", "http/1.1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_chooses_the_protocol_from_the_clients_offer() {
    // The origin's protocols, the client's offer; what the client gets, what the origin gets.
    let cases: [(&'static [&'static str], &[&str], Version, Version); 8] = [
        (H1, H1, Version::HTTP_11, Version::HTTP_11),
        (H1, BOTH, Version::HTTP_11, Version::HTTP_11),
        (BOTH, H1, Version::HTTP_11, Version::HTTP_2),
        (BOTH, BOTH, Version::HTTP_2, Version::HTTP_2),
        (BOTH, H2, Version::HTTP_2, Version::HTTP_2),
        (H2, BOTH, Version::HTTP_2, Version::HTTP_2),
        (&[], BOTH, Version::HTTP_11, Version::HTTP_11),
        (BOTH, &[], Version::HTTP_11, Version::HTTP_2),
    ];
    for (origin, offer, here, there) in cases {
        let flow = Setup::alpn(origin).start().await;
        let mut caller = flow.call(flow.dial(HOST, offer)).await;
        let answer = caller.get("/headers").await;
        assert_eq!(
            (answer.status.as_u16(), answer.version),
            (200, here),
            "{origin:?} {offer:?}"
        );
        let received = &flow.origin.requests()[0];
        assert_eq!(received.version, there, "{origin:?} {offer:?}");
        assert_eq!(received.token().as_deref(), Some(PROVIDER));
        assert_eq!(received.sni.as_deref(), Some(HOST));
        assert_eq!(
            received.authority,
            flow.authority_of(HOST),
            "{origin:?} {offer:?}"
        );
        assert_eq!(flow.requests("example", "forwarded", "2xx"), 1);
        assert_eq!(flow.auth0.count(SUBJECT), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_offers_only_what_the_origin_lacks_gets_the_alert_of_the_origin() {
    let flow = Setup::alpn(H1).start().await;
    let error = flow.tls(flow.dial(HOST, H2)).await.unwrap_err();
    let alert = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    assert_eq!(
        alert,
        Some(&rustls::Error::AlertReceived(
            rustls::AlertDescription::NoApplicationProtocol
        )),
    );
    flow.ended("refuse", "handshake_failed").await;
    assert_eq!(flow.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_end_to_end_headers_leave_the_node() {
    let flow = Setup::alpn(H1).start().await;
    let mut caller = flow.h1(HOST).await;
    let request = caller
        .request("GET", "/headers?x=1&y=%20")
        .header("connection", "keep-alive, x-private")
        .header("keep-alive", "timeout=5")
        .header("x-private", "1")
        .header("proxy-authorization", "Basic eDp5")
        .header("proxy-connection", "keep-alive")
        .header("te", "trailers, deflate")
        .header("upgrade", "h2c")
        .header("accept", "*/*")
        .header("x-twice", "a")
        .header("x-twice", "b")
        .body(empty())
        .unwrap();
    assert_eq!(caller.answer(request).await.status, 200);
    let received = &flow.origin.requests()[0];
    let mut names: Vec<&str> = received.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["accept", "authorization", "host", "te", "x-twice", "x-twice"]
    );
    assert_eq!(received.header("te"), Some("trailers"));
    assert_eq!(
        (received.path.as_str(), received.query.as_deref()),
        ("/headers", Some("x=1&y=%20"))
    );
    // Of TE only `trailers` is end to end.
    let request = caller.request("GET", "/headers").header("te", "deflate");
    assert_eq!(caller.answer(request.body(empty()).unwrap()).await.status, 200);
    assert_eq!(flow.origin.requests()[1].header("te"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_serves_many_requests_and_streams() {
    let flow = Setup::default().start().await;
    let caller = flow.h2(HOST).await;
    let mut running = tokio::task::JoinSet::new();
    for _ in 0..32 {
        let mut caller = caller.share();
        running.spawn(async move { caller.get("/slow/50").await.status.as_u16() });
    }
    assert!(running.join_all().await.iter().all(|status| *status == 200));
    let mut serial = flow.h1(HOST).await;
    for _ in 0..5 {
        assert_eq!(serial.get("/headers").await.status, 200);
    }
    assert_eq!(flow.origin.count(), 37);
    assert_eq!(
        flow.origin.connections().accepted(),
        1,
        "all of them on one connection upstream"
    );
    assert_eq!(flow.auth0.count(SUBJECT), 1);
}

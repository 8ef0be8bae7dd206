//! Protocol switches: a WebSocket on a connection of its own, and one that the origin does not want.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tv_tests::flow::{
    Dial, Flow, HOST, PROVIDER, SUBJECT, Setup, TlsStream, eventually, raw_origin, read_head, within,
};

const ROUTED: &str = "connections_total{decision=\"terminate\",reason=\"routed\"}";

fn handshake(flow: &Flow, path: &str, authorization: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: {authorization}\r\nconnection: Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        flow.authority_of(HOST)
    )
}

async fn open(flow: &Flow, path: &str, authorization: &str) -> (TlsStream, String) {
    let mut stream = flow.tls(flow.dial(HOST, &["http/1.1"])).await.unwrap();
    stream
        .write_all(handshake(flow, path, authorization).as_bytes())
        .await
        .unwrap();
    let head = within(read_head(&mut stream)).await;
    (stream, head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_carries_bytes_both_ways() {
    for alpn in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        let flow = Setup::alpn(alpn).start().await;
        let (mut stream, head) = open(&flow, "/ws", &format!("Bearer {SUBJECT}")).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        // The example of RFC 6455 section 1.3.
        assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
        assert!(head.to_ascii_lowercase().contains("upgrade: websocket"), "{head}");
        for n in 0..5u8 {
            let sent = vec![n; 40_000];
            let mut got = vec![0; sent.len()];
            let (mut reader, mut writer) = tokio::io::split(&mut stream);
            let (read, written) = within(async {
                tokio::join!(reader.read_exact(&mut got), async {
                    writer.write_all(&sent).await?;
                    writer.flush().await
                })
            })
            .await;
            assert!(read.is_ok() && written.is_ok() && got == sent);
        }
        let received = &flow.origin.requests()[0];
        assert_eq!(received.token().as_deref(), Some(PROVIDER));
        assert_eq!(
            received.alpn.as_deref(),
            Some("http/1.1"),
            "on a connection of its own, {alpn:?}"
        );
        // Ordinary requests go on beside it, on another connection.
        let mut caller = flow.h1(HOST).await;
        assert_eq!(caller.get("/headers").await.status, 200);
        let connections = flow.origin.requests();
        assert_ne!(connections[0].connection, connections[1].connection);
        // For us it is one open connection, whatever is spoken on it.
        drop(caller);
        assert!(eventually(|| flow.metric("open_connections") == 1).await);
        flow.ended("terminate", "routed").await;
        assert_eq!(flow.metric(ROUTED), 1);
        // The end of one side is the end of the other.
        stream.shutdown().await.unwrap();
        assert_eq!(within(stream.read(&mut [0])).await.unwrap_or(0), 0);
        assert!(eventually(|| flow.metric("open_connections") == 0).await);
        assert_eq!(flow.metric(ROUTED), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_switch_that_nobody_asked_for_is_refused() {
    let flow = Setup::default().start().await;
    let origin = raw_origin(
        &flow.pki.leaf(&[HOST]),
        &["http/1.1"],
        |mut stream, _| async move {
            read_head(&mut stream).await;
            let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: odd\r\n\r\n";
            stream.write_all(switch).await.unwrap();
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
    assert_eq!(answer.refusal(), (502, "upstream_protocol_error".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_does_not_switch_answers_as_ever() {
    for alpn in [&["http/1.1"][..], &["h2", "http/1.1"]] {
        let flow = Setup::alpn(alpn).start().await;
        let (mut stream, head) = open(&flow, "/status/404", &format!("Bearer {SUBJECT}")).await;
        assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
        assert!(!head.to_ascii_lowercase().contains("proxy-status"), "{head}");
        // The connection is still HTTP.
        let next = format!(
            "GET /bytes/1 HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {SUBJECT}\r\n\r\n",
            flow.authority_of(HOST)
        );
        if !head.contains("status 404") {
            within(read_until(&mut stream, "status 404\n")).await;
        }
        stream.write_all(next.as_bytes()).await.unwrap();
        let answer = within(read_head(&mut stream)).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upgrade_never_reaches_the_origin() {
    let flow = Setup::default().start().await;
    for (authorization, error) in [
        ("Bearer nobody-knows-me-0001", "token_exchange_failed"),
        ("Basic eDp5", "invalid_token"),
    ] {
        let answer = flow
            .raw(HOST, handshake(&flow, "/ws", authorization).as_bytes())
            .await;
        assert!(
            answer.starts_with("HTTP/1.1 401 ") && answer.contains(error),
            "{answer}"
        );
    }
    assert_eq!(flow.origin.count(), 0);
}

async fn read_until(stream: &mut TlsStream, end: &str) {
    let mut got = Vec::new();
    while !String::from_utf8_lossy(&got).contains(end) {
        assert!(
            stream.read_buf(&mut got).await.unwrap() > 0,
            "the end before {end:?}"
        );
    }
}

//! What becomes of a connection by its first bytes: terminated, tunnelled untouched, or refused, each counted.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tv_tests::flow::{
    Caller, Dial, Flow, HOST, OTHER_HOST, Setup, TlsStream, empty, eventually, raw_origin, tcp_origin, within,
};

const H1: &[&str] = &["http/1.1"];

async fn echo() -> SocketAddr {
    tcp_origin(|mut stream, _| async move {
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await
}

/// A ClientHello as rustls sends it.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// The agent ended the connection without a byte, by a reset.
async fn is_reset(stream: &mut TcpStream) {
    let mut byte = [0];
    let read = within(stream.read(&mut byte)).await;
    assert_eq!(
        read.map_err(|error| error.kind()),
        Err(ErrorKind::ConnectionReset)
    );
}

/// Ends a TLS connection and takes what is still on the way, so that the close is no reset.
async fn finish(stream: &mut TlsStream) {
    stream.shutdown().await.unwrap();
    within(stream.read_to_end(&mut Vec::new())).await.ok();
}

async fn echoes(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    let mut got = vec![0; bytes.len()];
    within(stream.read_exact(&mut got)).await.unwrap();
    assert!(got == bytes);
}

async fn client(flow: &Flow, dial: Dial<'_>) -> Caller {
    flow.call(dial).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_nobody_recorded_is_closed_without_a_byte() {
    let flow = Setup::default().start().await;
    // The reset may be there before connect() is told of its success.
    match TcpStream::connect(flow.agent.listeners().v4).await {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    flow.ended("refuse", "unrecorded").await;
    assert_eq!(flow.origin.connections().accepted(), 0);
    assert_eq!(flow.metric("open_connections"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_tls_is_tunnelled_until_the_address_is_a_candidate() {
    let flow = Setup::default().start().await;
    let origin = echo().await;
    let mut stream = flow.tcp(origin, 7).await;
    echoes(&mut stream, b"SSH-2.0-OpenSSH_9.6\r\n").await;
    echoes(&mut stream, &[0x5a; 100_000]).await;
    // A half-close goes through.
    stream.shutdown().await.unwrap();
    assert_eq!(within(stream.read(&mut [0])).await.unwrap(), 0);
    flow.ended("tunnel", "not_tls").await;

    // Once a routed host was met at this address, a name that cannot be seen is not let through to it.
    assert_eq!(
        client(&flow, flow.dial(HOST, H1))
            .await
            .get("/headers")
            .await
            .status,
        200
    );
    let mut stream = flow.tcp(origin, 7).await;
    stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    is_reset(&mut stream).await;
    flow.ended("refuse", "not_tls_candidate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_sni_it_is_tunnelled_until_the_address_is_a_candidate() {
    let flow = Setup::default().start().await;
    let identity = flow.pki.leaf(&["127.0.0.1"]);
    let leaf = identity.chain[0].clone();
    let origin = raw_origin(&identity, &[], |mut stream, _| async move {
        assert_eq!(stream.get_ref().1.server_name(), None);
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.ok();
    })
    .await;
    // An address in place of a name: no SNI.
    let dial = Dial {
        origin,
        ..flow.dial("127.0.0.1", &[])
    };
    let mut stream = flow.tls_trusting(dial, flow.pki.root()).await.unwrap();
    assert_eq!(stream.get_ref().1.peer_certificates().unwrap()[0], leaf);
    let mut text = String::new();
    within(stream.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "hello");
    drop(stream);
    flow.ended("tunnel", "no_sni").await;

    assert_eq!(
        client(&flow, flow.dial(HOST, H1))
            .await
            .get("/headers")
            .await
            .status,
        200
    );
    let error = flow.tls_trusting(dial, flow.pki.root()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    flow.ended("refuse", "no_sni_candidate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_names_may_be_refused_altogether() {
    let flow = Setup {
        on_unknown_name: "refuse",
        ..Setup::default()
    }
    .start()
    .await;
    let mut stream = flow.tcp(echo().await, 7).await;
    stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    is_reset(&mut stream).await;
    flow.ended("refuse", "not_tls").await;
    // A name that can be seen and is not routed is not unknown.
    let mut stream = flow
        .tls_trusting(flow.dial(OTHER_HOST, H1), flow.pki.root())
        .await
        .unwrap();
    finish(&mut stream).await;
    flow.ended("tunnel", "not_routed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_no_route_names_is_tunnelled_bit_by_bit() {
    let flow = Setup::default().start().await;
    // TLS with the origin itself, its certificate, its protocol, the caller's own token.
    let dial = flow.dial(OTHER_HOST, &["h2", "http/1.1"]);
    let mut stream = flow.tls_trusting(dial, flow.pki.root()).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    finish(&mut stream).await;
    flow.ended("tunnel", "not_routed").await;
    assert_eq!(flow.metric("leaf_certificates_issued_total"), 0);
    assert_eq!(
        flow.metric("tls_handshakes_total{side=\"workload\",result=\"ok\"}"),
        0
    );

    // Bytes as they are, the hello included, however it is cut.
    let got = Arc::new(Mutex::new(Vec::new()));
    let sink = got.clone();
    let origin = tcp_origin(move |mut stream, _| {
        let sink = sink.clone();
        async move {
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            *sink.lock().unwrap() = bytes;
        }
    })
    .await;
    let sent = [hello(OTHER_HOST), (0..=255).cycle().take(200_000).collect()].concat();
    let mut stream = flow.tcp(origin, 7).await;
    let (first, rest) = sent.split_at(100);
    stream.write_all(first).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.write_all(rest).await.unwrap();
    stream.shutdown().await.unwrap();
    assert!(eventually(|| *got.lock().unwrap() == sent).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_goes_through_a_tunnel_in_both_directions() {
    let flow = Setup::default().start().await;
    let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
    let origin = tcp_origin(move |mut stream, number| {
        let ended = ended.clone();
        async move {
            let mut first = [0; 4];
            stream.read_exact(&mut first).await.unwrap();
            if number == 1 {
                let read = stream.read(&mut first).await;
                ended.send(read.map_err(|error| error.kind())).unwrap();
            } else {
                reset(stream);
            }
        }
    })
    .await;
    let mut stream = flow.tcp(origin, 7).await;
    stream.write_all(b"ping").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    reset(stream);
    assert_eq!(within(end.recv()).await.unwrap(), Err(ErrorKind::ConnectionReset));
    let mut stream = flow.tcp(origin, 7).await;
    stream.write_all(b"ping").await.unwrap();
    is_reset(&mut stream).await;
    flow.ended("tunnel", "tunnel_broken").await;
}

fn reset(stream: TcpStream) {
    let stream = socket2::Socket::from(stream.into_std().unwrap());
    stream.set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_of_a_tunnel_that_cannot_be_reached_is_told_by_reset() {
    let flow = Setup::default().start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut stream = flow.tcp(free, 7).await;
    stream.write_all(&hello(OTHER_HOST)).await.unwrap();
    is_reset(&mut stream).await;
    flow.ended("refuse", "upstream_unreachable").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hellos_that_cannot_be_read_are_refused_and_counted() {
    let flow = Setup::default().start().await;
    let origin = flow.origin.addrs()[0];
    // A handshake message of 16 MiB, records of 70,000 bytes of an unfinished hello, and nonsense in a record.
    let announced = [&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff][..]].concat();
    let mut endless = vec![22, 3, 1, 0x40, 0x00, 1, 0, 0xff, 0xff];
    endless.resize(5 + 0x4000, 0);
    let record = [&[22, 3, 1, 0x40, 0x00][..], &[0; 0x4000]].concat();
    (0..4).for_each(|_| endless.extend_from_slice(&record));
    for (bytes, reason) in [
        (announced, "hello_too_long"),
        (endless, "hello_too_long"),
        (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], "hello_malformed"),
        (vec![22, 3, 1, 0, 6, 1, 0, 0, 2, 9, 9], "hello_malformed"),
    ] {
        let mut stream = flow.tcp(origin, 7).await;
        drop(stream.write_all(&bytes).await);
        is_reset(&mut stream).await;
        flow.ended("refuse", reason).await;
    }
    let mut stream = flow.tcp(origin, 7).await;
    stream.shutdown().await.unwrap();
    flow.ended("refuse", "closed_early").await;
    // An end in the middle of a hello.
    let mut stream = flow.tcp(origin, 7).await;
    stream.write_all(&hello(HOST)[..100]).await.unwrap();
    stream.shutdown().await.unwrap();
    is_reset(&mut stream).await;

    let mut slow = flow.tcp(origin, 7).await;
    let began = Instant::now();
    slow.write_all(&hello(HOST)[..100]).await.unwrap();
    is_reset(&mut slow).await;
    assert!(
        (2..10).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
    flow.ended("refuse", "hello_too_slow").await;
    // It may have been dialled, as the workload itself would have, while a hello was slow to come.
    assert_eq!(flow.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard() {
    let flow = Setup::default().start().await;
    let origin = tcp_origin(|mut stream, _| async move {
        stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let mut stream = flow.tcp(origin, 7).await;
    let mut banner = [0; 24];
    within(stream.read_exact(&mut banner)).await.unwrap();
    assert_eq!(&banner, b"220 mail.example ESMTP\r\n");
    echoes(&mut stream, b"EHLO here\r\n").await;
    drop(stream);
    flow.ended("tunnel", "silent").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_only_slow_to_begin_is_still_looked_at() {
    let flow = Setup::default().start().await;
    let origin = flow.origin.addrs()[0];
    let stream = flow.tcp(origin, 7).await;
    tokio::time::sleep(Duration::from_millis(2600)).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(flow.authority.root_der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(HOST).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = within(connector.connect(name, stream))
        .await
        .expect("our leaf, not the origin's");
    let request = format!(
        "GET /headers HTTP/1.1\r\nhost: {}\r\n\r\n",
        flow.authority_of(HOST)
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let head = within(tv_tests::flow::read_head(&mut stream)).await;
    assert!(
        head.starts_with("HTTP/1.1 401 ") && head.contains("proxy-status: tv-agent"),
        "{head}"
    );
    assert_eq!(flow.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workload_that_does_not_trust_our_ca_is_counted_as_such() {
    let flow = Setup::default().start().await;
    let error = flow
        .tls_trusting(flow.dial(HOST, H1), flow.pki.root())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    flow.ended("refuse", "untrusted").await;
    assert_eq!(
        flow.metric("tls_handshakes_total{side=\"workload\",result=\"untrusted\"}"),
        1
    );
    assert_eq!(flow.origin.count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_never_finishes_its_handshake_costs_the_others_nothing() {
    let flow = Setup::default().start().await;
    let origin = flow.origin.addrs()[0];
    let mut stalled = Vec::new();
    for _ in 0..50 {
        let mut stream = flow.tcp(origin, 7).await;
        stream.write_all(&hello(HOST)).await.unwrap();
        stalled.push(stream);
    }
    let mut caller = flow.h2(HOST).await;
    assert_eq!(caller.get("/headers").await.status, 200);
    assert_eq!(flow.metric("open_connections"), 51);
    drop((stalled, caller));
    assert!(eventually(|| flow.metric("open_connections") == 0).await);
    // Who leaves right after the certificate did not like it; who leaves later had other reasons.
    let refused = |why| {
        flow.metric(&format!(
            "connections_total{{decision=\"refuse\",reason=\"{why}\"}}"
        ))
    };
    assert_eq!(refused("closed_on_certificate") + refused("handshake_failed"), 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_lets_open_requests_finish_and_takes_no_more() {
    let flow = Setup::default().start().await;
    let mut caller = flow.h1(HOST).await;
    let request = caller.request("GET", "/slow/300").body(empty()).unwrap();
    let running = tokio::spawn(async move { caller.answer(request).await });
    assert!(eventually(|| flow.origin.count() == 1).await);
    let Flow {
        agent,
        origin: _origin,
        ..
    } = flow;
    let address = agent.listeners().v4;
    within(agent.stop()).await;
    let answer = running.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "late\n"));
    assert!(TcpStream::connect(address).await.is_err());
}

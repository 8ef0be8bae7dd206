//! The provider's side: certificates that are not believed, connections that fail, go stale or are shared.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tv_agent::ca::Leaves;
use tv_agent::metrics::Metrics;
use tv_tests::fakes::pki::Flaw;
use tv_tests::flow::{
    Answer, Dial, HOST, OPEN_HOST, PATIENCE, Setup, empty, raw_origin, read_head, routes, tcp_origin, whole,
};

const H1: &[&str] = &["http/1.1"];
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_is_not_believed_gets_nothing_and_the_vault_is_not_asked() {
    for flaw in Flaw::ALL {
        let flow = Setup {
            flaw: Some(flaw),
            ..Setup::default()
        }
        .start()
        .await;
        for host in [HOST, OPEN_HOST] {
            for h2 in [false, true] {
                let mut caller = if h2 {
                    flow.h2(host).await
                } else {
                    flow.h1(host).await
                };
                for _ in 0..2 {
                    let answer = caller.get("/headers").await;
                    assert_eq!(
                        answer.refusal(),
                        (502, "upstream_tls_error".to_owned()),
                        "{flaw:?} {host}"
                    );
                }
                let answer = caller
                    .answer(caller.bare("GET", "/").body(empty()).unwrap())
                    .await;
                assert_eq!(
                    answer.refusal(),
                    (502, "upstream_tls_error".to_owned()),
                    "{flaw:?} {host}"
                );
            }
        }
        assert_eq!(flow.origin.connections().established(), 0, "{flaw:?}");
        assert_eq!(
            (flow.origin.count(), flow.auth0.exchanges().len()),
            (0, 0),
            "{flaw:?}"
        );
        assert_eq!(flow.requests("example", "upstream_tls_error", "5xx"), 6);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_refuses_the_connection_is_told_by_reset() {
    let flow = Setup::default().start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let error = flow
        .tls(Dial {
            origin: free,
            ..flow.dial(HOST, H1)
        })
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    flow.ended("refuse", "upstream_unreachable").await;
    assert_eq!(flow.auth0.exchanges().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_does_not_answer_the_handshake_is_a_time_out() {
    let flow = Setup::default().start().await;
    let origin = tcp_origin(|mut stream, _| async move {
        let mut sink = Vec::new();
        while let Ok(1..) = stream.read_buf(&mut sink).await {}
    })
    .await;
    let mut caller = flow
        .call(Dial {
            origin,
            ..flow.dial(HOST, H1)
        })
        .await;
    let request = caller.request("GET", "/").body(empty()).unwrap();
    let response = tokio::time::timeout(PATIENCE, caller.send(request))
        .await
        .unwrap()
        .unwrap();
    let answer = Answer::read(response).await.unwrap();
    assert_eq!(answer.refusal(), (504, "upstream_timeout".to_owned()));
    assert_eq!(flow.auth0.exchanges().len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_speaks_no_tls_or_no_http_is_refused() {
    let flow = Setup::default().start().await;
    let plain = tcp_origin(|mut stream, _| async move {
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .unwrap();
    })
    .await;
    let mut caller = flow
        .call(Dial {
            origin: plain,
            ..flow.dial(HOST, H1)
        })
        .await;
    assert_eq!(
        caller.get("/").await.refusal(),
        (502, "upstream_tls_error".to_owned())
    );
    assert_eq!(flow.auth0.exchanges().len(), 0);

    let identity = flow.pki.leaf(&[HOST]);
    for garbage in [&b"SSH-2.0-x\r\n\r\n"[..], b"HTTP/1.1 2oo\r\n\r\n", b""] {
        let origin = raw_origin(&identity, H1, move |mut stream, _| async move {
            read_head(&mut stream).await;
            stream.write_all(garbage).await.unwrap();
            stream.shutdown().await.ok();
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, H1)
            })
            .await;
        let request = caller.request("POST", "/").body(whole("x")).unwrap();
        assert_eq!(
            caller.answer(request).await.refusal(),
            (502, "upstream_protocol_error".to_owned())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_with_too_large_a_header_block_are_refused() {
    let flow = Setup::default().start().await;
    let fields: String = (0..400).map(|n| format!("x-{n}: 1\r\n")).collect();
    for fields in [fields, format!("x-big: {}\r\n", "a".repeat(1 << 20))] {
        let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, move |mut stream, _| {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}content-length: 0\r\n\r\n");
            async move {
                read_head(&mut stream).await;
                drop(stream.write_all(head.as_bytes()).await);
                read_head(&mut stream).await;
            }
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, H1)
            })
            .await;
        assert_eq!(
            caller.get("/").await.refusal(),
            (502, "upstream_protocol_error".to_owned())
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_connection_is_used_again() {
    let flow = Setup::alpn(H1).start().await;
    for _ in 0..3 {
        let mut caller = flow.h1(HOST).await;
        for _ in 0..4 {
            assert_eq!(caller.get("/bytes/1000").await.body.len(), 1000);
        }
    }
    assert_eq!(flow.origin.count(), 12);
    let accepted = flow.origin.connections().accepted();
    // A request may come while the last one's connection is not back yet.
    assert!(
        accepted <= 3,
        "{accepted} connections for 12 requests one after the other"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_the_origin_closed_is_replaced_unseen() {
    let flow = Setup::default().start().await;
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, move |mut stream, _| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            read_head(&mut stream).await;
            stream.write_all(OK).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            stream.shutdown().await.ok();
        }
    })
    .await;
    let mut caller = flow
        .call(Dial {
            origin,
            ..flow.dial(HOST, H1)
        })
        .await;
    for n in 1..=4 {
        assert_eq!(caller.get("/").await.text(), "ok");
        assert_eq!(opened.load(Ordering::SeqCst), n);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let request = caller.request("POST", "/").body(whole("x")).unwrap();
    assert_eq!(caller.answer(request).await.text(), "ok");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kept_connection_that_is_closed_on_the_next_request_costs_nobody_an_error() {
    let flow = Setup::default().start().await;
    // The close crosses the request: the origin's keep-alive ends in the moment in which it is used again.
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, |mut stream, _| async move {
        read_head(&mut stream).await;
        stream.write_all(OK).await.unwrap();
        read_head(&mut stream).await;
    })
    .await;
    let mut caller = flow
        .call(Dial {
            origin,
            ..flow.dial(HOST, H1)
        })
        .await;
    for _ in 0..3 {
        assert_eq!(caller.get("/").await.text(), "ok");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What may have been acted upon is not sent twice.
    let request = caller.request("POST", "/").body(empty()).unwrap();
    assert_eq!(
        caller.answer(request).await.refusal(),
        (502, "upstream_protocol_error".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_connection_that_ends_is_replaced_unseen() {
    let flow = Setup::default().start().await;
    // One request per connection, then GOAWAY; every other connection is cut off without a word instead.
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), &["h2"], |stream, number| async move {
        let (answered, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let service = service_fn(move |_| {
            answered.send(()).ok();
            async { Ok::<_, Infallible>(http::Response::new("ok".to_owned())) }
        });
        let connection =
            http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return,
            _ = answers.recv() => {}
        }
        // The answer goes out before the end.
        tokio::time::timeout(Duration::from_millis(30), connection.as_mut())
            .await
            .ok();
        if number % 2 == 1 {
            connection.as_mut().graceful_shutdown();
            connection.await.ok();
        }
    })
    .await;
    let dial = Dial {
        origin,
        ..flow.dial(HOST, &["h2", "http/1.1"])
    };
    let mut caller = flow.call(dial).await;
    for n in 0..8 {
        assert_eq!(caller.get("/").await.text(), "ok");
        // Before, at and after the end of the connection upstream.
        tokio::time::sleep(Duration::from_millis(10 * n)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_workloads_never_share_a_connection() {
    for alpn in [H1, &["h2", "http/1.1"]] {
        let flow = Setup::alpn(alpn).start().await;
        for cgroup in [1, 2] {
            let mut caller = flow
                .call(Dial {
                    cgroup,
                    ..flow.dial(HOST, alpn)
                })
                .await;
            for _ in 0..3 {
                assert_eq!(caller.get("/headers").await.status, 200);
            }
        }
        let requests = flow.origin.requests();
        let (one, two) = requests.split_at(3);
        assert!(
            one.iter()
                .all(|a| two.iter().all(|b| a.connection != b.connection)),
            "{alpn:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_ca_is_not_believed_upstream_even_when_configured() {
    let flow = Setup::default().start().await;
    let leaves = Leaves::new(flow.authority.clone(), Arc::new(|_| true), Metrics::new()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(leaves));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let origin = tcp_origin(move |stream, _| {
        let acceptor = acceptor.clone();
        async move {
            assert!(
                acceptor.accept(stream).await.is_err(),
                "the agent took a leaf of its own CA"
            )
        }
    })
    .await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, flow.authority.root_pem()).unwrap();
    let mut config = flow.config(routes());
    config.extra_roots.push(file.path().to_owned());
    flow.agent.reload(config).unwrap();
    let mut caller = flow
        .call(Dial {
            origin,
            ..flow.dial(HOST, H1)
        })
        .await;
    assert_eq!(
        caller.get("/").await.refusal(),
        (502, "upstream_tls_error".to_owned())
    );
    assert_eq!(flow.auth0.exchanges().len(), 0);
}

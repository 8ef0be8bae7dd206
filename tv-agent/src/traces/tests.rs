//! Spans as a collector gets them.
use super::*;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::mpsc;

use crate::trace_context::TraceContext;

/// A collector that answers each batch with `status` and gives its body to the test.
fn collector(status: &'static str) -> (Url, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().take(8) {
            let mut stream = stream.unwrap();
            let mut bytes = Vec::new();
            let mut chunk = [0; 4096];
            let body = loop {
                let count = stream.read(&mut chunk).unwrap_or(0);
                bytes.extend_from_slice(&chunk[..count]);
                if let Some(body) = whole(&bytes) {
                    break body;
                }
                if count == 0 {
                    break Vec::new();
                }
            };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
            if sender.send(body).is_err() {
                return;
            }
        }
    });
    (endpoint.parse().unwrap(), received)
}

/// The body, once all of it is there.
fn whole(bytes: &[u8]) -> Option<Vec<u8>> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&bytes[..head]).to_lowercase();
    let length = text.split("content-length: ").nth(1)?.lines().next()?.trim();
    let length: usize = length.parse().ok()?;
    (bytes.len() >= head + length).then(|| bytes[head..head + length].to_vec())
}

fn start(endpoint: Url, sample: f64) -> (Traces, Metrics) {
    let metrics = Metrics::new();
    let settings = Settings { endpoint, sample };
    let traces = Traces::start(&settings, Arc::new(RootCertStore::empty()), &metrics).unwrap();
    (traces, metrics)
}

fn flow() -> Flow {
    Flow {
        outcome: "forwarded".into(),
        host: Some("api.github.com".into()),
        route: Some("github".into()),
        status: Some(200),
        took_us: 1500,
        ..Flow::default()
    }
}

fn context(sampled: bool) -> TraceContext {
    TraceContext {
        trace: [0xab; 16],
        parent: [0xcd; 8],
        sampled,
    }
}

fn exports(metrics: &Metrics, result: &'static str) -> u64 {
    let labels = ResultLabels { result };
    metrics.trace_exports.get_or_create_owned(&labels).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_a_child_of_its_callers_span() {
    let (endpoint, received) = collector("200 OK");
    let (traces, metrics) = start(endpoint, 0.0);
    traces.request(&flow(), &http::Method::GET, Some(&context(true)));
    traces.finish().await;
    let body = received.recv_timeout(Duration::from_secs(20)).unwrap();
    let holds = |part: &[u8]| body.windows(part.len()).any(|window| window == part);
    assert!(holds(&[0xab; 16]) && holds(&[0xcd; 8]), "trace and parent span");
    for text in [
        "api.github.com",
        "server.address",
        "http.response.status_code",
        "tv-agent",
        "github",
    ] {
        assert!(holds(text.as_bytes()), "{text}");
    }
    assert_eq!((exports(&metrics, "ok"), exports(&metrics, "failed")), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_caller_does_not_record_is_not_sent_and_the_ratio_is_for_the_others() {
    let (endpoint, received) = collector("200 OK");
    let (traces, _) = start(endpoint.clone(), 1.0);
    traces.request(&flow(), &http::Method::GET, Some(&context(false)));
    traces.finish().await;
    received.recv_timeout(Duration::from_millis(300)).unwrap_err();
    let (traces, _) = start(endpoint.clone(), 0.0);
    traces.request(&flow(), &http::Method::GET, None);
    traces.finish().await;
    received.recv_timeout(Duration::from_millis(300)).unwrap_err();
    let (traces, _) = start(endpoint, 1.0);
    traces.request(&flow(), &http::Method::POST, None);
    traces.finish().await;
    let body = received.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(body.windows(4).any(|window| window == b"POST"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_fails_or_is_away_costs_spans_only() {
    let (endpoint, received) = collector("503 Service Unavailable");
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for endpoint in [endpoint, format!("http://{nobody}/v1/traces").parse().unwrap()] {
        let (traces, metrics) = start(endpoint, 1.0);
        // More than fit the queue.
        for _ in 0..2 * limits::SPANS {
            traces.request(&flow(), &http::Method::GET, None);
        }
        traces.finish().await;
        assert!(exports(&metrics, "failed") > 0);
        assert_eq!(exports(&metrics, "ok"), 0);
    }
    drop(received);
}

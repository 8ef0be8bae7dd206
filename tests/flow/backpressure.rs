//! Whoever stops reading stops whoever writes: the agent holds no more than its windows and socket buffers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use tokio::io::AsyncWriteExt as _;
use tv_tests::flow::{Dial, HOST, Setup, empty, eventually, raw_origin, read_head, within};

use super::bodies::streamed;

const MIB: usize = 1 << 20;
const H1: &[&str] = &["http/1.1"];
const BOTH: &[&str] = &["h2", "http/1.1"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_stops_reading_stops_the_client() {
    let flow = Setup::default().start().await;
    for alpn in [H1, BOTH] {
        let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, |mut stream, _| async move {
            read_head(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, alpn)
            })
            .await;
        let taken = Arc::new(AtomicU64::new(0));
        let (mut sender, body) = streamed();
        let count = taken.clone();
        let feed = tokio::spawn(async move {
            let piece = Bytes::from(vec![0; 64 * 1024]);
            while sender.send_data(piece.clone()).await.is_ok() {
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
        });
        let request = caller.request("POST", "/").body(body).unwrap();
        let sending = tokio::spawn(async move { caller.send(request).await.map(drop) });
        let held = settled(&taken).await;
        // Socket buffers of three sockets on the way, and the windows; a proxy that buffers has no end.
        assert!(
            (1..48 * MIB as u64).contains(&held),
            "{alpn:?}: {held} bytes on the way"
        );
        assert!(!sending.is_finished());
        sending.abort();
        feed.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_reading_stops_the_origin() {
    let flow = Setup::default().start().await;
    for alpn in [H1, BOTH] {
        let written = Arc::new(AtomicU64::new(0));
        let count = written.clone();
        let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, move |mut stream, _| {
            let count = count.clone();
            async move {
                read_head(&mut stream).await;
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                stream.write_all(head).await.unwrap();
                let piece = vec![0; 64 * 1024];
                while stream.write_all(&piece).await.is_ok() {
                    count.fetch_add(piece.len() as u64, Ordering::Relaxed);
                }
            }
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, alpn)
            })
            .await;
        let request = caller.request("GET", "/").body(empty()).unwrap();
        let response = caller.send(request).await.unwrap();
        assert_eq!(response.status(), 200);
        let held = settled(&written).await;
        assert!(
            (1..48 * MIB as u64).contains(&held),
            "{alpn:?}: {held} bytes on the way"
        );
        // It goes on when the client does.
        let mut body = response.into_body();
        let mut read = 0;
        while read < held + 8 * MIB as u64 {
            let frame = within(body.frame()).await.unwrap().unwrap();
            read += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
    }
}

/// Waits until a counter that has begun to grow grows no more, and returns it.
async fn settled(counter: &AtomicU64) -> u64 {
    assert!(eventually(|| counter.load(Ordering::Relaxed) > 0).await);
    let (mut last, mut quiet) = (0, 0);
    while quiet < 8 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = counter.load(Ordering::Relaxed);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
    }
    last
}

//! Bodies in both directions: whole, streamed, held back, broken off; and the answers that have none.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use http_body_util::channel::{Channel, Sender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tv_tests::fakes::auth0::Mode;
use tv_tests::fakes::origin::pattern_sha256;
use tv_tests::flow::{
    Answer, Caller, Dial, Flow, HOST, ReqBody, SUBJECT, Setup, empty, eventually, raw_origin, read_head,
    whole, within,
};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

const MIB: usize = 1 << 20;
const H1: &[&str] = &["http/1.1"];
const BOTH: &[&str] = &["h2", "http/1.1"];
/// Client's protocol and the origin's.
const LEGS: [(&[&str], &[&str]); 3] = [(H1, H1), (H1, BOTH), (BOTH, BOTH)];

/// A body without a declared length, and the end to feed it from.
pub(super) fn streamed() -> (Sender<Bytes, BoxError>, ReqBody) {
    let (sender, body) = Channel::new(1);
    (sender, body.boxed_unsync())
}

fn hex(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

async fn caller(flow: &Flow, alpn: &[&str]) -> Caller {
    flow.call(flow.dial(HOST, alpn)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_mebibytes_each_way_arrive_whole() {
    let piece = Bytes::from(vec![0xa5; MIB]);
    for (here, there) in [(H1, H1), (BOTH, BOTH)] {
        let flow = Setup::alpn(there).start().await;
        let mut caller = caller(&flow, here).await;
        let (mut sender, body) = streamed();
        let feed = {
            let piece = piece.clone();
            tokio::spawn(async move {
                for _ in 0..64 {
                    sender.send_data(piece.clone()).await.expect("a reader");
                }
            })
        };
        let answer = caller
            .answer(caller.request("POST", "/upload").body(body).unwrap())
            .await;
        feed.await.unwrap();
        let expected = {
            use sha2::Digest as _;
            let mut hash = sha2::Sha256::new();
            (0..64).for_each(|_| hash.update(&piece));
            hash.finalize()
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect::<String>()
        };
        assert!(
            answer.text().contains(&expected) && answer.text().contains("67108864"),
            "{}",
            answer.text()
        );

        let request = caller
            .request("GET", &format!("/bytes/{}", 64 * MIB))
            .body(empty())
            .unwrap();
        let response = caller.send(request).await.unwrap();
        assert_eq!(response.headers()["content-length"], (64 * MIB).to_string());
        let answer = Answer::read(response).await.unwrap();
        assert_eq!(hex(&answer.body), pattern_sha256(64 * MIB as u64));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lengths_chunks_and_trailers_are_kept() {
    for (here, there) in LEGS {
        let flow = Setup::alpn(there).start().await;
        let mut caller = caller(&flow, here).await;
        let answer = caller
            .answer(caller.request("POST", "/upload").body(whole("hello")).unwrap())
            .await;
        assert_eq!(answer.status, 200);
        let length = answer.body.len().to_string();
        assert_eq!(
            answer.header("content-length"),
            Some(length.as_str()),
            "{here:?} {there:?}"
        );
        assert_eq!(
            flow.origin.requests()[0].header("content-length"),
            Some("5"),
            "{here:?} {there:?}"
        );

        let (mut sender, body) = streamed();
        tokio::spawn(async move {
            for part in ["one ", "two ", "three"] {
                sender.send_data(Bytes::from(part)).await.unwrap();
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", HeaderValue::from_static("42"));
            sender.send_trailers(trailers).await.unwrap();
        });
        let request = caller
            .request("POST", "/echo")
            .header("trailer", "x-sum")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        let answer = caller.answer(request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.text().as_str()),
            (200, "one two three")
        );
        let received = &flow.origin.requests()[1];
        assert_eq!(received.header("content-length"), None);
        let sum = ("x-sum".to_owned(), "42".to_owned());
        assert_eq!(received.body.trailers, [sum], "{here:?} {there:?}");

        // Without trailers of its own the request gets the origin's back.
        let request = caller.request("POST", "/echo").header("te", "trailers");
        let answer = caller.answer(request.body(whole("abc")).unwrap()).await;
        let trailers = answer.trailers.expect("trailers");
        assert_eq!(trailers["x-body-sha256"], hex(b"abc"), "{here:?} {there:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_have_none_and_the_connection_goes_on() {
    for (here, there) in LEGS {
        let flow = Setup::alpn(there).start().await;
        let mut caller = caller(&flow, here).await;
        for (method, path, status, length) in [
            ("HEAD", "/bytes/1000", 200, Some("1000")),
            ("GET", "/status/204", 204, None),
            ("GET", "/status/304", 304, None),
            ("HEAD", "/status/404", 404, Some("11")),
        ] {
            let answer = caller
                .answer(caller.request(method, path).body(empty()).unwrap())
                .await;
            assert_eq!(
                (answer.status.as_u16(), answer.body.len()),
                (status, 0),
                "{method} {path}"
            );
            assert_eq!(
                answer.header("content-length"),
                length,
                "{here:?} {there:?} {method} {path}"
            );
        }
        assert_eq!(caller.get("/bytes/3").await.body.len(), 3);
        // A refusal of HEAD has no body either.
        let answer = caller
            .answer(caller.bare("HEAD", "/").body(empty()).unwrap())
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.body.len(), answer.ours()),
            (401, 0, true)
        );
        assert_eq!(caller.get("/bytes/3").await.body.len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn continue_is_said_after_the_swap_and_never_to_a_refused_token() {
    for there in [H1, BOTH] {
        let flow = Setup::alpn(there).start().await;
        flow.auth0.set_mode(Mode::Slow(Duration::from_millis(200)));
        let head = |token: &str| {
            format!(
                "POST /upload HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {token}\r\nexpect: 100-continue\r\n\
                 content-length: 5\r\n\r\n",
                flow.authority_of(HOST)
            )
        };
        let mut stream = flow.tls(flow.dial(HOST, H1)).await.unwrap();
        stream.write_all(head(SUBJECT).as_bytes()).await.unwrap();
        let first = within(read_head(&mut stream)).await;
        assert_eq!(first, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(
            flow.auth0.exchanges().iter().all(|e| e.status == Some(200)),
            "the swap came first"
        );
        stream.write_all(b"hello").await.unwrap();
        let answer = within(read_head(&mut stream)).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let received = &flow.origin.requests()[0];
        assert_eq!((received.body.bytes, received.header("expect")), (5, None));

        let answer = flow.raw(HOST, head("nobody-knows-this-one").as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
        assert!(!answer.contains("100 Continue"), "{answer}");
        assert_eq!(flow.origin.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_answer_may_come_before_the_body_is_sent() {
    for (here, there) in LEGS {
        let flow = Setup::alpn(there).start().await;
        let mut caller = caller(&flow, here).await;
        let (mut sender, body) = streamed();
        sender
            .send_data(Bytes::from_static(b"the beginning"))
            .await
            .unwrap();
        let request = caller.request("POST", "/reject-body").body(body).unwrap();
        let response = caller
            .send(request)
            .await
            .expect("an answer while the upload is under way");
        assert_eq!(response.status(), 413, "{here:?} {there:?}");
        let answer = Answer::read(response).await.expect("all of it");
        assert_eq!(answer.text(), "too large\n");
        // The next request finds a connection upstream that works.
        drop(sender);
        let mut next = self::caller(&flow, here).await;
        assert_eq!(next.get("/headers").await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_that_breaks_off_is_no_clean_end() {
    for (here, there) in LEGS {
        let flow = Setup::alpn(there).start().await;
        let mut caller = caller(&flow, here).await;
        let request = caller.request("GET", "/cut/1000").body(empty()).unwrap();
        assert!(broken(&mut caller, request).await, "{here:?} {there:?}");
    }
    // Chunked: without the last chunk it is not the end either.
    let flow = Setup::default().start().await;
    let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, |mut stream, _| async move {
        read_head(&mut stream).await;
        let cut = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
        stream.write_all(cut).await.unwrap();
        stream.shutdown().await.unwrap();
    })
    .await;
    for alpn in [H1, BOTH] {
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, alpn)
            })
            .await;
        let request = caller.request("GET", "/").body(empty()).unwrap();
        assert!(broken(&mut caller, request).await, "{alpn:?}");
    }
}

/// Whether a response fails: in its body, or, where the end overtakes what was to be sent, in its head.
async fn broken(caller: &mut Caller, request: http::Request<ReqBody>) -> bool {
    match caller.send(request).await {
        Ok(response) => Answer::read(response).await.is_err(),
        Err(_) => true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_is_no_clean_end_for_the_origin() {
    let flow = Setup::default().start().await;
    for alpn in [H1, BOTH] {
        let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
        let started = Arc::new(AtomicU64::new(0));
        let began = started.clone();
        let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, move |mut stream, _| {
            let (ended, began) = (ended.clone(), began.clone());
            async move {
                let mut got = read_head(&mut stream).await.into_bytes();
                began.fetch_add(1, Ordering::Relaxed);
                while let Ok(1..) = stream.read_buf(&mut got).await {}
                let _ = ended.send(got.ends_with(b"0\r\n\r\n"));
            }
        })
        .await;
        let mut caller = flow
            .call(Dial {
                origin,
                ..flow.dial(HOST, alpn)
            })
            .await;
        let (mut sender, body) = streamed();
        let request = caller.request("POST", "/").body(body).unwrap();
        let sending = tokio::spawn(async move { caller.send(request).await.map(drop) });
        sender.send_data(Bytes::from_static(b"hello")).await.unwrap();
        assert!(eventually(|| started.load(Ordering::Relaxed) > 0).await);
        sender.abort("the client is gone".into());
        assert!(sending.await.unwrap().is_err());
        let whole = within(end.recv()).await.expect("an end");
        assert!(
            !whole,
            "{alpn:?}: the origin took a broken upload for a whole one"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_during_a_download_ends_it_at_the_origin() {
    let flow = Setup::default().start().await;
    for alpn in [H1, BOTH] {
        let (ended, mut end) = tokio::sync::mpsc::unbounded_channel();
        let origin = raw_origin(&flow.pki.leaf(&[HOST]), H1, move |mut stream, _| {
            let ended = ended.clone();
            async move {
                read_head(&mut stream).await;
                let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
                stream.write_all(head).await.unwrap();
                while stream.write_all(&[0; 16 * 1024]).await.is_ok() {}
                ended.send(()).unwrap();
            }
        })
        .await;
        let dial = Dial {
            origin,
            ..flow.dial(HOST, alpn)
        };
        let mut caller = flow.call(dial).await;
        let request = caller.request("GET", "/").body(empty()).unwrap();
        let response = caller.send(request).await.unwrap();
        drop((response, caller));
        within(end.recv()).await.expect("the origin's write fails");
    }
}

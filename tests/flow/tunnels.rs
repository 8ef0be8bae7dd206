//! Tunnels: when the origin is dialled, and many of them at once with every byte accounted for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tv_tests::flow::{Caller, HOST, Setup, eventually, tcp_origin, within};

/// Long enough for a dial that must not happen to be seen.
const MOMENT: Duration = Duration::from_millis(300);

/// An origin that says `banner` to each connection, and how many came.
async fn greeter(banner: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let origin = tcp_origin(move |mut stream, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            stream.write_all(banner).await.ok();
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.ok();
        }
    })
    .await;
    (origin, count)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_not_waited_for() {
    let flow = Setup::default().start().await;
    let (origin, count) = greeter(b"220\r\n").await;
    let began = std::time::Instant::now();
    let mut stream = flow.tcp(origin, 7).await;
    within(stream.read_exact(&mut [0; 5])).await.unwrap();
    // Two seconds is what a silent client is given.
    assert!(
        began.elapsed() < Duration::from_millis(1900),
        "{:?}",
        began.elapsed()
    );
    stream.write_all(b"EHLO").await.unwrap();
    within(stream.read_exact(&mut [0; 4])).await.unwrap();
    drop(stream);
    flow.ended("tunnel", "silent").await;
    assert_eq!(count.load(Ordering::SeqCst), 1, "dialled once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_finds_the_origin_there_and_it_is_dialled_once() {
    let flow = Setup::default().start().await;
    let (origin, count) = greeter(b"").await;
    let mut stream = flow.tcp(origin, 7).await;
    assert!(
        eventually(|| count.load(Ordering::SeqCst) == 1).await,
        "before its first word"
    );
    for _ in 0..2 {
        stream.write_all(b"not TLS").await.unwrap();
        within(stream.read_exact(&mut [0; 7])).await.unwrap();
        // Longer than a hello may take: the second round is of a client that was silent at first.
        tokio::time::sleep(MOMENT).await;
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);

    let mut silent = flow.tcp(origin, 7).await;
    tokio::time::sleep(Duration::from_millis(2300)).await;
    silent.write_all(b"not TLS").await.unwrap();
    within(silent.read_exact(&mut [0; 7])).await.unwrap();
    assert_eq!(
        count.load(Ordering::SeqCst),
        2,
        "what was dialled for a silent client serves it later"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_connection_is_the_one_that_carries_the_tokens() {
    let flow = Setup::default().start().await;
    let stream = flow.tcp(flow.origin.addrs()[0], 7).await;
    let connections = || flow.origin.connections().accepted();
    assert!(eventually(|| connections() == 1).await);
    let dial = flow.dial(HOST, &["http/1.1"]);
    let stream = flow
        .tls_on(stream, dial, flow.authority.root_der())
        .await
        .unwrap();
    let mut caller = Caller::new(stream, &flow.authority_of(HOST)).await;
    assert_eq!(caller.get("/headers").await.status, 200);
    assert_eq!(connections(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_goes_out_early_where_unknown_names_are_refused_or_the_host_is_routed() {
    let flow = Setup {
        on_unknown_name: "refuse",
        ..Setup::default()
    }
    .start()
    .await;
    let (origin, count) = greeter(b"220\r\n").await;
    let _stream = flow.tcp(origin, 7).await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(count.load(Ordering::SeqCst), 0);

    let flow = Setup::default().start().await;
    let mut caller = flow.h1(HOST).await;
    assert_eq!(caller.get("/headers").await.status, 200);
    let before = flow.origin.connections().accepted();
    // Its address is a routed host's by now, with connections that are kept.
    let _stream = flow.tcp(flow.origin.addrs()[0], 7).await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(flow.origin.connections().accepted(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_origin_that_cannot_be_reached_is_told_before_the_first_word() {
    let flow = Setup::default().start().await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut stream = flow.tcp(address, 7).await;
    let error = within(stream.read(&mut [0])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    flow.ended("refuse", "upstream_unreachable").await;
}

/// Sends `!`, which begins no TLS record, and `length` bytes that `seed` makes, in portions of changing size.
/// Returns how many, and their digest.
async fn send(to: &mut (impl AsyncWrite + Unpin), length: usize, seed: u64) -> (usize, [u8; 32]) {
    let (mut digest, mut state, mut left) = (Sha256::new_with_prefix(b"!"), seed, length);
    to.write_all(b"!").await.unwrap();
    while left > 0 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let portion = left.min(1 + (state >> 48) as usize);
        let bytes: Vec<u8> = (0..portion).map(|n| (state >> (n % 57)) as u8).collect();
        digest.update(&bytes);
        to.write_all(&bytes).await.unwrap();
        left -= portion;
    }
    to.shutdown().await.unwrap();
    (length + 1, digest.finalize().into())
}

async fn receive(from: &mut (impl AsyncRead + Unpin)) -> (usize, [u8; 32]) {
    let (mut digest, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 32 * 1024]);
    loop {
        let got = from.read(&mut buffer).await.unwrap();
        if got == 0 {
            return (length, digest.finalize().into());
        }
        digest.update(&buffer[..got]);
        length += got;
    }
}

/// Both directions at once, each ended by a half-close: 200 tunnels of up to 1 MiB, so that some are copied and
/// some go through pipes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_tunnels_at_once_lose_no_byte() {
    const TUNNELS: u64 = 200;
    let flow = Setup::default().start().await;
    let size = |seed: u64| usize::try_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44).unwrap();
    let (sent, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = tcp_origin(move |mut stream, number| {
        let sent = sent.clone();
        async move {
            let seed = 1000 + number as u64;
            let (mut read, mut write) = stream.split();
            let (down, up) = tokio::join!(send(&mut write, size(seed), seed), receive(&mut read));
            sent.send((down, up)).unwrap();
        }
    })
    .await;
    let mut clients = JoinSet::new();
    for seed in 0..TUNNELS {
        let mut stream = flow.tcp(origin, 7).await;
        clients.spawn(async move {
            let (mut read, mut write) = stream.split();
            tokio::join!(send(&mut write, size(seed), seed), receive(&mut read))
        });
    }
    let all = async {
        let mut ends: [Vec<_>; 4] = Default::default();
        while let Some(client) = clients.join_next().await {
            let (up, down) = client.unwrap();
            let (at_origin_down, at_origin_up) = told.recv().await.unwrap();
            for (list, end) in ends.iter_mut().zip([up, at_origin_up, down, at_origin_down]) {
                list.push(end);
            }
        }
        for list in &mut ends {
            list.sort_unstable();
        }
        ends
    };
    let [ups, origin_ups, downs, origin_downs] = tokio::time::timeout(Duration::from_secs(120), all)
        .await
        .expect("an end");
    assert_eq!(ups.len(), 200);
    assert!(ups == origin_ups, "to the origins");
    assert!(downs == origin_downs, "from the origins");
    assert!(eventually(|| flow.metric("open_connections") == 0).await);
}

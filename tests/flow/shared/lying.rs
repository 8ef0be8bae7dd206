//! A server that gives what nobody put there: it is never believed, and never does more harm than one that is away.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn values_that_were_changed_or_moved_are_not_believed() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    tenant
        .auth0
        .connect("another-subject", CONNECTION, "another-token", 3600);
    let a = Node::join(&tenant, &redis).await;
    a.source().await;
    let name = only_name(&redis).await;
    a.obtain("another-subject").await.unwrap();
    a.counted("stored", 2).await;
    assert!(eventually(|| redis.names().len() == 2).await);
    let other = redis.names().into_iter().find(|other| *other != name).unwrap();
    redis.ask(&["COPY", &name, "kept", "REPLACE"]);
    let restore = || redis.ask(&["COPY", "kept", &name, "REPLACE"]);
    let lies: [(&str, &[&str]); 6] = [
        ("rubbish", &["SET", &name, "rubbish"]),
        ("nothing", &["SET", &name, ""]),
        ("as long as a real one", &["SETRANGE", &name, "20", "xxxxxxxx"]),
        (
            "cut",
            &[
                "EVAL",
                "redis.call('SET', KEYS[1], string.sub(redis.call('GET', KEYS[1]), 1, 40))",
                "1",
                &name,
            ],
        ),
        ("another entry's", &["COPY", &other, &name, "REPLACE"]),
        (
            "too long",
            &[
                "EVAL",
                "redis.call('SET', KEYS[1], string.rep('x', 1048576))",
                "1",
                &name,
            ],
        ),
    ];
    for (what, lie) in lies {
        restore();
        redis.ask(lie);
        let asked = tenant.exchanges();
        let node = Node::join(&tenant, &redis).await;
        assert_eq!(node.source().await, Source::Exchange, "{what}");
        assert_eq!(tenant.exchanges(), asked + 1, "{what}");
        if what == "too long" {
            // More than any answer may take: the connection is not kept.
            assert!(node.count("garbled") + node.count("broken") > 0);
            continue;
        }
        assert!(node.count("garbled") > 0, "{what}");
        // What is true takes its place.
        node.counted("stored", 1).await;
        let next = Node::join(&tenant, &redis).await;
        assert_eq!(next.source().await, Source::Shared, "{what}");
    }
    // Not even a string.
    redis.ask(&["DEL", &name]);
    redis.ask(&["LPUSH", &name, "x"]);
    let node = Node::join(&tenant, &redis).await;
    assert_eq!(node.source().await, Source::Exchange);
}

#[tokio::test]
async fn a_token_that_is_over_is_not_taken_although_redis_still_has_it() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    brief(&tenant, 4);
    let node = Node::join(&tenant, &redis).await;
    node.source().await;
    let name = only_name(&redis).await;
    redis.ask(&["PERSIST", &name]);
    tokio::time::sleep(Duration::from_secs(4)).await;
    let next = Node::join(&tenant, &redis).await;
    assert_eq!(
        (next.source().await, next.count("expired") > 0),
        (Source::Exchange, true)
    );
}

#[tokio::test]
async fn a_token_lies_there_no_longer_than_is_configured() {
    let (tenant, redis) = (Tenant::start(), Redis::start(&[]));
    let capped = Settings {
        ttl_max: Duration::from_secs(60),
        ..settings(redis.port(), &KEYS[..1])
    };
    let node = Node::with(&tenant, capped);
    node.connected().await;
    node.source().await;
    let name = only_name(&redis).await;
    let left: u64 = redis.ask(&["PTTL", &name]).parse().unwrap();
    assert!((1..=60_000).contains(&left), "{left} ms");
}

#[tokio::test]
async fn a_server_that_repeats_what_it_was_told_does_not_get_it_into_a_message() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap_or_default();
            let told = String::from_utf8_lossy(&buffer[..count]).replace("\r\n", "");
            let first = if told.contains("twice") { "-" } else { "-ERR " };
            let _ = stream.write_all(format!("{first}{told}\r\n").as_bytes()).await;
        }
    });
    let tenant = Tenant::start();
    for user in ["once", "twice"] {
        let settings = Settings {
            user: Some(user.into()),
            password: Some(Secret::new("CANARY-password".into())),
            ..settings(port, &KEYS[..1])
        };
        let why = shared::reach(settings, tenant.roots()).await.unwrap_err();
        assert!(!why.contains("CANARY") && why.contains("does not speak"), "{why}");
    }
}

/// A server that signs everybody in and then answers with `lie`: once; without end if it ends in dots; each question
/// if it ends in exclamation marks.
async fn liar(lie: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
    const WELCOME: &[u8] = b"*4\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let counted = counted.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                // Whatever comes first is HELLO.
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(WELCOME).await;
                let _ = stream.read(&mut buffer).await;
                if lie.ends_with(b"...") {
                    while stream.write_all(&lie[..lie.len() - 3]).await.is_ok() {
                        counted.fetch_add(lie.len(), Ordering::Relaxed);
                    }
                } else if let Some(lie) = lie.strip_suffix(b"!!!") {
                    // The first question was read above.
                    while stream.write_all(lie).await.is_ok() {
                        counted.fetch_add(1, Ordering::Relaxed);
                        if !matches!(stream.read(&mut buffer).await, Ok(1..)) {
                            break;
                        }
                    }
                } else {
                    let _ = stream.write_all(lie).await;
                    let _ = stream.read(&mut buffer).await;
                }
            });
        }
    });
    (port, sent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_nonsense_costs_a_moment_and_little_memory() {
    let tenant = Tenant::start();
    let lies: [&[u8]; 10] = [
        b"+OK\r\n",
        b":1\r\n",
        b"*2\r\n*1\r\n$-1\r\n$5\r\nhello\r\n",
        b"*0\r\n",
        b"*-1\r\n",
        b"*2147483647\r\n",
        b"$536870912\r\nx",
        b"\x00\xff\x00\xff\r\n",
        b"$1000000000\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...",
        b"*1\r\n...",
    ];
    for lie in lies {
        let (port, sent) = liar(lie).await;
        let short = Settings {
            timeout: Duration::from_millis(200),
            ..settings(port, &KEYS[..1])
        };
        let node = Node::with(&tenant, short);
        node.connected().await;
        let began = Instant::now();
        assert_eq!(
            node.source().await,
            Source::Exchange,
            "{}",
            String::from_utf8_lossy(lie)
        );
        assert!(began.elapsed() < Duration::from_secs(5));
        // Buffers of two sockets, and what one answer may take.
        let most = 16 * 1024 * 1024 + limits::SHARED_REPLY_BYTES;
        assert!(
            sent.load(Ordering::Relaxed) < most,
            "{}",
            sent.load(Ordering::Relaxed)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_neither_gives_nor_takes_the_lock_is_asked_twice() {
    let tenant = Tenant::start();
    // To each look: nothing there, and nobody reached for the lock.
    let (port, answered) = liar(b"*2\r\n*1\r\n$-1\r\n:-1\r\n!!!").await;
    let node = Node::with(&tenant, settings(port, &KEYS[..1]));
    node.connected().await;
    assert_eq!(node.source().await, Source::Exchange);
    node.counted("nonsense", 1).await;
    // The token is put there afterwards.
    assert!(answered.load(Ordering::Relaxed) <= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_never_comes_to_the_end_of_its_names_is_asked_a_bounded_number_of_times() {
    let tenant = Tenant::start();
    // To SCAN: go on at 7, nothing so far.
    let (port, answered) = liar(b"*2\r\n$1\r\n7\r\n*0\r\n!!!").await;
    let node = Node::with(&tenant, settings(port, &KEYS[..1]));
    node.connected().await;
    node.tokens.flush(&Filter::default());
    let all = || answered.load(Ordering::Relaxed);
    assert!(
        eventually(|| all() == limits::SHARED_FLUSH_STEPS).await,
        "{}",
        all()
    );
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((all(), node.count("flushed")), (limits::SHARED_FLUSH_STEPS, 0));
}

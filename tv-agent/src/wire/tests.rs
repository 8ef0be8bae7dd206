//! Every message there and back, and what comes of those that are none.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use tokio::sync::Mutex;

use super::*;
use crate::addr::OriginAddr;
use crate::limits;
use crate::netns::MountsId;
use crate::redirect::Recorded;
use crate::trust::Runtime;
use crate::workload::{Cgroup, Workload};

fn there_and_back<T: Serialize + DeserializeOwned>(message: &T) -> T {
    let (a, b) = pair().unwrap();
    send_blocking(a.as_fd(), message, &[], false).unwrap();
    let received = receive_blocking(b.as_fd(), limits::WIRE_SLOW_BYTES, false).unwrap();
    received.unwrap().0
}

fn asks() -> Vec<Ask> {
    let netns = NetnsCookie(u64::MAX);
    vec![
        Ask::Take {
            netns,
            peer: PeerAddr("[fe80::1]:65535".parse().unwrap()),
        },
        Ask::Socket {
            netns: Some(7),
            ipv4: true,
        },
        Ask::Beat,
        Ask::Mint {
            issuer: "ab".into(),
            host: "api.example.com".into(),
            kind: KeyKind::Rsa,
            public_key: vec![0, 255],
        },
        Ask::Keep {
            address: "192.0.2.1".parse().unwrap(),
            seconds: 7,
        },
        Ask::Sweep {
            open: ["::1".parse().unwrap()].into(),
        },
        Ask::Look {
            keys: vec![ProcessKey {
                pid: 1,
                started: u64::MAX,
            }],
        },
        Ask::List { pids: vec![1, 2] },
        Ask::Open { path: "/a".into() },
        Ask::Key {
            set: "ours".into(),
            due: Due::Before(7),
        },
        Ask::Audit { known: Some((1, 2)) },
        Ask::Pods {
            orders: Orders {
                pods: [("8f6a1c2e".to_owned(), Covering::default())].into(),
                listed: true,
            },
            more: true,
        },
        Ask::Facts,
        Ask::Log {
            filter: Some("debug".into()),
        },
    ]
}

fn call() -> Call {
    let recorded = Recorded {
        origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
        cgroup_id: 7,
        tgid: 8,
        uid: 9,
        connected: Duration::from_nanos(1_000_000_001),
    };
    let workload = Workload {
        cgroup_id: 7,
        cgroup: Some(Cgroup::at("/kubepods/pod8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff").into()),
        tgid: 8,
        uid: Some(9),
        process: Some("curl".into()),
        started: Some(10),
        mounts: Some(MountsId { number: 1, ino: 2 }),
        user: Some("bin".into()),
        ..Workload::default()
    };
    (recorded, workload)
}

fn answers() -> Vec<Answer> {
    let looked = Looked {
        mntns: MntnsId { number: 1, ino: 2 },
        runtime: Runtime::Native,
        program: (3, 4),
    };
    vec![
        Answer::Call(None),
        Answer::Call(Some(call().into())),
        Answer::Socket,
        Answer::Minted {
            leaf: vec![1],
            not_after: -1,
        },
        Answer::Done,
        Answer::Swept(Some(Narrowing {
            capture: "dns".into(),
            candidates: 1,
            unsure_namespaces: 2,
            all_unsure_s: 3,
        })),
        Answer::Looked(vec![Ok(looked), Err(libc::ENOENT)]),
        Answer::Listed(vec![Listed {
            key: ProcessKey { pid: 1, started: 2 },
            looked,
            cgroup: "/a".into(),
            command: "b".into(),
        }]),
        Answer::File,
        Answer::Same,
        Answer::Facts(Facts::default().into()),
        Answer::Filter("info".into()),
        Answer::Failed(std::io::Error::from_raw_os_error(libc::ENOENT).into()),
    ]
}

#[test]
fn every_question_and_answer_arrives_as_it_was() {
    for ask in asks() {
        assert_eq!(there_and_back(&ask), ask);
    }
    for answer in answers() {
        assert_eq!(there_and_back(&answer), answer);
    }
    for reply in [Reply::Done, Reply::Failed("why".into())] {
        assert_eq!(there_and_back(&reply), reply);
    }
    let changes = Changes {
        attended: true,
        removed: vec![MntnsId { number: 1, ino: 2 }],
        installed: vec![(MntnsId { number: 3, ino: 4 }, Installation::default())],
    };
    let Order::Ledger(back) = there_and_back(&Order::Ledger(changes.clone())) else {
        panic!("another order")
    };
    assert_eq!(back, changes);
}

#[test]
fn an_error_keeps_its_number() {
    let failure = Failure::from(std::io::Error::from_raw_os_error(libc::EACCES));
    assert_eq!(
        std::io::Error::from(failure).kind(),
        std::io::ErrorKind::PermissionDenied
    );
}

#[test]
fn what_is_no_message_is_no_end_of_the_reader() {
    let (a, b) = pair().unwrap();
    let receive = || receive_blocking::<Frame<Ask>>(b.as_fd(), limits::WIRE_INLINE_BYTES, false);
    let send = |bytes: &[u8]| {
        let parts = [std::io::IoSlice::new(bytes)];
        use nix::sys::socket::{MsgFlags, sendmsg};
        use std::os::fd::AsRawFd as _;
        sendmsg::<()>(a.as_raw_fd(), &parts, &[], MsgFlags::empty(), None).unwrap();
    };
    let unknown = r#"{"id":1,"body":{"Attach":{"path":"/"}}}"#;
    let more = r#"{"id":1,"body":{"Open":{"path":"/","write":true}}}"#;
    let large = vec![b' '; limits::WIRE_INLINE_BYTES + 1];
    // A body aside is the warden's way alone.
    for bytes in [
        &b"garbage"[..],
        unknown.as_bytes(),
        more.as_bytes(),
        &large,
        b"@",
        b"\xff",
    ] {
        send(bytes);
        assert_eq!(receive().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }
    send(br#"{"id":1,"body":"Facts"}"#);
    assert_eq!(receive().unwrap().unwrap().0.body, Ask::Facts);
    drop(a);
    assert!(receive().unwrap().is_none());
}

/// The other side of a line: what it got, in order, to be answered by hand.
async fn other_side(socket: &tokio::net::UnixStream) -> Frame<Ask> {
    receive::<Frame<Ask>>(socket, false).await.unwrap().unwrap().0
}

#[tokio::test]
async fn answers_find_who_asked_in_whatever_order_they_come() {
    let (ours, theirs) = pair().unwrap();
    let line = Line::<Ask, Answer>::start(ours, false).unwrap();
    let theirs = watched(theirs).unwrap();
    let limit = Duration::from_secs(5);
    let ask = |ask| {
        let line = line.clone();
        tokio::spawn(async move { line.ask(ask, &[], limit).await.map(|(answer, _)| answer) })
    };
    let first = ask(Ask::Facts);
    let one = other_side(&theirs).await;
    let second = ask(Ask::Beat);
    let two = other_side(&theirs).await;
    for (id, body) in [(two.id, Answer::Same), (99, Answer::Done), (one.id, Answer::Done)] {
        send(&theirs, &Frame { id, body }, &[], true).await.unwrap();
    }
    assert_eq!(first.await.unwrap().unwrap(), Answer::Done);
    assert_eq!(second.await.unwrap().unwrap(), Answer::Same);
    // Whatever is too large for a packet comes as a file.
    let third = ask(Ask::Facts);
    let id = other_side(&theirs).await.id;
    let long = Answer::Filter("x".repeat(3 * limits::WIRE_INLINE_BYTES));
    let frame = Frame { id, body: long };
    send(&theirs, &frame, &[], true).await.unwrap();
    assert_eq!(third.await.unwrap().unwrap(), frame.body);
    // The end is an answer to all.
    let fourth = ask(Ask::Facts);
    other_side(&theirs).await;
    drop(theirs);
    assert!(fourth.await.unwrap().is_err());
    line.ended().await;
    assert!(line.ask(Ask::Facts, &[], limit).await.is_err());
}

#[tokio::test]
async fn nobody_waits_for_ever_and_not_all_at_once() {
    let (ours, theirs) = pair().unwrap();
    let line = Line::<Ask, Answer>::start(ours, false).unwrap();
    let silent = line.ask(Ask::Facts, &[], Duration::from_millis(10)).await;
    assert_eq!(silent.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    let blocking = line.clone();
    let silent =
        tokio::task::spawn_blocking(move || blocking.ask_blocking(Ask::Facts, Duration::from_millis(10)));
    assert_eq!(
        silent.await.unwrap().unwrap_err().kind(),
        std::io::ErrorKind::TimedOut
    );
    let reader = std::thread::spawn(move || {
        while let Ok(Some(_)) =
            receive_blocking::<Frame<Ask>>(theirs.as_fd(), limits::WIRE_INLINE_BYTES, false)
        {}
    });
    let mut pending = Vec::new();
    for _ in 0..limits::WIRE_WAITING {
        pending.push(line.begin(Ask::Beat, &[]).await.unwrap());
    }
    assert!(line.begin(Ask::Beat, &[]).await.is_err(), "too many");
    pending.pop();
    assert!(line.begin(Ask::Beat, &[]).await.is_ok());
    drop((pending, line));
    // The listening task holds the socket until the runtime ends.
    drop(reader);
}

/// As when many clients want the same leaf: one asks, and the others wait for the one, on every worker that there is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_arrives_while_every_worker_waits_for_it() {
    const WAITERS: usize = 8;
    let (ours, theirs) = pair().unwrap();
    let line = Line::<Ask, Answer>::start(ours, false).unwrap();
    let (one, waiting) = (Arc::new(Mutex::new(())), Arc::new(AtomicUsize::new(0)));
    let asked = one.clone().lock_owned();
    let asking = tokio::spawn({
        let line = line.clone();
        async move {
            let _held = asked.await;
            line.ask_blocking(Ask::Facts, Duration::from_secs(20))
                .map(|(answer, _)| answer)
        }
    });
    let counted = waiting.clone();
    let answering = std::thread::spawn(move || {
        let (question, _) = receive_blocking::<Frame<Ask>>(theirs.as_fd(), limits::WIRE_INLINE_BYTES, false)
            .unwrap()
            .unwrap();
        while counted.load(Ordering::Relaxed) < 2 {
            std::thread::sleep(Duration::from_millis(1));
        }
        let frame = Frame {
            id: question.id,
            body: Answer::Done,
        };
        send_blocking(theirs.as_fd(), &frame, &[], true).unwrap();
        theirs
    });
    for _ in 0..WAITERS {
        let (one, waiting) = (one.clone(), waiting.clone());
        tokio::spawn(async move {
            waiting.fetch_add(1, Ordering::Relaxed);
            // On the worker, as a cache does that is not asynchronous.
            while one.try_lock().is_err() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }
    assert_eq!(asking.await.unwrap().unwrap(), Answer::Done);
    drop(answering.join().unwrap());
}

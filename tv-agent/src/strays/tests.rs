//! What is of concern, what is told, and how often.

use super::*;
use crate::flows::Flows;

fn scope() -> Scope {
    Scope {
        ports: vec![443, 8443],
        bypass: vec!["127.0.0.0/8".parse().unwrap(), "fe80::/10".parse().unwrap()],
        block_quic: true,
        narrowed: false,
    }
}

#[test]
fn only_captured_ports_and_addresses_are_of_concern() {
    for (peer, concerns) in [
        ("192.0.2.20:443", true),
        ("[2001:db8::14]:8443", true),
        // Between two captured ports: the kernel's filter lets it pass.
        ("192.0.2.20:444", false),
        ("127.0.0.1:443", false),
        ("[fe80::1]:443", false),
        // What every captured connection looks like.
        ("127.34.67.1:15443", false),
        ("[::1]:15443", false),
    ] {
        assert_eq!(scope().concerns(peer.parse().unwrap()), concerns, "{peer}");
    }
    // IPv6 prefixes say nothing about IPv4.
    let v6 = Scope {
        bypass: vec!["::/0".parse().unwrap()],
        ..scope()
    };
    assert!(v6.concerns("192.0.2.20:443".parse().unwrap()));
    assert!(!Scope::default().concerns("192.0.2.20:443".parse().unwrap()));
}

#[test]
fn the_sockets_cgroup_says_how_it_got_past() {
    assert_eq!(Reason::of(None, |_| true), Reason::Unknown);
    assert_eq!(Reason::of(Some(7), |id| id == 7), Reason::NotRedirected);
    assert_eq!(Reason::of(Some(8), |id| id == 7), Reason::ForeignSocket);
    let labels: HashSet<_> = Reason::ALL.map(Reason::label).into();
    assert_eq!(labels.len(), Reason::ALL.len());
}

const HERE: NetnsId = NetnsId { dev: 4, ino: 1 };
const THERE: NetnsId = NetnsId { dev: 4, ino: 2 };

fn stray(cookie: u64, netns: NetnsId) -> Stray {
    Stray {
        netns,
        connection: Connection {
            protocol: Protocol::Tcp,
            local: "10.0.0.1:40000".parse().unwrap(),
            peer: "192.0.2.20:443".parse().unwrap(),
            inode: 1,
            cookie,
            uid: 0,
            cgroup: None,
        },
        holder: Holder {
            process: 1,
            name: "client".to_owned(),
            cgroup_id: 1,
        },
        reason: Reason::Unknown,
        workload: Workload::default(),
    }
}

#[test]
fn what_narrowing_left_alone_is_not_told() {
    let narrowed = |narrowed| Scope {
        narrowed,
        ..Scope::default()
    };
    for reason in Reason::ALL {
        assert!(narrowed(false).tells(reason));
        assert_eq!(narrowed(true).tells(reason), reason == Reason::ForeignSocket);
    }
}

#[test]
fn each_is_told_once() {
    let mut told = Told::default();
    let mut news = |seen: &[(u64, NetnsId)], looked_at: &[NetnsId], alive: &[NetnsId]| -> Vec<u64> {
        let seen = seen
            .iter()
            .map(|(cookie, netns)| stray(*cookie, *netns))
            .collect();
        let news = told.news(seen, &looked_at.iter().copied().collect(), |id| {
            alive.contains(&id)
        });
        news.iter().map(|stray| stray.connection.cookie).collect()
    };
    const NONE: [u64; 0] = [];
    let both = [HERE, THERE];
    assert_eq!(news(&[(1, HERE), (2, THERE)], &both, &both), [1, 2]);
    assert_eq!(news(&[(1, HERE), (2, THERE), (3, HERE)], &both, &both), [3]);
    // A namespace whose turn it was not is not forgotten.
    assert_eq!(news(&[(1, HERE)], &[HERE], &both), NONE);
    assert_eq!(news(&[(1, HERE), (2, THERE)], &both, &both), NONE);
    // What is gone is, and so is a namespace.
    assert_eq!(news(&[(1, HERE)], &both, &both), NONE);
    assert_eq!(news(&[(2, THERE)], &both, &both), [2]);
    assert_eq!(news(&[], &[], &[HERE]), NONE);
    assert_eq!(news(&[(2, THERE)], &both, &both), [2]);
}

#[test]
fn no_more_are_remembered_than_there_is_room_for() {
    let mut told = Told::default();
    let many = (0..limits::STRAYS as u64 + 10)
        .map(|cookie| stray(cookie, HERE))
        .collect();
    assert_eq!(told.news(many, &[HERE].into(), |_| true).len(), limits::STRAYS);
    assert_eq!(told.0.len(), limits::STRAYS);
    // Told when others have ended.
    let late = vec![stray(u64::MAX, HERE)];
    assert_eq!(told.news(late, &[HERE].into(), |_| true).len(), 1);
}

#[test]
fn more_namespaces_than_one_look_takes_have_their_turn() {
    let mut turn = 0;
    let begins: Vec<usize> = (0..4).map(|_| next_turn(&mut turn, 5, 2)).collect();
    assert_eq!(begins, [0, 2, 4, 0]);
    // Fewer than before.
    assert_eq!(next_turn(&mut turn, 1, 2), 0);
}

#[test]
fn the_log_is_not_flooded() {
    let most = limits::STRAYS_LOGGED;
    assert_eq!(logged(most, most), (most, 0));
    assert_eq!(logged(most + 5, most), (most, 5));
}

fn watch(ports: Vec<u16>) -> Watch {
    let scope = Arc::new(Scope {
        ports,
        ..Scope::default()
    });
    Watch {
        found: watch::channel(Arc::default()).1,
        visitors: Visitors::new().unwrap(),
        home: HERE,
        workloads: Arc::new(Workloads::new("/nonexistent".into(), vec![])),
        scope: Arc::new(move || scope.clone()),
        tell: Arc::new(|_| {}),
        metrics: Metrics::new(),
    }
}

#[tokio::test]
async fn what_is_told_is_counted_and_kept_whatever_the_log_shows() {
    let flows = Flows::new();
    let noted = flows.clone();
    let watch = Watch {
        tell: Arc::new(move |flow| noted.note(flow)),
        ..watch(vec![443])
    };
    let count = limits::STRAYS_LOGGED + 5;
    let news: Vec<_> = (0..count as u64).map(|cookie| stray(cookie, HERE)).collect();
    watch.tell(&news);
    assert_eq!(super::count(&watch.metrics), count as u64);
    let (kept, _) = flows.follow();
    assert_eq!(kept.len(), count);
    assert_eq!(kept[0].outcome, "uncaptured");
    assert_eq!(kept[0].origin.as_deref(), Some("192.0.2.20:443"));
}

/// That a stranger is found is shown by the e2e tests, which have cgroups.
#[tokio::test]
async fn a_connection_that_no_enrolled_process_holds_is_not_told() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    client.connect(&to.into()).unwrap();
    let watch = watch(vec![to.port()]);
    let (metrics, (phase, watched)) = (watch.metrics.clone(), watch::channel(Phase::Serving));
    let task = tokio::spawn(watch.run(watched));
    tokio::time::sleep(Duration::from_millis(300)).await;
    phase.send(Phase::Ending).unwrap();
    task.await.unwrap();
    assert_eq!(super::count(&metrics), 0);
}

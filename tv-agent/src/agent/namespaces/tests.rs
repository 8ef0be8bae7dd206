//! What needs no namespace of its own; real ones are served in the e2e tests.

use super::*;
use crate::addr::NetnsCookie;
use crate::dial::Unflagged;
use crate::redirect;
use tokio::sync::oneshot;

struct NoFacts;

impl NetnsFacts for NoFacts {
    fn set(&self, _: NetnsCookie, _: bool) -> Result<(), redirect::Error> {
        Ok(())
    }
    fn forget(&self, _: NetnsCookie) {}
    fn unsure(&self, _: NetnsCookie) {}
}

fn namespaces(limit: usize, metrics: &Metrics) -> Namespaces {
    Namespaces {
        serve: Arc::new(|_, _, _| Box::pin(async {})),
        sweep: Arc::new(|| {}),
        listeners: Listeners {
            v4: "127.0.0.1:0".parse().unwrap(),
            v6: None,
        },
        own: Arc::new(Unflagged),
        facts: Arc::new(NoFacts),
        visitors: Visitors::new().unwrap(),
        metrics: metrics.clone(),
        home: netns::own_id().unwrap(),
        limit,
    }
}

fn found(inos: &[u64], process: i32) -> Arc<Found> {
    let seen = Seen {
        process,
        cgroup: Path::new("/sys/fs/cgroup/pod").into(),
    };
    let id = |ino: &u64| NetnsId { dev: 0, ino: *ino };
    Arc::new(Found {
        namespaces: inos.iter().map(|ino| (id(ino), seen.clone())).collect(),
        ..Found::default()
    })
}

/// Runs through `looks` and gives the metrics after them.
async fn after(limit: usize, looks: Vec<Arc<Found>>) -> String {
    let metrics = Metrics::new();
    let (sender, receiver) = watch::channel(Arc::default());
    let (phase, watched) = watch::channel(Phase::Serving);
    let (_orders, ordered) = mpsc::channel(1);
    let task = tokio::spawn(namespaces(limit, &metrics).run(Vec::new(), receiver, ordered, watched));
    for look in looks {
        sender.send(look).unwrap();
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    phase.send(Phase::Ending).unwrap();
    task.await.unwrap();
    metrics.render()
}

#[tokio::test]
async fn one_too_many_is_refused_and_told_once() {
    let looks = (0..5).map(|_| found(&[1, 2], i32::MAX)).collect();
    let text = after(0, looks).await;
    let line = r#"tv_agent_network_namespace_failures_total{reason="too_many"} 2"#;
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn a_process_that_is_gone_is_no_failure() {
    let text = after(9, vec![found(&[1], i32::MAX)]).await;
    assert!(!text.contains("failures_total{"), "{text}");
    assert!(text.contains("tv_agent_network_namespaces 0"), "{text}");
}

#[tokio::test]
async fn what_cannot_be_seen_is_told_once() {
    let blind = Arc::new(Found {
        truncated: true,
        hidden: true,
        ..Found::default()
    });
    let text = after(9, vec![blind.clone(), blind]).await;
    for reason in ["truncated", "hidden"] {
        let line = format!("tv_agent_network_namespace_failures_total{{reason=\"{reason}\"}} 1");
        assert!(text.contains(&line), "{text}");
    }
}

#[tokio::test]
async fn while_another_takes_over_nothing_new_is_served() {
    let metrics = Metrics::new();
    let (sender, receiver) = watch::channel(Arc::default());
    let (phase, watched) = watch::channel(Phase::Serving);
    let (orders, ordered) = mpsc::channel(1);
    let task = tokio::spawn(namespaces(0, &metrics).run(Vec::new(), receiver, ordered, watched));
    let (reply, rooms) = oneshot::channel();
    assert!(orders.send(Order::Freeze(reply)).await.is_ok());
    assert!(rooms.await.unwrap().is_empty());
    // It would be refused as one too many, were it looked at.
    let told = || metrics.render().contains("failures_total{");
    for thawed in [false, true] {
        if thawed {
            assert!(orders.send(Order::Thaw).await.is_ok());
        }
        for _ in 0..4 {
            sender.send(found(&[1], i32::MAX)).unwrap();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        assert_eq!(told(), thawed);
    }
    phase.send(Phase::HandedOver).unwrap();
    task.await.unwrap();
}

#[test]
fn failures_of_a_listener_are_told_apart() {
    let bind = |kind: io::ErrorKind| accept::Error::Bind {
        address: "127.0.0.1:1".parse().unwrap(),
        source: kind.into(),
    };
    for (kind, reason) in [
        (io::ErrorKind::AddrInUse, "port_taken"),
        (io::ErrorKind::PermissionDenied, "listen"),
    ] {
        assert_eq!(Error::listen(bind(kind)).reason(), reason);
    }
}

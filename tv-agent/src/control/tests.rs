//! The socket, asked by the client that the commands use.

use std::time::Duration;

use super::*;
use crate::flows::Flow;
use crate::metrics::Metrics;
use crate::token::Cached;

struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("tv-control-{}-{name}", std::process::id()));
        Self(directory.join("admin.sock"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0.parent().unwrap());
    }
}

fn status() -> Status {
    Status {
        version: "1".into(),
        bpf_sha256: None,
        pid: 7,
        ready: true,
        uptime_s: 1,
        listeners: vec!["127.34.67.1:15443".into()],
        cgroups: vec!["/a".into()],
        routes: vec!["github".into()],
        open_connections: 0,
        cached_tokens: 0,
        uncaptured_connections: 0,
        narrowing: None,
        kernel: vec![("redirected".into(), 3)],
    }
}

fn control(flows: &Flows) -> Control {
    Control {
        status: Arc::new(status),
        flows: flows.clone(),
        tokens: Tokens::new(Metrics::new()),
    }
}

fn flow(n: u64) -> Flow {
    Flow {
        took_us: n,
        ..Flow::default()
    }
}

#[tokio::test]
async fn each_question_has_its_answer() {
    let place = Place::new("answers");
    let flows = Flows::new();
    flows.note(flow(1));
    let task = control(&flows).serve(&place.0).await.unwrap();
    assert_eq!(
        fs::metadata(&place.0).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let mut seen = Vec::new();
    ask::<Status>(&place.0, Method::GET, "/status", |s| {
        seen.push(s);
        true
    })
    .await
    .unwrap();
    assert_eq!(seen, [status()]);
    let mut times = Vec::new();
    ask::<Flow>(&place.0, Method::GET, "/flows", |f| {
        times.push(f.took_us);
        true
    })
    .await
    .unwrap();
    assert_eq!(times, [1]);
    ask::<Cached>(&place.0, Method::GET, "/cache", |row| panic!("{row:?}"))
        .await
        .unwrap();
    ask::<u64>(&place.0, Method::POST, "/cache/flush", |count| count != 0)
        .await
        .unwrap();
    let unknown = ask::<u64>(&place.0, Method::POST, "/status", |_| true).await;
    assert!(matches!(unknown, Err(Error::Refused { status, .. }) if status == 404));
    task.abort();
}

#[tokio::test]
async fn a_follower_gets_what_was_and_what_comes() {
    let place = Place::new("follow");
    let flows = Flows::new();
    flows.note(flow(1));
    let task = control(&flows).serve(&place.0).await.unwrap();
    let mut seen = Vec::new();
    let following = ask::<Flow>(&place.0, Method::GET, "/flows?follow", |flow| {
        seen.push(flow.took_us);
        if seen.len() == 1 {
            flows.note(Flow {
                took_us: 2,
                ..Flow::default()
            });
        }
        seen.len() < 2
    });
    tokio::time::timeout(Duration::from_secs(5), following)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(seen, [1, 2]);
    task.abort();
}

#[tokio::test]
async fn a_socket_of_a_dead_agent_is_replaced_and_that_of_a_live_one_is_not() {
    let place = Place::new("stale");
    let flows = Flows::new();
    fs::create_dir_all(place.0.parent().unwrap()).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&place.0).unwrap());
    let nobody = ask::<Status>(&place.0, Method::GET, "/status", |_| true).await;
    assert!(matches!(nobody, Err(Error::Nobody { .. })));
    let task = control(&flows).serve(&place.0).await.unwrap();
    let second = control(&flows).serve(&place.0).await;
    assert!(matches!(second, Err(Error::Taken { .. })));
    task.abort();
}

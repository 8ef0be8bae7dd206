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
        data_path: None,
        ready: true,
        uptime_s: 1,
        listeners: vec!["127.34.67.1:15443".into()],
        cgroups: vec!["/a".into()],
        routes: vec!["github".into()],
        open_connections: 0,
        cached_tokens: 0,
        uncaptured_connections: 0,
        kubernetes: None,
        narrowing: None,
        kernel: vec![("redirected".into(), 3)],
    }
}

fn control(flows: &Flows) -> Control {
    Control {
        status: Arc::new(status),
        flows: flows.clone(),
        tokens: Tokens::new(Metrics::new()),
        keys: Arc::new(KeySets::default),
        log: log_filter(),
        metrics: Arc::new(String::new),
        trust: Arc::new(|| vec![trust_row()]),
    }
}

fn trust_row() -> TrustRow {
    use crate::trust::{Belief, MntnsId, Runtime};
    TrustRow {
        pid: 7,
        started: 1,
        mntns: MntnsId { number: 4, ino: 5 },
        cgroup: "/a".into(),
        unit: None,
        pod: None,
        container: None,
        process: "curl".into(),
        runtime: Runtime::Curl,
        state: Belief::Untrusted,
        reason: Some("TLS alert unknown_ca".into()),
        roots: Default::default(),
        stores: Default::default(),
        unreached: Vec::new(),
        advice: "install the CA".into(),
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
    let mut rows = Vec::new();
    ask::<TrustRow>(&place.0, Method::GET, "/trust", |row| {
        rows.push(row);
        true
    })
    .await
    .unwrap();
    assert_eq!(rows, [trust_row()]);
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

#[tokio::test]
async fn keys_are_listed_and_rotated() {
    use crate::sign::keyset::{Generate, Settings, Source};
    use crate::sign::{Algorithm, KeySet};
    let place = Place::new("keys");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("given.jwks");
    let jwk = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    fs::write(&file, jwk).unwrap();
    let how = Generate {
        algorithm: Algorithm::ES256,
        bits: 2048,
    };
    let sources = [
        ("made", Source::Generate { how, rotate: None }),
        ("given", Source::File { path: file }),
    ];
    let sets = sources.map(|(name, source)| {
        let settings = Settings {
            name: name.into(),
            source,
        };
        KeySet::open(settings, dir.path(), 1, None).unwrap()
    });
    let sets = KeySets::new(sets);
    let first = sets.get("made").unwrap().list()[0].kid.clone();
    let flows = Flows::new();
    let control = Control {
        keys: Arc::new(move || sets.clone()),
        ..control(&flows)
    };
    let task = control.serve(&place.0).await.unwrap();
    let rotate = async |name: &str| {
        let mut all = Vec::new();
        let target = format!("/keys/rotate/{name}");
        let asked = ask::<Rotated>(&place.0, Method::POST, &target, |rotated| {
            all.push(rotated);
            true
        });
        asked.await.map(|()| all.pop().unwrap())
    };
    let Rotated::Keys(keys) = rotate("made").await.unwrap() else {
        panic!("rotated")
    };
    assert_eq!((keys.len(), &keys[1].kid), (2, &first));
    let Rotated::Failed(problem) = rotate("given").await.unwrap() else {
        panic!("a file's keys are not ours to make")
    };
    assert!(problem.contains("put new ones there"), "{problem}");
    for name in ["none", "", "made/x", "../made"] {
        let unknown = rotate(name).await;
        assert!(
            matches!(unknown, Err(Error::Refused { status, .. }) if status == 404),
            "{name}"
        );
    }
    let mut rows = Vec::new();
    ask::<Shown>(&place.0, Method::GET, "/keys", |row| {
        rows.push(row);
        true
    })
    .await
    .unwrap();
    let shown = rows.iter().map(|row| (row.set.as_str(), row.state.as_str()));
    let shown: Vec<_> = shown.collect();
    assert_eq!(
        shown,
        [("given", "current"), ("made", "current"), ("made", "previous")]
    );
    assert!(!format!("{rows:?}").contains("nWGxne"));
    task.abort();
}

#[tokio::test]
async fn a_flush_with_a_typing_error_drops_nothing() {
    let place = Place::new("flush");
    let task = control(&Flows::new()).serve(&place.0).await.unwrap();
    for query in ["?rout=a", "?route=a&route=b", "?x", "?all=1"] {
        let target = format!("/cache/flush{query}");
        let refused = ask::<u64>(&place.0, Method::POST, &target, |_| true).await;
        assert!(
            matches!(refused, Err(Error::Refused { status, .. }) if status == 400),
            "{query}"
        );
    }
    let filter = Filter {
        route: Some("a&b=c d/ü".into()),
        vault: None,
        subject: Some("00ff00ff".into()),
    };
    let target = flush_target(&filter);
    assert_eq!(super::filter(target.split_once('?').unwrap().1), Some(filter));
    assert_eq!(flush_target(&Filter::default()), "/cache/flush");
    ask::<u64>(&place.0, Method::POST, &target, |count| count != 0)
        .await
        .unwrap();
    task.abort();
}

/// Takes levels only.
fn log_filter() -> LogFilter {
    let now = std::sync::Mutex::new("info".to_owned());
    LogFilter::new(move |wanted| {
        let mut now = now.lock().unwrap();
        match wanted {
            Some("é=debug,x") => Err("no such thing".to_owned()),
            Some(wanted) => Ok((*now = wanted.to_owned(), now.clone()).1),
            None => Ok(now.clone()),
        }
    })
}

#[tokio::test]
async fn what_is_logged_can_be_asked_and_changed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let task = control(&Flows::new()).serve(&path).await.unwrap();
    let asked = async |method, target: &str| {
        let mut said = None;
        ask(&path, method, target, |line: Logging| {
            said = Some(line);
            false
        })
        .await
        .unwrap();
        said.unwrap()
    };
    assert_eq!(asked(Method::GET, "/log").await, Logging::Filter("info".into()));
    let target = log_target("tv_agent=debug,h2=warn");
    assert_eq!(
        asked(Method::POST, &target).await,
        Logging::Filter("tv_agent=debug,h2=warn".into())
    );
    let refused = asked(Method::POST, &log_target("é=debug,x")).await;
    assert_eq!(refused, Logging::Refused("no such thing".into()));
    assert_eq!(
        asked(Method::GET, "/log").await,
        Logging::Filter("tv_agent=debug,h2=warn".into())
    );
    task.abort();
}

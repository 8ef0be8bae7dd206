//! The table of processes with this very process in it, and with ones that never were.

use std::time::Instant;

use super::*;
use crate::netns::MountsId;
use crate::trust::{Installation, StoreKind};
use crate::workload::{Cgroup, Opened};

fn processes(ledger: &Ledger) -> Processes {
    processes_of(ledger, Vec::new())
}

fn processes_of(ledger: &Ledger, roots: Vec<std::path::PathBuf>) -> Processes {
    let roots = Arc::new(roots);
    let sight = Here {
        roots: Arc::new(move || roots.clone()),
    };
    Processes::new(
        Arc::new(sight),
        ledger.clone(),
        Arc::new(|| "root".into()),
        Flows::new(),
        Metrics::new(),
    )
}

/// This process, as if it had connected.
fn own() -> Workload {
    let opened = Opened::new(std::process::id()).unwrap();
    Workload {
        cgroup: Some(Arc::new(Cgroup::at("/a.service"))),
        tgid: std::process::id(),
        started: Some(opened.process.started),
        process: Some(opened.process.command.into()),
        mounts: MountsId::of("/proc/self/ns/mnt").ok(),
        ..Workload::default()
    }
}

/// A process that never was.
fn nobody(n: u64) -> Workload {
    Workload {
        tgid: u32::MAX - 1,
        started: Some(n),
        ..Workload::default()
    }
}

fn installed() -> Installation {
    Installation {
        roots: ["root".to_owned()].into(),
        stores: [StoreKind::Bundle].into(),
        ..Installation::default()
    }
}

fn series(processes: &Processes, name: &str) -> String {
    let text = processes.0.metrics.render();
    let prefix = format!("tv_agent_{name} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&prefix));
    line.unwrap_or("0").to_owned()
}

const QUICK: Ask = Ask {
    installation: false,
    runtime: false,
};

#[tokio::test]
async fn distrust_is_told_once_and_ends_when_the_ca_is_installed() {
    let ledger = Ledger::default();
    let processes = processes(&ledger);
    let (own, root) = (own(), processes.issuing());
    assert_eq!(processes.standing(&own, QUICK).await, Standing::default());
    let flow = Flow {
        host: Some("api.example.test".into()),
        ..Flow::default()
    };
    for _ in 0..3 {
        processes.distrusted(&own, Sign::Alert("unknown_ca"), &root, &flow);
    }
    let standing = processes.standing(&own, QUICK).await;
    assert_eq!((standing.belief, standing.paused), (Belief::Untrusted, true));
    let told = processes.0.flows.follow().0;
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(
        (told[0].kind.as_str(), told[0].outcome.as_str()),
        ("trust", "untrusted")
    );
    assert_eq!(told[0].host, flow.host);
    assert_eq!(told[0].cgroup.as_deref(), Some("/a.service"));
    assert_eq!(series(&processes, r#"trust_processes{state="untrusted"}"#), "1");
    assert_eq!(series(&processes, r#"trust_processes{state="unknown"}"#), "0");
    ledger.installed(look::own_mntns().unwrap(), installed());
    let standing = processes.standing(&own, QUICK).await;
    assert_eq!((standing.belief, standing.paused), (Belief::Installed, false));
    // In vain: it is told again, since what it turned down is another store's.
    processes.distrusted(&own, Sign::Closed, &root, &flow);
    assert_eq!(processes.0.flows.follow().0.len(), 2);
    processes.completed(&own, &root);
    let standing = processes.standing(&own, QUICK).await;
    assert_eq!((standing.belief, standing.paused), (Belief::Verified, false));
    let told = processes.0.flows.follow().0;
    assert_eq!(told.last().unwrap().outcome, "verified");
    assert_eq!(series(&processes, r#"trust_processes{state="verified"}"#), "1");
}

#[tokio::test]
async fn who_is_looked_at_is_known_by_what_runs_in_it() {
    let processes = processes(&Ledger::default());
    let own = own();
    let ask = Ask {
        runtime: true,
        ..QUICK
    };
    processes.standing(&own, ask).await;
    let key = Key::of(&own).unwrap();
    let mut table = processes.table();
    let record = table.peek(key).unwrap();
    assert!(record.is_looked_at() && record.runtime == Runtime::Native);
    assert_eq!(record.mntns, look::own_mntns());
}

#[tokio::test]
async fn of_a_process_that_cannot_be_told_nothing_is_remembered() {
    let processes = processes(&Ledger::default());
    let stranger = Workload {
        started: None,
        ..own()
    };
    let root = processes.issuing();
    assert_eq!(processes.standing(&stranger, QUICK).await, Standing::default());
    processes.distrusted(&stranger, Sign::Closed, &root, &Flow::default());
    processes.completed(&stranger, &root);
    assert!(processes.is_empty());
}

#[tokio::test]
async fn an_id_that_was_given_out_again_inherits_nothing() {
    let processes = processes(&Ledger::default());
    let (own, root) = (own(), processes.issuing());
    let before = Workload {
        started: own.started.map(|started| started - 1),
        ..own.clone()
    };
    processes.standing(&before, QUICK).await;
    processes.distrusted(&before, Sign::Closed, &root, &Flow::default());
    assert_eq!(processes.standing(&own, QUICK).await, Standing::default());
    assert_eq!(processes.len(), 2);
    // The one that is gone is forgotten, the other stays.
    processes.sweep();
    assert_eq!(processes.len(), 1);
    assert_eq!(series(&processes, r#"trust_processes{state="untrusted"}"#), "0");
    assert!(processes.table().peek(Key::of(&own).unwrap()).is_some());
}

#[tokio::test]
async fn a_process_that_became_another_program_is_another_one() {
    let processes = processes(&Ledger::default());
    let own = own();
    let key = Key::of(&own).unwrap();
    processes.standing(&own, QUICK).await;
    let mut looked = Looked::at(key, &mut std::collections::HashMap::new()).unwrap();
    looked.program.1 += 1;
    processes.table().peek(key).unwrap().learn(looked);
    processes.sweep();
    assert!(processes.is_empty());
}

#[tokio::test]
async fn the_table_is_bounded_and_the_one_seen_longest_ago_goes() {
    let processes = processes(&Ledger::default());
    let root = processes.issuing();
    let first = nobody(0);
    for n in 0..5000 {
        let next = nobody(n);
        processes.standing(&next, QUICK).await;
        processes.distrusted(&next, Sign::Closed, &root, &Flow::default());
        // Seen again and again.
        processes.standing(&first, QUICK).await;
    }
    assert!(processes.len() <= limits::TRUST_PROCESSES, "{}", processes.len());
    let known = |n| processes.table().peek(Key::of(&nobody(n)).unwrap()).is_some();
    assert!(known(0) && !known(1) && known(4999));
    let counted = series(&processes, r#"trust_processes{state="untrusted"}"#);
    assert_eq!(counted, processes.len().to_string());
    processes.sweep();
    assert!(processes.is_empty(), "none of them lives");
    assert_eq!(series(&processes, r#"trust_processes{state="untrusted"}"#), "0");
}

#[tokio::test(start_paused = true)]
async fn the_first_connection_waits_for_the_ca_and_nobody_waits_twice() {
    let ledger = Ledger::default();
    let mut processes = processes(&ledger);
    // As if it lived elsewhere than the agent.
    Arc::get_mut(&mut processes.0).unwrap().home = None;
    let (own, mntns) = (own(), look::own_mntns().unwrap());
    let ask = Ask {
        installation: true,
        ..QUICK
    };
    let took = async |ask| {
        let began = tokio::time::Instant::now();
        let standing = processes.standing(&own, ask).await;
        (began.elapsed(), standing.belief)
    };
    assert_eq!(
        took(ask).await,
        (Duration::ZERO, Belief::Unknown),
        "nobody installs"
    );
    ledger.attend();
    assert_eq!(took(QUICK).await.0, Duration::ZERO, "not asked for");
    let (waited, belief) = took(ask).await;
    assert!(
        waited >= limits::TRUST_WAIT && belief == Belief::Unknown,
        "{waited:?}"
    );
    assert_eq!(took(ask).await, (Duration::ZERO, Belief::Unknown), "given up");
    processes
        .table()
        .give_up(MntnsId { ino: 0, ..mntns }, Duration::MAX);
    let soon = {
        let ledger = ledger.clone();
        tokio::spawn(async move {
            tokio::time::sleep(limits::TRUST_WAIT / 2).await;
            ledger.installed(mntns, installed());
        })
    };
    let (waited, belief) = took(ask).await;
    assert!(
        waited < limits::TRUST_WAIT && belief == Belief::Installed,
        "{waited:?}"
    );
    soon.await.unwrap();
    assert_eq!(took(ask).await, (Duration::ZERO, Belief::Installed));
}

#[tokio::test]
async fn everybody_who_is_enrolled_is_listed_and_told_what_to_do() {
    let ledger = Ledger::default();
    let cgroup = tempfile::tempdir().unwrap();
    let processes = processes_of(&ledger, vec![cgroup.path().to_owned()]);
    let (own, root) = (own(), processes.issuing());
    let below = cgroup.path().join("pod");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("cgroup.procs"), format!("{}\n0\n4194999\n", own.tgid)).unwrap();
    let list = || processes.list();
    let [row] = &list()[..] else {
        panic!("{:?}", list())
    };
    assert_eq!((row.pid, Some(row.started)), (own.tgid, own.started));
    assert_eq!((row.state, row.runtime), (Belief::Unknown, Runtime::Native));
    assert!(row.advice.starts_with("install the CA"), "{row:?}");
    // The same one, though it is known both ways.
    processes.standing(&own, QUICK).await;
    processes.distrusted(&own, Sign::Alert("bad_certificate"), &root, &Flow::default());
    let [row] = &list()[..] else {
        panic!("{:?}", list())
    };
    assert_eq!(row.state, Belief::Untrusted);
    assert_eq!(row.reason.as_deref(), Some("TLS alert bad_certificate"));
    ledger.installed(look::own_mntns().unwrap(), installed());
    let row = &list()[0];
    assert_eq!((row.state, row.advice.as_str()), (Belief::Installed, ""));
    assert_eq!(row.roots, installed().roots);
    assert_eq!(row.stores, installed().stores);
}

#[tokio::test]
async fn who_is_known_costs_no_look() {
    let processes = processes(&Ledger::default());
    let own = own();
    let ask = Ask {
        runtime: true,
        ..QUICK
    };
    processes.standing(&own, ask).await;
    // No thread is free any more, and none is needed.
    let _all = processes
        .0
        .readers
        .clone()
        .try_acquire_many_owned(limits::TRUST_READERS as u32)
        .unwrap();
    let began = Instant::now();
    for _ in 0..1000 {
        processes.standing(&own, ask).await;
    }
    eprintln!("known: {:?} each", began.elapsed() / 1000);
    assert!(
        processes
            .table()
            .peek(Key::of(&own).unwrap())
            .unwrap()
            .is_looked_at()
    );
    // Nor does one wait whom nobody has time to look at.
    processes.standing(&nobody(1), ask).await;
    assert_eq!(processes.len(), 2);
}

//! Nothing of the server outlives a test binary that is killed.

use std::process::Command;
use std::time::Duration;

use tv_tests::{cluster, process};

use crate::support::wait_for;

/// Set for the binary that is to be killed.
const VICTIM: &str = "TV_TESTS_VICTIM";
const READY: &str = "the servers run";
/// For the servers to come, and for their end by a signal.
const PATIENCE: Duration = Duration::from_secs(180);

/// Names of the running processes of a group, but for its leader.
fn followers(group: nix::unistd::Pid) -> Vec<String> {
    let (mut found, group) = (Vec::new(), group.to_string());
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        // proc_pid_stat(5): the name in parentheses may hold anything; state, ppid and pgrp come after it.
        let Some((name, rest)) = stat.rsplit_once(") ") else {
            continue;
        };
        let fields: Vec<&str> = rest.split(' ').collect();
        let is_leader = process.file_name().to_str() == Some(&group);
        if fields.get(2) == Some(&group.as_str()) && fields[0] != "Z" && !is_leader {
            found.push(name.split_once('(').map_or("", |(_, name)| name).to_owned());
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_outlives_a_test_binary_that_is_killed() {
    if std::env::var_os(VICTIM).is_some() {
        // From a thread that ends, as a test's does before another one that shares the server.
        let Some(cluster) = std::thread::spawn(cluster::start).join().unwrap() else {
            return;
        };
        eprintln!("{READY}");
        std::thread::sleep(PATIENCE);
        drop(cluster);
        return;
    }
    // What a killed one leaves in its temporary directory goes with this value.
    let directory = tempfile::tempdir().unwrap();
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim
        .args(["--exact", "--nocapture"])
        .arg("orphans::nothing_outlives_a_test_binary_that_is_killed")
        .env(VICTIM, "1")
        .env("TMPDIR", directory.path());
    let mut victim = process::start(&mut victim).unwrap();
    wait_for("its servers", PATIENCE, || {
        victim.ended().is_some() || victim.complained().contains(READY)
    });
    if victim.ended().is_some() {
        let finished = victim.wait(PATIENCE).unwrap();
        finished.expect_success();
        assert!(finished.stderr.contains("skipped"), "{}", finished.stderr);
        return;
    }
    let group = victim.pid();
    assert_eq!(followers(group), ["etcd", "kube-apiserver"]);
    victim.kill_alone();
    wait_for("their end", Duration::from_secs(10), || {
        followers(group).is_empty()
    });
}

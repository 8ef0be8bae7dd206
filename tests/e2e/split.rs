//! The two processes of the daemon: what the one that serves may do, and that neither outlives the other.

use std::os::unix::fs::MetadataExt as _;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tv_tests::world::{Daemon, World};

use super::absence::{ask, assert_refused, assert_served};
use super::support::*;

const LIMIT: Duration = Duration::from_secs(15);

/// The kernel half's deadline, and a little.
const DEADLINE: Duration = Duration::from_secs(9);

/// A line of /proc/PID/status.
fn status(pid: Pid, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

fn is_gone(pid: Pid) -> bool {
    // A zombie has no command line.
    std::fs::read(format!("/proc/{pid}/cmdline")).map_or(true, |line| line.is_empty())
}

fn refused_at_once(world: &World, daemon: &Daemon<'_>, user: &str) {
    let before = Instant::now();
    assert_refused(world, daemon, user);
    assert!(
        before.elapsed() < Duration::from_secs(5),
        "{:?}",
        before.elapsed()
    );
}

#[test]
fn the_process_that_serves_has_no_privilege() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("split", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let serving = daemon.data_path().unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(serving, set), 16), Ok(0), "{set}");
        }
        assert_eq!(status(serving, "NoNewPrivs"), "1");
        for ids in ["Uid", "Gid"] {
            let ids = status(serving, ids);
            let all: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert!(all.iter().all(|id| *id != 0 && *id == all[0]), "{ids}");
        }
        assert_eq!(status(serving, "Groups"), "");
        // Root's, since it is not dumpable: no process of its user may look into it.
        let memory = std::fs::metadata(format!("/proc/{serving}/mem")).unwrap();
        assert_eq!(memory.uid(), 0);
        let text = std::fs::read_to_string(daemon.config_file()).unwrap();
        let socket = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("socket: "))
            .unwrap();
        let socket = socket.trim_matches('"');
        let asked = world
            .tv_agent(&["status", "--socket", socket, "-o", "json"])
            .unwrap();
        let told: Value = serde_json::from_str(asked.expect_success()).unwrap();
        assert_eq!(told["pid"], daemon.pid().as_raw());
        assert_eq!(told["data_path"], serving.as_raw());
        // Its descriptors: no map, no program, nothing of the CA's.
        for entry in std::fs::read_dir(format!("/proc/{serving}/fd"))
            .unwrap()
            .flatten()
        {
            let lies_at = std::fs::read_link(entry.path()).unwrap_or_default();
            let lies_at = lies_at.display().to_string();
            assert!(
                !lies_at.contains("bpf") && !lies_at.contains("key.pem"),
                "{lies_at}"
            );
        }
    });
}

#[test]
fn neither_outlives_the_other_and_nobody_gets_past() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("both", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let serving = daemon.data_path().unwrap();
        kill(serving, Signal::SIGKILL).unwrap();
        // Until the warden has noticed, its copies of the listeners take connections, which are reset then.
        let ended = daemon.wait(LIMIT).unwrap();
        refused_at_once(world, &daemon, &user);
        assert_eq!(ended.code(), 1);
        let said = format!("the data path (process {serving}) ended (signal: 9");
        assert_eq!(ended.stderr.matches(&said).count(), 1, "{}", ended.stderr);
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
        let serving = daemon.data_path().unwrap();
        daemon.kill();
        wait_for("the end of the other", LIMIT, || is_gone(serving));
        refused_at_once(world, &daemon, &user);
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
    });
}

/// Stopped, it cannot say that it lives; the warden goes on, and must not speak for it.
#[test]
fn one_that_hangs_counts_as_down() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("hangs", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let serving = daemon.data_path().unwrap();
        kill(serving, Signal::SIGSTOP).unwrap();
        std::thread::sleep(DEADLINE);
        refused_at_once(world, &daemon, &user);
        assert!(daemon.ended().is_none(), "the warden waits for it");
        kill(serving, Signal::SIGCONT).unwrap();
        wait_for("served again", LIMIT, || {
            ask(world, &daemon, &user, &[]).success()
        });
        let said = daemon.stop();
        assert_eq!(said.code(), 0, "{}", said.stderr);
        assert!(is_gone(serving));
    });
}

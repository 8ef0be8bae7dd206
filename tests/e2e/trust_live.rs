//! The CA in containers that run: real clients in mount namespaces that the tests make, and nothing left afterwards.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tv_tests::cgroup::TestCgroup;
use tv_tests::process;
use tv_tests::world::{Daemon, GITHUB_API, World};

use crate::support::{
    GITHUB_TOKEN, SmallDisk, alice, assert_swapped, assert_unseen, bearer, curl, user_url, wait_for,
};
use container::{Container, LIMIT, Shape, make_root};

mod container;

/// Python with nothing but the standard library, on the container's own store.
const PYTHON: &str = r#"
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], headers={"authorization": "Bearer " + sys.argv[2]})
print(urllib.request.urlopen(request, timeout=15).status)
"#;

#[track_caller]
fn assert_clients_work(world: &World, container: &Container, user: &str) {
    let (header, url) = (bearer(user), user_url());
    let answer = container.run(world, &curl(&["--header", &header, &url]));
    assert!(
        answer.expect_success().contains(r#""login":"alice""#),
        "{}",
        answer.stdout
    );
    let python = container.run(world, &["/usr/bin/python3", "-c", PYTHON, &url, user]);
    assert_eq!(python.expect_success().trim(), "200");
    let host = format!("{GITHUB_API}:443");
    let arguments = [
        "-CApath",
        "/etc/ssl/certs",
        "-no-CAfile",
        "-verify_return_error",
        "-brief",
    ];
    let openssl = [
        &[
            "openssl",
            "s_client",
            "-connect",
            &host,
            "-servername",
            GITHUB_API,
        ][..],
        &arguments,
    ]
    .concat();
    container.run(world, &openssl).expect_success();
}

/// New processes of a running container, with a root that cannot be written to; the host's own stores as they were.
#[test]
fn clients_in_a_running_container_trust_the_agent() {
    World::run(|world| {
        let user = alice(world);
        let host = digest(Path::new("/etc/ssl/certs"));
        let mut daemon = world.daemon("trustlive", world.config()).unwrap();
        for (name, shape) in [
            ("plain", Shape::default()),
            (
                "readonly",
                Shape {
                    read_only: true,
                    ..Shape::default()
                },
            ),
            (
                "user",
                Shape {
                    user: true,
                    ..Shape::default()
                },
            ),
            (
                "chroot",
                Shape {
                    chroot: true,
                    ..Shape::default()
                },
            ),
        ] {
            let container = Container::start(world, &daemon, name, shape);
            container.wait_until_trusting();
            assert_clients_work(world, &container, &user);
            for line in container.ours() {
                for flag in ["ro", "nosuid", "nodev", "noexec"] {
                    assert!(line.split([' ', ',']).any(|word| word == flag), "{line}");
                }
                assert!(!line.contains("shared:"), "{line}");
            }
            if shape.read_only {
                let write = container.run(world, &["sh", "-c", "echo x >/etc/x"]);
                assert!(!write.success());
            }
        }
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
        assert_eq!(digest(Path::new("/etc/ssl/certs")), host);
        let own = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!own.contains("/tv-agent/trust/"), "{own}");
        let log = daemon.stop().stderr;
        let told = log
            .lines()
            .filter(|line| line.contains("mount namespace: trusts the CA"))
            .count();
        assert_eq!(told, 4, "{log}");
    });
}

fn ca_of(world: &World) -> String {
    std::fs::read_to_string(world.agent_root()).unwrap()
}

/// Names, sizes and times of a directory's entries.
fn digest(directory: &Path) -> BTreeSet<(std::ffi::OsString, u64, i64)> {
    let entries = std::fs::read_dir(directory).unwrap().flatten();
    entries
        .map(|entry| {
            let metadata = entry.path().symlink_metadata().unwrap();
            (entry.file_name(), metadata.size(), metadata.mtime_nsec())
        })
        .collect()
}

/// busybox and an empty /etc/ssl: the public roots and ours.
#[test]
fn a_container_without_a_store_gets_one() {
    World::run(|world| {
        let daemon = world.daemon("trustbare", world.config()).unwrap();
        let shape = Shape {
            bare: true,
            ..Shape::default()
        };
        let container = Container::start(world, &daemon, "bare", shape);
        container.wait_until_trusting();
        assert!(container.trusts(&ca_of(world)));
        let bundle = container.read("/etc/ssl/certs/ca-certificates.crt").unwrap();
        let count = String::from_utf8_lossy(&bundle)
            .matches("BEGIN CERTIFICATE")
            .count();
        assert!(count > 100, "{count}");
    });
}

/// A namespace whose mounts are shared with others: none of ours appears there.
#[test]
fn nothing_leaks_where_mounts_are_shared() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("trustshared", world.config()).unwrap();
        // A peer of the workload that is not enrolled, and the workload, which takes its mounts as they are.
        let outer = world.dir().join("outer");
        make_root(&outer, Shape::default()).unwrap();
        let mut container = Container::start(world, &daemon, "peer", Shape::default());
        let shared = container.run(world, &["mount", "--make-rshared", "/"]);
        shared.expect_success();
        let elsewhere = TestCgroup::new("trustpeer");
        let inside = r#"echo $$ >"$0/cgroup.procs"; exec nsenter "$@""#;
        let pid = container.pid();
        let mut peer = Command::new("sh");
        peer.args(["-c", inside])
            .arg(elsewhere.path())
            .arg(format!("--mount=/proc/{pid}/ns/mnt"));
        peer.args(["unshare", "--mount", "--propagation", "unchanged", "sleep", "600"]);
        let peer = process::start(peer.stdin(Stdio::null())).unwrap();
        let mounts = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        wait_for("the peer's namespace", LIMIT, || {
            let id = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            id(peer.pid().as_raw())
                .is_some_and(|ns| Some(&ns) != id(pid).as_ref() && Some(&ns) != id(1).as_ref())
                && mounts(peer.pid().as_raw()).contains("shared:")
        });
        container.wait_until_trusting();
        // Anew, now that it is shared: the lower store changes.
        let before = container.ours();
        let added = container.root.join("etc/ssl/certs/added.pem");
        std::fs::copy(world.root_file(), added).unwrap();
        wait_for("copies made anew", LIMIT, || {
            let now = container.ours();
            !now.is_empty() && now != before
        });
        assert_eq!(container.ours().len(), before.len());
        assert_clients_work(world, &container, &user);
        let root_line = |text: String| {
            text.lines()
                .find(|line| line.split(' ').nth(4) == Some("/"))
                .map(str::to_owned)
        };
        let group = |pid| {
            let line = root_line(mounts(pid)).unwrap();
            line.split(' ')
                .find(|word| word.starts_with("shared:"))
                .map(str::to_owned)
        };
        assert!(group(pid).is_some(), "it is shared as it was");
        assert_eq!(group(pid), group(peer.pid().as_raw()));
        // What was there when the peer was made is there; nothing that came later.
        let own: Vec<String> = container.ours();
        let theirs = mounts(peer.pid().as_raw());
        for line in &own {
            let copy = line.split(' ').nth(3).unwrap();
            assert!(!theirs.contains(copy), "{theirs}");
        }
        container.end();
    });
}

/// The store below ours changes: the copy is made anew, and at no moment is there none.
#[test]
fn a_store_that_changes_underneath_is_merged_anew() {
    World::run(|world| {
        let daemon = world.daemon("trustmerge", world.config()).unwrap();
        let container = Container::start(world, &daemon, "merge", Shape::default());
        container.wait_until_trusting();
        let (bundle, root) = (
            container.root.join("etc/ssl/certs/ca-certificates.crt"),
            ca_of(world),
        );
        let (stop, mut reads) = (std::sync::atomic::AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut count = 0_u64;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert!(container.trusts(&root), "seen without the CA");
                    count += 1;
                }
                count
            });
            for round in 0..3 {
                let before = container.ours();
                let mut text = std::fs::read_to_string(&bundle).unwrap();
                text.push_str(&format!("# round {round}\n"));
                std::fs::write(bundle.with_extension("new"), text).unwrap();
                std::fs::rename(bundle.with_extension("new"), &bundle).unwrap();
                wait_for("merged anew", LIMIT, || {
                    let seen = container.read("/etc/ssl/certs/ca-certificates.crt").unwrap();
                    String::from_utf8_lossy(&seen).contains(&format!("# round {round}"))
                });
                assert_eq!(container.ours().len(), before.len(), "one layer each");
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            reads = reader.join().unwrap();
        });
        eprintln!("{reads} reads while the store was made anew three times: none without the CA");
        assert!(reads > 100);
        // It removes its store altogether: nothing is left to copy, and the last copy is not kept for ever.
        std::fs::remove_dir_all(container.root.join("etc/ssl/certs")).unwrap();
        wait_for("what is there is told", LIMIT, || {
            daemon
                .metric(r#"tv_agent_trust_installations_total{result="partial"}"#)
                .unwrap()
                > 0
                || daemon
                    .metric(r#"tv_agent_trust_installations_total{result="installed"}"#)
                    .unwrap()
                    > 4
        });
    });
}

/// A handshake with each store, and what fails where another CA is asked about.
#[test]
fn verify_completes_a_handshake_with_each_store() {
    World::run(|world| {
        let config = world.config();
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let daemon = world.daemon("trustverify", config).unwrap();
        let container = Container::start(world, &daemon, "verified", Shape::default());
        container.wait_until_trusting();
        let (pid, dir) = (
            container.pid().to_string(),
            world.dir().join("ca").display().to_string(),
        );
        let verify = |dir: &str, more: &[&str]| {
            let command = ["trust", "verify", "--ca-dir", dir, "-o", "json"];
            let said = world.tv_agent(&[&command, more].concat()).unwrap();
            let rows: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).unwrap();
            (said.code(), rows)
        };
        for more in [&["--pid", &*pid][..], &["--socket", &*socket]] {
            let (code, rows) = verify(&dir, more);
            assert_eq!(code, 0, "{rows:?}");
            for kind in ["bundle", "directory"] {
                let row = rows.iter().find(|row| row["store"] == kind);
                let row = row.unwrap_or_else(|| panic!("no {kind}: {rows:?}"));
                assert_eq!(row["trusted"], true, "{row}");
                assert_eq!(row["pid"].to_string(), pid);
            }
        }
        let other = world.dir().join("other-ca").display().to_string();
        world
            .tv_agent(&["ca", "init", "--dir", &other])
            .unwrap()
            .expect_success();
        let (code, rows) = verify(&other, &["--pid", &pid]);
        assert_eq!(code, 1);
        assert!(
            rows.iter()
                .all(|row| row["trusted"] == false && row["advice"].is_string()),
            "{rows:?}"
        );
        let (code, rows) = verify(&dir, &["--pid", "4194305"]);
        assert_eq!((code, rows.len()), (1, 1), "{rows:?}");
    });
}

/// kill -9 of the daemon or its helper, at many moments; the next one takes over what is there.
#[test]
fn whoever_is_killed_leaves_nothing_that_the_next_cannot_take_over() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("trustkill", world.config()).unwrap();
        let container = Container::start(world, &daemon, "stays", Shape::default());
        let before = (container.mounts(), container.ours().is_empty());
        container.wait_until_trusting();
        let first = container.ours();
        daemon.kill();
        assert_eq!(container.ours(), first, "the agent's death changes nothing");
        daemon.restart().unwrap();
        wait_for("adopted", LIMIT, || {
            daemon
                .metric(r#"tv_agent_trust_installations_total{result="adopted"}"#)
                .unwrap()
                == 1
        });
        assert_eq!(container.ours(), first, "and is not mounted twice");
        assert_clients_work(world, &container, &user);
        // The helper alone.
        wait_for("a helper", LIMIT, || helper_of(daemon.pid()).is_some());
        let helper = helper_of(daemon.pid()).unwrap();
        kill(helper, Signal::SIGKILL).unwrap();
        let second = Container::start(world, &daemon, "second", Shape::default());
        second.wait_until_trusting();
        assert_ne!(helper_of(daemon.pid()), Some(helper));
        let root = ca_of(world);
        // At points of an installation that differ by fractions of a millisecond.
        for step in 0..24_u64 {
            let mut late = Container::start(world, &daemon, &format!("late{step}"), Shape::default());
            std::thread::sleep(Duration::from_millis(2 * step));
            if step % 2 == 0 {
                daemon.kill();
                daemon.restart().unwrap();
            } else if let Some(helper) = helper_of(daemon.pid()) {
                // It may just have ended.
                let _ = kill(helper, Signal::SIGKILL);
            }
            wait_for("the CA is there all the same", LIMIT, || late.trusts(&root));
            wait_for("one layer each", LIMIT, || {
                late.ours().len() == second.ours().len()
            });
            late.end();
        }
        assert_eq!(container.ours(), first);
        daemon.stop();
        let cleaned = world.tv_agent(&["cleanup"]).unwrap();
        assert!(
            cleaned.expect_success().contains("mount from"),
            "{}",
            cleaned.stdout
        );
        for container in [&container, &second] {
            assert_eq!(container.ours(), [""; 0]);
        }
        if before.1 {
            assert_eq!(container.mounts(), before.0, "as before");
        }
        let left: Vec<_> = std::fs::read_dir("/run/tv-agent/trust")
            .unwrap()
            .flatten()
            .collect();
        assert!(left.iter().all(|entry| entry.file_name() == "lock"), "{left:?}");
    });
}

/// The process whose parent is the agent.
fn helper_of(agent: Pid) -> Option<Pid> {
    let children =
        std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children")).unwrap_or_default();
    let all = std::fs::read_dir(format!("/proc/{agent}/task")).ok()?.flatten();
    let of_threads = all.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let text: String = of_threads.chain([children]).collect::<Vec<_>>().join(" ");
    let mut all = text.split_whitespace();
    let pid = all.find(|pid| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
        line.is_ok_and(|line| line.contains("__trust-mount"))
    })?;
    Some(Pid::from_raw(pid.parse().ok()?))
}

/// Ten times (TV_ROUNDS says otherwise) in and out of enrolment: the list of mounts is what it was, each time.
#[test]
fn what_is_no_longer_enrolled_is_as_it_was() {
    World::run(|world| {
        let daemon = world.daemon("trustrounds", world.config()).unwrap();
        let aside = TestCgroup::new("trustaside");
        let mut container = Container::start(
            world,
            &daemon,
            "rounds",
            Shape {
                read_only: true,
                ..Shape::default()
            },
        );
        let enrolled = daemon.cgroup().path().join("rounds");
        container.wait_until_trusting();
        container.move_to(aside.path());
        wait_for("taken away", LIMIT, || container.ours().is_empty());
        let before = container.mounts();
        // A second each: a place lingers.
        let rounds = std::env::var("TV_ROUNDS").ok().and_then(|text| text.parse().ok());
        let rounds: u32 = rounds.unwrap_or(10);
        for round in 0..rounds {
            container.move_to(&enrolled);
            container.wait_until_trusting();
            container.move_to(aside.path());
            wait_for("taken away", LIMIT, || container.ours().is_empty());
            assert_eq!(container.mounts(), before, "round {round}");
        }
        eprintln!("{rounds} rounds: the same mountinfo each time");
        container.end();
    });
}

/// From the cgroup's first process to mounts in place on the final root; then fifty at once.
#[test]
fn new_containers_are_found_at_once() {
    World::run(|world| {
        let daemon = world.daemon("trustnew", world.config()).unwrap();
        let ca = ca_of(world);
        let root = world.dir().join("image");
        make_root(&root, Shape::default()).unwrap();
        let count = 50;
        let mut took: Vec<Duration> = (0..count)
            .map(|number| {
                std::thread::sleep(Duration::from_millis(60 + 7 * number));
                let began = Instant::now();
                let name = format!("new{number}");
                let container = Container::begin_in(&daemon, &name, root.clone(), Shape::default());
                let until = began + LIMIT;
                while container.ours().is_empty() || !container.trusts(&ca) {
                    assert!(Instant::now() < until, "{}", container.mounts());
                    std::thread::sleep(Duration::from_millis(1));
                }
                began.elapsed()
            })
            .collect();
        took.sort();
        eprintln!(
            "container made to CA there: median {:?}, most {:?}",
            took[took.len() / 2],
            took[took.len() - 1]
        );
        let began = Instant::now();
        let all: Vec<Container> = (0..count)
            .map(|number| {
                Container::begin_in(&daemon, &format!("all{number}"), root.clone(), Shape::default())
            })
            .collect();
        wait_for("all of them", 3 * LIMIT, || {
            all.iter().all(|container| !container.ours().is_empty())
        });
        eprintln!("{count} containers at once: {:?}", began.elapsed());
        drop(all);
        wait_for("nothing is kept of them", LIMIT, || {
            let left = std::fs::read_dir("/run/tv-agent/trust").unwrap().flatten();
            left.filter(|entry| entry.file_name() != "lock").count() == 0
        });
    });
}

/// An agent that takes over goes on with what the other did.
#[test]
fn a_successor_adopts_what_is_there() {
    World::run(|world| {
        let mut daemon = world.daemon("trustsucceed", world.config()).unwrap();
        let container = Container::start(world, &daemon, "stays", Shape::default());
        container.wait_until_trusting();
        let first = container.ours();
        let mut old = daemon.succeed().unwrap();
        wait_for("adopted", LIMIT, || {
            // It is not there before the first one.
            let adopted = daemon.metric(r#"tv_agent_trust_installations_total{result="adopted"}"#);
            adopted.is_ok_and(|count| count == 1)
        });
        assert_eq!(container.ours(), first);
        old.wait(LIMIT).unwrap();
        // While it runs, nobody takes its mounts away.
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        assert_eq!(container.ours(), first);
        let later = Container::start(world, &daemon, "later", Shape::default());
        later.wait_until_trusting();
    });
}

/// A unit of an init system: a mount namespace of its own over the machine's root.
#[test]
fn a_process_with_the_machines_root_in_its_own_namespace_is_served() {
    World::run(|world| {
        let daemon: Daemon<'_> = world.daemon("trustunit", world.config()).unwrap();
        let mut unit = daemon.command("unshare");
        unit.args(["--mount", "--propagation", "private", "sleep", "600"]);
        let unit = process::start(unit.stdin(Stdio::null())).unwrap();
        let mounts =
            || std::fs::read_to_string(format!("/proc/{}/mountinfo", unit.pid())).unwrap_or_default();
        wait_for("the CA is there", LIMIT, || mounts().contains("/tv-agent/trust/"));
        let own = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!own.contains("/tv-agent/trust/"));
    });
}

/// Copies need room, which may not be there; nothing is half done then, and it is tried again.
#[test]
fn a_full_disk_under_the_copies_leaves_the_container_as_it_was() {
    World::run(|world| {
        let user = alice(world);
        let disk = SmallDisk::new(world.dir().join("small"), "64k");
        let mut config = world.config();
        // Where mounts are recognised by, as in the other tests.
        let dir = disk.path().join("tv-agent/trust");
        config["trust"] = serde_json::json!({ "dir": dir });
        let daemon = world.daemon("trustfull", config).unwrap();
        let container = Container::start(world, &daemon, "full", Shape::default());
        let before = container.mounts();
        wait_for("a failure that is counted", LIMIT, || {
            let metrics = daemon.metrics().unwrap();
            let failed =
                |line: &str| line.starts_with("tv_agent_trust_installations_total{result=\"failed\"}");
            metrics.lines().any(failed)
        });
        assert_eq!(container.mounts(), before);
        disk.resize("64m");
        container.wait_until_trusting();
        assert_clients_work(world, &container, &user);
    });
}

/// Each step as an operator makes it: asked of the daemon, never forced, and nobody is restarted.
#[test]
fn a_root_is_replaced_in_a_running_container() {
    World::run(|world| {
        let user = alice(world);
        let config = world.config();
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let daemon = world.daemon("trustrotate", config).unwrap();
        let container = Container::start(world, &daemon, "rotated", Shape::default());
        container.wait_until_trusting();
        assert_clients_work(world, &container, &user);
        let old = ca_of(world);
        let dir = world.agent_root().parent().unwrap().display().to_string();
        let rotate = || {
            let words = ["ca", "rotate", "-o", "json", "--dir", &dir, "--socket", &socket];
            world.tv_agent(&words).unwrap()
        };
        let step = |name: &str| {
            wait_for(name, LIMIT, || {
                let rotated = rotate();
                // The CA of the step before is still on its way into the container.
                let refused = rotated.stderr.contains("does not have the new root yet");
                assert!(rotated.success() || refused, "{}", rotated.stderr);
                rotated.success() && rotated.stdout.contains(name)
            });
        };
        step("published");
        step("trusted");
        step("issuing");
        wait_for("another root signs", LIMIT, || ca_of(world) != old);
        assert!(container.trusts(&old) && container.trusts(&ca_of(world)));
        assert_clients_work(world, &container, &user);
        let verify = ["trust", "verify", "--ca-dir", &dir, "--socket", &socket];
        world.tv_agent(&verify).unwrap().expect_success();
        step("retiring");
        assert_clients_work(world, &container, &user);
        assert_unseen(world, &user);
    });
}

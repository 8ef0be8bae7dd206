//! A machine that lacks something, and an agent that is short of something. docs/faults.md tells each outcome.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tv_tests::probe::Probe;
use tv_tests::process::{self, Finished};
use tv_tests::world::{GITHUB_API, UNROUTED, World};

use crate::absence::{ask, assert_bystander, assert_refused, assert_served};
use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, user_url, wait_for};

const LIMIT: Duration = Duration::from_secs(30);
const OPEN: &str = "tv_agent_open_connections";

/// `tv-agent exec -- curl …` in a mount namespace that `script` has changed.
fn exec_after(world: &World, script: &str, user: &str) -> Finished {
    let config = world.write_config(&world.config()).unwrap();
    let mut command = world.command("unshare");
    command
        .args(["--mount", "sh", "-ec", &format!("{script}; exec \"$0\" \"$@\"")])
        .arg(world.agent_file())
        .args(["exec", "--config"])
        .arg(config)
        .arg("--")
        .args(curl(&["--header", &bearer(user), &user_url()]));
    process::run(command.stdin(Stdio::null()), LIMIT).unwrap()
}

#[test]
fn cgroup2_may_be_mounted_anywhere_but_must_be_mounted() {
    World::run(|world| {
        let user = alice(world);
        let mount = tv_agent::redirect::cgroup2_mount().unwrap().display().to_string();
        let away = format!("umount --lazy {mount}");
        let elsewhere = format!("mkdir /run/elsewhere; mount -t cgroup2 none /run/elsewhere; {away}");
        exec_after(world, &elsewhere, &user).expect_success();
        assert_swapped(&world.github, GITHUB_TOKEN, &user);

        let before = world.github.count();
        let finished = exec_after(world, &away, &user);
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        assert!(
            finished.stderr.contains("no cgroup v2 mount"),
            "{}",
            finished.stderr
        );
        assert_eq!(world.github.count(), before, "the command did not run");
    });
}

#[test]
fn each_capability_that_is_missing_is_named() {
    World::run(|world| {
        let config = world.write_config(&world.config()).unwrap().display().to_string();
        let without = |capabilities: &str, arguments: &[&str]| {
            let mut command = world.command("setpriv");
            command
                .arg(format!("--bounding-set={capabilities}"))
                .arg(world.agent_file())
                .args(arguments);
            process::run(command.stdin(Stdio::null()), LIMIT).unwrap()
        };
        for (dropped, missing) in [
            ("-sys_admin", "CAP_SYS_ADMIN"),
            ("-net_admin", "CAP_NET_ADMIN"),
            ("-sys_admin,-bpf", "CAP_BPF, CAP_SYS_ADMIN"),
            ("-sys_ptrace", "CAP_SYS_PTRACE"),
            ("-setuid", "CAP_SETUID"),
            ("-setgid", "CAP_SETGID"),
        ] {
            let checked = without(dropped, &["check", "--config", &config]);
            let said = format!("missing: {missing}");
            assert!(checked.stdout.contains(&said), "{dropped}: {}", checked.stdout);
        }
        // CAP_SYS_ADMIN includes CAP_BPF.
        let checked = without("-bpf", &["check", "--config", &config]);
        assert!(!checked.stdout.contains("missing: CAP"), "{}", checked.stdout);
        for dropped in ["-sys_admin", "-sys_admin,-bpf", "-sys_admin,-net_admin"] {
            let ran = world.dir().join("ran");
            let touch = [
                "exec",
                "--config",
                &config,
                "--",
                "touch",
                &ran.display().to_string(),
            ]
            .map(str::to_owned);
            let finished = without(dropped, &touch.each_ref().map(String::as_str));
            assert_eq!(finished.code(), 125, "{dropped}: {}", finished.stderr);
            assert!(
                finished.stderr.contains("CAP_SYS_ADMIN"),
                "{dropped}: {}",
                finished.stderr
            );
            assert!(!ran.exists(), "{dropped}: the command ran");
        }
        // `check` asks the vault whether it is there.
        world.take_unexpected();
    });
}

/// Connects, says so, and tells how it ends.
const WAIT: &str = r#"
import socket
stream = socket.create_connection(("192.0.2.20", 443), timeout=20)
print("connected", flush=True)
try:
    print("read", len(stream.recv(1)))
except ConnectionResetError:
    print("reset")
"#;

#[test]
fn killed_between_connect_and_accept_it_leaves_a_reset() {
    World::run(|world| {
        let mut daemon = world.daemon("between", world.config()).unwrap();
        // Stopped for less than its deadline: connect() succeeds, and nobody accepts.
        nix::sys::signal::kill(daemon.data_path().unwrap(), Signal::SIGSTOP).unwrap();
        let mut client = daemon.command("python3");
        let mut client = client
            .args(["-c", WAIT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(client.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "connected");
        daemon.kill();
        assert_eq!(said.next().unwrap().unwrap(), "reset");
        client.wait().unwrap();
        assert_eq!(world.github.connections().accepted(), 0);
        daemon.restart().unwrap();
        let user = alice(world);
        assert_served(world, &daemon, &user);
    });
}

/// Each end of the range that the counter has here; the kernel half counts by the machine's clock.
#[test]
fn a_time_namespace_of_the_agents_own_changes_nothing() {
    World::run(|world| {
        let user = alice(world);
        for shift in ["--monotonic=-600", "--monotonic=1000000"] {
            let wrapper = ["unshare", "--time", shift];
            let daemon = world.daemon_under(&wrapper, "clock", world.config()).unwrap();
            let own = std::fs::read_link("/proc/self/ns/time").unwrap();
            let theirs = std::fs::read_link(format!("/proc/{}/ns/time", daemon.pid())).unwrap();
            assert_ne!(own, theirs, "the agent has the machine's clock");
            assert_served(world, &daemon, &user);
            daemon.signal(Signal::SIGSTOP).unwrap();
            std::thread::sleep(Duration::from_millis(5500));
            assert_refused(world, &daemon, &user);
            daemon.signal(Signal::SIGCONT).unwrap();
        }
    });
}

/// Ten seconds, or 100,000 connects, each closed by a reset.
#[test]
fn a_flood_of_connects_leaves_nothing_behind() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("flood", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let (before, accepted) = (
            daemon.descriptors().unwrap(),
            world.github.connections().accepted(),
        );
        let memory = daemon.peak_memory().unwrap();
        let began = Instant::now();
        let mut workload = Probe::start(env!("CARGO_BIN_EXE_tv-probe"), Some(daemon.cgroup()));
        let (mut connected, mut failed) = (0, 0);
        while connected + failed < 100_000 && began.elapsed() < Duration::from_secs(10) {
            let (more, lost) = workload.flood("192.0.2.20:443", 10_000, None);
            (connected, failed) = (connected + more, failed + lost);
        }
        let took = began.elapsed();
        // Somebody else is served meanwhile, or at once after.
        assert_bystander(world);
        wait_for("all are let go", LIMIT, || daemon.metric(OPEN).unwrap() == 0);
        assert_served(world, &daemon, &user);
        wait_for("descriptors are back", LIMIT, || {
            daemon.descriptors().unwrap() <= before + 8
        });
        let peak = daemon.peak_memory().unwrap();
        eprintln!(
            "{connected} connected and {failed} failed in {:.1} s ({:.0} a second); peak memory {:.1} MiB, \
             {:.1} MiB before; descriptors {before} before and {} after",
            took.as_secs_f64(),
            f64::from(connected) / took.as_secs_f64(),
            peak as f64 / f64::from(1 << 20),
            memory as f64 / f64::from(1 << 20),
            daemon.descriptors().unwrap()
        );
        assert!(connected > 1000, "{connected}");
        assert_eq!(failed, 0, "of {connected}");
        // Those that are accepted and not looked at yet: at most a workload's share at once.
        assert!(peak < memory + (96 << 20), "{peak} bytes, {memory} before");
        // Kept connections to the origin serve the two requests; the flood opened none.
        assert!(world.github.connections().accepted() <= accepted + 1);
        let handed_over = daemon.metric(r#"tv_agent_bpf_events_total{reason="handover_failed"}"#);
        assert_eq!(handed_over.unwrap(), 0);
        assert_unseen(world, &user);
    });
}

/// Opens as many connections as it is told to, says hello to nobody, and counts those that stay.
const CROWD: &str = r#"
import select, socket, sys, time
count, address = int(sys.argv[1]), sys.argv[2]
crowd = []
for _ in range(count):
    stream = socket.socket()
    stream.setblocking(False)
    stream.connect_ex((address, 443))
    crowd.append(stream)
time.sleep(1)
print("open", flush=True)
sys.stdin.readline()
gone = 0
for stream in crowd:
    try:
        gone += stream.recv(1) == b""
    except BlockingIOError:
        pass
    except OSError:
        gone += 1
print(count - gone, flush=True)
sys.stdin.readline()
"#;

/// A workload of another cgroup below the enrolled one.
struct Neighbour(PathBuf);

impl Neighbour {
    fn make(cgroup: &Path) -> Self {
        let path = cgroup.join("neighbour");
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn ask(&self, world: &World, user: &str) -> Finished {
        let root = world.agent_root().display().to_string();
        let mut command = world.command("sh");
        command
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec "$@""#])
            .arg(&self.0)
            .args(curl(&["--cacert", &root, "--header", &bearer(user), &user_url()]));
        process::run(command.stdin(Stdio::null()), LIMIT).unwrap()
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        // A process that has just ended may still be counted for a moment.
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// With as few descriptors as this, one workload's crowd would take all of them.
#[test]
fn one_workload_cannot_take_all_descriptors() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world
            .daemon_under(&["prlimit", "--nofile=256:256"], "few", world.config())
            .unwrap();
        assert_served(world, &daemon, &user);
        let neighbour = Neighbour::make(daemon.cgroup().path());
        let mut crowd = daemon.command("python3");
        let mut crowd = crowd
            .args(["-c", CROWD, "400", "192.0.2.40"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(crowd.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "open");
        // Those that stay are tunnels by now: two descriptors each.
        std::thread::sleep(Duration::from_secs(2));
        let used = daemon.processor_time().unwrap();
        for _ in 0..5 {
            neighbour.ask(world, &user).expect_success();
        }
        std::thread::sleep(Duration::from_secs(2));
        let used = daemon.processor_time().unwrap() - used;
        let descriptors = daemon.descriptors().unwrap();
        let mut answer = crowd.stdin.take().unwrap();
        std::io::Write::write_all(&mut answer, b"count\n").unwrap();
        let stayed: usize = said.next().unwrap().unwrap().parse().unwrap();
        eprintln!("{stayed} of 400 stayed; {descriptors} descriptors of 256; {used:?} of processor time");
        assert!(stayed > 0 && descriptors < 250, "{stayed}, {descriptors}");
        assert!(used < Duration::from_secs(2), "{used:?}");
        drop(answer);
        crowd.wait().unwrap();
        wait_for("the crowd is let go", LIMIT, || daemon.metric(OPEN).unwrap() == 0);
        assert_served(world, &daemon, &user);
        assert_unseen(world, &user);
    });
}

/// The limit is taken below what is open already: accept() fails with EMFILE until there is room again.
#[test]
fn out_of_descriptors_it_waits_and_recovers() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("none", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let limit = |files: &str| {
            let pid = daemon.data_path().unwrap().to_string();
            // As its user: another's limits take CAP_SYS_RESOURCE.
            let owner = daemon.data_path_user().unwrap();
            let done = Command::new("setpriv")
                .args([
                    "--clear-groups",
                    &format!("--reuid={owner}"),
                    &format!("--regid={owner}"),
                    "prlimit",
                ])
                .args(["--pid", &pid, &format!("--nofile={files}:20000")])
                .status();
            assert!(done.unwrap().success());
        };
        limit("8");
        let mut crowd = daemon.command("python3");
        let mut crowd = crowd
            .args(["-c", CROWD, "50", "192.0.2.20"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(crowd.stdout.take().unwrap()).lines();
        assert_eq!(said.next().unwrap().unwrap(), "open");
        let used = daemon.processor_time().unwrap();
        std::thread::sleep(Duration::from_secs(3));
        let used = daemon.processor_time().unwrap() - used;
        eprintln!("{used:?} of processor time in 3 s without descriptors");
        assert!(used < Duration::from_millis(1500), "{used:?}");
        assert_bystander(world);
        limit("1000");
        drop(crowd.stdin.take());
        crowd.wait().unwrap();
        wait_for("served again", LIMIT, || {
            ask(world, &daemon, &user, &[]).success()
        });
        assert_unseen(world, &user);
        let url = format!("https://{UNROUTED}/");
        let root = world.root_file().display().to_string();
        daemon
            .run(&curl(&["--cacert", &root, &url]))
            .unwrap()
            .expect_success();
        let log = daemon.stop().stderr;
        let told = log.matches("cannot accept connections").count();
        assert!((1..=4).contains(&told), "told {told} times: {log}");
        assert!(!log.contains(GITHUB_API) || !log.contains(&user), "{log}");
    });
}

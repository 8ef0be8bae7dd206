//! `tv-agent run --take-over`: what is open goes on, what comes is served, and who fails changes nothing.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tv_agent::redirect::{DEFAULT_PIN_ROOT, DEFAULT_RUN_DIR};
use tv_tests::cgroup::TestCgroup;
use tv_tests::process::{self, Running};
use tv_tests::world::{Daemon, GITHUB_API, UNROUTED, World};

use crate::absence::{ask, assert_bystander, assert_refused, assert_served};
use crate::pods::Pod;
use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// One connection: a request, another when told to, and then a new connection.
const KEPT: &str = r#"
import http.client, os, ssl, sys, time
root, token, folder = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
connection = http.client.HTTPSConnection("api.github.com", context=context)
def ask():
    connection.request("GET", "/user", headers={"Authorization": "Bearer " + token})
    answer = connection.getresponse()
    answer.read()
    print(answer.status, answer.getheader("connection"), connection.sock is None)
ask()
first = connection.sock
open(os.path.join(folder, "asked"), "w").close()
while not os.path.exists(os.path.join(folder, "go")):
    time.sleep(0.02)
ask()
ask()
print(first is connection.sock)
"#;

fn under_way(daemon: &Daemon<'_>, more: &[&str]) -> Running {
    let mut client = daemon.command("curl");
    client.args(&curl(more)[1..]);
    process::start(&mut client).unwrap()
}

#[test]
fn what_is_open_goes_on_and_what_comes_is_served() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("succession", world.config()).unwrap();
        let before = daemon.pid();
        let root = world.agent_root().display().to_string();
        let script = world.dir().join("kept.py");
        std::fs::write(&script, KEPT).unwrap();
        let mut kept = daemon.command("python3");
        kept.arg(&script).arg(&root).arg(&user).arg(world.dir());
        let kept = process::start(&mut kept).unwrap();
        wait_for("a kept connection", LIMIT, || world.dir().join("asked").exists());
        let (header, real) = (bearer(&user), world.root_file().display().to_string());
        let (seen, tunnelled) = (world.github.count(), world.unrouted.count());
        let ours = format!("https://{GITHUB_API}/drip/60/50");
        let theirs = format!("https://{UNROUTED}/drip/60/50");
        let answers = [
            under_way(
                &daemon,
                &["--http1.1", "--cacert", &root, "--header", &header, &ours],
            ),
            under_way(
                &daemon,
                &["--http2", "--cacert", &root, "--header", &header, &ours],
            ),
            under_way(&daemon, &["--cacert", &real, &theirs]),
        ];
        wait_for("answers under way", LIMIT, || {
            world.github.count() == seen + 2 && world.unrouted.count() == tunnelled + 1
        });

        let mut old = daemon.succeed().unwrap();
        assert_ne!(daemon.pid(), before);
        assert!(old.ended().is_none(), "it drains");
        assert_served(world, &daemon, &user);
        assert_eq!(open_connections(&daemon), 0, "the new one counts its own");
        std::fs::write(world.dir().join("go"), "").unwrap();
        let said = kept.finish(LIMIT).unwrap();
        let expected = "200 None False\n200 close True\n200 None False\nFalse\n";
        assert_eq!(said.expect_success(), expected, "{}", said.stderr);
        for answer in answers {
            let whole = answer.finish(LIMIT).unwrap();
            assert_eq!(whole.expect_success().matches("data: ").count(), 60);
        }
        let ended = old.wait(LIMIT).unwrap();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        assert!(
            ended.stderr.contains("another agent has taken over"),
            "{}",
            ended.stderr
        );
        assert_served(world, &daemon, &user);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);

        // And so on; nothing depends on the first one.
        let mut second = daemon.succeed().unwrap();
        assert_eq!(second.wait(LIMIT).unwrap().code(), 0);
        assert_served(world, &daemon, &user);
        let status = status(world, &daemon);
        assert_eq!(status["pid"], json!(daemon.pid().as_raw()), "{status}");
        daemon.kill();
        assert_refused(world, &daemon, &user);
        assert_bystander(world);
        // With nobody to take over from it is a start like any other.
        let mut third = daemon.challenge(daemon.config_file()).unwrap();
        wait_for("served", LIMIT, || ask(world, &daemon, &user, &[]).success());
        third.end();
        assert_unseen(world, &user);
    });
}

fn open_connections(daemon: &Daemon<'_>) -> u64 {
    // One that has just been answered may still be open for a moment.
    let until = Instant::now() + Duration::from_secs(3);
    loop {
        let open = daemon.metric("tv_agent_open_connections").unwrap();
        if open == 0 || Instant::now() >= until {
            return open;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn status(world: &World, daemon: &Daemon<'_>) -> Value {
    let text = std::fs::read_to_string(daemon.config_file()).unwrap();
    let socket = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("socket: "))
        .unwrap();
    let socket = socket.trim_matches('"');
    let asked = world
        .tv_agent(&["status", "--socket", socket, "-o", "json"])
        .unwrap();
    serde_json::from_str(asked.expect_success()).unwrap()
}

/// The successor dies while the first one still drains: what starts then is not kept from it.
#[test]
fn one_that_drains_is_in_nobodys_way() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("in-the-way", world.config()).unwrap();
        let (real, tunnelled) = (world.root_file().display().to_string(), world.unrouted.count());
        let theirs = format!("https://{UNROUTED}/drip/120/100");
        let tunnel = under_way(&daemon, &["--cacert", &real, &theirs]);
        wait_for("a tunnel", LIMIT, || world.unrouted.count() == tunnelled + 1);
        let mut old = daemon.succeed().unwrap();
        daemon.kill();
        assert_refused(world, &daemon, &user);
        daemon.restart().unwrap();
        assert!(old.ended().is_none(), "it drains");
        assert_served(world, &daemon, &user);
        let whole = tunnel.finish(LIMIT).unwrap();
        assert_eq!(whole.expect_success().matches("data: ").count(), 120);
        assert_eq!(old.wait(LIMIT).unwrap().code(), 0);
        assert_served(world, &daemon, &user);
        daemon.kill();
        assert_refused(world, &daemon, &user);
    });
}

/// Where a supervisor starts again whatever ends, the old one waits for its word; and it drains on that word.
#[test]
fn an_old_one_lingers_until_it_is_told_to_stop() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("linger", world.config()).unwrap();
        let mut first = daemon.succeed_with(&["--linger"]).unwrap();
        assert_eq!(first.wait(LIMIT).unwrap().code(), 0, "it was not told to linger");
        let (real, tunnelled) = (world.root_file().display().to_string(), world.unrouted.count());
        let theirs = format!("https://{UNROUTED}/drip/60/50");
        let tunnel = under_way(&daemon, &["--cacert", &real, &theirs]);
        wait_for("a tunnel", LIMIT, || world.unrouted.count() == tunnelled + 1);
        let mut old = daemon.succeed().unwrap();
        let stop = |old: &Running| nix::sys::signal::kill(old.pid(), Signal::SIGTERM).unwrap();
        stop(&old);
        let whole = tunnel.finish(LIMIT).unwrap();
        assert_eq!(whole.expect_success().matches("data: ").count(), 60);
        assert_eq!(old.wait(LIMIT).unwrap().code(), 0);

        let mut last = daemon.succeed_with(&["--linger"]).unwrap();
        assert_eq!(last.wait(LIMIT).unwrap().code(), 0);
        let mut old = daemon.succeed().unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert!(old.ended().is_none(), "nothing is open, and it lingers");
        stop(&old);
        assert_eq!(old.wait(LIMIT).unwrap().code(), 0);
        assert_served(world, &daemon, &user);
    });
}

#[test]
fn pods_are_handed_over_with_their_listeners() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("pods", world.config()).unwrap();
        let pods = [Pod::running(&daemon, 1), Pod::running(&daemon, 2)];
        let served = |daemon: &Daemon<'_>| daemon.metric("tv_agent_network_namespaces").unwrap();
        wait_for("both are served", LIMIT, || served(&daemon) == 2);
        for pod in &pods {
            pod.ask(world, &user, &["--ipv4"]).expect_success();
        }
        let mut old = daemon.succeed().unwrap();
        // At once, without looking for anything: connect() must find a listener all the time.
        for pod in &pods {
            pod.ask(world, &user, &["--ipv4"]).expect_success();
        }
        wait_for("both are served", LIMIT, || served(&daemon) == 2);
        assert_eq!(old.wait(LIMIT).unwrap().code(), 0);
        for pod in &pods {
            pod.ask(world, &user, &["--ipv4"]).expect_success();
        }
        // A later one is noticed, and gone ones are let go.
        let third = Pod::running(&daemon, 3);
        wait_for("the third is served", LIMIT, || served(&daemon) == 3);
        third.ask(world, &user, &["--ipv4"]).expect_success();
        drop((third, pods));
        wait_for("all are let go", LIMIT, || served(&daemon) == 0);
        let log = daemon.stop().stderr;
        assert!(!log.contains("not intercepted"), "{log}");
        assert_unseen(world, &user);
    });
}

/// Whoever wants to take over and cannot says why, and the running one goes on.
#[test]
fn one_that_fails_leaves_the_running_one_as_it_was() {
    World::run(|world| {
        let user = alice(world);
        let good = world.config();
        let daemon = world.daemon("goes-on", good.clone()).unwrap();
        let other = TestCgroup::new("goes-on-other");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().unwrap().to_string();
        let _held = std::net::TcpListener::bind(&taken);
        let nowhere = world.dir().join("client-secret/below").display().to_string();
        // Both cgroups, so that something is attached before it fails.
        let cgroups = json!([daemon.cgroup().name(), other.name()]);
        let cases: [(&str, Value, i32, &[&str]); 7] = [
            ("/intercept/quic", json!("perhaps"), 2, &["quic", "perhaps"]),
            (
                "/intercept/cgroups/1",
                json!("/tv-none"),
                2,
                &["/tv-none", "does not exist"],
            ),
            ("/listen/port", json!(15_999), 1, &["15999", "127.34.67.1:15443"]),
            ("/ca/dir", json!("/nonexistent"), 1, &["tv-agent ca init"]),
            (
                "/routes/0/hosts/0",
                json!("api.example.net"),
                1,
                &["may not sign", "ca init"],
            ),
            ("/admin/socket", json!(nowhere), 1, &["client-secret"]),
            (
                "/intercept/bypass_cidrs",
                (0..5000)
                    .map(|n| json!(format!("10.{}.{}.0/24", n / 250, n % 250)))
                    .collect(),
                1,
                &["5000", "4096"],
            ),
        ];
        let links = || {
            let below = std::fs::read_dir(pins()).unwrap();
            let names = below.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut links: Vec<_> = names
                .filter(|name| name.starts_with(|c: char| c.is_ascii_digit()))
                .collect();
            links.sort();
            links
        };
        // With it, the CA would simply follow the routes.
        std::fs::remove_dir_all(world.dir().join("ca/root")).unwrap();
        let before = links();
        for (at, value, code, words) in cases {
            let mut config = good.clone();
            config["intercept"]["cgroups"] = cgroups.clone();
            config["intercept"]["bypass_cidrs"] = json!([]);
            config["intercept"]["quic"] = json!("block");
            config["listen"] = json!({ "port": 15_443 });
            *config.pointer_mut(at).unwrap() = value;
            let file = world.write_config(&config).unwrap();
            let refused = daemon.challenge(&file).unwrap().finish(LIMIT).unwrap();
            assert_eq!(refused.code(), code, "{at}: {}", refused.stderr);
            for word in words {
                assert!(
                    refused.stderr.contains(word),
                    "{at}: no {word:?} in: {}",
                    refused.stderr
                );
            }
            assert_served(world, &daemon, &user);
            wait_for("what it attached is gone", LIMIT, || links() == before);
            let mut outside = other.command("curl");
            let real = world.root_file().display().to_string();
            outside.args(["--silent", "--cacert", &real, &format!("https://{GITHUB_API}/")]);
            process::run(&mut outside, LIMIT).unwrap().expect_success();
        }
        // In another network namespace nothing would be reachable at the same addresses.
        let mut elsewhere = world.command("unshare");
        elsewhere.arg("--net").arg(world.agent_file());
        elsewhere
            .args(["run", "--take-over", "--config"])
            .arg(daemon.config_file());
        let refused = process::run(&mut elsewhere, LIMIT).unwrap();
        assert_eq!(refused.code(), 1, "{}", refused.stderr);
        assert!(
            refused.stderr.contains("another network namespace"),
            "{}",
            refused.stderr
        );
        assert_served(world, &daemon, &user);
        assert_unseen(world, &user);
    });
}

/// As a new one that crashes does, seen from the running one: at each step, and at any moment.
#[test]
fn one_that_is_killed_leaves_the_running_one_as_it_was() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("killed-new", world.config()).unwrap();
        let path = tv_agent::handover::socket_path(Path::new(DEFAULT_RUN_DIR), "daemon");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        for _ in 0..2 {
            let _within = runtime.enter();
            let asked = tv_agent::handover::ask(&path).unwrap().unwrap();
            // It has every socket, and dies with them.
            assert_eq!(asked.0.pid(), daemon.pid().as_raw());
            drop(asked);
            assert_served(world, &daemon, &user);
        }
        let (mut before, mut after) = (0, 0);
        for round in 0..12 {
            let mut new = daemon.challenge(daemon.config_file()).unwrap();
            std::thread::sleep(Duration::from_millis(40 * round));
            new.kill_alone();
            // Past the point of no return it was the daemon that was killed.
            let until = Instant::now() + Duration::from_secs(1);
            while daemon.ended().is_none() && Instant::now() < until {
                if ask(world, &daemon, &user, &[]).success() {
                    break;
                }
            }
            if tv_tests::world::holds(daemon.pid()) && daemon.ended().is_none() {
                assert_served(world, &daemon, &user);
                before += 1;
            } else {
                assert_refused(world, &daemon, &user);
                daemon.wait(LIMIT).unwrap();
                daemon.restart().unwrap();
                assert_served(world, &daemon, &user);
                after += 1;
            }
        }
        eprintln!("killed before it served: {before}, as the daemon: {after}");
        assert!(before > 0);
        assert_unseen(world, &user);
    });
}

#[test]
fn a_running_one_that_hangs_is_said() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("hung-old", world.config()).unwrap();
        daemon.signal(Signal::SIGSTOP).unwrap();
        let refused = daemon
            .challenge(daemon.config_file())
            .unwrap()
            .finish(LIMIT)
            .unwrap();
        daemon.signal(Signal::SIGCONT).unwrap();
        assert_eq!(refused.code(), 1, "{}", refused.stderr);
        let remedy = format!("kill -9 {}", daemon.pid());
        assert!(refused.stderr.contains(&remedy), "{}", refused.stderr);
        wait_for("served again", LIMIT, || {
            ask(world, &daemon, &user, &[]).success()
        });
        // The one who gave up is no obstacle to the next.
        let mut daemon = daemon;
        let mut old = daemon.succeed().unwrap();
        assert_eq!(old.wait(LIMIT).unwrap().code(), 0);
        assert_served(world, &daemon, &user);
    });
}

#[test]
fn cleanup_takes_all_that_a_dead_daemon_left() {
    World::run(|world| {
        let mut daemon = world.daemon("traces", world.config()).unwrap();
        drop(daemon.succeed().unwrap());
        daemon.kill();
        let cleaned = world.tv_agent(&["cleanup"]).unwrap();
        let removed = cleaned.expect_success();
        for what in ["link", "map", "program", "socket", "lock"] {
            assert!(
                removed.contains(&format!("removed {what} ")),
                "no {what}: {removed}"
            );
        }
        assert!(!Path::new(DEFAULT_PIN_ROOT).exists());
        let left = std::fs::read_dir(Path::new(DEFAULT_RUN_DIR).join("instances")).unwrap();
        assert_eq!(left.count(), 0);
        let again = world.tv_agent(&["cleanup"]).unwrap();
        assert!(again.expect_success().contains("nothing"), "{}", again.stdout);
    });
}

fn pins() -> PathBuf {
    Path::new(DEFAULT_PIN_ROOT).join(format!("v{}/daemon", tv_ebpf::ABI_VERSION))
}

/// From mkdir() to the last program being attached. A service manager needs longer to start a process there.
#[test]
fn a_cgroup_that_is_made_again_is_covered_at_once() {
    World::run(|world| {
        const ROUNDS: usize = 200;
        let daemon = world.daemon("at-once", world.config()).unwrap();
        let directory = daemon.cgroup().path().to_owned();
        let pins = pins();
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            std::fs::remove_dir(&directory).unwrap();
            let began = Instant::now();
            std::fs::create_dir(&directory).unwrap();
            let id = tv_agent::redirect::cgroup_id(&directory).unwrap();
            // connect4 is attached last.
            let last = pins.join(format!("{id}-tv_connect4"));
            while !last.exists() {
                assert!(began.elapsed() < LIMIT, "never covered");
                std::thread::yield_now();
            }
            times.push(began.elapsed());
        }
        times.sort();
        let at = |part: usize| times[(ROUNDS - 1) * part / 100];
        eprintln!(
            "mkdir to attached, {ROUNDS} rounds: median {:?}, 99 % {:?}, longest {:?}",
            at(50),
            at(99),
            at(100)
        );
        // Without events it would be 50 ms on average.
        assert!(at(50) < Duration::from_millis(40), "{:?}", at(50));
        let user = alice(world);
        assert_served(world, &daemon, &user);
    });
}

//! Agents that come and go under load: short versions always, long ones by `cargo xtask soak`.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tv_agent::redirect::DEFAULT_PIN_ROOT;
use tv_ebpf::abi;
use tv_tests::process::{self, Running};
use tv_tests::sys::{bpf_links, fd_fact, map_entries, pinned};
use tv_tests::world::{Daemon, GITHUB_API, GOOGLE, UNROUTED, World};

use crate::pods::Pod;
use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, user_url, wait_for};

const LIMIT: Duration = Duration::from_secs(60);
const GITHUB_AT: &str = "192.0.2.20";
const GOOGLE_AT: &str = "192.0.2.30";
const UNROUTED_AT: &str = "192.0.2.40";

/// Requests one after the other until a file is there, no request twice; prints how many went well, and what became
/// of the others. Kinds: `keep` (one connection for as long as the server keeps it), `new` (one each), `long` (one
/// connection for three seconds, whatever happens).
const CLIENT: &str = r#"
import collections, json, os, socket, ssl, sys, time
kind, host, address, path, root, token, stop = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "") + "\r\n"
good, bad, connection, since = 0, collections.Counter(), None, 0
def connect():
    return context.wrap_socket(socket.create_connection((address, 443), timeout=20), server_hostname=host)
def ask(connection):
    connection.sendall(request.encode())
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            raise EOFError("end before the answer")
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lines = head.decode().lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:])
    while len(body) < int(headers["content-length"]):
        piece = connection.recv(65536)
        if not piece:
            raise EOFError("end within the answer")
        body += piece
    return lines[0].split(" ")[1], headers.get("connection") == "close"
while not os.path.exists(stop):
    try:
        if connection is None:
            connection, since = connect(), time.monotonic()
        status, close = ask(connection)
        if status == "200":
            good += 1
        else:
            bad[status] += 1
        if close or kind == "new" or kind == "long" and time.monotonic() - since > 3:
            connection.close()
            connection = None
        time.sleep(0.003)
    except Exception as error:
        bad[type(error).__name__ + " " + str(error)[:60]] += 1
        connection = None
        time.sleep(0.02)
print(json.dumps({"good": good, "bad": bad}))
"#;

/// The same over HTTP/2: up to forty requests on a connection.
const CURLS: &str = r#"
while [ ! -e "$0" ]; do curl --http2 --silent --max-time 20 --config "$1" || sleep 0.02; done
"#;

/// Clients of one kind each, in the host's namespace, in a pod, and not enrolled.
struct Load {
    clients: Vec<(&'static str, Running)>,
    stop: PathBuf,
}

/// What became of the requests of one kind of client.
#[derive(Debug, Default)]
struct Tally {
    good: u64,
    bad: BTreeMap<String, u64>,
}

impl Load {
    fn start(world: &World, daemon: &Daemon<'_>, pod: &Pod, user: &str) -> Self {
        let file = |name: &str| world.dir().join(name);
        std::fs::write(file("client.py"), CLIENT).unwrap();
        let text = |path: PathBuf| path.display().to_string();
        let (script, stop) = (text(file("client.py")), text(file("stop")));
        let (ours, real) = (text(world.agent_root()), text(world.root_file()));
        let one = format!(
            "url = {}\noutput = /dev/null\nheader = \"{}\"\ncacert = {ours}\nresolve = {GITHUB_API}:443:{GITHUB_AT}\n\
             write-out = \"%{{http_version}} %{{http_code}}\\n\"\n",
            user_url(),
            bearer(user)
        );
        std::fs::write(file("curls"), vec![one; 40].join("next\n")).unwrap();
        let curls = text(file("curls"));
        let python = |kind: &'static str, host: &'static str, at, path, root, token| {
            ["python3", &script, kind, host, at, path, root, token, &stop].map(str::to_owned)
        };
        let routed = |kind| python(kind, GITHUB_API, GITHUB_AT, "/user", &ours, user);
        let tunnel = python("long", UNROUTED, UNROUTED_AT, "/", &real, "");
        let h2 = ["sh", "-c", CURLS, &stop, &curls].map(str::to_owned);
        let in_host = |arguments: &[String]| {
            let mut command = daemon.command(&arguments[0]);
            command.args(&arguments[1..]);
            command
        };
        let in_pod = |arguments: &[String]| {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            pod.command(world, &arguments)
        };
        let outside = |arguments: &[String]| {
            let mut command = world.command(&arguments[0]);
            command.args(&arguments[1..]);
            command
        };
        let commands: Vec<(&'static str, Command)> = vec![
            ("host: h1, kept", in_host(&routed("keep"))),
            ("host: h1, new", in_host(&routed("new"))),
            ("host: h2", in_host(&h2)),
            ("host: tunnel", in_host(&tunnel)),
            ("pod: h1, kept", in_pod(&routed("keep"))),
            ("pod: h1, new", in_pod(&routed("new"))),
            ("pod: h2", in_pod(&h2)),
            ("pod: tunnel", in_pod(&tunnel)),
            (
                "unrelated: new",
                outside(&python("new", GOOGLE, GOOGLE_AT, "/", &real, "")),
            ),
            (
                "unrelated: kept",
                outside(&python("keep", UNROUTED, UNROUTED_AT, "/", &real, "")),
            ),
        ];
        let start =
            |(name, mut command): (&'static str, Command)| (name, process::start(&mut command).unwrap());
        Self {
            clients: commands.into_iter().map(start).collect(),
            stop: file("stop"),
        }
    }

    /// Ends all clients, and prints what they saw.
    fn end(self) -> BTreeMap<&'static str, Tally> {
        std::fs::write(&self.stop, "").unwrap();
        let tallies = self.clients.into_iter().map(|(name, client)| {
            let said = client.finish(LIMIT).unwrap();
            (name, Tally::read(name, said.expect_success()))
        });
        let tallies: BTreeMap<_, _> = tallies.collect();
        for (name, tally) in &tallies {
            eprintln!("{name:16} {:7} good, bad: {:?}", tally.good, tally.bad);
        }
        tallies
    }
}

impl Tally {
    fn read(name: &str, text: &str) -> Self {
        if !name.ends_with("h2") {
            let told: Value = serde_json::from_str(text).unwrap();
            return Self {
                good: told["good"].as_u64().unwrap(),
                bad: serde_json::from_value(told["bad"].clone()).unwrap(),
            };
        }
        let mut tally = Self::default();
        for line in text.lines() {
            if line == "2 200" {
                tally.good += 1;
            } else {
                *tally.bad.entry(line.to_owned()).or_default() += 1;
            }
        }
        tally
    }
}

/// What an agent holds or leaves: all that could grow.
#[derive(Debug, PartialEq)]
struct Holdings {
    /// Links of the kernel that are attached to the enrolled cgroup.
    links: usize,
    /// Pins, maps and programs each with the id of the map.
    pins: Vec<(String, Option<u64>)>,
    /// Entries of the tables of connections and namespaces.
    entries: [usize; 2],
    /// The daemon's descriptors.
    descriptors: usize,
}

impl Holdings {
    fn now(daemon: &Daemon<'_>) -> Self {
        let directory = Path::new(DEFAULT_PIN_ROOT).join(format!("v{}/daemon", abi::ABI_VERSION));
        let id = daemon.cgroup().id();
        let links = bpf_links();
        let ours = |link: &&std::os::fd::OwnedFd| fd_fact(link.as_fd(), "cgroup_id") == Some(id);
        let mut pins: Vec<_> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let map = fd_fact(pinned(&path).unwrap().as_fd(), "map_id");
                (path.file_name().unwrap().to_string_lossy().into_owned(), map)
            })
            .collect();
        pins.sort();
        let entries = [(abi::TUPLES, size_of::<tv_ebpf::TupleKey>()), (abi::NETNS, 8)];
        let entries =
            entries.map(|(name, key)| map_entries(pinned(&directory.join(name)).unwrap().as_fd(), key));
        Self {
            links: links.iter().filter(ours).count(),
            pins,
            entries,
            descriptors: descriptors(daemon),
        }
    }
}

/// The fewest of some looks: one that we asked for metrics may be open for a moment.
fn descriptors(daemon: &Daemon<'_>) -> usize {
    let directory = format!("/proc/{}/fd", daemon.pid());
    let look = |_| {
        sleep(Duration::from_millis(50));
        std::fs::read_dir(&directory).unwrap().count()
    };
    (0..20).map(look).min().unwrap()
}

fn wait_until_pod_served(world: &World, pod: &Pod, user: &str) {
    wait_for("the pod is served", LIMIT, || {
        pod.ask(world, user, &["--ipv4"]).success()
    });
}

/// `rounds` successions under load: nobody's request fails.
fn upgrade(world: &World, rounds: usize) {
    let user = alice(world);
    let mut config = world.config();
    config["listen"] = json!({ "drain_seconds": 10 });
    let mut daemon = world.daemon("upgrade", config).unwrap();
    let pod = Pod::running(&daemon, 1);
    wait_until_pod_served(world, &pod, &user);
    let load = Load::start(world, &daemon, &pod, &user);
    sleep(Duration::from_secs(1));
    let (began, mut old) = (Instant::now(), Vec::new());
    let mut times = Vec::new();
    for _ in 0..rounds {
        let started = Instant::now();
        old.push(daemon.succeed().unwrap());
        times.push(started.elapsed());
        sleep(Duration::from_millis(700));
    }
    times.sort();
    eprintln!(
        "{rounds} upgrades in {:.0} s, each {:?} (median) from start to serving",
        began.elapsed().as_secs_f64(),
        times[times.len() / 2]
    );
    let tallies = load.end();
    for mut one in old {
        let ended = one.wait(LIMIT).unwrap();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
    }
    for (name, tally) in &tallies {
        assert!(tally.good > 0 && tally.bad.is_empty(), "{name}: {tally:?}");
    }
    assert_swapped(&world.github, GITHUB_TOKEN, &user);
    assert_unseen(world, &user);
}

/// `rounds` times kill -9 and a new start under load.
fn kill(world: &World, rounds: usize) {
    let user = alice(world);
    let mut daemon = world.daemon("kills", world.config()).unwrap();
    let pod = Pod::running(&daemon, 1);
    wait_until_pod_served(world, &pod, &user);
    // Fresh on both ends of the comparison.
    daemon.kill();
    daemon.restart().unwrap();
    let served = |daemon: &Daemon<'_>| daemon.metric("tv_agent_network_namespaces").unwrap() == 1;
    wait_for("the pod has a listener", LIMIT, || served(&daemon));
    let before = Holdings::now(&daemon);
    let load = Load::start(world, &daemon, &pod, &user);
    let began = Instant::now();
    for round in 0..rounds {
        // Now soon after the start, now in the middle of everything.
        sleep(Duration::from_millis([20, 150, 400, 60, 250][round % 5]));
        daemon.kill();
        daemon.restart().unwrap();
    }
    sleep(Duration::from_millis(500));
    eprintln!("{rounds} kills in {:.0} s", began.elapsed().as_secs_f64());
    let tallies = load.end();
    daemon.kill();
    daemon.restart().unwrap();
    wait_for("the pod has a listener", LIMIT, || served(&daemon));
    assert_eq!(Holdings::now(&daemon), before);
    for (name, tally) in &tallies {
        assert!(tally.good > 0, "{name}: {tally:?}");
        // A connection that died with its agent, and connect() that is refused, are what the others may see.
        assert!(
            !name.starts_with("unrelated") || tally.bad.is_empty(),
            "{name}: {tally:?}"
        );
    }
    wait_until_pod_served(world, &pod, &user);
    assert_swapped(&world.github, GITHUB_TOKEN, &user);
    assert_unseen(world, &user);
}

#[test]
fn three_upgrades_under_load_fail_no_request() {
    World::run(|world| upgrade(world, 3));
}

#[test]
fn five_kills_under_load_leak_nothing() {
    World::run(|world| kill(world, 5));
}

#[test]
#[ignore = "long; cargo xtask soak upgrade"]
fn soak_upgrade() {
    World::run(|world| upgrade(world, 50));
}

#[test]
#[ignore = "long; cargo xtask soak kill"]
fn soak_kill() {
    World::run(|world| kill(world, 100));
}

//! Workloads in network namespaces of their own, as pods have them, under one daemon.

use std::io::Read as _;
use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tv_tests::process::{self, Finished, Running};
use tv_tests::world::{Daemon, GITHUB_API, GOOGLE, World};

use crate::absence::{ask, assert_served};
use crate::support::{
    GITHUB_TOKEN, GOOGLE_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, lines, user_url, wait_for,
};

const LIMIT: Duration = Duration::from_secs(20);
const SERVED: &str = "tv_agent_network_namespaces";

/// A cgroup below the daemon's, and a process in it that holds a namespace with one end of a veth pair.
pub struct Pod {
    number: u8,
    holder: Option<Running>,
    cgroup: PathBuf,
}

impl Pod {
    /// With addresses and a default route, loopback still down.
    fn make(daemon: &Daemon<'_>, number: u8) -> Self {
        let cgroup = daemon.cgroup().path().join(format!("pod{number}"));
        std::fs::create_dir(&cgroup).unwrap();
        let mut holder = Command::new("sh");
        let inside = r#"echo $$ >"$0/cgroup.procs" && exec unshare --net sleep 600"#;
        holder.args(["-c", inside]).arg(&cgroup).stdin(Stdio::null());
        let pod = Self {
            number,
            holder: Some(process::start(&mut holder).unwrap()),
            cgroup,
        };
        let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("a namespace of its own", LIMIT, || {
            std::fs::read_link(pod.netns()).is_ok_and(|other| other != own)
        });
        let (veth, pid) = (pod.veth(), pod.pid().to_string());
        ip(&[
            "link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ]);
        ip(&["link", "set", &veth, "up"]);
        ip(&["addr", "add", &format!("10.96.{number}.1/24"), "dev", &veth]);
        ip(&[
            "-6",
            "addr",
            "add",
            &format!("fd96:{number}::1/64"),
            "dev",
            &veth,
            "nodad",
        ]);
        pod.ip(&["link", "set", "eth0", "up"]);
        pod.ip(&["addr", "add", &format!("10.96.{number}.2/24"), "dev", "eth0"]);
        pod.ip(&[
            "-6",
            "addr",
            "add",
            &format!("fd96:{number}::2/64"),
            "dev",
            "eth0",
            "nodad",
        ]);
        pod.ip(&["route", "add", "default", "via", &format!("10.96.{number}.1")]);
        pod.ip(&[
            "-6",
            "route",
            "add",
            "default",
            "via",
            &format!("fd96:{number}::1"),
        ]);
        pod
    }

    pub fn running(daemon: &Daemon<'_>, number: u8) -> Self {
        let pod = Self::make(daemon, number);
        pod.ip(&["link", "set", "lo", "up"]);
        pod
    }

    fn veth(&self) -> String {
        format!("tvpod{}", self.number)
    }

    fn addresses(&self) -> [IpAddr; 2] {
        let number = self.number;
        [format!("10.96.{number}.2"), format!("fd96:{number}::2")].map(|address| address.parse().unwrap())
    }

    fn pid(&self) -> i32 {
        self.holder.as_ref().expect("not deleted").pid().as_raw()
    }

    fn netns(&self) -> String {
        format!("/proc/{}/ns/net", self.pid())
    }

    /// `ip` in the pod's namespace, by a process that is not enrolled.
    fn ip(&self, arguments: &[&str]) {
        let netns = format!("--net={}", self.netns());
        checked(Command::new("nsenter").arg(netns).arg("ip").args(arguments));
    }

    /// A command in the pod, its environment cleared.
    pub fn command(&self, world: &World, client: &[&str]) -> Command {
        let inside = r#"echo $$ >"$0/cgroup.procs" && exec nsenter "$@""#;
        let mut command = world.command("sh");
        command.args(["-c", inside]).arg(&self.cgroup);
        command.arg(format!("--net={}", self.netns())).args(client);
        command
    }

    pub fn run(&self, world: &World, client: &[&str]) -> Finished {
        process::run(&mut self.command(world, client), LIMIT).unwrap()
    }

    /// The user's request to GitHub, over IPv4 unless `more` says otherwise.
    pub fn ask(&self, world: &World, user: &str, more: &[&str]) -> Finished {
        let (root, header, url) = (world.agent_root().display().to_string(), bearer(user), user_url());
        let resolve = format!("{GITHUB_API}:443:192.0.2.20,[2001:db8::14]");
        let known = [
            "--cacert",
            &root,
            "--header",
            &header,
            "--resolve",
            &resolve,
            &url,
        ];
        self.run(world, &curl(&[&known[..], more].concat()))
    }

    /// As a runtime does it: the last process, then the cgroup.
    fn delete(&mut self) {
        self.holder = None;
        let until = Instant::now() + LIMIT;
        while std::fs::remove_dir(&self.cgroup).is_err() && self.cgroup.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.delete();
    }
}

fn ip(arguments: &[&str]) {
    checked(Command::new("ip").args(arguments));
}

#[track_caller]
fn checked(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// Waits until the pod's requests are answered.
#[track_caller]
fn wait_until_served(world: &World, pod: &Pod, user: &str) {
    wait_for("the pod is served", LIMIT, || {
        pod.ask(world, user, &["--ipv4"]).success()
    });
}

#[test]
fn a_pod_is_served_with_its_own_address_beside_the_host() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("pods", world.config()).unwrap();
        let pod = Pod::running(&daemon, 1);
        wait_until_served(world, &pod, &user);
        for (family, address) in ["--ipv4", "--ipv6"].into_iter().zip(pod.addresses()) {
            let before = world.github.requests().len();
            pod.ask(world, &user, &[family]).expect_success();
            let requests = world.github.requests();
            assert_eq!(requests[before..].len(), 1);
            assert_eq!(requests[before].peer.ip(), address, "{family}");
        }
        // The host's own workloads go on from the host's address, on connections of their own.
        let before = world.github.requests().len();
        assert_served(world, &daemon, &user);
        let peer = world.github.requests()[before].peer.ip();
        assert!(!pod.addresses().contains(&peer), "{peer}");
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
        assert_eq!(daemon.metric(SERVED).unwrap(), 1);
        // The agent's death is seen in the pod as it is on the host.
        daemon.kill();
        assert_eq!(pod.ask(world, &user, &["--ipv4"]).code(), 7);
        daemon.restart().unwrap();
        wait_until_served(world, &pod, &user);
        let log = daemon.stop().stderr;
        let line = log
            .lines()
            .find(|line| line.contains("network namespace: intercepting"));
        assert!(line.is_some_and(|line| line.contains("/pod1")), "{log}");
    });
}

/// The same 4-tuple in two namespaces, at the same time.
#[test]
fn two_pods_may_use_one_port() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("twins", world.config()).unwrap();
        let pods = [1, 2].map(|number| Pod::running(&daemon, number));
        pods.iter().for_each(|pod| wait_until_served(world, pod, &user));
        let root = world.agent_root().display().to_string();
        let (header, resolve) = (bearer(&user), format!("{GOOGLE}:443:192.0.2.30"));
        let url = format!("https://{GOOGLE}/drip/10/100");
        let client = curl(&[
            "--cacert",
            &root,
            "--header",
            &header,
            "--resolve",
            &resolve,
            "--local-port",
            "40000",
            &url,
        ]);
        let both = pods
            .each_ref()
            .map(|pod| process::start(&mut pod.command(world, &client)).unwrap());
        for running in both {
            let finished = running.finish(LIMIT).unwrap();
            assert_eq!(finished.expect_success().matches("data: ").count(), 10);
        }
        let peers = world.google.requests();
        let peers: Vec<IpAddr> = peers.iter().map(|request| request.peer.ip()).collect();
        for pod in &pods {
            assert!(peers.contains(&pod.addresses()[0]), "{peers:?}");
        }
        assert_swapped(&world.google, GOOGLE_TOKEN, &user);
    });
}

/// Until there is a listener, a new namespace is refused; the time that takes is printed.
#[test]
fn a_new_pod_is_refused_then_intercepted() {
    World::run(|world| {
        let daemon = world.daemon("appear", world.config()).unwrap();
        let script = world.dir().join("appear.py");
        std::fs::write(&script, APPEAR).unwrap();
        let script = script.display().to_string();
        // In step with an event, and without one: the process is in its cgroup for long.
        for (what, wait) in [("cgroup made", 0), ("namespace made in an old cgroup", 700)] {
            // A busy machine may let the agent listen before the workload's first connect; not twelve times.
            let mut refusals = 0;
            let mut took: Vec<f64> = (0..12)
                .map(|number| {
                    // Out of step with the agent's own looks.
                    std::thread::sleep(Duration::from_millis(300 + 13 * number));
                    let cgroup = daemon.cgroup().path().join(format!("new{number}"));
                    let mut client = world.command("python3");
                    client.arg(&script).arg(&cgroup);
                    // So does this, over one period of the clock.
                    client.arg(if wait == 0 { 0 } else { wait + 21 * number }.to_string());
                    let finished = process::run(&mut client, LIMIT).unwrap();
                    std::fs::remove_dir(&cgroup).unwrap();
                    let said = lines(finished.expect_success()).join(" ");
                    let [refused, milliseconds] = said.split(' ').collect::<Vec<_>>()[..] else {
                        panic!("{said}")
                    };
                    refusals += refused.parse::<u32>().unwrap();
                    milliseconds.parse().unwrap()
                })
                .collect();
            assert!(refusals > 0, "never refused");
            took.sort_by(f64::total_cmp);
            eprintln!(
                "{what} to intercepted: median {} ms, most {} ms",
                took[6], took[11]
            );
            assert!(took[11] < 1000.0, "{took:?}");
        }
    });
}

/// Makes its cgroup, enters it, takes a namespace without any route out, and connects until it is let in. There, only
/// the agent's listener can be reached.
const APPEAR: &str = r#"
import ctypes, errno, fcntl, os, socket, struct, sys, time
CLONE_NEWNET, SIOCSIFFLAGS, IFF_UP = 0x40000000, 0x8914, 1
began = time.monotonic()
os.mkdir(sys.argv[1])
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
if sys.argv[2] != "0":
    time.sleep(int(sys.argv[2]) / 1000)
    began = time.monotonic()
assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET) == 0, ctypes.get_errno()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
refused = 0
while True:
    with socket.socket() as stream:
        code = stream.connect_ex(("192.0.2.20", 443))
        if code == 0:
            assert stream.getpeername() == ("192.0.2.20", 443), stream.getpeername()
            break
    assert code == errno.ECONNREFUSED, errno.errorcode[code]
    refused += 1
print(refused, round((time.monotonic() - began) * 1000, 1))
# Out of the cgroup, so that it can be removed.
with open(os.path.dirname(os.path.dirname(sys.argv[1])) + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
"#;

#[test]
fn a_deleted_pod_is_let_go() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("deleted", world.config()).unwrap();
        let (mut pod, stays) = (Pod::running(&daemon, 1), Pod::running(&daemon, 2));
        for pod in [&pod, &stays] {
            wait_until_served(world, pod, &user);
        }
        assert_eq!(daemon.metric(SERVED).unwrap(), 2);
        let veth = Path::new("/sys/class/net").join(pod.veth());
        let there = |pod: &Pod| {
            let shown = Command::new("ip").args(["link", "show", &pod.veth()]).output();
            shown.is_ok_and(|output| output.status.success())
        };
        assert!(there(&pod), "{}", veth.display());
        let began = Instant::now();
        pod.delete();
        // The kernel removes the pair when the namespace of one end dies, and not before.
        wait_for("the namespace dies", Duration::from_secs(8), || !there(&pod));
        eprintln!("deleted to gone: {} ms", began.elapsed().as_millis());
        assert!(there(&stays));
        assert_eq!(daemon.metric(SERVED).unwrap(), 1);
        stays.ask(world, &user, &["--ipv4"]).expect_success();
        let log = daemon.stop().stderr;
        let left: Vec<&str> = log
            .lines()
            .filter(|line| line.contains("namespace: left"))
            .collect();
        assert!(left.len() == 1 && left[0].contains("/pod1"), "{log}");
    });
}

/// An origin that neither answers nor closes would hold a tunnel, and with it the namespace, for an hour.
#[test]
fn a_deleted_pod_is_let_go_whatever_its_origins_do() {
    World::run(|world| {
        let daemon = world.daemon("silent", world.config()).unwrap();
        world.deserted("silent.example");
        let silent = TcpListener::bind("192.0.2.50:443").unwrap();
        let mut pod = Pod::running(&daemon, 1);
        wait_for("served", LIMIT, || daemon.metric(SERVED).unwrap() == 1);
        let mut client =
            process::start(pod.command(world, &["python3", "-c", TALK]).stdin(Stdio::null())).unwrap();
        let (mut held, peer) = silent.accept().unwrap();
        assert_eq!(peer.ip(), pod.addresses()[0]);
        let mut said = [0; 5];
        held.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"hello");
        client.kill();
        pod.delete();
        let there = || {
            let shown = Command::new("ip").args(["link", "show", &pod.veth()]).output();
            shown.unwrap().status.success()
        };
        assert!(there(), "the tunnel is open");
        wait_for("the namespace dies", Duration::from_secs(15), || !there());
        assert_eq!(daemon.metric("tv_agent_open_connections").unwrap(), 0);
    });
}

const TALK: &str = r#"
import socket, time
stream = socket.create_connection(("192.0.2.50", 443))
stream.sendall(b"hello")
time.sleep(600)
"#;

/// Its socket was made in the pod's namespace, but outside of its cgroup.
#[test]
fn a_connection_past_the_agent_is_found_in_a_pod() {
    World::run(|world| {
        world.deserted("silent.example");
        let host = TcpListener::bind("192.0.2.50:443").unwrap();
        let mut daemon = world.daemon("past", world.config()).unwrap();
        let pod = Pod::running(&daemon, 1);
        wait_for("served", LIMIT, || daemon.metric(SERVED).unwrap() == 1);
        let mut client = world.command("nsenter");
        client
            .arg(format!("--net={}", pod.netns()))
            .args(["python3", "-c", PAST])
            .arg(&pod.cgroup);
        let _client = process::start(client.stdin(Stdio::null())).unwrap();
        let (_held, peer) = host.accept().unwrap();
        assert_eq!(peer.ip(), pod.addresses()[0]);
        let metric = r#"tv_agent_uncaptured_connections_total{reason="foreign_socket"}"#;
        wait_for("it is told of", LIMIT, || daemon.metric(metric).unwrap() == 1);
        let log = daemon.stop().stderr;
        let line = log.lines().find(|line| line.contains("goes past the agent"));
        assert!(
            line.is_some_and(|line| line.contains("/pod1") && line.contains("192.0.2.50:443")),
            "{log}"
        );
    });
}

const PAST: &str = r#"
import os, socket, sys, time
stream = socket.create_connection(("192.0.2.50", 443))
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
time.sleep(600)
"#;

#[test]
fn a_pod_that_cannot_be_served_stays_refused_and_disturbs_nobody() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("broken", world.config()).unwrap();
        let good = Pod::running(&daemon, 1);
        wait_until_served(world, &good, &user);
        let failures = |reason: &str| {
            let name = format!("tv_agent_network_namespace_failures_total{{reason=\"{reason}\"}}");
            daemon.metric(&name).unwrap()
        };

        let down = Pod::make(&daemon, 2);
        wait_for("loopback is noticed", LIMIT, || failures("loopback_down") == 1);
        assert_eq!(down.ask(world, &user, &["--ipv4"]).code(), 7);

        // Somebody listens at the agent's address before the agent can.
        let netns = format!("--net={}", down.netns());
        let mut squatter = Command::new("nsenter");
        squatter
            .args([&netns, "python3", "-c", SQUAT])
            .stdin(Stdio::null());
        let squatter = process::start(&mut squatter).unwrap();
        wait_for("the port is noticed", LIMIT, || failures("port_taken") == 1);
        assert_eq!(down.ask(world, &user, &["--ipv4"]).code(), 7);
        good.ask(world, &user, &["--ipv4"]).expect_success();
        assert_eq!(daemon.metric(SERVED).unwrap(), 1);
        drop(squatter);
        wait_until_served(world, &down, &user);
        good.ask(world, &user, &["--ipv4"]).expect_success();

        // Served, but without a way to the origin: told as by a router, and nobody else is.
        let lonely = Pod::running(&daemon, 3);
        wait_until_served(world, &lonely, &user);
        lonely.ip(&["route", "del", "default"]);
        lonely.ip(&["-6", "route", "del", "default"]);
        let before = world.github.connections().accepted();
        // curl: 35 for a reset during the handshake, 7 for one before it, when the origin was dialled while curl was
        // busy. Kept connections to the origin go on without a route.
        let other = format!("https://{GOOGLE}/");
        let resolve = format!("{GOOGLE}:443:192.0.2.30");
        let finished = lonely.run(world, &curl(&["--resolve", &resolve, &other]));
        assert!([7, 35].contains(&finished.code()), "{}", finished.stderr);
        assert_eq!(world.github.connections().accepted(), before);
        let unreachable = r#"tv_agent_connections_total{decision="refuse",reason="upstream_unreachable"}"#;
        assert_eq!(
            daemon.metric(unreachable).unwrap(),
            1,
            "{}",
            daemon.metrics().unwrap()
        );
        good.ask(world, &user, &["--ipv4"]).expect_success();
        assert_served(world, &daemon, &user);
        let log = daemon.stop().stderr;
        for reason in ["loopback_down", "port_taken"] {
            assert_eq!(log.matches(reason).count(), 1, "told once: {log}");
        }
    });
}

/// Brings loopback up and listens in the same breath.
const SQUAT: &str = r#"
import fcntl, socket, struct, time
listener = socket.socket()
listener.setsockopt(socket.SOL_IP, 15, 1)  # IP_FREEBIND: before loopback is up
listener.bind(("127.34.67.1", 15443))
listener.listen()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))
time.sleep(600)
"#;

/// IPv6 is offered where the pod can route it, whatever the host can.
#[test]
fn ipv6_is_a_matter_of_each_pod() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("families", world.config()).unwrap();
        let pods = [1, 2].map(|number| Pod::running(&daemon, number));
        pods.iter().for_each(|pod| wait_until_served(world, pod, &user));
        pods[1].ip(&["-6", "addr", "flush", "dev", "eth0"]);
        pods[1].ip(&["-6", "route", "flush", "table", "main"]);
        let unroutable = || {
            daemon
                .metric(r#"tv_agent_bpf_events_total{reason="v6_unroutable"}"#)
                .unwrap()
        };
        wait_for("the lost route is noticed", LIMIT, || {
            pods[1].ask(world, &user, &["--ipv6"]);
            unroutable() > 0
        });
        let before = unroutable();
        pods[0].ask(world, &user, &["--ipv6"]).expect_success();
        ask(world, &daemon, &user, &["--ipv6"]).expect_success();
        assert_eq!(unroutable(), before);
        // Without a family named, curl falls back.
        pods[1].ask(world, &user, &[]).expect_success();
    });
}

/// `exec` follows its command into namespaces that it makes.
#[test]
fn exec_intercepts_a_namespace_that_its_command_makes() {
    World::run(|world| {
        let script = world.dir().join("own.py");
        std::fs::write(&script, OWN).unwrap();
        let finished = world.exec(&["python3", &script.display().to_string()]).unwrap();
        assert_eq!(lines(finished.expect_success()), ["intercepted"]);
    });
}

const OWN: &str = r#"
import ctypes, fcntl, socket, struct, time
assert ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0, ctypes.get_errno()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))
until = time.monotonic() + 10
while time.monotonic() < until:
    with socket.socket() as stream:
        if stream.connect_ex(("192.0.2.20", 443)) == 0:
            print("intercepted")
            break
"#;

//! Pods adopted through the API server's watch: cgroups as the kubelet makes them, namespaces of their own, a root that
//! cannot be written.

use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tv_tests::api_server::{ApiServer, Fault, namespace, pod};
use tv_tests::fakes::pki::Pki;
use tv_tests::process::{self, Finished, Running};
use tv_tests::world::{Daemon, GITHUB_API, UNROUTED, World};

use crate::support::{
    GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, curl_include, user_url, wait_for,
};

const LIMIT: Duration = Duration::from_secs(20);
const NODE: &str = "n1";
const COVERED: &str = "tv_agent_kubernetes_covered_cgroups";

fn uid(number: usize) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

pub fn container_id(number: usize) -> String {
    format!("{number:064x}")
}

fn asks() -> Value {
    json!({ "tv-agent.io/enrol": "true" })
}

/// An API server over TLS that wants a token, and a configuration that names it.
fn cluster(world: &World) -> (ApiServer, Value) {
    let pki = Pki::new("Cluster");
    let identity = pki.leaf(&["127.0.0.1"]);
    let api = ApiServer::start("127.0.0.1:0".parse().unwrap(), Some(&identity)).unwrap();
    api.demand("sesame");
    api.put("namespaces", namespace("shop", &json!({})));
    let file = |name: &str, text: &str| {
        let path = world.dir().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let mut config = world.config();
    config["kubernetes"] = json!({
        "node": NODE, "api_server": api.url(),
        "token_file": file("token", "sesame"), "ca_file": file("cluster.pem", pki.root_pem()),
    });
    (api, config)
}

/// The cgroup of a pod with that of its first container, and a process in it that holds the pod's namespaces.
pub struct Lodging {
    number: usize,
    pub directory: PathBuf,
    holder: Option<Running>,
}

impl Lodging {
    /// As the kubelet and its runtime do it: the pod's cgroup, the sandbox, its network.
    fn make(daemon: &Daemon<'_>, number: usize) -> Self {
        Self::of(daemon, number, &uid(number))
    }

    /// The same for a pod whose UID somebody else chose.
    pub fn of(daemon: &Daemon<'_>, number: usize, uid: &str) -> Self {
        let class = daemon.cgroup().path().join("burstable");
        let directory = class.join(format!("pod{uid}"));
        let sandbox = directory.join(container_id(number * 100));
        std::fs::create_dir_all(&sandbox).unwrap();
        let mut holder = Command::new("sh");
        let inside = r#"echo $$ >"$0/cgroup.procs" && exec unshare --net --mount sh -ec '
            mount -o remount,bind,ro /
            ip link set lo up
            exec sleep 600'"#;
        holder.args(["-c", inside]).arg(&sandbox).stdin(Stdio::null());
        let lodging = Self {
            number,
            directory,
            holder: Some(process::start(&mut holder).unwrap()),
        };
        let pid = lodging.pid().to_string();
        wait_for("the sandbox", LIMIT, || {
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            command.is_ok_and(|command| command == "sleep\n")
        });
        let veth = format!("tvk{number}");
        ip(&[
            "link", "add", &veth, "type", "veth", "peer", "name", "eth0", "netns", &pid,
        ]);
        ip(&["link", "set", &veth, "up"]);
        ip(&["addr", "add", &format!("10.97.{number}.1/24"), "dev", &veth]);
        lodging.ip(&["link", "set", "eth0", "up"]);
        lodging.ip(&["addr", "add", &format!("10.97.{number}.2/24"), "dev", "eth0"]);
        lodging.ip(&["route", "add", "default", "via", &format!("10.97.{number}.1")]);
        lodging
    }

    fn pid(&self) -> i32 {
        self.holder.as_ref().expect("not deleted").pid().as_raw()
    }

    pub fn address(&self) -> IpAddr {
        format!("10.97.{}.2", self.number).parse().unwrap()
    }

    fn ip(&self, arguments: &[&str]) {
        let netns = format!("--net=/proc/{}/ns/net", self.pid());
        checked(Command::new("nsenter").arg(netns).arg("ip").args(arguments));
    }

    /// A process of container `id`, whose cgroup is made if it is not there.
    fn run(&self, world: &World, id: &str, client: &[&str]) -> Finished {
        let cgroup = self.directory.join(id);
        std::fs::create_dir_all(&cgroup).unwrap();
        let mut command = world.command("sh");
        let inside = r#"echo $$ >"$0/cgroup.procs" && exec nsenter "$@""#;
        let pid = self.pid();
        command.args(["-c", inside]).arg(&cgroup);
        command
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg(format!("--mount=/proc/{pid}/ns/mnt"))
            .args(client);
        process::run(&mut command, LIMIT).unwrap()
    }

    /// The user's request to GitHub.
    pub fn ask(&self, world: &World, id: &str, header: &str, include: bool) -> Finished {
        let (root, url) = (world.agent_root().display().to_string(), user_url());
        let resolve = format!("{GITHUB_API}:443:192.0.2.20");
        let known = ["--cacert", &root, "--header", header, "--resolve", &resolve, &url];
        let client = if include {
            curl_include(&known)
        } else {
            curl(&known)
        };
        self.run(world, id, &client)
    }

    /// The first request of a new container to a host that no route names.
    fn ask_unrouted(&self, world: &World, id: &str) -> Finished {
        let (root, url) = (
            world.root_file().display().to_string(),
            format!("https://{UNROUTED}/"),
        );
        let resolve = format!("{UNROUTED}:443:192.0.2.40");
        self.run(
            world,
            id,
            &curl(&["--cacert", &root, "--resolve", &resolve, &url]),
        )
    }
}

impl Drop for Lodging {
    fn drop(&mut self) {
        self.holder = None;
        remove(&self.directory);
    }
}

/// As a runtime does it, the innermost first.
fn remove(directory: &Path) {
    let until = Instant::now() + LIMIT;
    for child in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&child.path());
        }
    }
    while std::fs::remove_dir(directory).is_err() && directory.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
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

/// The programs that are pinned for a cgroup.
pub fn programs(cgroup: &Path) -> usize {
    let id = format!(
        "{}-",
        std::fs::metadata(cgroup).map_or(0, |metadata| metadata.ino())
    );
    let of = |name: &str| name.starts_with(&id);
    pins().iter().filter(|name| of(name)).count()
}

/// Names of all links of the daemon that are pinned.
fn pins() -> Vec<String> {
    let root = Path::new(tv_agent::redirect::DEFAULT_PIN_ROOT);
    let mut all = Vec::new();
    for version in std::fs::read_dir(root).into_iter().flatten().flatten() {
        let instance = version.path().join("daemon");
        for pin in std::fs::read_dir(instance).into_iter().flatten().flatten() {
            all.push(pin.file_name().to_string_lossy().into_owned());
        }
    }
    all.retain(|name| name.starts_with(|first: char| first.is_ascii_digit()) && name.contains('-'));
    all
}

fn event(api: &ApiServer, reason: &str) -> Option<Value> {
    api.events().into_iter().find(|event| event["reason"] == reason)
}

#[test]
fn a_pod_that_asks_is_adopted_before_its_first_request() {
    World::run(|world| {
        let user = alice(world);
        let (api, config) = cluster(world);
        let mut daemon = world.daemon("kubepods", config).unwrap();
        // Nobody asked yet: a pod of this node that does not is not looked at.
        api.put("pods", pod(NODE, "shop", "plain", &uid(2), &json!({})));
        let plain = Lodging::make(&daemon, 2);
        api.put("pods", pod(NODE, "shop", "cart", &uid(1), &asks()));
        let cart = Lodging::make(&daemon, 1);
        let (app, root) = (container_id(1), world.agent_root().display().to_string());
        cart.ask(world, &app, &bearer(&user), false).expect_success();
        let requests = world.github.requests();
        assert_eq!((requests.len(), requests[0].peer.ip()), (1, cart.address()));
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert!(programs(&cart.directory) > 4, "{:?}", pins());
        assert_eq!(daemon.metric(COVERED).unwrap(), 1);
        // No program, so the native path: its TLS ends at the real host, which the agent's root did not sign.
        assert_eq!(programs(&plain.directory), 0);
        let served = daemon.metrics().unwrap();
        let connections = |text: &str| {
            let lines = text
                .lines()
                .filter(|line| line.starts_with("tv_agent_connections_total"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(
            plain.ask(world, &container_id(2), &bearer(&user), false).code(),
            60,
            "{root}"
        );
        plain.ask_unrouted(world, &container_id(2)).expect_success();
        assert_eq!(connections(&daemon.metrics().unwrap()), connections(&served));
        // What is refused is told to the pod.
        let refused = cart.ask(world, &app, "x-nothing: here", true);
        assert!(refused.stdout.contains(" 401 "), "{}", refused.stdout);
        wait_for("an Event", LIMIT, || event(&api, "TvAgentRefused").is_some());
        let told = event(&api, "TvAgentRefused").unwrap();
        assert_eq!(told["involvedObject"]["name"], "cart");
        assert!(!told.to_string().contains(&user) && !told.to_string().contains(GITHUB_TOKEN));
        // The API server goes away: all stays as it was.
        api.fail(Fault::Away);
        wait_for("it is noticed", LIMIT, || {
            daemon
                .metric("tv_agent_kubernetes_followed{resource=\"pods\"}")
                .unwrap()
                == 0
        });
        cart.ask(world, &app, &bearer(&user), false).expect_success();
        api.put("pods", pod(NODE, "shop", "cart", &uid(1), &json!({})));
        api.put("pods", pod(NODE, "shop", "plain", &uid(2), &asks()));
        std::thread::sleep(Duration::from_millis(300));
        assert!(programs(&cart.directory) > 4);
        api.fail(Fault::None);
        // The label went to the other one.
        wait_for("the labels are followed", LIMIT, || {
            programs(&cart.directory) == 0 && programs(&plain.directory) > 4
        });
        assert_eq!(cart.ask(world, &app, &bearer(&user), false).code(), 60);
        wait_for("the other is served", LIMIT, || {
            plain
                .ask(world, &container_id(2), &bearer(&user), false)
                .success()
        });
        assert_unseen(world, &user);
        // A daemon that starts again while the API server is away keeps covering.
        api.fail(Fault::Away);
        daemon.kill();
        assert_eq!(
            plain.ask(world, &container_id(2), &bearer(&user), false).code(),
            7
        );
        daemon.restart().unwrap();
        assert!(programs(&plain.directory) > 4);
        daemon.stop();
    });
}

/// There is a listener in the pod's network namespace; before that, its connections are refused.
fn wait_until_served(daemon: &Daemon<'_>) {
    wait_for("a listener", LIMIT, || {
        daemon
            .metric("tv_agent_network_namespaces")
            .is_ok_and(|count| count > 0)
    });
}

#[test]
fn a_sidecar_is_left_alone_and_a_new_container_is_not() {
    World::run(|world| {
        let user = alice(world);
        let (api, config) = cluster(world);
        let daemon = world.daemon("kubepods-mesh", config).unwrap();
        let (app, proxy) = (container_id(11), container_id(12));
        let mut object = pod(NODE, "shop", "meshed", &uid(1), &asks());
        object["spec"]["containers"] = json!([{ "name": "app" }, { "name": "istio-proxy" }]);
        object["status"]["containerStatuses"] = json!([
            { "name": "istio-proxy", "containerID": format!("containerd://{proxy}") },
        ]);
        api.put("pods", object);
        let lodging = Lodging::make(&daemon, 1);
        for id in [&app, &proxy] {
            std::fs::create_dir(lodging.directory.join(id)).unwrap();
        }
        wait_for("the container is covered", LIMIT, || {
            programs(&lodging.directory.join(&app)) > 4
        });
        assert_eq!(programs(&lodging.directory.join(&proxy)), 0);
        assert_eq!(programs(&lodging.directory), 0);
        wait_until_served(&daemon);
        lodging.ask(world, &app, &bearer(&user), false).expect_success();
        assert_eq!(lodging.ask(world, &proxy, &bearer(&user), false).code(), 60);
        let late = lodging.directory.join(container_id(13));
        std::fs::create_dir(&late).unwrap();
        wait_for("a later container", LIMIT, || programs(&late) > 4);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
    });
}

#[test]
fn a_pod_chooses_its_connection_where_the_route_allows_it() {
    World::run(|world| {
        let user = alice(world);
        world
            .auth0
            .connect(&user, "github-work", "gho_workAccount123456", 3600);
        world.github.accept("gho_workAccount123456", "alice-at-work");
        let (api, mut config) = cluster(world);
        config["routes"][0]["connection_override"] = json!(["github-*"]);
        let daemon = world.daemon("kubepods-choice", config).unwrap();
        let put = |annotations: Value| {
            let mut object = pod(NODE, "shop", "cart", &uid(1), &asks());
            object["metadata"]["annotations"] = annotations;
            api.put("pods", object);
        };
        put(json!({ "tv-agent.io/connection": "github-work" }));
        let lodging = Lodging::make(&daemon, 1);
        let app = container_id(1);
        wait_until_served(&daemon);
        lodging.ask(world, &app, &bearer(&user), false).expect_success();
        let token = world.github.requests()[0].token();
        assert_eq!(token.as_deref(), Some("gho_workAccount123456"));
        for (value, why) in [
            ("google-oauth2", "does not allow"),
            ("not a name", "no name of a connection"),
        ] {
            put(json!({ "tv-agent.io/connection.github": value }));
            let mut said = String::new();
            wait_for("a refusal", LIMIT, || {
                said = lodging.ask(world, &app, &bearer(&user), true).stdout;
                said.contains(" 403 ") && said.contains(why)
            });
            assert!(said.contains("tv-agent.io/connection.github"), "{said}");
        }
        put(json!({}));
        wait_for("the route's own", LIMIT, || {
            lodging.ask(world, &app, &bearer(&user), false).success()
        });
        let token = world.github.requests().last().and_then(|request| request.token());
        assert_eq!(
            token.as_deref(),
            Some(GITHUB_TOKEN),
            "another connection is another entry of the cache"
        );
        wait_for("an Event", LIMIT, || {
            event(&api, "TvAgentRefused")
                .is_some_and(|event| event["message"].to_string().contains("annotation"))
        });
    });
}

#[test]
fn unknown_pods_are_covered_until_they_are_known() {
    World::run(|world| {
        let user = alice(world);
        let (api, mut config) = cluster(world);
        api.fail(Fault::Away);
        config["routes"][0]["workloads"] = json!([{ "namespace": "shop" }]);
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let daemon = world.daemon("kubepods-unknown", config).unwrap();
        let lodging = Lodging::make(&daemon, 1);
        let app = container_id(1);
        wait_for("it is covered", LIMIT, || programs(&lodging.directory) > 4);
        wait_for("its namespace is served", LIMIT, || {
            lodging.ask_unrouted(world, &app).success()
        });
        // Which account it is for cannot be told.
        assert!(!lodging.ask(world, &app, &bearer(&user), false).success());
        assert!(world.github.requests().is_empty());
        let status = world.tv_agent(&["status", "-o", "json", "--socket", &socket]);
        let status: Value = serde_json::from_str(status.unwrap().expect_success()).unwrap();
        assert_eq!(status["kubernetes"]["pods"]["listed"], false, "{status}");
        api.put("pods", pod(NODE, "shop", "cart", &uid(1), &asks()));
        api.fail(Fault::None);
        wait_for("it is known", Duration::from_secs(45), || {
            lodging.ask(world, &app, &bearer(&user), false).success()
        });
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
    });
}

/// 250 pods at once, then 50 a second that come and go; the times are printed.
#[test]
fn pods_that_churn_are_covered_and_leave_nothing() {
    World::run(|world| {
        let (api, config) = cluster(world);
        let daemon = world.daemon("kubepods-churn", config).unwrap();
        let class = daemon.cgroup().path().join("burstable");
        std::fs::create_dir(&class).unwrap();
        let descriptors = daemon.descriptors().unwrap();
        let place = |number: usize| class.join(format!("pod{}", uid(number)));
        let put = |number: usize| {
            api.put(
                "pods",
                pod(NODE, "shop", &format!("p{number}"), &uid(number), &asks()),
            );
        };
        let report = |what: &str, mut took: Vec<u128>| {
            took.sort_unstable();
            let (median, most) = (took[took.len() / 2], took[took.len() - 1]);
            eprintln!("{what}: {} pods, median {median} ms, most {most} ms", took.len());
            most
        };
        let mut waiting: Vec<(usize, Instant)> = Vec::new();
        for number in 0..250 {
            put(number);
            std::fs::create_dir(place(number)).unwrap();
            waiting.push((number, Instant::now()));
        }
        let collect = |waiting: &mut Vec<(usize, Instant)>, took: &mut Vec<u128>| {
            let pinned = pins();
            waiting.retain(|(number, made)| {
                let id = std::fs::metadata(place(*number)).map_or(0, |metadata| metadata.ino());
                let covered = pinned.contains(&format!("{id}-{}", tv_ebpf::abi::PROGRAMS[0]));
                if covered {
                    took.push(made.elapsed().as_millis());
                }
                !covered
            });
        };
        let mut took = Vec::new();
        wait_for("250 are covered", LIMIT, || {
            collect(&mut waiting, &mut took);
            waiting.is_empty()
        });
        report("at once, from cgroup to coverage", took);
        let (mut took, began, pace) = (Vec::new(), Instant::now(), Duration::from_millis(20));
        for step in 0..200 {
            let (old, new) = (step, 250 + step);
            put(new);
            std::fs::create_dir(place(new)).unwrap();
            waiting.push((new, Instant::now()));
            std::fs::remove_dir(place(old)).unwrap();
            api.remove("pods", &format!("shop/p{old}"));
            collect(&mut waiting, &mut took);
            std::thread::sleep((began + pace * (step as u32 + 1)).saturating_duration_since(Instant::now()));
        }
        eprintln!("200 came and went in {} ms", began.elapsed().as_millis());
        wait_for("the last are covered", LIMIT, || {
            collect(&mut waiting, &mut took);
            waiting.is_empty()
        });
        let most = report("50 a second, from cgroup to coverage", took);
        assert!(most < 2000, "{most} ms");
        assert_eq!(daemon.metric(COVERED).unwrap(), 250);
        for number in 200..450 {
            std::fs::remove_dir(place(number)).unwrap();
            api.remove("pods", &format!("shop/p{number}"));
        }
        wait_for("nothing is left", LIMIT, || {
            pins().is_empty() && daemon.metric(COVERED).unwrap() == 0
        });
        assert_eq!(daemon.metric("tv_agent_network_namespaces").unwrap(), 0);
        let left = daemon.descriptors().unwrap();
        assert!(left <= descriptors + 8, "{descriptors} descriptors became {left}");
    });
}

//! `tv-agent run`: reload, refusal to start, and what an enrolled workload sees while the agent is not there.

use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tv_tests::cgroup::TestCgroup;
use tv_tests::process::{self, Finished};
use tv_tests::world::{GITHUB_API, GOOGLE, World};

use crate::absence::{ask, assert_bystander, assert_refused, assert_served};
use crate::support::{
    GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, curl_include, lines, user_url, wait_for,
};

const LISTENER: &str = "127.34.67.1:15443";

#[test]
fn served_ready_and_counted() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("served", world.config()).unwrap();
        assert_eq!(daemon.get("/healthz/live").unwrap().0, 200);
        assert_eq!(daemon.get("/nothing").unwrap().0, 404);
        let events = |reason: &str| {
            let name = format!("tv_agent_bpf_events_total{{reason=\"{reason}\"}}");
            daemon.metric(&name).unwrap()
        };
        let before = events("redirected");
        for family in ["--ipv4", "--ipv6"] {
            ask(world, &daemon, &user, &[family]).expect_success();
        }
        assert_eq!(events("redirected") - before, 2, "{}", daemon.metrics().unwrap());
        let forwarded = r#"tv_agent_requests_total{route="github",result="forwarded",code="2xx"}"#;
        assert_eq!(
            daemon.metric(forwarded).unwrap(),
            2,
            "{}",
            daemon.metrics().unwrap()
        );

        // v4-mapped, and what getpeername says of each family; UDP; and the agent's own port.
        let script = world.dir().join("client.py");
        std::fs::write(&script, SOCKETS).unwrap();
        let root = world.agent_root().display().to_string();
        let client = ["python3", &script.display().to_string(), &root, &user];
        let finished = daemon.run(&client).unwrap();
        let expected = [
            "v4 peer 192.0.2.20 443 HTTP/1.1 200 OK",
            "v6 peer 2001:db8::14 443 HTTP/1.1 200 OK",
            "mapped peer ::ffff:192.0.2.20 443 HTTP/1.1 200 OK",
            "udp v4 connect ECONNREFUSED",
            "udp v4 sendto ECONNREFUSED",
            "udp v6 connect ECONNREFUSED",
            "udp v6 sendto ECONNREFUSED",
            "udp other port sent",
            "listener nothing",
        ];
        assert_eq!(lines(finished.expect_success()), expected, "{}", finished.stderr);
        assert!(events("quic_refused") >= 4, "{}", daemon.metrics().unwrap());
        assert!(events("peer_shown") >= 3, "{}", daemon.metrics().unwrap());
        assert_swapped(&world.github, GITHUB_TOKEN, &user);

        // Somebody outside the cgroup who finds the port gets not one byte either.
        let mut bytes = Vec::new();
        // The reset may overtake connect() itself.
        let read = TcpStream::connect(LISTENER).and_then(|mut direct| {
            direct.set_read_timeout(Some(Duration::from_secs(5)))?;
            direct.read_to_end(&mut bytes)
        });
        let kind = read.map_err(|error| error.kind());
        assert!(
            bytes.is_empty() && matches!(kind, Ok(0) | Err(ErrorKind::ConnectionReset)),
            "{kind:?}"
        );
        let unrecorded = r#"tv_agent_connections_total{decision="refuse",reason="unrecorded"}"#;
        assert_eq!(
            daemon.metric(unrecorded).unwrap(),
            2,
            "{}",
            daemon.metrics().unwrap()
        );
        assert_bystander(world);
        assert_unseen(world, &user);
        let said = daemon.stop();
        assert!(said.success() && !said.stderr.contains(&user), "{}", said.stderr);
    });
}

const SOCKETS: &str = r#"
import errno, socket, ssl, sys
root, token = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
V4, V6 = socket.AF_INET, socket.AF_INET6
for name, family, address in (("v4", V4, "192.0.2.20"), ("v6", V6, "2001:db8::14"), ("mapped", V6, "::ffff:192.0.2.20")):
    plain = socket.socket(family, socket.SOCK_STREAM)
    plain.settimeout(10)
    plain.connect((address, 443))
    peer = plain.getpeername()
    with context.wrap_socket(plain, server_hostname="api.github.com") as tls:
        tls.sendall(b"GET /user HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: Bearer " + token.encode() + b"\r\n\r\n")
        print(name, "peer", peer[0], peer[1], tls.recv(4096).split(b"\r\n")[0].decode())
def attempt(name, act):
    try:
        act()
        print(name, "sent")
    except OSError as error:
        print(name, errno.errorcode[error.errno])
for name, family, address in (("v4", V4, "192.0.2.20"), ("v6", V6, "2001:db8::14")):
    udp = lambda: socket.socket(family, socket.SOCK_DGRAM)
    attempt(f"udp {name} connect", lambda: udp().connect((address, 443)))
    attempt(f"udp {name} sendto", lambda: udp().sendto(b"x", (address, 443)))
attempt("udp other port", lambda: socket.socket(V4, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.20", 4433)))
try:
    with socket.create_connection(("127.34.67.1", 15443), timeout=5) as direct:
        print("listener", direct.recv(1) or "nothing")
except ConnectionResetError:
    print("listener nothing")
"#;

#[test]
fn a_new_configuration_is_taken_whole_or_not_at_all() {
    World::run(|world| {
        let user = alice(world);
        let mut config = world.config();
        // One route less than the file will have: Google is tunnelled at first.
        let google = config["routes"].as_array_mut().unwrap().pop().unwrap();
        let all = |config: &Value| {
            let mut config = config.clone();
            config["routes"].as_array_mut().unwrap().push(google.clone());
            config
        };
        let file = world.write_config(&all(&config)).unwrap();
        let init = ["ca", "init", "--config", &file.display().to_string()];
        world.tv_agent(&init).unwrap().expect_success();
        let mut daemon = world.daemon("reload", config.clone()).unwrap();
        let (own, real) = (
            world.agent_root().display().to_string(),
            world.root_file().display().to_string(),
        );
        let url = format!("https://{GOOGLE}/");
        let trusting = |root: &str| daemon.run(&curl(&["--cacert", root, &url])).unwrap();
        trusting(&real).expect_success();
        let reloads = |result: &str| {
            let name = format!("tv_agent_config_reloads_total{{result=\"{result}\"}}");
            daemon.metric(&name).unwrap()
        };

        // Broken: the file changes, the agent notices by itself, and keeps what it has.
        let mut broken = all(&config);
        broken["intercept"]["quic"] = json!("perhaps");
        daemon.rewrite_config(broken).unwrap();
        let text = std::fs::read_to_string(daemon.config_file()).unwrap();
        let broken_at = text.lines().position(|line| line.contains("perhaps")).unwrap() + 1;
        wait_for("the broken file is noticed", Duration::from_secs(5), || {
            reloads("refused") == 1
        });
        trusting(&real).expect_success();
        assert_served(world, &daemon, &user);

        // Good, and noticed by itself; what needs a restart is said.
        let mut good = all(&config);
        good["listen"] = json!({ "port": 15_555 });
        daemon.rewrite_config(good).unwrap();
        wait_for("the new file is noticed", Duration::from_secs(5), || {
            reloads("ok") == 1
        });
        let answer = daemon.run(&curl_include(&["--cacert", &own, &url])).unwrap();
        assert!(
            answer.expect_success().contains(" 401"),
            "routed now: {}",
            answer.stdout
        );

        // By signal, at once; an answer that is under way goes on.
        let drip = format!("https://{GOOGLE}/drip/20/100");
        let mut under_way = daemon.command("curl");
        let (header, served) = (bearer(&user), world.google.count());
        under_way.args(&curl(&["--cacert", &own, "--header", &header, &drip])[1..]);
        let under_way = process::start(&mut under_way).unwrap();
        wait_for("the answer is under way", Duration::from_secs(5), || {
            world.google.count() > served
        });
        daemon.rewrite_config(config.clone()).unwrap();
        daemon.signal(Signal::SIGHUP).unwrap();
        wait_for("the signal is heard", Duration::from_secs(2), || {
            reloads("ok") == 2
        });
        trusting(&real).expect_success();
        assert_served(world, &daemon, &user);
        assert_eq!(reloads("refused"), 1);
        let dripped = under_way.finish(Duration::from_secs(10)).unwrap();
        assert_eq!(dripped.expect_success().matches("data: ").count(), 20);

        let file = daemon.config_file().display().to_string();
        let log = daemon.stop().stderr;
        let line = log
            .lines()
            .find(|line| line.contains("is refused"))
            .unwrap_or_default();
        for word in [
            &format!("{file}:{broken_at}: "),
            "quic",
            "perhaps",
            "block",
            "allow",
        ] {
            assert!(line.contains(word), "no {word:?} in: {line}");
        }
        assert_eq!(
            log.matches("take effect when the agent is restarted").count(),
            1,
            "{log}"
        );
        assert!(!log.contains('\u{1b}'), "colours in a log file: {log:?}");
    });
}

/// As a service manager does it when a service stops and starts.
#[test]
fn a_cgroup_that_is_made_again_is_covered_again() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("again", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let directory = daemon.cgroup().path().to_owned();
        std::fs::remove_dir(&directory).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        std::fs::create_dir(&directory).unwrap();
        // Served with the agent's certificate: intercepted.
        wait_for("intercepted again", Duration::from_secs(2), || {
            ask(world, &daemon, &user, &[]).success()
        });
        assert_served(world, &daemon, &user);
        daemon.kill();
        assert_refused(world, &daemon, &user);
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
        let log = daemon.stop().stderr;
        assert!(
            !log.contains("made again"),
            "once only, and not by the second agent: {log}"
        );
    });
}

/// An agent below an enrolled cgroup reaches its vault: that socket is a library's, and carries no flag.
#[test]
fn it_may_live_below_the_cgroup_that_it_covers() {
    World::run(|world| {
        let user = alice(world);
        let outer = TestCgroup::new("outer");
        let [inner, app] = ["agent", "app"].map(|name| Inner::make(outer.path().join(name)));
        let mut config = world.config();
        config["intercept"]["cgroups"] = json!([outer.name()]);
        let file = world.write_config(&config).unwrap().display().to_string();
        world
            .tv_agent(&["ca", "init", "--config", &file])
            .unwrap()
            .expect_success();
        let enter = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
        let mut agent = world.command("sh");
        agent
            .args(["-c", enter])
            .arg(&inner.0)
            .arg(world.agent_file())
            .args(["run", "--config", &file]);
        let agent = process::start(&mut agent).unwrap();
        let (root, header, url) = (
            world.agent_root().display().to_string(),
            bearer(&user),
            user_url(),
        );
        let client = curl(&["--cacert", &root, "--header", &header, &url]);
        wait_for("served by the agent", Duration::from_secs(15), || {
            let mut workload = world.command("sh");
            workload.args(["-c", enter]).arg(&app.0).args(&client);
            process::run(&mut workload, Duration::from_secs(20))
                .unwrap()
                .success()
        });
        assert_swapped(&world.github, GITHUB_TOKEN, &user);

        // In the enrolled cgroup itself it would intercept itself.
        drop(agent);
        let mut within = outer.command(world.agent_file());
        let finished =
            process::run(within.args(["run", "--config", &file]), Duration::from_secs(10)).unwrap();
        assert_eq!(finished.code(), 1, "{}", finished.stderr);
        assert!(
            finished.stderr.contains("in a cgroup of its own"),
            "{}",
            finished.stderr
        );
    });
}

/// A cgroup below a test's own, removed once it is empty.
struct Inner(PathBuf);

impl Inner {
    fn make(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // A process that has just ended may still be counted for a moment.
        let until = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    World::run(|world| {
        let cgroup = TestCgroup::new("start");
        let mut good = world.config();
        good["intercept"]["cgroups"] = json!([cgroup.name()]);
        let run = |config: &Value| {
            let file = world.write_config(config).unwrap().display().to_string();
            (world.tv_agent(&["run", "--config", &file]).unwrap(), file)
        };
        let says = |finished: &Finished, code: i32, words: &[&str]| {
            assert_eq!(finished.code(), code, "{}", finished.stderr);
            for word in words {
                assert!(
                    finished.stderr.contains(word),
                    "no {word:?} in: {}",
                    finished.stderr
                );
            }
        };

        let (finished, _) = run(&good);
        says(&finished, 1, &["tv-agent ca init"]);

        let cases: [(&str, Value, &[&str]); 6] = [
            (
                "/intercept/ports/0",
                json!(70_000),
                &["intercept.ports", "70000", "1 to 65535"],
            ),
            (
                "/intercept/cgroups/0",
                json!("relative"),
                &["intercept.cgroups", "relative", "/system.slice"],
            ),
            (
                "/intercept/cgroups/0",
                json!("/tv-none"),
                &["intercept.cgroups", "/tv-none", "does not exist"],
            ),
            (
                "/intercept/capture",
                json!("cidr"),
                &["intercept.capture", "cidr", "intercept.capture_cidrs"],
            ),
            (
                "/routes/0/vault",
                json!("other"),
                &["routes.github.vault", "other", "main"],
            ),
            (
                "/vaults/main/domain",
                json!("https://x/"),
                &["vaults.main.domain", "https://x/", "host name"],
            ),
        ];
        for (at, value, words) in cases {
            let mut config = good.clone();
            *config.pointer_mut(at).unwrap() = value.clone();
            let (finished, file) = run(&config);
            says(&finished, 2, words);
            if words[2] != "does not exist" {
                // File and line, as compilers write them.
                let text = std::fs::read_to_string(&file).unwrap();
                let value = value.to_string();
                let line = text.lines().position(|line| line.contains(&value)).unwrap() + 1;
                says(&finished, 2, &[&format!("{file}:{line}: ")]);
            }
        }
        let mut config = good.clone();
        config["intercept"]["port"] = json!(443);
        let (finished, file) = run(&config);
        says(
            &finished,
            2,
            &[&format!("{file}:"), "unknown field `port`", "ports"],
        );
        let mut config = good.clone();
        config["intercept"]["cgroups"] = json!([]);
        let (finished, file) = run(&config);
        says(&finished, 2, &[&file, "intercept.cgroups is empty"]);
        let finished = world
            .tv_agent(&["run", "--config", "/no/such/file.yaml"])
            .unwrap();
        says(&finished, 2, &["/no/such/file.yaml"]);

        let file = world.write_config(&good).unwrap().display().to_string();
        world
            .tv_agent(&["ca", "init", "--config", &file])
            .unwrap()
            .expect_success();
        // Somebody else's sockets at its addresses.
        let taken = TcpListener::bind(LISTENER).unwrap();
        says(&run(&good).0, 1, &["cannot listen on 127.34.67.1:15443"]);
        drop(taken);
        let metrics = good["admin"]["metrics"].as_str().unwrap();
        let taken = TcpListener::bind(metrics).unwrap();
        says(&run(&good).0, 1, &[metrics, "admin.metrics"]);
        drop(taken);

        let first = world.daemon("first", world.config()).unwrap();
        let (second, _) = run(&good);
        says(&second, 1, &["already running"]);
        first.get("/healthz/ready").unwrap();
        // Nothing that failed to start has attached anything.
        let root = world.root_file().display().to_string();
        let mut outside = cgroup.command("curl");
        outside.args(["--silent", "--cacert", &root, &format!("https://{GITHUB_API}/")]);
        process::run(&mut outside, Duration::from_secs(10))
            .unwrap()
            .expect_success();
    });
}

//! The CA of a running daemon: its root replaced under load, its intermediate issued anew, and steps that are refused.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::process::{self, Running};
use tv_tests::world::{Daemon, GITHUB_API, World};

use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, user_url, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Workloads whose store changes under them: `kept` threads make all requests on one connection, `new` ones each on a
/// new connection with a context of its own, `long` ones on new connections with a context of before that looks at the
/// store again, and resumes. Prints how many requests of each kind were answered, and whatever went wrong.
const LOAD: &str = r#"
import collections, http.client, os, ssl, sys, threading, time
store, token, stop = sys.argv[1:]
done, failed, resumed = collections.Counter(), [], collections.Counter()
headers = {"Authorization": "Bearer " + token}
def ask(connection, kind):
    connection.request("GET", "/user", headers=headers)
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"status {answer.status}")
    done[kind] += 1
def loop(kind, turn):
    while not os.path.exists(stop):
        try:
            turn()
        except Exception as error:
            failed.append(f"{kind}: {error!r}")
        time.sleep(0.01)
def kept():
    connection = http.client.HTTPSConnection("api.github.com", context=ssl.create_default_context(cafile=store))
    connection.connect()
    first = connection.sock
    def turn():
        ask(connection, "kept")
        if connection.sock is not first:
            raise RuntimeError("the connection was closed")
    loop("kept", turn)
def new():
    def turn():
        context = ssl.create_default_context(cafile=store)
        connection = http.client.HTTPSConnection("api.github.com", context=context)
        ask(connection, "new")
        connection.close()
    loop("new", turn)
def long():
    context, session = ssl.create_default_context(cafile=store), [None]
    import socket
    def turn():
        context.load_verify_locations(cafile=store)
        raw = socket.create_connection(("api.github.com", 443), 20)
        with context.wrap_socket(raw, server_hostname="api.github.com", session=session[0]) as tls:
            tls.sendall(f"GET /user HTTP/1.1\r\nHost: api.github.com\r\nAuthorization: Bearer {token}\r\n"
                        "Connection: close\r\n\r\n".encode())
            answer = tls.recv(65536)
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer[:100])
            resumed[tls.session_reused] += 1
            session[0] = tls.session
        done["long"] += 1
    loop("long", turn)
threads = [threading.Thread(target=what) for what in (kept, kept, new, new, long)]
for thread in threads: thread.start()
for thread in threads: thread.join()
for kind in ("kept", "new", "long"): print(kind, done[kind])
print("resumed", resumed[True])
print("failed", len(failed))
for line in failed[:10]: print(line)
"#;

/// A session from before, and a store with the old root only.
const RESUME: &str = r#"
import os, socket, ssl, sys, time
root, asked, go = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
def connect(session):
    raw = socket.create_connection(("api.github.com", 443), 20)
    with context.wrap_socket(raw, server_hostname="api.github.com", session=session) as tls:
        tls.sendall(b"GET /user HTTP/1.1\r\nHost: api.github.com\r\nConnection: close\r\n\r\n")
        while tls.recv(65536): pass
        return tls.session, tls.session_reused
session, _ = connect(None)
session, reused = connect(session)
print("before", reused)
open(asked, "w").close()
while not os.path.exists(go): time.sleep(0.02)
try:
    print("after", connect(session)[1])
except ssl.SSLCertVerificationError as error:
    print("after refused", error.verify_message)
"#;

fn script(world: &World, daemon: &Daemon<'_>, name: &str, text: &str, arguments: &[&str]) -> Running {
    let file = world.dir().join(name);
    std::fs::write(&file, text).unwrap();
    let mut command = daemon.command("python3");
    command.arg(&file).args(arguments);
    process::start(&mut command).unwrap()
}

fn ca_dir(world: &World) -> PathBuf {
    world.dir().join("ca")
}

/// Puts what `ca::anchors` says into the workloads' store, as an installation would: replaced whole.
fn install(world: &World) -> PathBuf {
    let (store, fresh) = (world.dir().join("store.pem"), world.dir().join("store.new"));
    std::fs::write(&fresh, tv_agent::ca::anchors(&ca_dir(world)).unwrap()).unwrap();
    std::fs::rename(&fresh, &store).unwrap();
    store
}

fn rotate(world: &World, more: &[&str]) -> String {
    let dir = ca_dir(world).display().to_string();
    let arguments = [&["ca", "rotate", "-o", "json", "--dir", &dir][..], more].concat();
    let made = world.tv_agent(&arguments).unwrap();
    let made: Value = serde_json::from_str(made.expect_success()).unwrap();
    made["rotation"]["step"].as_str().unwrap().to_owned()
}

fn trusts(daemon: &Daemon<'_>, root: &Path, user: &str) -> bool {
    let (root, header, url) = (root.display().to_string(), bearer(user), user_url());
    let asked = daemon.run(&curl(&["--cacert", &root, "--header", &header, &url]));
    asked.unwrap().success()
}

#[test]
fn the_root_is_replaced_under_load_and_no_request_fails() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("rotation", world.config()).unwrap();
        let path = |name: &str| world.dir().join(name).display().to_string();
        let old = world.dir().join("old-root.pem");
        std::fs::copy(world.agent_root(), &old).unwrap();
        let store = install(world).display().to_string();
        let (asked, go) = (path("asked"), path("go"));
        let resuming = script(
            world,
            &daemon,
            "resume.py",
            RESUME,
            &[&old.display().to_string(), &asked, &go],
        );
        let stop = path("stop");
        let load = script(world, &daemon, "load.py", LOAD, &[&store, &user, &stop]);
        let served = |more: u64| {
            let seen = world.github.count();
            wait_for("requests", LIMIT, || world.github.count() >= seen + more);
        };
        wait_for("a session", LIMIT, || Path::new(&asked).exists());
        served(50);

        let new = ca_dir(world).join("next/root.pem");
        assert_eq!(rotate(world, &[]), "published");
        install(world);
        let kept = world.dir().join("new-root.pem");
        std::fs::copy(new, &kept).unwrap();
        let expiry = r#"tv_agent_ca_expiry_timestamp_seconds{certificate="next_root"}"#;
        wait_for("the daemon sees it", LIMIT, || daemon.metric(expiry).unwrap() > 0);
        served(50);
        assert!(trusts(&daemon, &old, &user) && !trusts(&daemon, &kept, &user));

        assert_eq!(rotate(world, &["--force"]), "trusted");
        served(50);
        assert_eq!(rotate(world, &["--force"]), "issuing");
        wait_for("the new root signs", LIMIT, || trusts(&daemon, &kept, &user));
        assert!(!trusts(&daemon, &old, &user));
        std::fs::write(&go, "").unwrap();
        served(50);
        assert_eq!(rotate(world, &["--force"]), "retiring");
        served(50);
        // The leaves' three days are what the step would wait for.
        let dir = ca_dir(world).display().to_string();
        let waits = world.tv_agent(&["ca", "rotate", "--dir", &dir]).unwrap();
        assert!(
            waits.code() == 1 && waits.stderr.contains("leaves of the old root may be alive until"),
            "{}",
            waits.stderr
        );
        assert_eq!(rotate(world, &["--force"]), "removed");
        install(world);
        let gone = r#"tv_agent_ca_expiry_timestamp_seconds{certificate="old_root"}"#;
        wait_for("the daemon lets go of it", LIMIT, || {
            daemon.metric(gone).unwrap() == 0
        });
        served(50);
        std::fs::write(&stop, "").unwrap();

        let said = load.finish(LIMIT).unwrap();
        let told = said.expect_success().to_owned();
        let count = |what: &str| -> usize {
            let line = told.lines().find_map(|line| line.strip_prefix(what));
            line.unwrap().trim().parse().unwrap()
        };
        eprintln!("{told}");
        assert_eq!(count("failed"), 0, "{told}{}", said.stderr);
        assert!(
            ["kept", "new", "long", "resumed"]
                .iter()
                .all(|what| count(what) > 10),
            "{told}"
        );
        let resumed = resuming.finish(LIMIT).unwrap();
        let resumed = resumed.expect_success();
        assert!(resumed.starts_with("before True\nafter refused"), "{resumed}");
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
    });
}

/// A route outside the constraints: with the issuing key there the CA follows, without it the reload is refused.
#[test]
fn the_ca_follows_the_routes_while_its_key_is_there() {
    World::run(|world| {
        let user = alice(world);
        let config = world.config();
        let daemon = world.daemon("following", config.clone()).unwrap();
        let root = world.agent_root();
        let reloads = |result: &str| {
            let name = format!(r#"tv_agent_config_reloads_total{{result="{result}"}}"#);
            daemon.metric(&name).unwrap()
        };
        let permits = |name: &str| {
            let shown = tv_agent::ca::show(&ca_dir(world)).unwrap();
            shown
                .intermediate
                .permitted
                .iter()
                .any(|permitted| permitted == name)
        };
        let mut wider = config.clone();
        wider["routes"][0]["hosts"] =
            json!([GITHUB_API, "uploads.github.com", "github.com", "api.example.net"]);
        daemon.rewrite_config(wider).unwrap();
        wait_for("a reload", LIMIT, || reloads("ok") == 1);
        assert!(permits("api.example.net"));
        assert!(trusts(&daemon, &root, &user));
        // Fewer routes: narrowed, in its own time.
        daemon.rewrite_config(config.clone()).unwrap();
        wait_for("narrowed", LIMIT, || !permits("api.example.net"));
        wait_for("reloaded", LIMIT, || reloads("ok") == 2);
        assert!(trusts(&daemon, &root, &user));

        std::fs::remove_dir_all(ca_dir(world).join("root")).unwrap();
        let mut other = config;
        other["routes"][0]["hosts"] = json!([GITHUB_API, "api.example.org"]);
        daemon.rewrite_config(other).unwrap();
        wait_for("a refusal", LIMIT, || reloads("refused") == 1);
        assert!(!permits("api.example.org"));
        assert!(trusts(&daemon, &root, &user), "the old configuration stays");
        assert_unseen(world, &user);
    });
}

/// What `GET /trust` says of each process decides.
#[test]
fn a_step_is_refused_while_workloads_would_break() {
    World::run(|world| {
        let dir = ca_dir(world).display().to_string();
        let init = world.tv_agent(&["ca", "init", "--dir", &dir]).unwrap();
        init.expect_success();
        let socket = world.dir().join("trust.sock");
        let at = socket.display().to_string();
        let refused = |more: &[&str], words: &[&str]| {
            let arguments = [&["ca", "rotate", "--dir", &dir, "--socket", &at][..], more].concat();
            let asked = world.tv_agent(&arguments).unwrap();
            assert_eq!(asked.code(), 1, "{}", asked.stdout);
            for word in words {
                assert!(asked.stderr.contains(word), "{word:?} not in {}", asked.stderr);
            }
        };
        let shown = || serde_json::to_value(tv_agent::ca::show(&ca_dir(world)).unwrap()).unwrap();
        assert_eq!(rotate(world, &["--socket", &at]), "published");
        refused(&[], &["published", "trusted", "no daemon tells", "--force"]);
        let new = shown()["next_root"]["sha256"].as_str().unwrap().to_owned();
        let old = shown()["root"]["sha256"].as_str().unwrap().to_owned();
        let row = |state: &str, roots: &[&str]| json!({ "pid": 7, "process": "app", "state": state, "roots": roots });
        let answers = [
            row("verified", &[&old]),
            row("needs_restart", &[&old, &new]),
            row("verified", &[&old, &new]),
        ];
        let answering = answer(&socket, &answers);
        refused(&[], &["process 7 (app)", "does not have the new root yet"]);
        refused(&[], &["has to be restarted"]);
        assert_eq!(rotate(world, &["--socket", &at]), "trusted");
        answering.join().unwrap();
        assert_eq!(shown()["rotation"]["step"], json!("trusted"));
        let text = world.tv_agent(&["ca", "show", "--dir", &dir]).unwrap();
        let text = text.expect_success();
        assert!(
            text.contains("rotation: trusted, since 20") && text.contains("next root: CN=tv-agent root"),
            "{text}"
        );
    });
}

/// A daemon's socket that answers each request with one row, then is gone.
fn answer(socket: &Path, rows: &[Value]) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(socket).unwrap();
    let rows: Vec<String> = rows.iter().map(|row| format!("{row}\n")).collect();
    std::thread::spawn(move || {
        for row in rows {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /trust HTTP/1.1\r\n"));
            write!(
                stream,
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{row}",
                row.len()
            )
            .unwrap();
        }
    })
}

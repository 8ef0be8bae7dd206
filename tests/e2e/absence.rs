//! What an enrolled workload sees while the daemon is not there: refusal, never the provider.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use tv_tests::process::{self, Finished};
use tv_tests::world::{Daemon, GITHUB_API, GOOGLE, UNROUTED, World};

use crate::support::{
    GITHUB_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, curl_include, user_url, wait_for,
};

/// curl's exit code for a connection that is refused.
const REFUSED: i32 = 7;

/// An enrolled workload's request to GitHub, trusting the agent's CA.
pub fn ask(world: &World, daemon: &Daemon<'_>, user: &str, more: &[&str]) -> Finished {
    let root = world.agent_root().display().to_string();
    let header = bearer(user);
    let url = user_url();
    let client = curl(&[&["--cacert", &root, "--header", &header, &url], more].concat());
    daemon.run(&client).unwrap()
}

#[track_caller]
pub fn assert_served(world: &World, daemon: &Daemon<'_>, user: &str) {
    let finished = ask(world, daemon, user, &[]);
    assert!(
        finished.expect_success().contains(r#""login":"alice""#),
        "{}",
        finished.stdout
    );
}

/// Neither a routed nor an unrouted host is reached, over IPv4 or IPv6, and no origin sees so much as a SYN.
#[track_caller]
pub fn assert_refused(world: &World, daemon: &Daemon<'_>, user: &str) {
    let accepted = || [&world.github, &world.google, &world.unrouted].map(|o| o.connections().accepted());
    let before = accepted();
    for family in ["--ipv4", "--ipv6"] {
        let finished = ask(world, daemon, user, &[family]);
        assert_eq!(finished.code(), REFUSED, "{}{}", finished.stdout, finished.stderr);
    }
    let (root, url) = (
        world.root_file().display().to_string(),
        format!("https://{UNROUTED}/"),
    );
    let finished = daemon.run(&curl(&["--cacert", &root, &url])).unwrap();
    assert_eq!(finished.code(), REFUSED, "{}{}", finished.stdout, finished.stderr);
    assert_eq!(accepted(), before);
}

/// A process that is not enrolled reaches the real routed host, with the real certificate.
#[track_caller]
pub fn assert_bystander(world: &World) {
    let root = world.root_file().display().to_string();
    let url = format!("https://{GOOGLE}/");
    let finished = world.plain(&curl(&["--cacert", &root, &url])).unwrap();
    assert_eq!(finished.expect_success(), "an origin\n");
}

#[test]
fn a_stop_drains_then_refuses_until_a_restart() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("drain", world.config()).unwrap();
        let root = world.agent_root().display().to_string();
        let (header, url) = (bearer(&user), format!("https://{GITHUB_API}/slow/3000"));
        let mut slow = daemon.command("curl");
        slow.args(&curl(&["--cacert", &root, "--header", &header, &url])[1..]);
        let slow = process::start(&mut slow).unwrap();
        wait_for("the slow request is there", Duration::from_secs(10), || {
            world.github.count() == 1
        });
        daemon.signal(Signal::SIGTERM).unwrap();
        wait_for("no longer ready", Duration::from_secs(2), || {
            daemon.get("/healthz/ready").unwrap().0 == 503
        });
        let finished = ask(world, &daemon, &user, &[]);
        assert_eq!(finished.code(), REFUSED, "{}{}", finished.stdout, finished.stderr);
        let drained = slow.finish(Duration::from_secs(10)).unwrap();
        assert_eq!(drained.expect_success(), "late\n");
        assert_eq!(daemon.wait(Duration::from_secs(12)).unwrap().code(), 0);
        assert_refused(world, &daemon, &user);
        assert_bystander(world);
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
    });
}

const IDLE: &str = r#"
import http.client, ssl, sys, time
root, token, flag = sys.argv[1:]
context = ssl.create_default_context(cafile=root)
connection = http.client.HTTPSConnection("api.github.com", context=context)
connection.request("GET", "/user", headers={"Authorization": "Bearer " + token})
print(connection.getresponse().read().decode())
open(flag, "w").close()
print(len(connection.sock.recv(1)))
"#;

/// One request that takes longer than anybody wants to wait for, and then SIGTERM.
fn stopped_with_a_slow_request(world: &World, drain: u64) -> (Daemon<'_>, process::Running) {
    let user = alice(world);
    let mut config = world.config();
    config["listen"] = json!({ "drain_seconds": drain });
    let daemon = world.daemon("slow", config).unwrap();
    let root = world.agent_root().display().to_string();
    let (header, url) = (bearer(&user), format!("https://{GITHUB_API}/slow/60000"));
    let mut slow = daemon.command("curl");
    slow.args(["--silent", "--cacert", &root, "--header", &header, &url]);
    let slow = process::start(&mut slow).unwrap();
    wait_for("the slow request is there", Duration::from_secs(10), || {
        world.github.count() == 1
    });
    daemon.signal(Signal::SIGTERM).unwrap();
    (daemon, slow)
}

/// Prints a line for each request: who answered, or the error's number.
const HAMMER: &str = r#"
import http.client, ssl, sys, time
roots, token, seconds = sys.argv[1:]
context = ssl.create_default_context(cafile=roots)
end = time.monotonic() + float(seconds)
while time.monotonic() < end:
    connection = http.client.HTTPSConnection("api.github.com", context=context, timeout=10)
    try:
        connection.request("GET", "/user", headers={"Authorization": "Bearer " + token})
        answer = connection.getresponse()
        answer.read()
        print(answer.status, flush=True)
    except OSError as error:
        print("refused", flush=True)
        time.sleep(0.002)
    finally:
        connection.close()
"#;

/// Stopped and taken away while a workload calls without pause: swapped, then refused, then native, in this order.
#[test]
fn taken_away_under_load_it_goes_from_swapped_to_refused_to_native() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("uninstall", world.config()).unwrap();
        let roots = world.dir().join("both.pem");
        let both = [world.agent_root(), world.root_file()].map(|file| std::fs::read_to_string(file).unwrap());
        std::fs::write(&roots, both.concat()).unwrap();
        let mut hammer = daemon.command("python3");
        hammer.args(["-c", HAMMER, &roots.display().to_string(), &user, "6"]);
        let hammer = process::start(&mut hammer).unwrap();
        wait_for("it is under way", Duration::from_secs(10), || {
            world.github.count() > 20
        });
        assert_unseen(world, &user);
        daemon.signal(Signal::SIGTERM).unwrap();
        assert_eq!(daemon.wait(Duration::from_secs(10)).unwrap().code(), 0);
        std::thread::sleep(Duration::from_millis(500));
        assert_unseen(world, &user);
        assert_eq!(world.take_unexpected(), Vec::<String>::new());
        let refused_until = world.github.count();
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        let said = hammer.finish(Duration::from_secs(20)).unwrap();
        let mut said: Vec<&str> = said.expect_success().lines().collect();
        said.dedup();
        assert!(world.github.count() > refused_until, "native again");
        // The provider's fake wants no token of the vault's, says so by 599, and remembers it.
        assert_eq!(said, ["200", "refused", "599"]);
        assert!(!world.take_unexpected().is_empty());
    });
}

#[test]
fn a_drain_ends_at_its_deadline() {
    World::run(|world| {
        let (mut daemon, slow) = stopped_with_a_slow_request(world, 1);
        assert_eq!(daemon.wait(Duration::from_secs(15)).unwrap().code(), 0);
        assert_ne!(slow.finish(Duration::from_secs(10)).unwrap().code(), 0);
    });
}

#[test]
fn a_second_signal_ends_a_drain() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        World::run(|world| {
            let (mut daemon, slow) = stopped_with_a_slow_request(world, 600);
            wait_for("it drains", Duration::from_secs(5), || {
                daemon.get("/healthz/ready").unwrap().0 == 503
            });
            daemon.signal(signal).unwrap();
            let ended = daemon.wait(Duration::from_secs(10)).unwrap();
            assert_eq!(ended.code(), 0, "{}", ended.stderr);
            assert!(ended.stderr.contains("told to stop again"), "{}", ended.stderr);
            assert_ne!(slow.finish(Duration::from_secs(10)).unwrap().code(), 0);
        });
    }
}

#[test]
fn an_idle_connection_does_not_hold_up_the_end() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("idle", world.config()).unwrap();
        let (script, flag) = (world.dir().join("idle.py"), world.dir().join("idle"));
        std::fs::write(&script, IDLE).unwrap();
        let mut client = daemon.command("python3");
        client.arg(&script).arg(world.agent_root()).arg(&user).arg(&flag);
        let client = process::start(&mut client).unwrap();
        wait_for("the connection is idle", Duration::from_secs(10), || {
            flag.exists()
        });
        daemon.signal(Signal::SIGTERM).unwrap();
        assert_eq!(daemon.wait(Duration::from_secs(3)).unwrap().code(), 0);
        let said = client.finish(Duration::from_secs(5)).unwrap();
        assert!(
            said.expect_success().ends_with("\n0\n"),
            "closed cleanly: {}",
            said.stdout
        );
    });
}

#[test]
fn killed_it_leaves_refusal_which_a_restart_mends() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("killed", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        // Answers that are under way break off, and do not end as if they were whole.
        let (root, header) = (world.agent_root().display().to_string(), bearer(&user));
        let url = format!("https://{GITHUB_API}/drip/200/50");
        let count = world.github.count();
        let under_way = ["--http1.1", "--http2"].map(|http| {
            let mut client = daemon.command("curl");
            client.args(&curl(&[http, "--cacert", &root, "--header", &header, &url])[1..]);
            process::start(&mut client).unwrap()
        });
        wait_for("both answers are under way", Duration::from_secs(10), || {
            world.github.count() == count + 2
        });
        daemon.kill();
        for one in under_way {
            let broken = one.finish(Duration::from_secs(10)).unwrap();
            assert_ne!(broken.code(), 0, "{}", broken.stdout.len());
        }
        assert_refused(world, &daemon, &user);
        assert_bystander(world);
        // A start that fails leaves the refusal as it is.
        let good = std::fs::read_to_string(daemon.config_file()).unwrap();
        std::fs::write(daemon.config_file(), "routes: 7\n").unwrap();
        assert!(daemon.restart().is_err());
        assert_refused(world, &daemon, &user);
        std::fs::write(daemon.config_file(), good).unwrap();
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
        assert_unseen(world, &user);
    });
}

#[test]
fn killed_it_leaves_refusal_which_cleanup_mends() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("killed", world.config()).unwrap();
        // While it lives, cleanup takes nothing of it.
        let cleaned = world.tv_agent(&["cleanup"]).unwrap();
        assert!(cleaned.expect_success().contains("nothing"), "{}", cleaned.stdout);
        assert_served(world, &daemon, &user);
        daemon.kill();
        assert_refused(world, &daemon, &user);
        let cleaned = world.tv_agent(&["cleanup"]).unwrap();
        assert!(
            cleaned.expect_success().contains("removed link"),
            "{}",
            cleaned.stdout
        );
        // The native path is back: the real certificate, and the token as the workload has it.
        let (root, url) = (world.root_file().display().to_string(), user_url());
        let header = "authorization: Bearer own-token";
        let native = daemon
            .run(&curl_include(&["--cacert", &root, "--header", header, &url]))
            .unwrap();
        assert!(
            native.expect_success().contains("Bad credentials"),
            "{}",
            native.stdout
        );
        assert_eq!(
            world.github.requests().pop().unwrap().token().as_deref(),
            Some("own-token")
        );
        // And from there a start is a fresh one.
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
    });
}

#[test]
fn stopped_for_longer_than_its_deadline_it_is_taken_for_dead() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("hangs", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        daemon.signal(Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(5500));
        assert_refused(world, &daemon, &user);
        assert_bystander(world);
        daemon.signal(Signal::SIGCONT).unwrap();
        wait_for("served again", Duration::from_secs(5), || {
            ask(world, &daemon, &user, &[]).success()
        });
        assert_unseen(world, &user);
    });
}

#[test]
fn where_it_is_so_configured_its_absence_is_the_native_path() {
    World::run(|world| {
        let user = alice(world);
        let mut config = world.config();
        config["intercept"]["on_agent_down"] = json!("open");
        let mut daemon = world.daemon("open", config).unwrap();
        assert_served(world, &daemon, &user);
        // Hung, it is taken for dead after its deadline; killed, at once.
        daemon.signal(Signal::SIGSTOP).unwrap();
        std::thread::sleep(Duration::from_millis(5500));
        assert_native(world, &daemon);
        daemon.signal(Signal::SIGCONT).unwrap();
        wait_for("served again", Duration::from_secs(5), || {
            ask(world, &daemon, &user, &[]).success()
        });
        daemon.kill();
        assert_native(world, &daemon);
        daemon.restart().unwrap();
        assert_served(world, &daemon, &user);
    });
}

/// Over both families the provider is reached with the token that the workload has.
#[track_caller]
fn assert_native(world: &World, daemon: &Daemon<'_>) {
    let (root, url) = (world.root_file().display().to_string(), user_url());
    let header = "authorization: Bearer own-token";
    for family in ["--ipv4", "--ipv6"] {
        let client = curl_include(&[family, "--cacert", &root, "--header", header, &url]);
        let native = daemon.run(&client).unwrap();
        assert!(
            native.expect_success().contains("Bad credentials"),
            "{}",
            native.stdout
        );
        let last = world.github.requests().pop().unwrap();
        assert_eq!(last.token().as_deref(), Some("own-token"));
    }
}

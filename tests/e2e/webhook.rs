//! `tv-agent webhook` as a cluster runs it: no privilege, a configuration, a signal, and curl for the API server.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tv_tests::fakes::pki::Pki;
use tv_tests::process::{self, Finished, Running};
use tv_tests::webhook_api::{Fault, WebhookApi};
use tv_tests::world::agent_binary;

use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(30);
/// Nobody's on this machine.
const UID: u32 = 65532;

struct World {
    directory: tempfile::TempDir,
    api: WebhookApi,
}

impl World {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let api = WebhookApi::start("tv-agent-ca");
        let pki = Pki::new("Webhook Root");
        let identity = pki.leaf(&["webhook.tv-agent.svc"]);
        let pem = |kind: &str, der: &[u8]| {
            let body = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
        };
        let world = Self { directory, api };
        for (name, text) in [
            ("tls.crt", pem("CERTIFICATE", &identity.chain[0])),
            ("tls.key", pem("PRIVATE KEY", identity.key.secret_der())),
            ("ca.pem", pki.root_pem().to_owned()),
            ("root.pem", Pki::new("tv-agent CA").root_pem().to_owned()),
            ("kubeconfig", world.api.kubeconfig()),
            ("webhook.yaml", world.config().to_string()),
            ("review.json", review("x").to_string()),
        ] {
            std::fs::write(world.file(name), text).unwrap();
        }
        world
    }

    fn config(&self) -> Value {
        json!({
            "listen": "127.0.0.1:0", "admin": { "metrics": "127.0.0.1:0" },
            "tls": { "certificate": self.file("tls.crt"), "key": self.file("tls.key") },
            "roots": [self.file("root.pem")], "kubernetes": { "kubeconfig": self.file("kubeconfig") },
        })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(agent_binary().unwrap());
        command.env_clear().args(["--log-json", "webhook", "--config"]);
        command.arg(self.file("webhook.yaml"));
        if nix::unistd::geteuid().is_root() {
            command.uid(UID).gid(UID);
        }
        command
    }

    /// The running webhook, its port, and that of metrics and health.
    fn start(&self) -> (Running, u16, u16) {
        let running = process::start(&mut self.command()).unwrap();
        let mut ports = None;
        wait_for("the webhook", LIMIT, || {
            let said = running.complained();
            let lines = said
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let port = |address: &Value| address.as_str()?.rsplit_once(':')?.1.parse().ok();
            ports = lines.into_iter().find_map(|line| {
                let fields = &line["fields"];
                Some((port(&fields["listen"])?, port(&fields["metrics"])?))
            });
            ports.is_some()
        });
        let (port, admin) = ports.unwrap();
        wait_for("readiness", LIMIT, || get(admin, "/readyz").success());
        (running, port, admin)
    }

    fn curl(&self, port: u16, ca: &Path, more: &[&str]) -> Command {
        let mut curl = Command::new("curl");
        curl.env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        curl.args([
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--max-time",
            "20",
            "--cacert",
        ]);
        curl.arg(ca)
            .args(["--resolve", &format!("webhook.tv-agent.svc:{port}:127.0.0.1")]);
        curl.args(["--header", "content-type: application/json", "--data-binary"]);
        curl.arg(format!("@{}", self.file("review.json").display()))
            .args(more);
        curl.arg(format!("https://webhook.tv-agent.svc:{port}/mutate/asked"));
        curl
    }

    fn ask(&self, port: u16, ca: &Path, more: &[&str]) -> Finished {
        process::run(&mut self.curl(port, ca, more), LIMIT).unwrap()
    }
}

fn review(note: &str) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002", "operation": "CREATE", "namespace": "shop",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "object": { "metadata": { "name": "web", "annotations": { "note": note } },
                        "spec": { "containers": [{ "name": "app", "image": "x" }] } },
        },
    })
}

fn get(port: u16, path: &str) -> Finished {
    let mut curl = Command::new("curl");
    curl.args([
        "--silent",
        "--fail",
        "--max-time",
        "5",
        &format!("http://127.0.0.1:{port}{path}"),
    ]);
    process::run(&mut curl, LIMIT).unwrap()
}

#[test]
fn without_privilege_it_gives_pods_trust_over_verified_tls() {
    let world = World::new();
    let (mut running, port, admin) = world.start();
    for protocol in ["--http1.1", "--http2"] {
        let answer = world.ask(port, &world.file("ca.pem"), &[protocol]);
        let answer: Value = serde_json::from_str(answer.expect_success()).unwrap();
        assert_eq!(answer["response"]["uid"], review("")["request"]["uid"]);
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
    }
    let data = world.api.data("shop").unwrap();
    // Mozilla's, and ours.
    assert!(data["bundle.pem"].matches("BEGIN CERTIFICATE").count() > 100);
    assert!(!data.values().any(|text| text.contains("PRIVATE")));
    let wrong = world.ask(port, &world.file("root.pem"), &[]);
    assert_eq!(wrong.code(), 60, "curl verifies the webhook: {}", wrong.stderr);
    let metrics = get(admin, "/metrics");
    let patched = "tv_agent_webhook_reviews_total{result=\"patched\"} 2";
    assert!(metrics.expect_success().contains(patched), "{}", metrics.stdout);
    if nix::unistd::geteuid().is_root() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    }

    // The API server goes: the pod starts, and its owner is told.
    world.api.remove("shop");
    world.api.fault(Fault::Refuse(403));
    wait_for("the change to be heard", LIMIT, || {
        let answer = world.ask(port, &world.file("ca.pem"), &[]);
        let answer: Value = serde_json::from_str(answer.expect_success()).unwrap();
        answer["response"]["patch"].is_null() && answer["response"]["warnings"][0].is_string()
    });
    running.end();
}

#[test]
fn told_to_stop_it_finishes_what_is_under_way() {
    let world = World::new();
    std::fs::write(
        world.file("review.json"),
        review(&"x".repeat(120_000)).to_string(),
    )
    .unwrap();
    let (mut running, port, admin) = world.start();
    let slow = world.curl(port, &world.file("ca.pem"), &["--limit-rate", "60k", "--http1.1"]);
    let slow = std::thread::spawn(move || {
        let mut slow = slow;
        process::run(&mut slow, LIMIT).unwrap()
    });
    std::thread::sleep(Duration::from_millis(500));
    kill(running.pid(), Signal::SIGTERM).unwrap();
    wait_for("no more readiness", LIMIT, || !get(admin, "/readyz").success());
    // While the cluster learns that it goes, it serves on.
    world.ask(port, &world.file("ca.pem"), &[]).expect_success();
    slow.join().unwrap().expect_success();
    let finished = running.wait(LIMIT).unwrap();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
}

#[test]
fn what_keeps_it_from_starting_is_said() {
    let world = World::new();
    let run = |config: Value| {
        std::fs::write(world.file("webhook.yaml"), config.to_string()).unwrap();
        process::run(&mut world.command(), LIMIT).unwrap()
    };
    let mut config = world.config();
    config["vaults"] = json!({});
    let finished = run(config);
    assert_eq!(finished.code(), 2, "{}", finished.stderr);
    assert!(finished.stderr.contains("vaults") && finished.stderr.contains("webhook.yaml"));
    for (key, value, told) in [
        ("roots", json!(["/nowhere.pem"]), "/nowhere.pem"),
        ("roots", json!([world.file("tls.key")]), "private key"),
        (
            "tls",
            json!({ "certificate": world.file("tls.crt"), "key": "/nowhere.key" }),
            "/nowhere.key",
        ),
        (
            "kubernetes",
            json!({ "kubeconfig": "/nowhere" }),
            "cannot ask the API server",
        ),
        ("kubernetes", json!({}), "cannot ask the API server"),
        ("listen", json!("192.0.2.1:9443"), "192.0.2.1:9443"),
    ] {
        let mut config = world.config();
        config[key] = value;
        let finished = run(config);
        assert_eq!(finished.code(), 1, "{told}: {}", finished.stderr);
        assert!(finished.stderr.contains(told), "{told}: {}", finished.stderr);
    }
}

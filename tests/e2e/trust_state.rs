//! What the daemon learns of real clients that do not trust it, what becomes of their next connections, and how it is
//! told.

use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::process::{self, Running};
use tv_tests::world::{Daemon, World};

use crate::support::{GITHUB_TOKEN, alice, assert_swapped, bearer, curl, user_url, wait_for};

const LIMIT: Duration = Duration::from_secs(60);

/// Asks once for each file `try-N` that it finds in the directory, with roots read anew, and prints what came of it.
const ASKER: &str = r#"
import os, sys, time, urllib.request
url, user, directory = sys.argv[1:4]
for n in range(100):
    while not os.path.exists(f"{directory}/try-{n}"):
        time.sleep(0.02)
    try:
        request = urllib.request.Request(url, headers={"authorization": f"Bearer {user}"})
        print(urllib.request.urlopen(request, timeout=20).status, flush=True)
    except Exception as error:
        print(str(error).replace("\n", " "), flush=True)
"#;

/// A process that asks when it is told to.
struct Asker<'w> {
    world: &'w World,
    running: Running,
    asked: usize,
}

impl<'w> Asker<'w> {
    fn start(world: &'w World, daemon: &Daemon<'_>, user: &str) -> Self {
        let script = world.dir().join("asker.py");
        std::fs::write(&script, ASKER).unwrap();
        let mut command = daemon.command("python3");
        command
            .arg("-u")
            .arg(script)
            .arg(user_url())
            .arg(user)
            .arg(world.dir());
        command.env("SSL_CERT_FILE", world.dir().join("bundle.pem"));
        let running = process::start(command.stdin(std::process::Stdio::null())).unwrap();
        Self {
            world,
            running,
            asked: 0,
        }
    }

    fn ask(&mut self) -> String {
        std::fs::write(self.world.dir().join(format!("try-{}", self.asked)), "").unwrap();
        let answer = |said: &str| said.lines().nth(self.asked).map(str::to_owned);
        wait_for("an answer", LIMIT, || answer(&self.running.said()).is_some());
        let answer = answer(&self.running.said()).unwrap();
        self.asked += 1;
        answer
    }
}

fn list(world: &World, config: &Value, more: &[&str]) -> String {
    let socket = config["admin"]["socket"].as_str().unwrap();
    let finished = world.tv_agent(&[&["trust", "list", "--socket", socket], more].concat());
    finished.unwrap().expect_success().to_owned()
}

/// The row of the process that asks, once it has come into the cgroup and become Python.
fn row(world: &World, config: &Value, asker: &Asker<'_>) -> Value {
    let pid = json!(asker.running.pid().as_raw());
    let find = || {
        let rows: Vec<Value> = serde_json::from_str(&list(world, config, &["-o", "json"])).unwrap();
        let is_ours = |row: &Value| row["pid"] == pid && row["runtime"] == "python";
        rows.into_iter().find(is_ours)
    };
    let mut found = None;
    wait_for("the process in the list", LIMIT, || {
        found = find();
        found.is_some()
    });
    found.unwrap()
}

/// Events of trust that the daemon told: process, outcome and reason.
fn told(world: &World, config: &Value) -> Vec<(String, String, String)> {
    let socket = config["admin"]["socket"].as_str().unwrap();
    let flows = world
        .tv_agent(&["flows", "--socket", socket, "-o", "json"])
        .unwrap();
    let flows = flows.expect_success().lines().map(serde_json::from_str::<Value>);
    let trust = flows.map(Result::unwrap).filter(|flow| flow["kind"] == "trust");
    let text = |flow: &Value, key: &str| flow[key].as_str().unwrap_or_default().to_owned();
    trust
        .map(|flow| {
            (
                text(&flow, "process"),
                text(&flow, "outcome"),
                text(&flow, "reason"),
            )
        })
        .collect()
}

#[test]
fn a_process_without_the_ca_is_refused_until_it_has_it() {
    World::run(|world| {
        let user = alice(world);
        let config = world.config();
        let daemon = world.daemon("state", config.clone()).unwrap();
        let bundle = world.dir().join("bundle.pem");
        std::fs::copy(world.root_file(), &bundle).unwrap();
        let mut asker = Asker::start(world, &daemon, &user);
        assert_eq!(row(world, &config, &asker)["state"], "unknown");
        let first = asker.ask();
        assert!(first.contains("CERTIFICATE_VERIFY_FAILED"), "{first}");
        let seen = row(world, &config, &asker);
        assert_eq!(
            (&seen["state"], &seen["runtime"], &seen["reason"]),
            (
                &json!("untrusted"),
                &json!("python"),
                &json!("TLS alert unknown_ca")
            ),
            "{seen}"
        );
        let advice = seen["advice"].as_str().unwrap();
        assert!(
            advice.contains("install the CA") && advice.contains("SSL_CERT_FILE"),
            "{advice}"
        );
        let text = list(world, &config, &[]);
        assert!(
            text.contains("untrusted") && text.contains("TLS alert unknown_ca: install"),
            "{text}"
        );
        let python = |(process, outcome, reason): (String, String, String)| {
            process.starts_with("python").then_some((outcome, reason))
        };
        let events = || {
            told(world, &config)
                .into_iter()
                .filter_map(python)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            events(),
            [("untrusted".to_owned(), "TLS alert unknown_ca".to_owned())]
        );

        // Refused at once: no handshake, no dial, no vault.
        let handshakes = r#"tv_agent_tls_handshakes_total{side="workload",result="untrusted"}"#;
        let before = (
            daemon.metric(handshakes).unwrap(),
            world.github.connections().accepted(),
        );
        let second = asker.ask();
        assert!(second.to_lowercase().contains("reset"), "{second}");
        let after = (
            daemon.metric(handshakes).unwrap(),
            world.github.connections().accepted(),
        );
        assert_eq!(before, after);
        let refused = r#"tv_agent_connections_total{decision="refuse",reason="untrusted"}"#;
        assert_eq!(daemon.metric(refused).unwrap(), 2);
        assert!(world.auth0.exchanges().is_empty());

        // It gets the CA. Nobody told the agent, so it may try again when the pause is over.
        let ours = std::fs::read_to_string(world.agent_root()).unwrap();
        let theirs = std::fs::read_to_string(world.root_file()).unwrap();
        std::fs::write(&bundle, theirs + &ours).unwrap();
        wait_for("the end of the pause", LIMIT, || {
            std::thread::sleep(Duration::from_millis(500));
            asker.ask() == "200"
        });
        let seen = row(world, &config, &asker);
        assert_eq!(
            (&seen["state"], &seen["advice"]),
            (&json!("verified"), &json!(""))
        );
        assert_eq!(seen["roots"].as_array().unwrap().len(), 1);
        assert_eq!(events().len(), 2, "{:?}", events());
        assert_eq!(asker.ask(), "200");
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        asker.running.end();
    });
}

/// Clients as they come, none of which trusts the CA: what each shows, and that it is told. Those that are not
/// installed are left out, save the two that every machine of these tests has.
#[test]
fn each_client_shows_its_distrust_in_its_own_way() {
    World::run(|world| {
        let config = world.config();
        let daemon = world.daemon("signs", config.clone()).unwrap();
        let url = user_url();
        let node = format!("require('https').get('{url}').on('error', () => process.exit(1))");
        let node_tls12 = format!(
            "require('https').get('{url}', {{ maxVersion: 'TLSv1.2' }}).on('error', () => process.exit(1))"
        );
        let python = format!("import urllib.request as u; u.urlopen('{url}')");
        let ruby = format!("require 'open-uri'; URI.open('{url}')");
        let php = format!("exit(@file_get_contents('{url}') === false ? 1 : 0);");
        const CLOSED: &str = "it closed right after our certificate, without an alert";
        const UNUSED: &str = "it finished the handshake and closed without a word";
        const UNKNOWN_CA: &str = "TLS alert unknown_ca";
        let java = world.dir().join("Client.java");
        let class = format!(
            "class Client {{ public static void main(String[] a) throws Exception {{ \
             new java.net.URL(\"{url}\").openStream(); }} }}"
        );
        std::fs::write(&java, class).unwrap();
        let java = java.display().to_string();
        let clients: [(&[&str], &str, &[&str]); 9] = [
            (&curl(&[&url]), "curl", &[UNKNOWN_CA]),
            (&["python3", "-c", &python], "python", &[UNKNOWN_CA]),
            (&["node", "-e", &node], "node", &[CLOSED, UNUSED]),
            (&["node", "-e", &node_tls12], "node", &[UNUSED]),
            (
                &["wget", "--quiet", "--tries=1", "-O-", &url],
                "wget",
                &[UNUSED, UNKNOWN_CA],
            ),
            (
                &["git", "ls-remote", "https://github.com/acme/demo.git"],
                "git",
                &[UNUSED, UNKNOWN_CA],
            ),
            (&["ruby", "-e", &ruby], "ruby", &[UNKNOWN_CA]),
            (&["php", "-r", &php], "php", &[UNKNOWN_CA]),
            (&["java", &java], "java", &["TLS alert certificate_unknown"]),
        ];
        let mut tried = Vec::new();
        for (client, name, signs) in clients {
            if world.plain(&[client[0], "--version"]).is_err() {
                continue;
            }
            let before = told(world, &config).len();
            let finished = daemon.run(client).unwrap();
            assert!(!finished.success(), "{client:?} trusts us: {}", finished.stdout);
            wait_for("an event", LIMIT, || told(world, &config).len() > before);
            let (process, outcome, reason) = told(world, &config).pop().unwrap();
            assert!(process.starts_with(name), "{process} is not {name}");
            assert_eq!(outcome, "untrusted", "{client:?}");
            assert!(signs.contains(&reason.as_str()), "{client:?}: {reason}");
            tried.push(format!("{name}: {reason}"));
        }
        eprintln!("{}", tried.join("\n"));
        assert!(tried.len() >= 2, "{tried:?}");
        assert_eq!(world.github.count(), 0, "nothing came to the origin");
        assert!(world.auth0.exchanges().is_empty());
    });
}

#[test]
fn a_route_may_tunnel_those_who_do_not_trust_us() {
    World::run(|world| {
        let user = alice(world);
        let mut config = world.config();
        config["trust"] = json!({ "on_untrusted": "tunnel" });
        let daemon = world.daemon("let", config.clone()).unwrap();
        let real = world.root_file().display().to_string();
        let url = format!("https://{}/headers", tv_tests::world::GITHUB_API);
        // One process, two tries: the handshake that shows it, and, once that was heard, the tunnel.
        let code = [
            "--write-out",
            "%{exitcode} ",
            "--output",
            "/dev/null",
            "--output",
            "/dev/null",
        ];
        let twice = [
            &[
                "curl",
                "--silent",
                "--max-time",
                "20",
                "--rate",
                "1/s",
                "--cacert",
                &real,
            ],
            &code[..],
            &[&url, &url],
        ]
        .concat();
        let finished = daemon.run(&twice).unwrap();
        assert_eq!(finished.stdout, "60 0 ", "{}", finished.stderr);
        let tunnelled = r#"tv_agent_connections_total{decision="tunnel",reason="untrusted_tunnel"}"#;
        wait_for("the tunnel's end", LIMIT, || {
            daemon.metric(tunnelled).unwrap() == 1
        });
        // Who trusts us is served as ever.
        let (root, header) = (world.agent_root().display().to_string(), bearer(&user));
        daemon
            .run(&curl(&["--cacert", &root, "--header", &header, &user_url()]))
            .unwrap()
            .expect_success();
        let verified = r#"tv_agent_trust_changes_total{state="verified",runtime="curl"}"#;
        assert_eq!(daemon.metric(verified).unwrap(), 1);
        let checked = world
            .tv_agent(&["check", "--config", &daemon.config_file().display().to_string()])
            .unwrap();
        assert!(
            checked.stdout.contains("on_untrusted: tunnel for github, google"),
            "{}",
            checked.stdout
        );
        // `check` looks whether it is reached.
        let calls = world.take_unexpected();
        assert!(
            calls.iter().all(|call| call.contains("HEAD /oauth/token")),
            "{calls:?}"
        );
    });
}

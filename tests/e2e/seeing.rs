//! What is seen of a running daemon: the audit trail, spans, the page, the log's level, the bug report; and that none
//! of them holds a secret.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::process;
use tv_tests::world::{CLIENT_SECRET, UNROUTED, World};

use crate::absence::ask;
use crate::support::{GITHUB_TOKEN, SmallDisk, alice, curl, lines, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    lines(&text)
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A collector that takes whatever comes, until the test ends.
fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let received: Arc<Mutex<Vec<u8>>> = Arc::default();
    let kept = received.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let kept = kept.clone();
            std::thread::spawn(move || {
                let mut chunk = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut chunk) {
                    kept.lock().unwrap().extend_from_slice(&chunk[..count]);
                    // One answer for each piece is enough for a client that sends its request in one or two.
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
                }
            });
        }
    });
    (endpoint, received)
}

#[test]
fn what_was_done_for_whom_is_told_everywhere_and_no_secret_anywhere() {
    World::run(|world| {
        let user = alice(world);
        let bob = world.user("bob");
        let (endpoint, spans) = collector();
        let audit = world.dir().join("audit.json");
        let mut config = world.config();
        config["audit"] = json!({ "to": audit });
        config["traces"] = json!({ "endpoint": endpoint });
        config["admin"]["page"] = true.into();
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let daemon = world.daemon("seeing", config).unwrap();
        let parent = format!("traceparent: 00-{TRACE}-b7ad6b7169203331-01");
        ask(world, &daemon, &user, &["-H", &parent]).expect_success();
        ask(world, &daemon, &bob, &[]);
        let passed = &world.github.requests()[0];
        assert!(passed.holds(TRACE), "the caller's trace goes on to the provider");

        wait_for("two records", LIMIT, || records(&audit).len() == 2);
        let [swap, refusal] = &records(&audit)[..] else {
            panic!("two")
        };
        assert_eq!(
            (
                &swap["outcome"],
                &swap["connection"],
                &swap["route"],
                &swap["status"]
            ),
            (
                &"forwarded".into(),
                &"github".into(),
                &"github".into(),
                &200.into()
            )
        );
        assert_eq!(
            (&swap["trace"], &swap["token"]),
            (&TRACE.into(), &"exchange".into())
        );
        assert_eq!(swap["subject"].as_str().map(str::len), Some(16));
        assert!(
            swap["time"].as_str().unwrap().ends_with('Z') && swap["process"] == "curl",
            "{swap}"
        );
        assert_eq!(
            (&refusal["outcome"], &refusal["fault"]),
            (&"connection_required".into(), &"caller".into())
        );
        assert_ne!(swap["subject"], refusal["subject"]);

        wait_for("spans", LIMIT, || {
            let spans = spans.lock().unwrap();
            let holds = |part: &[u8]| spans.windows(part.len()).any(|window| window == part);
            holds(b"connection_required") && holds(&[0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd])
        });

        let (status, page) = daemon.get("/").unwrap();
        assert_eq!(status, 200, "{page}");
        assert!(
            page.contains("connection_required") && page.contains("api.github.com"),
            "{page}"
        );
        assert!(
            page.contains("Who trusts the CA") && page.contains("<td class=\"good\">verified</td>"),
            "{page}"
        );
        let metrics = daemon.metrics().unwrap();
        assert!(
            metrics.contains("tv_agent_audit_records_total{result=\"written\"} 2"),
            "{metrics}"
        );

        let said = |arguments: &[&str]| {
            let finished = world
                .tv_agent(&[arguments, &["--socket", &socket]].concat())
                .unwrap();
            finished.expect_success().trim().to_owned()
        };
        assert_eq!(said(&["log"]), "info");
        assert_eq!(said(&["log", "debug"]), "debug");
        ask(world, &daemon, &user, &[]).expect_success();
        let wrong = world
            .tv_agent(&["log", "tv_agent=shout", "--socket", &socket])
            .unwrap();
        assert_eq!(wrong.code(), 2, "{}", wrong.stderr);
        assert_eq!(said(&["log"]), "debug");

        let archive = world.dir().join("report.tar.gz");
        let archive = archive.to_str().unwrap();
        let file = daemon.config_file().to_str().unwrap().to_owned();
        said(&["bug-report", "--out", archive, "--config", &file]);
        // The report asks whether the vault is there.
        assert_eq!(
            world.take_unexpected(),
            ["Auth0: HEAD /oauth/token: no such endpoint"]
        );
        let again = world
            .tv_agent(&["bug-report", "--out", archive, "--socket", &socket])
            .unwrap();
        assert_eq!(again.code(), 1, "an archive that is there stays");
        let unpacked =
            process::run(world.command("tar").args(["-xzf", archive, "--to-stdout"]), LIMIT).unwrap();
        let report = unpacked.expect_success().to_owned();
        for part in [
            "forwarded",
            "tv_agent_requests_total",
            "CapEff",
            "\"routes\"",
            "\"bpf_sha256\"",
        ] {
            assert!(report.contains(part), "{part} is missing in: {report}");
        }

        let mut daemon = daemon;
        let log = daemon.stop();
        assert!(log.stderr.contains("DEBUG"), "the level took effect");
        let audit = fs::read_to_string(&audit).unwrap();
        let spans = String::from_utf8_lossy(&spans.lock().unwrap()).into_owned();
        for (what, text) in [
            ("audit", &audit),
            ("spans", &spans),
            ("page", &page),
            ("metrics", &metrics),
            ("report", &report),
            ("log", &log.stderr),
        ] {
            for secret in [&*user, &*bob, GITHUB_TOKEN, CLIENT_SECRET] {
                assert!(!text.contains(secret), "{what} holds a secret");
            }
        }
    });
}

#[test]
fn the_page_is_for_this_machine_and_for_those_who_ask_for_it() {
    World::run(|world| {
        let mut config = world.config();
        let daemon = world.daemon("nopage", config.clone()).unwrap();
        assert_eq!(daemon.get("/").unwrap().0, 404);
        drop(daemon);
        config["admin"]["page"] = true.into();
        let address = config["admin"]["metrics"].as_str().unwrap().to_owned();
        let _daemon = world.daemon("page", config).unwrap();
        let url = format!("http://{address}/");
        let asked = |host: &str| {
            let header = format!("Host: {host}");
            let quiet = ["curl", "--silent", "--include", "--max-time", "20", "-H"];
            let asked = world.plain(&[&quiet[..], &[&*header, &*url]].concat()).unwrap();
            asked.expect_success().to_lowercase()
        };
        for host in ["localhost", "127.0.0.1:15020", "[::1]:15020"] {
            let answer = asked(host);
            assert!(answer.starts_with("http/1.1 200"), "{host}: {answer}");
            assert!(
                answer.contains("content-security-policy: default-src 'none'"),
                "{answer}"
            );
        }
        for host in ["attacker.example", "127.0.0.1.attacker.example", ""] {
            assert!(asked(host).starts_with("http/1.1 403"), "{host}");
        }
    });
}

#[test]
fn a_full_disk_under_the_audit_trail_refuses_where_that_is_asked_for_and_passes_by() {
    World::run(|world| {
        let user = alice(world);
        let disk = SmallDisk::new(world.dir().join("audit"), "64k");
        let place = disk.path();
        let audit = place.join("audit.json");
        let mut config = world.config();
        config["audit"] = json!({ "to": audit, "on_failure": "refuse" });
        let daemon = world.daemon("full", config).unwrap();
        ask(world, &daemon, &user, &[]).expect_success();
        wait_for("a record", LIMIT, || records(&audit).len() == 1);

        let filler = place.join("filler");
        let full = fs::write(&filler, vec![0; 1024 * 1024]).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        // What is left of the file's last page takes some more.
        wait_for("the refusal", LIMIT, || {
            let answer = ask(world, &daemon, &user, &["--include"]);
            answer.stdout.contains("503") || answer.stderr.contains("503")
        });
        let served = world.github.requests().len();
        ask(world, &daemon, &user, &[]);
        assert_eq!(
            world.github.requests().len(),
            served,
            "nothing goes on unrecorded"
        );

        fs::remove_file(&filler).unwrap();
        wait_for("service again", LIMIT, || {
            ask(world, &daemon, &user, &[]).success()
        });
        wait_for("whole records", LIMIT, || {
            records(&audit)
                .last()
                .is_some_and(|last| last["outcome"] == "forwarded")
        });
        assert!(
            records(&audit)
                .iter()
                .any(|record| record["outcome"] == "audit_unavailable")
        );
    });
}

/// Makes docs/page.png. By hand, where chromium is installed: `cargo xtask build && TV_AGENT=target/debug/tv-agent
/// cargo test -p tv-tests --test e2e picture -- --ignored`.
#[test]
#[ignore = "needs chromium, and changes docs/page.png"]
fn a_real_browser_shows_the_page_and_finds_nothing_to_complain_of() {
    World::run(|world| {
        let (user, bob) = (alice(world), world.user("bob"));
        let mut config = world.config();
        config["admin"]["page"] = true.into();
        let address = config["admin"]["metrics"].as_str().unwrap().to_owned();
        let daemon = world.daemon("picture", config).unwrap();
        for user in [&user, &user, &bob, &user] {
            ask(world, &daemon, user, &[]);
        }
        let root = world.root_file().display().to_string();
        let url = format!("https://{UNROUTED}/headers");
        daemon.run(&curl(&["--cacert", &root, &url])).unwrap();
        let picture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/page.png");
        let mut browser = world.command("chromium");
        browser
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--window-size=1200,1250",
            ])
            .args(["--enable-logging=stderr", "--v=0"])
            .arg(format!(
                "--user-data-dir={}",
                world.dir().join("browser").display()
            ))
            .arg(format!("--screenshot={}", picture.display()))
            .arg(format!("http://{address}/"));
        let shown = process::run(&mut browser, Duration::from_secs(60)).unwrap();
        shown.expect_success();
        // What the page itself is told, such as a style that its policy forbids.
        assert!(!shown.stderr.contains("CONSOLE"), "{}", shown.stderr);
        assert!(fs::metadata(&picture).unwrap().len() > 10_000);
    });
}

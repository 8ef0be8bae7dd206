//! What a running daemon says: `status`, `flows`, `cache`; and what the commands say without one.

use serde_json::{Value, json};
use tv_tests::world::{UNROUTED, World};

use crate::absence::ask;
use crate::support::{GITHUB_TOKEN, alice, curl, lines};

#[test]
fn a_daemon_says_what_it_did() {
    World::run(|world| {
        let user = alice(world);
        let config = world.config();
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let said = |command: &[&str]| {
            let finished = world
                .tv_agent(&[command, &["--socket", &socket]].concat())
                .unwrap();
            finished.expect_success().to_owned()
        };
        let daemon = world.daemon("control", config).unwrap();
        let json = |command: &[&str]| -> Vec<Value> {
            let text = said(&[command, &["-o", "json"]].concat());
            for secret in [user.as_str(), GITHUB_TOKEN] {
                assert!(!text.contains(secret), "{command:?} shows a token");
            }
            match serde_json::from_str(&text) {
                Ok(Value::Array(values)) => values,
                Ok(value) => vec![value],
                Err(_) => lines(&text)
                    .iter()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect(),
            }
        };
        let flows = || {
            let mut flows = json(&["flows"]);
            flows.retain(|flow| flow["kind"] == "request");
            flows
        };

        let status = &json(&["status"])[0];
        assert_eq!(status["ready"], true, "{status}");
        assert_eq!(status["listeners"][0], "127.34.67.1:15443");
        let enrolled = daemon.cgroup().path().to_str().unwrap();
        assert_eq!(status["cgroups"][0], enrolled);
        assert_eq!(status["cached_tokens"], 0);

        for _ in 0..2 {
            ask(world, &daemon, &user, &[]).expect_success();
        }
        let bob = world.user("bob");
        ask(world, &daemon, &bob, &[]);
        let seen = flows();
        assert_eq!(seen.len(), 3, "{seen:?}");
        for flow in &seen {
            assert_eq!(flow["route"], "github", "{flow}");
            assert_eq!(flow["request"], "GET /user");
            assert!(enrolled.ends_with(flow["cgroup"].as_str().unwrap()), "{flow}");
        }
        let outcomes: Vec<_> = seen
            .iter()
            .map(|flow| flow["outcome"].as_str().unwrap())
            .collect();
        assert_eq!(outcomes, ["forwarded", "forwarded", "connection_required"]);

        // A host that no route names: a connection, and nothing of what went through it.
        let url = format!("https://{UNROUTED}/headers");
        let root = world.root_file().display().to_string();
        daemon
            .run(&curl(&["--cacert", &root, &url]))
            .unwrap()
            .expect_success();
        let tunnelled = json(&["flows"]);
        let tunnel = tunnelled.iter().find(|flow| flow["host"] == UNROUTED).unwrap();
        assert_eq!(
            (&tunnel["outcome"], &tunnel["kind"]),
            (&"tunnel".into(), &"connection".into())
        );

        let rows = json(&["cache", "list"]);
        assert_eq!(
            rows.iter().filter(|row| row["state"] == "token").count(),
            1,
            "{rows:?}"
        );
        assert_eq!(world.auth0.count(&user), 1);
        let row = rows.iter().find(|row| row["state"] == "token").unwrap();
        let subject = row["subject"].as_str().unwrap();
        assert_eq!(
            (&row["vault"], row["hits"].as_u64(), &row["routes"][0]),
            (&"main".into(), Some(1), &"github".into())
        );
        assert_eq!(json(&["cache", "flush", "--route", "google"]), [0]);
        assert_eq!(json(&["cache", "flush", "--subject", "ffffffffffffffff"]), [0]);
        assert_eq!(
            json(&["cache", "flush", "--route", "github", "--subject", subject]),
            [1]
        );
        json(&["cache", "flush"]);
        ask(world, &daemon, &user, &[]).expect_success();
        assert_eq!(world.auth0.count(&user), 2, "flushed, so asked again");
        // And for people.
        let text = said(&["flows"]);
        assert!(text.contains("GET /user 200 forwarded"), "{text}");
        let text = said(&["status"]);
        assert!(text.contains("routes: "), "{text}");
    });
}

#[test]
fn keys_are_made_listed_rotated_and_published() {
    World::run(|world| {
        let mut config = world.config();
        let dir = world.dir().join("signing-keys");
        config["keysets_dir"] = dir.to_str().unwrap().into();
        config["keysets"] = json!({
            "gateway": { "generate": { "algorithm": "ES256" }, "rotate_days": 30 },
            "shared": { "generate": { "algorithm": "HS256" } },
        });
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let mut shown = String::new();
        let mut keys = |command: &[&str], more: &[&str]| -> Vec<Value> {
            let all = [&["keys"], command, &["--socket", &socket, "-o", "json"], more].concat();
            let finished = world.tv_agent(&all).unwrap();
            let text = finished.expect_success().to_owned();
            shown.push_str(&text);
            shown.push_str(&finished.stderr);
            serde_json::from_str(&text).unwrap()
        };
        let kid = |rows: &[Value]| rows[0]["kid"].as_str().unwrap().to_owned();
        let mut daemon = world.daemon("keys", config).unwrap();
        let published = |daemon: &tv_tests::world::Daemon<'_>, path: &str| -> Vec<String> {
            let (status, text) = daemon.get(path).unwrap();
            assert_eq!(status, 200, "{text}");
            let document: Value = serde_json::from_str(&text).unwrap();
            let keys = document["keys"].as_array().unwrap();
            assert!(
                keys.iter()
                    .all(|key| key.get("d").is_none() && key.get("k").is_none()),
                "{text}"
            );
            keys.iter()
                .map(|key| key["kid"].as_str().unwrap().to_owned())
                .collect()
        };
        let rows = keys(&["list"], &[]);
        let sets: Vec<_> = rows.iter().map(|row| row["set"].as_str().unwrap()).collect();
        assert_eq!(sets, ["gateway", "shared"]);
        let first = kid(&rows);
        assert_eq!(
            published(&daemon, "/jwks"),
            std::slice::from_ref(&first),
            "the HMAC key is nobody's"
        );
        let second = kid(&keys(&["rotate", "gateway"], &[]));
        assert_ne!(first, second);
        assert_eq!(published(&daemon, "/jwks/gateway"), [second.clone(), first]);
        assert!(published(&daemon, "/jwks/shared").is_empty());
        assert_eq!(daemon.get("/jwks/other").unwrap().0, 404);
        let unknown = world
            .tv_agent(&["keys", "rotate", "other", "--socket", &socket])
            .unwrap();
        assert_eq!(unknown.code(), 1);
        assert!(unknown.stderr.contains("gateway, shared"), "{}", unknown.stderr);

        // Without the daemon on its files, which the next one takes over.
        let file = daemon.config_file().to_str().unwrap().to_owned();
        let stopped = daemon.stop();
        shown.push_str(&stopped.stdout);
        shown.push_str(&stopped.stderr);
        let keys = |command: &[&str]| -> Vec<Value> {
            let all = [
                &["keys"],
                command,
                &["--socket", &socket, "-o", "json", "--config", &file],
            ]
            .concat();
            serde_json::from_str(world.tv_agent(&all).unwrap().expect_success()).unwrap()
        };
        assert_eq!(kid(&keys(&["list"])), second);
        let third = kid(&keys(&["rotate", "gateway"]));
        daemon.restart().unwrap();
        assert_eq!(published(&daemon, "/jwks/gateway"), [third, second]);

        let mut secrets = 0;
        for set in ["gateway", "shared"] {
            let stored = std::fs::read_to_string(dir.join(format!("{set}.json"))).unwrap();
            let stored: Value = serde_json::from_str(&stored).unwrap();
            for key in stored["keys"].as_array().unwrap() {
                let private = key["private"].as_str().unwrap();
                assert!(!shown.contains(&private[..40]), "{set}");
                secrets += 1;
            }
        }
        assert_eq!(secrets, 3);
    });
}

#[test]
fn without_a_daemon_the_commands_say_so() {
    World::run(|world| {
        for command in [
            &["status"][..],
            &["flows"],
            &["cache", "list"],
            &["cache", "flush"],
            &["cache", "flush", "--vault", "main"],
        ] {
            let finished = world.tv_agent(command).unwrap();
            assert_eq!(finished.code(), 1, "{command:?}");
            assert!(
                finished.stderr.contains("is the daemon running"),
                "{}",
                finished.stderr
            );
        }
    });
}

//! What a running daemon says: `status`, `flows`, `cache`; and what the commands say without one.

use serde_json::Value;
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
fn without_a_daemon_the_commands_say_so() {
    World::run(|world| {
        for command in [
            &["status"][..],
            &["flows"],
            &["cache", "list"],
            &["cache", "flush"],
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

//! `capture: dns` and `cidr` with the daemon and a real client, which asks the world's name server itself.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tv_tests::process;
use tv_tests::world::{Daemon, GITHUB_API, GOOGLE, GOOGLE_GRPC, UNROUTED, World};

use crate::support::{
    GITHUB_TOKEN, GOOGLE_TOKEN, alice, assert_swapped, assert_unseen, bearer, curl, user_url, wait_for,
};

const LIMIT: Duration = Duration::from_secs(30);
/// Of the unrouted host, which nobody is to look up.
const UNROUTED_AT: &str = "192.0.2.40";

fn narrowed(world: &World, seconds: u64) -> Value {
    let mut config = world.config();
    config["intercept"]["capture"] = json!("dns");
    config["intercept"]["unsure_seconds"] = json!(seconds);
    config
}

fn get(daemon: &Daemon<'_>, url: &str, more: &[&str], root: &str) {
    let command = curl(&[&["--cacert", root], more, &[url]].concat());
    daemon.run(&command).unwrap().expect_success();
}

fn tunnelled(daemon: &Daemon<'_>) -> u64 {
    let reason = r#"tv_agent_connections_total{decision="tunnel",reason="not_routed"}"#;
    daemon.metric(reason).unwrap()
}

fn left_alone(daemon: &Daemon<'_>) -> u64 {
    let reason = r#"tv_agent_bpf_events_total{reason="not_candidate"}"#;
    daemon.metric(reason).unwrap()
}

#[test]
fn routed_names_are_served_and_others_left_alone() {
    World::run(|world| {
        let user = alice(world);
        let daemon = world.daemon("names", narrowed(world, 3600)).unwrap();
        let (agent, plain) = (world.agent_root(), world.root_file());
        let (agent, plain) = (agent.to_str().unwrap(), plain.to_str().unwrap());
        let url = format!("https://{UNROUTED}/");
        get(&daemon, &url, &[], plain);
        assert!(left_alone(&daemon) > 0 && tunnelled(&daemon) == 0);

        // Exact, below a wildcard, and an alias, which the agent cannot have looked up itself.
        get(&daemon, &user_url(), &["--header", &bearer(&user)], agent);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        for name in [GOOGLE, "Gmail.GoogleAPIs.com"] {
            world.dns.alias(name, "edge.google.test");
        }
        let at: Vec<IpAddr> = vec!["192.0.2.30".parse().unwrap(), "2001:db8::1e".parse().unwrap()];
        world.dns.set("edge.google.test", &at);
        let files = format!("https://{GOOGLE}/drive/v3/files");
        get(&daemon, &files, &["--header", &bearer(&user)], agent);
        assert_swapped(&world.google, GOOGLE_TOKEN, &user);
        assert_unseen(world, &user);
        assert!(
            daemon
                .metric(r#"tv_agent_bpf_events_total{reason="dns_learnt"}"#)
                .unwrap()
                > 0
        );

        // The SNI decides: a candidate's address that some other host has, too.
        world
            .dns
            .set("forged.googleapis.com", &[UNROUTED_AT.parse().unwrap()]);
        let forged = [
            "curl",
            "--silent",
            "--max-time",
            "5",
            "https://forged.googleapis.com/",
        ];
        daemon.run(&forged).unwrap();
        get(&daemon, &url, &["--ipv4"], plain);
        assert_eq!(tunnelled(&daemon), 1);
        get(&daemon, &url, &["--ipv6"], plain);
        assert_eq!(tunnelled(&daemon), 1);

        let socket = narrowing(world, &daemon);
        assert_eq!(socket["capture"], "dns");
        assert!(socket["candidates"].as_u64().unwrap() >= 3, "{socket}");
        assert_eq!(socket["unsure_namespaces"], 0);
    });
}

fn narrowing(world: &World, daemon: &Daemon<'_>) -> Value {
    let file = std::fs::read_to_string(daemon.config_file()).unwrap();
    let socket = file
        .lines()
        .find_map(|line| line.trim().strip_prefix("socket: "))
        .unwrap();
    let socket = socket.trim_matches('"');
    let status = world
        .tv_agent(&["status", "-o", "json", "--socket", socket])
        .unwrap();
    let status: Value = serde_json::from_str(status.expect_success()).unwrap();
    status["narrowing"].clone()
}

#[test]
fn an_agent_later_than_its_workload_looks_at_everything_for_a_while() {
    World::run(|world| {
        let mut daemon = world.daemon("names-late", narrowed(world, 8)).unwrap();
        let plain = world.root_file().display().to_string();
        let url = format!("https://{UNROUTED}/");
        let mut older = daemon.command("sleep");
        let older = process::start(older.arg("600").stdin(Stdio::null())).unwrap();
        get(&daemon, &url, &[], &plain);
        assert!(left_alone(&daemon) > 0 && tunnelled(&daemon) == 0);
        // The programs go on reading while no agent runs.
        daemon.stop();
        daemon.restart().unwrap();
        get(&daemon, &url, &[], &plain);
        assert_eq!(tunnelled(&daemon), 0);
        assert_eq!(narrowing(world, &daemon)["all_unsure_s"], 0);
        daemon.stop();
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        daemon.restart().unwrap();
        get(&daemon, &url, &[], &plain);
        assert_eq!((left_alone(&daemon), tunnelled(&daemon)), (0, 1));
        assert_ne!(narrowing(world, &daemon)["all_unsure_s"], 0);
        wait_for("sure again", LIMIT, || {
            get(&daemon, &url, &[], &plain);
            left_alone(&daemon) > 0
        });
        drop(older);

        // A cut answer: curl's resolver asks again by TCP.
        let many: Vec<IpAddr> = (0..80).map(|n| IpAddr::from([192, 0, 2, 100 + n])).collect();
        world.dns.set(GOOGLE_GRPC, &many);
        let command = ["getent", "ahostsv4", GOOGLE_GRPC];
        daemon.run(&command).unwrap();
        let before = tunnelled(&daemon);
        get(&daemon, &url, &[], &plain);
        assert_eq!(tunnelled(&daemon), before + 1);
    });
}

#[test]
fn prefixes_narrow_and_a_reload_changes_them() {
    World::run(|world| {
        let user = alice(world);
        let mut config = world.config();
        config["intercept"]["capture"] = json!("cidr");
        config["intercept"]["capture_cidrs"] = json!(["192.0.2.16/28", "2001:db8::10/124"]);
        let daemon = world.daemon("names-cidr", config.clone()).unwrap();
        let (agent, plain) = (world.agent_root(), world.root_file());
        let (agent, plain) = (agent.to_str().unwrap(), plain.to_str().unwrap());
        let url = format!("https://{UNROUTED}/");
        get(&daemon, &url, &[], plain);
        get(&daemon, &user_url(), &["--header", &bearer(&user)], agent);
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_eq!(tunnelled(&daemon), 0);
        let outside = r#"tv_agent_bpf_events_total{reason="outside_cidrs"}"#;
        assert!(daemon.metric(outside).unwrap() > 0);
        assert_eq!(narrowing(world, &daemon)["capture"], "cidr");
        config["intercept"]["capture_cidrs"] = json!(["0.0.0.0/0", "::/0"]);
        daemon.rewrite_config(config).unwrap();
        wait_for("the reload", LIMIT, || {
            daemon
                .metric(r#"tv_agent_config_reloads_total{result="ok"}"#)
                .unwrap()
                == 1
        });
        get(&daemon, &url, &[], plain);
        assert_eq!(tunnelled(&daemon), 1);
        let explained = world
            .tv_agent(&[
                "explain",
                "--config",
                daemon.config_file().to_str().unwrap(),
                GITHUB_API,
            ])
            .unwrap();
        assert!(explained.expect_success().contains("capture_cidrs"));
    });
}

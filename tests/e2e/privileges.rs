//! As a DaemonSet or a hardened unit runs it: few capabilities, a cgroup namespace of its own.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tv_tests::cgroup::TestCgroup;
use tv_tests::process;
use tv_tests::world::World;

use crate::absence::assert_served;
use crate::pods::Pod;
use crate::support::{GITHUB_TOKEN, alice, assert_swapped, assert_unseen, lines, wait_for};

const LIMIT: Duration = Duration::from_secs(20);
/// Of those that the unit and the chart grant, what interception alone needs here. Before Linux 6.9 CAP_NET_ADMIN is asked
/// for where a cgroup_skb program is attached (`capture: dns`); CAP_SYS_ADMIN includes CAP_BPF everywhere.
const INTERCEPTION: [&str; 4] = ["SYS_ADMIN", "SYS_PTRACE", "SETUID", "SETGID"];

/// CapabilityBoundingSet of the unit, without `CAP_`; a test of the layer `deploy` holds the chart to the same.
fn granted() -> Vec<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/tv-agent@.service");
    let text = std::fs::read_to_string(unit).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.unwrap().split(' ');
    names
        .map(|name| name.strip_prefix("CAP_").unwrap().to_owned())
        .collect()
}

/// A program that drops all other capabilities for good.
fn bounded(capabilities: &[&str]) -> Vec<String> {
    let mut set = "--bounding-set=-all".to_owned();
    for name in capabilities {
        set += &format!(",+{}", name.to_lowercase());
    }
    ["setpriv", &set, "--inh-caps=-all", "--no-new-privs"]
        .map(str::to_owned)
        .to_vec()
}

/// The last request's flow record.
fn last(world: &World, config: &Value) -> Value {
    let socket = config["admin"]["socket"].as_str().unwrap();
    let finished = world
        .tv_agent(&["flows", "--socket", socket, "-o", "json"])
        .unwrap();
    let flows = lines(finished.expect_success()).into_iter();
    let mut flows = flows.map(|line| serde_json::from_str::<Value>(line).unwrap());
    flows.rfind(|flow| flow["kind"] == "request").unwrap()
}

fn words(wrapper: &[String]) -> Vec<&str> {
    wrapper.iter().map(String::as_str).collect()
}

#[test]
fn the_capabilities_that_are_granted_are_enough() {
    World::run(|world| {
        let user = alice(world);
        let granted = granted();
        let wrapper = bounded(&words(&granted));
        let config = world.config();
        let mut daemon = world
            .daemon_under(&words(&wrapper), "granted", config.clone())
            .unwrap();
        assert_served(world, &daemon, &user);
        let pod = Pod::running(&daemon, 1);
        wait_for("the pod is served", LIMIT, || {
            pod.ask(world, &user, &["--ipv4"]).success()
        });
        assert_swapped(&world.github, GITHUB_TOKEN, &user);
        assert_unseen(world, &user);
        assert_eq!(last(world, &config)["process"], "curl");
        // One that was taken over would not leave by itself; of another user, it takes CAP_KILL to end it.
        let serving = daemon.data_path().unwrap();
        kill(serving, Signal::SIGSTOP).unwrap();
        daemon.kill();
        wait_for("the data path ends with the warden", LIMIT, || {
            std::fs::read(format!("/proc/{serving}/cmdline")).map_or(true, |line| line.is_empty())
        });
    });
}

/// Each is taken away in turn; the agent then does not start, or does not serve a pod.
#[test]
fn none_of_them_can_be_missed() {
    World::run(|world| {
        let user = alice(world);
        for missing in INTERCEPTION {
            let kept: Vec<&str> = INTERCEPTION.into_iter().filter(|name| *name != missing).collect();
            let wrapper = bounded(&kept);
            let config = world.config();
            let Ok(mut daemon) = world.daemon_under(&words(&wrapper), "missed", config) else {
                continue;
            };
            let pod = Pod::running(&daemon, 2);
            wait_for("the pod's namespace is out of reach", LIMIT, || {
                let failed = "tv_agent_network_namespace_failures_total{reason=\"hidden\"}";
                daemon.metrics().is_ok_and(|metrics| metrics.contains(failed))
            });
            let asked = pod.ask(world, &user, &["--ipv4"]);
            assert_eq!(asked.code(), 7, "the agent works without CAP_{missing}");
            daemon.stop();
        }
    });
}

/// Container runtimes give a cgroup namespace of its own to each container that is not privileged, and paths in /proc are
/// relative to it: the agent must not take the cgroup that it runs in for another one. Process 1 is the host's there, and
/// a shell's here.
#[test]
fn a_cgroup_namespace_of_its_own_does_not_mislead_it() {
    World::run(|world| {
        let (mut config, cgroup) = (world.config(), TestCgroup::new("container"));
        config["intercept"]["cgroups"] = json!([cgroup.name()]);
        let file = world.write_config(&config).unwrap();
        let made = world
            .agent()
            .args(["ca", "init", "--config"])
            .arg(&file)
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let container = r#"echo $$ >"$0/cgroup.procs" && exec unshare --cgroup "$@""#;
        let host = format!("sh -c '{container}' \"$0\" \"$@\"; exit $?");
        let mut command = world.command("unshare");
        command
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                &host,
            ])
            .arg(cgroup.path())
            .arg(world.agent_file())
            .args(["run", "--config"])
            .arg(&file);
        let finished = process::run(&mut command, LIMIT).unwrap();
        let (code, said) = (finished.code(), finished.stderr);
        assert!(
            said.contains("the agent itself runs in the enrolled cgroup"),
            "{code}: {said}"
        );
    });
}

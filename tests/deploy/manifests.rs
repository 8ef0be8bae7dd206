//! The objects: valid, least privileged, upgradable without a gap, and apart from those of another release.

use std::collections::BTreeSet;
use std::path::Path;

use clap::Parser as _;
use serde_json::{Value, json};
use tv_agent::cli::{Cli, Command};
use tv_agent::config::Config;

use crate::support::{RELEASES, kept_in_step, lint, objects, only, pod, rendered};

#[test]
fn helms_lint_finds_nothing_but_the_missing_icon() {
    let messages = lint()["messages"].as_array().unwrap();
    let wrong = messages
        .iter()
        .filter(|message| message["severity"].as_i64() > Some(1));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&Value>::new());
}

#[test]
fn every_object_is_one_of_kubernetes() {
    for (which, _) in RELEASES.iter() {
        assert_eq!(rendered(which)["invalid"], json!([]), "{which}");
    }
}

#[test]
fn the_plain_manifests_are_the_charts() {
    for (which, file) in [("plain", "tv-agent"), ("cleanup", "cleanup")] {
        let text = rendered(which)["text"].as_object().unwrap();
        let mut whole = format!(
            "# `helm template tv-agent deploy/helm/tv-agent --namespace tv-agent -f ci/values.yaml`{}\n",
            if which == "cleanup" {
                " --set mode=cleanup"
            } else {
                ""
            }
        );
        for (template, part) in text {
            let lines: Vec<&str> = part
                .as_str()
                .unwrap()
                .lines()
                .filter(|line| !line.trim().is_empty())
                .collect();
            if template.ends_with(".yaml") && !lines.is_empty() {
                whole += &format!("---\n{}\n", lines.join("\n"));
            }
        }
        let whole = whole.replace("managed-by: Helm", "managed-by: kubectl");
        let whole: String = whole
            .lines()
            .filter(|line| !line.contains("helm.sh/chart"))
            .map(|line| format!("{line}\n"))
            .collect();
        kept_in_step(&format!("deploy/kubernetes/{file}.yaml"), &whole);
    }
}

#[test]
fn the_agent_reads_the_configuration_it_is_given() {
    for which in ["plain", "all", "hidden"] {
        let map = objects(which, "ConfigMap");
        let text = map[0]["data"]["config.yaml"].as_str().unwrap();
        // Files of secrets are read by the agent; here they are not there.
        let text = text.replace("file: /run/secrets/tv-agent/auth0/client-secret", "env: SECRET");
        let env = |name: &str| match name {
            "SECRET" => Some("secret".to_owned()),
            // As in a pod.
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            "NODE_NAME" => Some("node-1".to_owned()),
            _ => None,
        };
        let config =
            Config::parse(&text, Path::new("config.yaml"), &env).unwrap_or_else(|e| panic!("{which}: {e}"));
        let exposed = which != "hidden";
        let metrics = config.metrics.unwrap();
        assert_eq!(metrics.ip().is_loopback(), !exposed, "{which}");
        let probe = &pod(which)["containers"][0]["readinessProbe"]["httpGet"];
        assert_eq!(probe["port"], metrics.port(), "{which}");
        assert_eq!(probe["host"], "127.0.0.1");
        let grace = pod(which)["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > config.drain.as_secs(), "{which}");
    }
}

#[test]
fn the_agent_knows_its_command_lines() {
    for which in ["plain", "cleanup", "privileged", "all"] {
        let pod = pod(which);
        let containers = ["initContainers", "containers"];
        let containers = containers
            .iter()
            .flat_map(|list| pod[list].as_array().into_iter().flatten());
        for container in containers.filter(|container| container["args"].is_array()) {
            let arguments = container["args"].as_array().unwrap().iter();
            let words = arguments.map(|word| word.as_str().unwrap());
            let parsed = Cli::try_parse_from(std::iter::once("tv-agent").chain(words));
            let parsed = parsed.unwrap_or_else(|error| panic!("{which}: {error}"));
            if let Command::Run(run) = parsed.command {
                // What a DaemonSet's surge needs: it starts again whatever ends.
                assert!(run.take_over && run.linger);
            }
        }
    }
}

/// The next version's pod comes beside the running one, in the same network.
#[test]
fn an_upgrade_leaves_no_gap() {
    let set = only("plain", "DaemonSet");
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"],
        json!({"maxSurge": 1, "maxUnavailable": 0})
    );
    let pod = pod("plain");
    assert_eq!(
        (&pod["hostNetwork"], &pod["hostPID"]),
        (&json!(true), &json!(true))
    );
    for container in pod["containers"].as_array().unwrap() {
        assert!(
            container["ports"].is_null(),
            "in the host's network a port is one pod's only"
        );
    }
    let paths: BTreeSet<&str> = pod["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|volume| volume["hostPath"]["path"].as_str())
        .collect();
    let shared = [
        "/run/tv-agent",
        "/sys/fs/bpf",
        "/sys/fs/cgroup",
        "/var/lib/tv-agent",
    ];
    assert_eq!(paths, BTreeSet::from(shared));
}

#[test]
fn only_what_needs_a_restart_makes_new_pods() {
    let template = |which| &only(which, "DaemonSet")["spec"]["template"];
    assert_eq!(template("plain"), template("routed"), "a reload is enough");
    assert_ne!(template("plain"), template("settled"));
}

#[test]
fn nothing_is_privileged_unless_asked_for() {
    for (which, _) in RELEASES.iter().filter(|(which, _)| *which != "privileged") {
        let pod = pod(which);
        let lists = ["initContainers", "containers"];
        for container in lists
            .iter()
            .flat_map(|list| pod[list].as_array().into_iter().flatten())
        {
            let context = &container["securityContext"];
            assert_ne!(context["privileged"], true, "{which}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{which}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{which}");
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]), "{which}");
            assert!(context["seccompProfile"]["type"].is_string(), "{which}");
            // Only the agent has any.
            let agent = ["tv-agent", "cleanup"]
                .iter()
                .any(|name| container["name"] == *name);
            assert_eq!(context["capabilities"]["add"].is_null(), !agent, "{which}");
        }
    }
    let context = &pod("privileged")["containers"][0]["securityContext"];
    assert_eq!(context["privileged"], true);
    assert!(context["capabilities"].is_null());
}

#[test]
fn the_api_server_is_asked_for_pods_and_namespaces_and_told_events_and_nothing_else() {
    assert_eq!(objects("plain", "ClusterRole"), Vec::<&Value>::new());
    assert_eq!(pod("plain")["automountServiceAccountToken"], false);
    assert_eq!(objects("bound", "ClusterRole"), Vec::<&Value>::new());
    for which in ["all", "bound"] {
        assert_eq!(pod(which)["automountServiceAccountToken"], true, "{which}");
        assert_eq!(
            only(which, "ServiceAccount")["automountServiceAccountToken"],
            false,
            "{which}"
        );
    }
    assert_eq!(
        only("all", "ClusterRole")["rules"],
        json!([
            {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]},
            {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
        ])
    );
    let bound = only("all", "ClusterRoleBinding");
    let account = only("all", "ServiceAccount");
    assert_eq!(bound["subjects"][0]["name"], account["metadata"]["name"]);
    assert_eq!(
        bound["subjects"][0]["namespace"],
        account["metadata"]["namespace"]
    );
    assert_eq!(
        bound["roleRef"]["name"],
        only("all", "ClusterRole")["metadata"]["name"]
    );
}

/// The root's key is for the init container alone.
#[test]
fn the_running_agent_never_sees_the_roots_key() {
    let pod = pod("all");
    let mounts = |list: &str| {
        let mounts = pod[list][0]["volumeMounts"].as_array().unwrap().iter();
        let names = mounts.map(|mount| mount["name"].as_str().unwrap());
        names.collect::<Vec<_>>()
    };
    assert!(mounts("initContainers").contains(&"root"));
    assert!(!mounts("containers").contains(&"root"));
}

#[test]
fn two_releases_share_no_name_and_no_node() {
    let names = |which: &str| -> BTreeSet<String> {
        let all = rendered(which)["objects"].as_array().unwrap().iter();
        all.map(|object| {
            let metadata = &object["metadata"];
            format!(
                "{} {} {}",
                object["kind"], metadata["namespace"], metadata["name"]
            )
        })
        .collect()
    };
    for other in ["sibling", "named", "moved"] {
        let common: Vec<_> = names("all").intersection(&names(other)).cloned().collect();
        assert!(common.is_empty(), "{other}: {common:?}");
        let label = |which| &only(which, "DaemonSet")["spec"]["template"]["metadata"]["labels"];
        assert_ne!(
            label("all")["tv-agent.io/release"],
            label(other)["tv-agent.io/release"]
        );
        for which in ["all", other] {
            let apart = &pod(which)["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
                [0];
            assert_eq!(apart["topologyKey"], "kubernetes.io/hostname");
            assert_eq!(apart["namespaceSelector"], json!({}));
            let own = &label(which)["tv-agent.io/release"];
            let expressions = apart["labelSelector"]["matchExpressions"].as_array().unwrap();
            for expression in expressions {
                let key = expression["key"].as_str().unwrap();
                match expression["operator"].as_str().unwrap() {
                    // Not its own: the next version's pod comes beside it.
                    "NotIn" => assert_eq!(
                        (key, &expression["values"]),
                        ("tv-agent.io/release", &json!([own]))
                    ),
                    "In" => assert_eq!(expression["values"], json!([label(which)[key]]), "{key}"),
                    operator => panic!("{operator}"),
                }
            }
        }
    }
    assert!(pod("all")["affinity"]["nodeAffinity"].is_object());
    assert_eq!(only("moved", "DaemonSet")["metadata"]["namespace"], "elsewhere");
}

#[test]
fn a_cleanup_runs_where_no_agent_runs_any_more() {
    let set = only("cleanup", "DaemonSet");
    assert_eq!(
        set["spec"]["updateStrategy"]["rollingUpdate"],
        json!({"maxSurge": 0, "maxUnavailable": "100%"})
    );
    assert_eq!(pod("cleanup")["initContainers"][0]["args"], json!(["cleanup"]));
    assert!(objects("cleanup", "Service").is_empty() && objects("cleanup", "ConfigMap").is_empty());
    assert_eq!(
        set["spec"]["selector"],
        only("plain", "DaemonSet")["spec"]["selector"]
    );
}

//! The webhook's part of the chart: what the API server sends it, what it may do, and what it works by.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use clap::Parser as _;
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tv_agent::cli::{Cli, Command};
use tv_agent::kubernetes::SIDECARS;
use tv_agent::webhook::Settings;
use tv_agent::webhook::needs::VARIABLES;

use crate::support::{objects, only, rendered};

const RELEASES: [&str; 4] = ["webhook", "webhook-all", "webhook-sibling", "webhook-named"];

fn settings(which: &str) -> Settings {
    let maps = objects(which, "ConfigMap");
    let map = maps.iter().find_map(|map| map["data"]["webhook.yaml"].as_str());
    Settings::parse(map.expect("its configuration"), Path::new("webhook.yaml"))
        .unwrap_or_else(|error| panic!("{which}: {error}"))
}

fn pod(which: &str) -> &'static Value {
    &only(which, "Deployment")["spec"]["template"]["spec"]
}

fn role(which: &str) -> &'static Value {
    only(which, "ClusterRole")
}

#[test]
fn there_is_none_unless_asked_for() {
    for which in ["plain", "all", "webhook-cleanup"] {
        for kind in [
            "Deployment",
            "MutatingWebhookConfiguration",
            "PodDisruptionBudget",
            "Secret",
        ] {
            assert_eq!(objects(which, kind), Vec::<&Value>::new(), "{which}");
        }
    }
}

#[test]
fn it_reads_the_configuration_and_the_command_line_that_it_is_given() {
    for which in RELEASES {
        let settings = settings(which);
        let container = &pod(which)["containers"][0];
        let ports = container["ports"].as_array().unwrap();
        let port =
            |name: &str| ports.iter().find(|port| port["name"] == name).unwrap()["containerPort"].clone();
        assert_eq!(port("https"), settings.listen.port());
        assert_eq!(port("metrics"), settings.metrics.port());
        assert!(!settings.metrics.ip().is_loopback(), "the kubelet probes it");
        let words = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|word| word.as_str().unwrap());
        let cli = Cli::try_parse_from(std::iter::once("tv-agent").chain(words)).unwrap();
        assert!(matches!(cli.command, Command::Webhook(_)));
        let mounts = container["volumeMounts"].as_array().unwrap();
        let below = |path: &Path| {
            mounts
                .iter()
                .any(|mount| path.starts_with(mount["mountPath"].as_str().unwrap()))
        };
        for path in settings.roots.iter().chain(&settings.public_roots) {
            assert!(below(path), "{which}: {}", path.display());
        }
        assert!(below(&settings.certificate) && below(&settings.key));
        let grace = pod(which)["terminationGracePeriodSeconds"].as_u64().unwrap();
        assert!(grace > (settings.drain + settings.pace.linger).as_secs());
    }
    assert_eq!(settings("webhook-all").book.rules.prefix, "agent.example");
    assert!(settings("webhook-all").book.rules.unsaid() && !settings("webhook").book.rules.unsaid());
}

#[test]
fn the_charts_defaults_are_the_programs() {
    let settings = settings("webhook");
    assert_eq!(settings.book.rules.exclude, SIDECARS.map(str::to_owned).into());
    assert_eq!(settings.book.plan.variables, VARIABLES);
    let default = Settings::parse("tls: {certificate: a, key: b}\nroots: [c]", Path::new("w")).unwrap();
    assert_eq!(settings.book.plan, default.book.plan);
    assert_eq!(settings.drain, default.drain);
}

/// As the API server selects: which webhook gets a pod, by the labels of its namespace and its own.
fn called(which: &str, namespace: &Value, pod: &Value) -> Vec<String> {
    let matches = |selector: &Value, labels: &Value| {
        selector["matchExpressions"]
            .as_array()
            .unwrap()
            .iter()
            .all(|expression| {
                let label = &labels[expression["key"].as_str().unwrap()];
                let among = expression["values"].as_array().unwrap().contains(label);
                match expression["operator"].as_str().unwrap() {
                    "In" => among,
                    // Also what has no such label.
                    "NotIn" => !among,
                    operator => panic!("{operator}"),
                }
            })
    };
    let webhooks = only(which, "MutatingWebhookConfiguration")["webhooks"]
        .as_array()
        .unwrap();
    let called = webhooks.iter().filter(|webhook| {
        matches(&webhook["namespaceSelector"], namespace) && matches(&webhook["objectSelector"], pod)
    });
    called
        .map(|webhook| {
            webhook["clientConfig"]["service"]["path"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect()
}

#[test]
fn only_pods_that_ask_come_by_and_only_once() {
    let labels = |key: &str, said: Option<&str>| match said {
        Some(said) => json!({ "kubernetes.io/metadata.name": "shop", key: said }),
        None => json!({ "kubernetes.io/metadata.name": "shop" }),
    };
    let (yes, no) = (Some("true"), Some("false"));
    let by_namespace: &[&str] = &["/mutate/asked"];
    let by_pod: &[&str] = &["/mutate"];
    for (which, key, namespace, pod, expected) in [
        ("webhook", "tv-agent.io/enrol", None, None, &[][..]),
        ("webhook", "tv-agent.io/enrol", None, yes, by_pod),
        ("webhook", "tv-agent.io/enrol", None, no, &[]),
        ("webhook", "tv-agent.io/enrol", yes, None, by_namespace),
        ("webhook", "tv-agent.io/enrol", yes, yes, by_namespace),
        ("webhook", "tv-agent.io/enrol", yes, no, &[]),
        ("webhook", "tv-agent.io/enrol", no, None, &[]),
        ("webhook", "tv-agent.io/enrol", no, yes, by_pod),
        ("webhook-all", "agent.example/enrol", None, None, by_namespace),
        ("webhook-all", "agent.example/enrol", None, no, &[]),
        ("webhook-all", "agent.example/enrol", no, None, &[]),
        ("webhook-all", "agent.example/enrol", no, yes, by_pod),
        ("webhook-all", "agent.example/enrol", yes, no, &[]),
    ] {
        let called = called(which, &labels(key, namespace), &labels(key, pod));
        assert_eq!(called, expected, "{which}: namespace {namespace:?}, pod {pod:?}");
    }
    // Not the cluster's own, nor the webhook's, which could not start without itself.
    let asks = json!({ "tv-agent.io/enrol": "true" });
    for namespace in ["kube-system", "tv-agent"] {
        let mut labels = asks.clone();
        labels["kubernetes.io/metadata.name"] = namespace.into();
        assert!(called("webhook", &labels, &asks).is_empty());
    }
}

#[test]
fn a_webhook_that_is_away_keeps_no_pod_from_starting() {
    for which in RELEASES {
        let webhooks = only(which, "MutatingWebhookConfiguration")["webhooks"]
            .as_array()
            .unwrap();
        assert_eq!(webhooks.len(), 2);
        for webhook in webhooks {
            assert_eq!(webhook["failurePolicy"], "Ignore");
            assert_eq!(webhook["timeoutSeconds"], 5);
            assert_eq!(webhook["sideEffects"], "NoneOnDryRun");
            assert_eq!(webhook["reinvocationPolicy"], "IfNeeded");
            assert_eq!(webhook["rules"][0]["resources"], json!(["pods"]));
            let service = &webhook["clientConfig"]["service"];
            let own = only_webhook_service(which);
            assert_eq!(service["name"], own["metadata"]["name"]);
            assert_eq!(service["namespace"], own["metadata"]["namespace"]);
        }
    }
}

fn only_webhook_service(which: &str) -> &'static Value {
    let services = objects(which, "Service");
    let own = services
        .iter()
        .find(|service| service["metadata"]["labels"]["app.kubernetes.io/component"] == "webhook");
    own.unwrap_or_else(|| panic!("{which}"))
}

#[test]
fn its_pods_are_nobody_elses() {
    let labels = &only("webhook", "Deployment")["spec"]["template"]["metadata"]["labels"];
    let selects = |selector: &Value| {
        let selector = selector.as_object().unwrap();
        selector.iter().all(|(key, value)| labels[key] == *value)
    };
    assert!(selects(&only_webhook_service("webhook")["spec"]["selector"]));
    assert!(selects(
        &only("webhook", "PodDisruptionBudget")["spec"]["selector"]["matchLabels"]
    ));
    assert!(!selects(
        &only("webhook", "DaemonSet")["spec"]["selector"]["matchLabels"]
    ));
    for service in objects("webhook", "Service") {
        let own = service["metadata"]["labels"]["app.kubernetes.io/component"] == "webhook";
        assert_eq!(selects(&service["spec"]["selector"]), own);
    }
}

#[test]
fn it_has_no_privilege_and_no_key_of_the_ca() {
    for which in RELEASES {
        let pod = pod(which);
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null());
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        let context = &pod["containers"][0]["securityContext"];
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        assert_eq!(context["capabilities"], json!({ "drop": ["ALL"] }));
        assert_eq!(context["seccompProfile"]["type"], "RuntimeDefault");
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()));
        let roots = volumes.iter().find(|volume| volume["name"] == "roots").unwrap();
        let secret = &roots["projected"]["sources"][0]["secret"];
        assert_eq!(
            secret["items"],
            json!([{ "key": "tls.crt", "path": "existing-secret.pem" }])
        );

        let name = settings(which).book.config_map;
        assert_eq!(
            role(which)["rules"],
            json!([
                {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
                {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [name],
                 "verbs": ["list", "watch", "patch"]},
            ])
        );
        let account = &only(which, "ClusterRoleBinding")["subjects"][0];
        assert_eq!(account["name"], pod["serviceAccountName"]);
    }
}

#[test]
fn the_certificate_that_helm_makes_is_the_services_and_the_api_server_trusts_it() {
    let data = &only("webhook", "Secret")["data"];
    let decode = |value: &Value| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap());
        bytes.unwrap()
    };
    let leaf = CertificateDer::from_pem_slice(&decode(&data["tls.crt"])).unwrap();
    PrivateKeyDer::from_pem_slice(&decode(&data["tls.key"])).unwrap();
    for webhook in only("webhook", "MutatingWebhookConfiguration")["webhooks"]
        .as_array()
        .unwrap()
    {
        let bundle = decode(&webhook["clientConfig"]["caBundle"]);
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&bundle).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().unwrap();
        let name = ServerName::try_from("tv-agent-webhook.tv-agent.svc").unwrap();
        verifier
            .verify_server_cert(&leaf, &[], &name, &[], UnixTime::now())
            .unwrap();
    }
    // With a secret of one's own there is no other.
    assert!(objects("webhook-all", "Secret").is_empty());
    let configuration = only("webhook-all", "MutatingWebhookConfiguration");
    let from = &configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
    assert_eq!(from, "tv-agent/webhook");
    let bundle =
        &only("webhook-named", "MutatingWebhookConfiguration")["webhooks"][0]["clientConfig"]["caBundle"];
    assert_eq!(decode(bundle), b"PEM");
}

#[test]
fn two_releases_with_webhooks_share_nothing() {
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
    for other in ["webhook-sibling", "webhook-named"] {
        let common: Vec<_> = names("webhook").intersection(&names(other)).cloned().collect();
        assert!(common.is_empty(), "{other}: {common:?}");
        assert_ne!(
            settings("webhook").book.config_map,
            settings(other).book.config_map
        );
    }
}

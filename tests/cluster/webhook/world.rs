//! A release of the chart whose webhook runs beside the real server.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tv_agent::encode::certificate_pem;
use tv_tests::cluster::{self, Answer, Api, Cluster, Kinds};
use tv_tests::fakes::pki::Pki;
use tv_tests::process::{self, Finished, Running};
use tv_tests::sys;
use tv_tests::world::agent_binary;

use crate::support::{install, releases, wait_for};

/// Nobody's on this machine.
const UID: u32 = 65532;
pub const LIMIT: Duration = Duration::from_secs(30);

/// A release of the chart with its webhook running. Its labels are its own, so that others' pods are not its matter.
pub struct World {
    pub running: Running,
    /// Of metrics and health.
    admin: u16,
    /// Of labels and annotations.
    prefix: String,
    pub namespace: String,
    /// The ConfigMaps' name.
    map: String,
    pub api: Api,
    pub directory: TempDir,
    pub cluster: Arc<Cluster>,
}

impl World {
    pub fn new() -> Option<Self> {
        let cluster = cluster::shared()?;
        let binary = match agent_binary() {
            Ok(binary) => binary,
            Err(reason) => {
                assert!(
                    std::env::var("CI").as_deref() != Ok("true"),
                    "this test must run in CI: {reason}"
                );
                eprintln!("skipped: {reason}");
                return None;
            }
        };
        let (api, kinds) = (cluster.admin(), Kinds::of(&cluster.admin()));
        let namespace = cluster.namespace("webhook");
        let prefix = format!("{namespace}.example");
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();

        let pki = Pki::new("webhook's CA");
        let identity = pki.leaf(&["127.0.0.1"]);
        let chain: String = identity.chain.iter().map(certificate_pem).collect();
        let key = KeyPair::try_from(&identity.key).unwrap().serialize_pem();
        let values = json!({
            "ca": {"existingSecret": "tv-agent-root"},
            "kubernetes": {"prefix": prefix},
            "webhook": {
                "enabled": true,
                "certificate": {"secret": "webhook", "caBundle": pki.root_pem()},
            },
        });
        let objects = releases(&[("tv-agent", &namespace, values)]).remove(0);
        let (mut registration, objects): (Vec<Value>, Vec<Value>) = objects
            .into_iter()
            .partition(|object| object["kind"] == "MutatingWebhookConfiguration");
        install(&api, &kinds, &objects);

        // As the chart has it, but for this machine's addresses and files.
        let name = "tv-agent-webhook";
        let of_pod = objects
            .iter()
            .find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name);
        let of_pod = of_pod.unwrap()["data"]["webhook.yaml"].as_str().unwrap();
        let mut config: Value = serde_saphyr::from_str(of_pod).unwrap();
        let file = |name: &str| directory.path().join(name);
        config["listen"] = json!("127.0.0.1:0");
        config["admin"]["metrics"] = json!("127.0.0.1:0");
        config["tls"] = json!({"certificate": file("tls.crt"), "key": file("tls.key")});
        config["roots"] = json!([file("roots")]);
        config["kubernetes"]["kubeconfig"] = json!(file("kubeconfig"));
        std::fs::create_dir(file("roots")).unwrap();
        for (name, text) in [
            ("tls.crt", chain),
            ("tls.key", key),
            ("roots/root.pem", Pki::new("tv-agent CA").root_pem().to_owned()),
            (
                "kubeconfig",
                kubeconfig(&cluster, &cluster.token(&namespace, name)).to_string(),
            ),
            ("webhook.yaml", config.to_string()),
        ] {
            std::fs::write(file(name), text).unwrap();
        }
        let (running, port, admin) = start(binary, file("webhook.yaml"));

        let registration = &mut registration[0];
        for webhook in registration["webhooks"].as_array_mut().unwrap() {
            let client = &mut webhook["clientConfig"];
            let path = client["service"]["path"].as_str().unwrap().to_owned();
            assert_eq!(client["caBundle"], STANDARD.encode(pki.root_pem()));
            client.as_object_mut().unwrap().remove("service");
            client["url"] = json!(format!("https://127.0.0.1:{port}{path}"));
        }
        install(&api, &kinds, std::slice::from_ref(registration));
        let world = Self {
            running,
            admin,
            prefix,
            map: config["config_map"].as_str().unwrap().to_owned(),
            namespace,
            api,
            directory,
            cluster,
        };
        // The server learns of the registration by a watch of its own.
        let probe = world.cluster.namespace("probe");
        wait_for("the registration", LIMIT, || {
            let answer = world.create_dry(&probe, &world.labelled("probe", "true"));
            !answer["spec"]["volumes"].is_null()
        });
        Some(world)
    }

    /// A namespace whose pods ask.
    pub fn asking(&self, purpose: &str) -> String {
        self.cluster
            .labelled_namespace(purpose, &json!({self.key("enrol"): "true"}))
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    pub fn labelled(&self, name: &str, enrol: &str) -> Value {
        let mut pod = pod(name);
        pod["metadata"]["labels"] = json!({self.key("enrol"): enrol});
        pod
    }

    pub fn send(&self, namespace: &str, pod: &Value) -> Answer {
        self.api
            .create(&format!("/api/v1/namespaces/{namespace}/pods"), pod)
    }

    pub fn create(&self, namespace: &str, pod: &Value) -> Value {
        self.send(namespace, pod).expect_code(201)
    }

    pub fn create_dry(&self, namespace: &str, pod: &Value) -> Value {
        let path = format!("/api/v1/namespaces/{namespace}/pods?dryRun=All");
        self.api.create(&path, pod).expect_code(201)
    }

    /// That a namespace has none, or its data and metadata.
    pub fn config_map(&self, namespace: &str) -> Option<Value> {
        let answer = self.api.get(&self.map_path(namespace));
        (answer.code != 404).then(|| answer.expect_code(200))
    }

    pub fn map_path(&self, namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/configmaps/{}", self.map)
    }

    /// Reviews so far, by result.
    pub fn reviews(&self) -> BTreeMap<String, u64> {
        let metrics = get(self.admin, "/metrics");
        let of_line = |line: &str| {
            let line = line.strip_prefix("tv_agent_webhook_reviews_total{result=\"")?;
            let (result, count) = line.split_once("\"} ")?;
            Some((result.to_owned(), count.parse().ok()?))
        };
        let reviews: BTreeMap<String, u64> = metrics.expect_success().lines().filter_map(of_line).collect();
        assert!(!reviews.is_empty(), "{}", metrics.stdout);
        reviews
    }

    /// How many reviews `what` takes.
    pub fn reviews_of<T>(&self, what: impl FnOnce() -> T) -> (u64, T) {
        let all = || self.reviews().values().sum::<u64>();
        let before = all();
        let answer = what();
        (all() - before, answer)
    }

    /// Each container's name, what is mounted there of ours, and its variables.
    #[track_caller]
    pub fn must_have_trust(&self, pod: &Value) {
        let volumes = json!([{
            "name": "tv-agent-ca",
            "configMap": {"name": self.map, "defaultMode": 0o444, "optional": true},
        }]);
        assert_eq!(pod["spec"]["volumes"], volumes);
        assert_eq!(pod["metadata"]["annotations"][self.key("trust")], "injected");
        for list in ["initContainers", "containers"] {
            must_reach(&pod["spec"][list][0]);
        }
    }
}

#[track_caller]
pub fn must_reach(container: &Value) {
    let mounts = json!([{"name": "tv-agent-ca", "mountPath": "/run/tv-agent/ca", "readOnly": true}]);
    assert_eq!(container["volumeMounts"], mounts);
    let variables = container["env"].as_array().unwrap();
    for (name, value) in [
        ("NODE_EXTRA_CA_CERTS", "/run/tv-agent/ca/roots.pem"),
        ("REQUESTS_CA_BUNDLE", "/run/tv-agent/ca/bundle.pem"),
    ] {
        assert!(
            variables.contains(&json!({"name": name, "value": value})),
            "{container}"
        );
    }
}

#[track_caller]
pub fn must_be_alone(container: &Value) {
    assert!(
        container["volumeMounts"].is_null() && container["env"].is_null(),
        "{container}"
    );
}

#[track_caller]
pub fn must_be_as_sent(pod: &Value) {
    assert!(pod["spec"]["volumes"].is_null(), "{pod}");
    assert!(pod["metadata"]["annotations"].is_null(), "{pod}");
    for list in ["initContainers", "containers"] {
        must_be_alone(&pod["spec"][list][0]);
    }
}

/// That nothing runs.
pub fn pod(name: &str) -> Value {
    let container = |name: &str| json!([{"name": name, "image": "example.com/none"}]);
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"initContainers": container("first"), "containers": container("main")},
    })
}

fn kubeconfig(cluster: &Cluster, token: &str) -> Value {
    let config = cluster.config(token);
    let root = CertificateDer::from(config.root_cert.unwrap().remove(0));
    let root = STANDARD.encode(certificate_pem(&root));
    let server = config.cluster_url.to_string();
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server, "certificate-authority-data": root}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    })
}

/// The running webhook once it is ready, its port, and that of metrics and health.
fn start(binary: PathBuf, config: PathBuf) -> (Running, u16, u16) {
    let mut command = Command::new(binary);
    command.env_clear().args(["--log-json", "webhook", "--config"]);
    command.arg(config);
    if nix::unistd::geteuid().is_root() {
        command.uid(UID).gid(UID);
    }
    let running = process::start(sys::die_with_parent(&mut command)).unwrap();
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

fn get(port: u16, path: &str) -> Finished {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--fail", "--max-time", "5"]);
    curl.arg(format!("http://127.0.0.1:{port}{path}"));
    process::run(&mut curl, LIMIT).unwrap()
}

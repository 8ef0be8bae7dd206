//! A real kube-apiserver 1.20 with RBAC, over an etcd of its own: on loopback, in a directory of its own, gone on drop
//! and with the process.
//!
//! It has no controllers, no scheduler and no kubelet: objects are kept, checked and watched, and nothing acts on them.
//! `cargo xtask cluster` makes the programs.
//!
//! What a fake one easily does otherwise, and `tests/cluster` shows of this one: bookmarks come only when something was
//! written since the watch began, at most each minute and near the end that the client asked for, and are objects of the
//! watched kind with nothing in them; a version that is too old is an answer of status 200 whose only event says 410;
//! one of the future is 504 for a list and silence for a watch; a forced end of a pod is told as one more change first.

mod api;
mod kinds;
mod server;

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tv_agent::encode::{certificate_pem, hex};

pub use api::{Answer, Api};
pub use kinds::{Kind, Kinds};
use server::Server;

use crate::fakes::pki::{Identity, Pki};

/// For both servers to be ready, on a machine that has other work.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// The user of the tests themselves, who may do everything.
const ADMIN: &str = "test-administrator";

/// The servers, and what a client needs.
pub struct Cluster {
    runtime: Runtime,
    root: CertificateDer<'static>,
    server: Server,
    etcd: Server,
    port: u16,
    etcd_port: u16,
    admin_token: String,
    programs: PathBuf,
    // Last: it is removed when nobody writes there any more.
    directory: TempDir,
}

/// The one that all tests share that run at this time; started by the first, ended by the last. Use
/// [`Cluster::namespace`] to be apart from the others.
///
/// `None`, after saying so, where the programs are not there.
///
/// # Panics
/// When it does not start; when the programs are missing and the environment has `CI=true`.
pub fn shared() -> Option<Arc<Cluster>> {
    static RUNNING: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = running.upgrade() {
        return Some(cluster);
    }
    let cluster = Arc::new(start()?);
    *running = Arc::downgrade(&cluster);
    Some(cluster)
}

/// As [`shared`], for a test that disturbs the others.
///
/// # Panics
/// As there.
pub fn start() -> Option<Cluster> {
    let programs = match programs() {
        Ok(programs) => programs,
        Err(reason) => {
            assert!(
                std::env::var("CI").as_deref() != Ok("true"),
                "this test must run in CI: {reason}"
            );
            eprintln!("skipped: {reason}");
            return None;
        }
    };
    let mut reasons = Vec::new();
    // Another process may take a port in between.
    for _ in 0..3 {
        match Cluster::start(&programs) {
            Ok(cluster) => return Some(cluster),
            Err(reason) => reasons.push(reason),
        }
    }
    panic!("the API server does not start: {}", reasons.join("\n"));
}

/// Whether the programs are there.
pub fn is_there() -> bool {
    programs().is_ok()
}

fn programs() -> Result<PathBuf, String> {
    let directory = crate::tools::target_directory()?.join("tools/cluster");
    match directory.join("kube-apiserver").is_file() && directory.join("etcd").is_file() {
        true => Ok(directory),
        false => Err("there is no kube-apiserver; make it with: cargo xtask cluster".into()),
    }
}

impl Cluster {
    fn start(programs: &Path) -> Result<Self, String> {
        // For the clients; another test may have done it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        let at = directory.path();
        let [etcd_port, peer_port, port] = free_ports().map_err(|error| error.to_string())?;
        let pki = Pki::new("tv-tests API server");
        let admin_token =
            write_credentials(at, pki.leaf(&["127.0.0.1"])).map_err(|error| error.to_string())?;
        let etcd = Server::start(etcd_command(programs, at, etcd_port, peer_port), at, "etcd")?;
        let server = Server::start(api_command(programs, at, etcd_port, port), at, "kube-apiserver")?;
        let mut cluster = Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .map_err(|error| error.to_string())?,
            root: pki.root().clone(),
            server,
            etcd,
            port,
            etcd_port,
            admin_token,
            programs: programs.to_owned(),
            directory,
        };
        cluster.wait()?;
        Ok(cluster)
    }

    fn wait(&mut self) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        let mut last = String::new();
        while Instant::now() < until {
            self.etcd.must_run()?;
            self.server.must_run()?;
            match self.admin().try_send("GET", "/readyz", None) {
                Ok(answer) if answer.code == 200 => return Ok(()),
                Ok(answer) => last = answer.text,
                Err(error) => last = error,
            }
            std::thread::sleep(POLL);
        }
        Err(format!(
            "not ready within {PATIENCE:?}: {last}\n{}",
            self.server.said()
        ))
    }

    /// Ends the API server as a crash does, and starts it again at its port; etcd goes on.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn restart(&mut self) {
        self.stop();
        self.go_on();
    }

    /// The first half of [`restart`](Self::restart).
    pub fn stop(&mut self) {
        self.server.end();
    }

    /// The second half.
    ///
    /// # Panics
    /// As there.
    pub fn go_on(&mut self) {
        let command = api_command(&self.programs, self.directory.path(), self.etcd_port, self.port);
        let started = Server::start(command, self.directory.path(), "kube-apiserver");
        self.server = started.unwrap_or_else(|reason| panic!("{reason}"));
        self.wait().unwrap_or_else(|reason| panic!("{reason}"));
    }

    /// Who may do everything.
    pub fn admin(&self) -> Api {
        self.api(&self.admin_token)
    }

    /// Who has a token, which the server knows or not.
    pub fn api(&self, token: &str) -> Api {
        Api::new(self.runtime.handle().clone(), self.config(token))
    }

    /// For clients of other makes.
    pub fn config(&self, token: &str) -> kube::Config {
        let address = format!("https://127.0.0.1:{}", self.port);
        let mut config = kube::Config::new(address.parse().expect("an address"));
        config.root_cert = Some(vec![self.root.to_vec()]);
        config.auth_info.token = Some(token.to_owned().into());
        config
    }

    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Makes a namespace that no other test has, named after `purpose`.
    pub fn namespace(&self, purpose: &str) -> String {
        self.labelled_namespace(purpose, &json!({}))
    }

    /// As [`namespace`](Self::namespace), with labels from its first moment on.
    pub fn labelled_namespace(&self, purpose: &str, labels: &Value) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{purpose}-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let metadata = json!({"name": name, "labels": labels});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
        self.admin()
            .create("/api/v1/namespaces", &namespace)
            .expect_code(201);
        name
    }

    /// A token of a service account that is there, as a pod gets one.
    pub fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}});
        let answer = self.admin().create(&path, &request).expect_code(201);
        answer["status"]["token"].as_str().expect("a token").to_owned()
    }

    /// Makes etcd forget everything before its present revision, as the server has it do every five minutes; gives the
    /// revision.
    pub fn compact(&self) -> i64 {
        let range = self.etcd("/v3/kv/range", &json!({"key": STANDARD.encode("/")}));
        let revision = range["header"]["revision"]
            .as_str()
            .expect("a revision")
            .to_owned();
        self.etcd(
            "/v3/kv/compaction",
            &json!({"revision": revision, "physical": true}),
        );
        revision.parse().expect("a number")
    }

    /// Takes an object away behind the server's back, by its key (`/registry/pods/NAMESPACE/NAME`).
    pub fn lose(&self, key: &str) {
        let range = self.etcd("/v3/kv/deleterange", &json!({"key": STANDARD.encode(key)}));
        assert_eq!(range["deleted"], "1", "{key}");
    }

    /// etcd's JSON gateway.
    fn etcd(&self, path: &str, body: &Value) -> Value {
        let address = format!("http://127.0.0.1:{}", self.etcd_port);
        let config = kube::Config::new(address.parse().expect("an address"));
        let api = Api::new(self.runtime.handle().clone(), config);
        api.create(path, body).expect_code(200)
    }
}

fn etcd_command(programs: &Path, at: &Path, port: u16, peer_port: u16) -> Command {
    let (clients, peers) = (
        format!("http://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer_port}"),
    );
    let mut etcd = Command::new(programs.join("etcd"));
    etcd.arg("--data-dir").arg(at.join("etcd"));
    etcd.args([
        "--listen-client-urls",
        &clients,
        "--advertise-client-urls",
        &clients,
    ]);
    etcd.args([
        "--listen-peer-urls",
        &peers,
        "--initial-advertise-peer-urls",
        &peers,
    ]);
    etcd.args(["--initial-cluster", &format!("default={peers}")]);
    etcd
}

fn api_command(programs: &Path, at: &Path, etcd_port: u16, port: u16) -> Command {
    let mut server = Command::new(programs.join("kube-apiserver"));
    let file = |name: &str| at.join(name).display().to_string();
    for (option, value) in [
        ("etcd-servers", format!("http://127.0.0.1:{etcd_port}")),
        // Only when a test says so.
        ("etcd-compaction-interval", "0".into()),
        ("bind-address", "127.0.0.1".into()),
        ("advertise-address", "127.0.0.1".into()),
        ("secure-port", port.to_string()),
        ("endpoint-reconciler-type", "none".into()),
        ("service-cluster-ip-range", "10.96.0.0/16".into()),
        ("cert-dir", file("certificates")),
        ("tls-cert-file", file("server.pem")),
        ("tls-private-key-file", file("server-key.pem")),
        ("token-auth-file", file("tokens.csv")),
        // As kubeadm has it; what may be, the namespaces' own rules say.
        ("allow-privileged", "true".into()),
        ("authorization-mode", "RBAC".into()),
        ("service-account-issuer", "https://kubernetes.default.svc".into()),
        ("service-account-key-file", file("accounts.pem")),
        ("service-account-signing-key-file", file("accounts-key.pem")),
        // It wants what controllers make.
        ("disable-admission-plugins", "ServiceAccount".into()),
    ] {
        server.arg(format!("--{option}={value}"));
    }
    server
}

/// Gives the administrator's token.
fn write_credentials(at: &Path, server: Identity) -> io::Result<String> {
    let key = KeyPair::try_from(&server.key).map_err(io::Error::other)?;
    let chain: String = server.chain.iter().map(certificate_pem).collect();
    fs::write(at.join("server.pem"), chain)?;
    fs::write(at.join("server-key.pem"), key.serialize_pem())?;
    let accounts = KeyPair::generate().map_err(io::Error::other)?;
    fs::write(at.join("accounts-key.pem"), accounts.serialize_pem())?;
    fs::write(at.join("accounts.pem"), accounts.public_key_pem())?;
    // As random as the server's key is.
    let token = hex(&Sha256::digest(key.serialized_der()));
    // token, user, uid, groups
    fs::write(
        at.join("tokens.csv"),
        format!("{token},{ADMIN},{ADMIN},system:masters\n"),
    )?;
    Ok(token)
}

fn free_ports() -> io::Result<[u16; 3]> {
    let socket = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let all = [socket()?, socket()?, socket()?];
    let mut ports = [0; 3];
    for (port, socket) in ports.iter_mut().zip(&all) {
        *port = socket.local_addr()?.port();
    }
    Ok(ports)
}

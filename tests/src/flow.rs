//! The whole agent inside the test's process, on loopback: real everything, save that a book of records stands
//! in for the kernel half. Needs neither root nor a kernel feature.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tv_agent::addr::{NetnsCookie, OriginAddr, PeerAddr};
use tv_agent::agent::{Agent, Wiring};
use tv_agent::ca::Authority;
use tv_agent::config::Config;
use tv_agent::dial::Unflagged;
use tv_agent::metrics::Metrics;
use tv_agent::redirect::{OriginLookup, Recorded};
use tv_agent::trust::Ledger;
use tv_agent::workload::Workloads;

use crate::fakes::auth0::Auth0;
use crate::fakes::lock;
use crate::fakes::origin::{self, Origin, Site};
use crate::fakes::pki::{Flaw, Pki};

pub mod client;
pub mod raw;

pub use client::{Answer, Caller, ReqBody, empty, whole};
pub use raw::{raw_origin, read_head, tcp_origin};

/// Routed, with a token required.
pub const HOST: &str = "api.example.test";
/// Routed, and git is spoken there.
pub const GIT_HOST: &str = "api.github.com";
/// Routed, and requests without a token pass.
pub const OPEN_HOST: &str = "api.open.test";
/// No route names it.
pub const OTHER_HOST: &str = "www.unrouted.test";
/// A subject token that the vault knows, and what it gives for it.
pub const SUBJECT: &str = "subject-token-of-alice-0001";
pub const PROVIDER: &str = "provider-token-of-alice-0001";
pub const CLIENT_SECRET: &str = "client-secret-of-the-agent-0001";
/// Longest wait for anything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(15);

pub type TlsStream = tokio_rustls::client::TlsStream<TcpStream>;

/// What differs from one test's world to the next.
pub struct Setup {
    pub site: Site,
    /// What the origin speaks, in its order of preference.
    pub alpn: &'static [&'static str],
    /// What is wrong with the origin's certificate.
    pub flaw: Option<Flaw>,
    pub vault_timeout: u64,
    pub on_unknown_name: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            site: Site::Plain,
            alpn: &["h2", "http/1.1"],
            flaw: None,
            vault_timeout: 5,
            on_unknown_name: "tunnel",
        }
    }
}

/// A running agent with one vault and one origin, both of which refuse what they do not expect.
pub struct Flow {
    pub agent: Agent,
    pub auth0: Auth0,
    pub origin: Origin,
    pub metrics: Metrics,
    pub authority: Arc<Authority>,
    /// Where nothing is installed until the test says so.
    pub ledger: Ledger,
    pub pki: Pki,
    records: Arc<Records>,
    vault_timeout: u64,
    on_unknown_name: &'static str,
    dir: TempDir,
}

impl Setup {
    pub fn alpn(alpn: &'static [&'static str]) -> Self {
        Self {
            alpn,
            ..Self::default()
        }
    }

    /// Starts it all. The origin panics at its end if the subject token or the client's secret ever came to it.
    pub async fn start(self) -> Flow {
        let pki = Pki::new("Flow Root");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("root.pem"), pki.root_pem()).expect("a file");
        let names = [HOST, GIT_HOST, OPEN_HOST, OTHER_HOST];
        let identity = match self.flaw {
            None => pki.leaf(&names),
            Some(flaw) => pki.flawed(flaw, &names),
        };
        let origin = Origin::start(&origin::Setup {
            site: self.site,
            addrs: &[LOOPBACK],
            identity: &identity,
            alpn: self.alpn,
        })
        .expect("an origin");
        origin.accept(PROVIDER, "alice");
        origin.forbid(SUBJECT);
        origin.forbid(CLIENT_SECRET);
        let vault = pki.leaf(&["127.0.0.1"]);
        let auth0 = Auth0::start(&[LOOPBACK], &vault, "client-1", CLIENT_SECRET).expect("a vault");
        for connection in ["example", "github"] {
            auth0.connect(SUBJECT, connection, PROVIDER, 3600);
        }
        let permitted = ["example.test", "github.com", "open.test", "later.test"].map(str::to_owned);
        let authority = Arc::new(Authority::ephemeral(&permitted).expect("a CA"));
        let (metrics, records) = (Metrics::new(), Arc::<Records>::default());
        let ledger = Ledger::default();
        let wiring = Wiring {
            pods: None,
            installer: None,
            origins: records.clone(),
            own: Arc::new(Unflagged),
            namespaces: None,
            narrow: None,
            workloads: Arc::new(Workloads::new(
                dir.path().join("cgroup"),
                vec![dir.path().join("cgroup")],
            )),
            authority: authority.clone(),
            metrics: metrics.clone(),
            ledger: ledger.clone(),
            listen_v4: LOOPBACK,
            listen_v6: None,
        };
        let config = parse(&document(
            &auth0,
            dir.path(),
            routes(),
            self.vault_timeout,
            self.on_unknown_name,
        ));
        let agent = Agent::start(config, wiring).await.expect("an agent");
        Flow {
            agent,
            auth0,
            origin,
            metrics,
            authority,
            ledger,
            pki,
            records,
            vault_timeout: self.vault_timeout,
            on_unknown_name: self.on_unknown_name,
            dir,
        }
    }
}

/// The routes that every flow starts with. All are wildcards, so that nothing is looked up in the DNS.
pub fn routes() -> Value {
    json!([
        { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example" },
        { "name": "github", "hosts": ["*.github.com"], "vault": "main", "connection": "github" },
        { "name": "open", "hosts": ["*.open.test"], "vault": "main", "connection": "example",
          "on_missing_token": "passthrough" },
    ])
}

/// A connection to make: whom to, and who makes it.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    pub host: &'a str,
    pub alpn: &'a [&'a str],
    pub origin: SocketAddr,
    pub cgroup: u64,
    /// 1, which nobody is told to be, or the test's own.
    pub process: u32,
}

impl Flow {
    /// The same agent's configuration with other routes, for a reload.
    pub fn config(&self, routes: Value) -> Config {
        self.config_vaults(json!({}), routes)
    }

    /// The agent's directory, for the files that a configuration names.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// As [`Flow::config`], with further vaults.
    pub fn config_vaults(&self, vaults: Value, routes: Value) -> Config {
        self.config_more(json!({ "vaults": vaults }), routes)
    }

    /// As [`Flow::config`], with verifiers.
    pub fn config_with(&self, routes: Value, verifiers: Value) -> Config {
        self.config_more(json!({ "verifiers": verifiers }), routes)
    }

    /// As [`Flow::config`], with more at the top of the file. Vaults and verifiers trust the flow's root, as upstreams do.
    pub fn config_more(&self, more: Value, routes: Value) -> Config {
        let mut document = document(
            &self.auth0,
            self.dir.path(),
            routes,
            self.vault_timeout,
            self.on_unknown_name,
        );
        let roots = document["upstream"]["extra_roots"].clone();
        for (key, value) in more.as_object().expect("keys of the file") {
            let entries = match value {
                Value::Object(entries) => entries,
                _ => {
                    document[key] = value.clone();
                    continue;
                }
            };
            for (name, entry) in entries {
                let mut entry = entry.clone();
                let asks = key == "verifiers" || key == "vaults" && entry["kind"] != "jwt_signer";
                if asks {
                    entry["extra_roots"] = roots.clone();
                }
                document[key][name] = entry;
            }
        }
        parse(&document)
    }

    /// The id of a cgroup that the agent can see. Every other id is out of its sight.
    pub fn cgroup(&self, path: &str) -> u64 {
        let path = self.dir.path().join("cgroup").join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&path).expect("a directory");
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("a directory"))
    }

    /// Says what is known of a pod, as `intercept.pod_facts` has it.
    pub fn know_pod(&self, uid: &str, facts: Value) {
        let directory = self.dir.path().join("pods");
        std::fs::create_dir_all(&directory).expect("a directory");
        std::fs::write(directory.join(format!("{uid}.json")), facts.to_string()).expect("a file");
    }

    pub fn dial<'a>(&self, host: &'a str, alpn: &'a [&'a str]) -> Dial<'a> {
        Dial {
            host,
            alpn,
            origin: self.origin.addrs()[0],
            cgroup: 7,
            process: 1,
        }
    }

    /// An HTTP/1.1 client of `host`.
    pub async fn h1(&self, host: &str) -> Caller {
        self.call(self.dial(host, &["http/1.1"])).await
    }

    /// An HTTP/2 client of `host`.
    pub async fn h2(&self, host: &str) -> Caller {
        let caller = self.call(self.dial(host, &["h2"])).await;
        assert!(caller.is_http2());
        caller
    }

    /// A client that speaks what ALPN settles.
    pub async fn call(&self, dial: Dial<'_>) -> Caller {
        let stream = self.tls(dial).await.expect("a handshake");
        Caller::new(stream, &format!("{}:{}", dial.host, dial.origin.port())).await
    }

    /// A TLS connection as a client makes it that trusts the agent's CA and nothing else.
    pub async fn tls(&self, dial: Dial<'_>) -> io::Result<TlsStream> {
        self.tls_trusting(dial, self.authority.root_der()).await
    }

    pub async fn tls_trusting(
        &self,
        dial: Dial<'_>,
        root: &CertificateDer<'static>,
    ) -> io::Result<TlsStream> {
        let stream = self.tcp_of(dial).await;
        self.tls_on(stream, dial, root).await
    }

    /// The same on a connection that is there.
    pub async fn tls_on(
        &self,
        stream: TcpStream,
        dial: Dial<'_>,
        root: &CertificateDer<'static>,
    ) -> io::Result<TlsStream> {
        let name = ServerName::try_from(dial.host.to_owned()).expect("a name");
        let connector = TlsConnector::from(client_config(root, dial.alpn));
        within(connector.connect(name, stream)).await
    }

    /// A TCP connection as the kernel half would have redirected it.
    pub async fn tcp(&self, origin: SocketAddr, cgroup: u64) -> TcpStream {
        let (host, alpn, process) = ("", &[][..], 1);
        self.tcp_of(Dial {
            host,
            alpn,
            origin,
            cgroup,
            process,
        })
        .await
    }

    /// As [`Flow::tcp`], by the process that `dial` names.
    pub async fn tcp_of(&self, dial: Dial<'_>) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(LOOPBACK).expect("a port");
        let recorded = Recorded {
            origin: OriginAddr(dial.origin),
            cgroup_id: dial.cgroup,
            tgid: dial.process,
            uid: 1000,
            connected: clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock").into(),
        };
        let peer = socket.local_addr().expect("an address");
        lock(&self.records.0).insert(peer, recorded);
        within(socket.connect(self.agent.listeners().v4))
            .await
            .expect("a connection")
    }

    /// Sends `bytes` over TLS as HTTP/1.1 to `host`; returns all that comes back until the agent closes, or is
    /// silent for half a second.
    pub async fn raw(&self, host: &str, bytes: &[u8]) -> String {
        let stream = self.tls(self.dial(host, &["http/1.1"])).await;
        let mut stream = stream.expect("a handshake");
        // It may be refused before its end.
        drop(stream.write_all(bytes).await);
        drop(stream.flush().await);
        let mut got = Vec::new();
        while let Ok(Ok(1..)) =
            tokio::time::timeout(Duration::from_millis(500), stream.read_buf(&mut got)).await
        {}
        String::from_utf8_lossy(&got).into_owned()
    }

    /// `api.example.test:PORT`, as Host has to name it.
    pub fn authority_of(&self, host: &str) -> String {
        format!("{host}:{}", self.origin.addrs()[0].port())
    }

    /// The value of one series, written as it stands in the text format, without the prefix.
    pub fn metric(&self, series: &str) -> u64 {
        let text = self.metrics.render();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("tv_agent_")?.strip_prefix(series));
        line.map_or(0, |value| value.trim().parse().expect("a number"))
    }

    /// Waits until a connection was recorded as ended so.
    pub async fn ended(&self, decision: &str, reason: &str) {
        let series = format!("connections_total{{decision=\"{decision}\",reason=\"{reason}\"}}");
        let found = eventually(|| self.metric(&series) > 0).await;
        assert!(found, "no {series} in\n{}", self.metrics.render());
    }

    /// Requests on `route` that ended so.
    pub fn requests(&self, route: &str, result: &str, code: &str) -> u64 {
        self.metric(&format!(
            "requests_total{{route=\"{route}\",result=\"{result}\",code=\"{code}\"}}"
        ))
    }
}

/// The result of something that must not hang.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("an end within the test's patience")
}

/// Whether `condition` comes true within the test's patience.
pub async fn eventually(condition: impl Fn() -> bool) -> bool {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.is_ok()
}

const LOOPBACK: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0));

/// The kernel half's table: who connected, and where to. Each record is taken once.
#[derive(Default)]
struct Records(Mutex<HashMap<SocketAddr, Recorded>>);

impl OriginLookup for Records {
    fn take(&self, _: NetnsCookie, peer: PeerAddr) -> io::Result<Option<Recorded>> {
        Ok(lock(&self.0).remove(&peer.0))
    }
}

fn document(auth0: &Auth0, dir: &Path, routes: Value, timeout: u64, unknown: &str) -> Value {
    let roots = json!([dir.join("root.pem")]);
    json!({
        "intercept": { "on_unknown_name": unknown, "pod_facts": dir.join("pods") },
        "vaults": { "main": {
            "kind": "auth0_token_vault",
            "token_endpoint": format!("https://{}/oauth/token", auth0.addrs()[0]),
            "client_id": "client-1",
            "client_auth": { "method": "client_secret_post", "secret": { "env": "SECRET" } },
            "timeout_seconds": timeout,
            "extra_roots": roots,
        } },
        "routes": routes,
        "upstream": { "extra_roots": roots },
    })
}

fn parse(document: &Value) -> Config {
    let env = |name: &str| (name == "SECRET").then(|| CLIENT_SECRET.to_owned());
    Config::parse(&document.to_string(), Path::new("flow.yaml"), &env).expect("a configuration")
}

pub fn client_config(root: &CertificateDer<'static>, alpn: &[&str]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

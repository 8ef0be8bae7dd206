//! What handshakes show of a process' trust in the CA, and what becomes of its next connections.
//!
//! The process is this test's own: the book of records names it, and each test has an agent of its own.

use std::io::ErrorKind;
use std::process::Stdio;
use std::sync::Arc;

use rustls_pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsConnector;
use tv_agent::control::TrustRow;
use tv_agent::netns::MountsId;
use tv_agent::trust::{Belief, Installation, MntnsId, StoreKind, fingerprint};
use tv_tests::flow::{Dial, Flow, HOST, Setup, TlsStream, client_config, eventually, tcp_origin, within};

const H1: &[&str] = &["http/1.1"];
const GET: &[u8] = b"GET /headers HTTP/1.1\r\nhost: api.example.test\r\n\r\n";

/// A connection of this process.
fn own<'a>(flow: &Flow) -> Dial<'a> {
    let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
    Dial {
        cgroup: flow.cgroup(path.expect("cgroup v2")),
        process: std::process::id(),
        ..flow.dial(HOST, H1)
    }
}

/// What is listed of this process, which is seen connecting.
fn row(flow: &Flow) -> TrustRow {
    let mut rows = flow.agent.processes().list();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

async fn becomes(flow: &Flow, state: Belief) -> TrustRow {
    let reached = eventually(|| row(flow).state == state).await;
    assert!(reached, "{:?}", row(flow));
    row(flow)
}

/// The CA comes into this process' mount namespace.
fn install(flow: &Flow) {
    let id: MntnsId = MountsId::of("/proc/self/ns/mnt").unwrap().into();
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).unwrap();
    let installation = Installation {
        at: now.into(),
        roots: [fingerprint(flow.authority.root_der())].into(),
        stores: [StoreKind::Bundle].into(),
        ..Installation::default()
    };
    flow.ledger.installed(id, installation);
}

/// Events of trust that were told, by their outcome.
fn told(flow: &Flow) -> Vec<String> {
    let (kept, _) = flow.agent.flows().follow();
    let trust = kept.iter().filter(|flow| flow.kind == "trust");
    trust.map(|flow| flow.outcome.clone()).collect()
}

async fn speaks(stream: &mut TlsStream) {
    stream.write_all(GET).await.unwrap();
    let mut byte = [0];
    within(stream.read_exact(&mut byte)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_alerts_is_refused_until_the_ca_is_installed() {
    let flow = Setup::default().start().await;
    let dial = own(&flow);
    let stranger = flow.pki.root().clone();
    let error = flow.tls_trusting(dial, &stranger).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
    let row = becomes(&flow, Belief::Untrusted).await;
    assert_eq!(row.reason.as_deref(), Some("TLS alert unknown_ca"));
    assert!(row.advice.starts_with("install the CA"), "{row:?}");
    assert_eq!(told(&flow), ["untrusted"]);
    // The handshake that told it, and none after it: no dial, no vault, not even for who would trust us.
    let handshakes = r#"tls_handshakes_total{side="workload",result="untrusted"}"#;
    assert!(eventually(|| flow.metric(handshakes) == 1).await);
    let dialled = flow.origin.connections().accepted();
    for root in [&stranger, flow.authority.root_der()] {
        let error = flow.tls_trusting(dial, root).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    let refused = r#"connections_total{decision="refuse",reason="untrusted"}"#;
    assert!(eventually(|| flow.metric(refused) == 3).await);
    assert_eq!(flow.metric(handshakes), 1);
    assert_eq!(flow.origin.connections().accepted(), dialled);
    assert!(flow.auth0.exchanges().is_empty());
    assert_eq!(told(&flow), ["untrusted"], "once");
    assert_eq!(flow.metric(r#"trust_processes{state="untrusted"}"#), 1);
    assert_eq!(
        flow.metric(r#"trust_changes_total{state="untrusted",runtime="native"}"#)
            + flow.metric(r#"trust_changes_total{state="untrusted",runtime="unknown"}"#),
        1
    );
    // Another process is served meanwhile.
    speaks(&mut flow.tls(flow.dial(HOST, H1)).await.unwrap()).await;

    install(&flow);
    speaks(&mut flow.tls(dial).await.unwrap()).await;
    let row = becomes(&flow, Belief::Verified).await;
    let root = fingerprint(flow.authority.root_der());
    assert!(row.roots.contains(&root) && row.advice.is_empty() && row.reason.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_right_after_the_certificate_says_what_an_alert_says() {
    let flow = Setup::default().start().await;
    let dial = own(&flow);
    // A hello, and the answer's first bytes.
    let mut stream = flow.tcp_of(dial).await;
    stream.write_all(&hello()).await.unwrap();
    let mut first = [0; 600];
    within(stream.read_exact(&mut first)).await.unwrap();
    drop(stream);
    let row = becomes(&flow, Belief::Untrusted).await;
    assert!(row.reason.unwrap().contains("right after our certificate"));
    flow.ended("refuse", "closed_on_certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_closes_before_the_certificate_has_said_nothing() {
    let flow = Setup::default().start().await;
    let given_up = Arc::new(tokio::sync::Notify::new());
    let (dialled, gone) = (Arc::new(tokio::sync::Notify::new()), given_up.clone());
    let reached = dialled.clone();
    // An origin that takes its time for TLS.
    let origin = tcp_origin(move |stream, _| {
        let (reached, gone) = (reached.clone(), gone.clone());
        async move {
            reached.notify_one();
            gone.notified().await;
            drop(stream);
        }
    })
    .await;
    let dial = Dial { origin, ..own(&flow) };
    let mut stream = flow.tcp_of(dial).await;
    stream.write_all(&hello()).await.unwrap();
    within(dialled.notified()).await;
    drop(stream);
    given_up.notify_one();
    flow.ended("refuse", "closed_early").await;
    assert_eq!(row(&flow).state, Belief::Unknown);
    assert!(told(&flow).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_handshake_is_no_proof_until_something_is_said() {
    let flow = Setup::default().start().await;
    let dial = own(&flow);
    // As Node.js does it with TLS 1.2, and wget and git: the certificate is looked at afterwards.
    drop(flow.tls(dial).await.unwrap());
    let row = becomes(&flow, Belief::Untrusted).await;
    assert!(row.reason.unwrap().contains("without a word"));
    install(&flow);
    speaks(&mut flow.tls(dial).await.unwrap()).await;
    becomes(&flow, Belief::Verified).await;
    // One of its clients distrusts us; the others go on.
    let stranger = flow.pki.root().clone();
    flow.tls_trusting(dial, &stranger).await.unwrap_err();
    assert!(eventually(|| self::row(&flow).reason.is_some()).await);
    assert_eq!(self::row(&flow).state, Belief::Verified);
    speaks(&mut flow.tls(dial).await.unwrap()).await;
    assert!(eventually(|| self::row(&flow).reason.is_none()).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_resumed_session_shows_nothing_new() {
    let flow = Setup::default().start().await;
    let dial = own(&flow);
    let connector = TlsConnector::from(client_config(flow.authority.root_der(), H1));
    let connect = async || {
        let name = ServerName::try_from(HOST).unwrap();
        let stream = flow.tcp_of(dial).await;
        within(connector.connect(name, stream)).await.unwrap()
    };
    speaks(&mut connect().await).await;
    becomes(&flow, Belief::Verified).await;
    let resumed = connect().await;
    let kind = resumed.get_ref().1.handshake_kind();
    assert_eq!(kind, Some(rustls::HandshakeKind::Resumed));
    drop(resumed);
    let ended = eventually(|| flow.metric("open_connections") == 0).await;
    assert!(ended && row(&flow).reason.is_none(), "{:?}", row(&flow));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_let_them_through() {
    let flow = Setup::default().start().await;
    let mut config = flow.config(json!([
        { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
          "on_untrusted": "tunnel" },
    ]));
    config.trust.install = tv_agent::config::Install::None;
    flow.agent.reload(config).unwrap();
    let dial = own(&flow);
    let origins = flow.pki.root().clone();
    flow.tls_trusting(dial, &origins).await.unwrap_err();
    becomes(&flow, Belief::Untrusted).await;
    // The origin's own certificate.
    let mut stream = flow.tls_trusting(dial, &origins).await.unwrap();
    speaks(&mut stream).await;
    drop(stream);
    flow.ended("tunnel", "untrusted_tunnel").await;
    assert!(flow.auth0.exchanges().is_empty());
    install(&flow);
    speaks(&mut flow.tls(dial).await.unwrap()).await;
    becomes(&flow, Belief::Verified).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_keeps_its_roots_is_known_before_it_tries() {
    let flow = Setup::default().start().await;
    flow.agent
        .reload(flow.config(json!([
            { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
              "on_untrusted": "tunnel" },
        ])))
        .unwrap();
    let mut node = std::process::Command::new("node");
    node.env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    let node = node.args(["-e", "process.stdin.resume()"]).stdin(Stdio::piped());
    let node = Child(
        node.spawn()
            .expect("Node.js, which the tests of tests/js need too"),
    );
    let dial = Dial {
        process: node.0.id(),
        ..own(&flow)
    };
    let origins = flow.pki.root().clone();
    // Until execve() it is still this test.
    let exe = format!("/proc/{}/exe", node.0.id());
    let own_exe = std::fs::read_link("/proc/self/exe").unwrap();
    assert!(eventually(|| std::fs::read_link(&exe).is_ok_and(|exe| exe != own_exe)).await);
    install(&flow);
    let mut stream = flow.tls_trusting(dial, &origins).await.unwrap();
    speaks(&mut stream).await;
    drop(stream);
    flow.ended("tunnel", "needs_restart_tunnel").await;
    let row = row(&flow);
    assert_eq!((row.pid, row.state), (node.0.id(), Belief::NeedsRestart));
    assert!(
        row.advice.contains("restart it with NODE_EXTRA_CA_CERTS"),
        "{row:?}"
    );
    assert!(
        row.roots.is_empty(),
        "what was installed after its start does not count"
    );
    assert_eq!(told(&flow), ["needs_restart"]);
}

/// Ends with the value.
struct Child(std::process::Child);

impl Drop for Child {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// A ClientHello as rustls sends it.
fn hello() -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(HOST).unwrap();
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

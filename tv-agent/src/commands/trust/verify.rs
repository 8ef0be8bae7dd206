//! `tv-agent trust verify`: a TLS handshake with each store of a workload, as its runtimes read it.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::Method;
use rustls::client::{ClientConnection, WebPkiServerVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use serde::Serialize;

use crate::addr::HostName;
use crate::ca::{self, Authority, Leaves};
use crate::cli::{TrustVerifyArgs, exit};
use crate::commands::{chain, print};
use crate::config::default_ca_dir;
use crate::control::{self, TrustRow, ask};
use crate::https::causes;
use crate::metrics::Metrics;
use crate::trust::live::{self, Store};
use crate::trust::{Anchors, StoreKind};

/// Messages of one handshake in one direction; TLS 1.3 needs two.
const TURNS: usize = 16;
const ADVICE: &str = "`tv-agent run` installs the CA into enrolled workloads (trust.install: live); into this machine's own \
                      stores with trust.host or `tv-agent trust install`; else name the bundle by `tv-agent trust env`";

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Control(#[from] control::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(transparent)]
    Trust(#[from] crate::trust::Error),
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// What one store gave.
#[derive(Debug, Serialize)]
struct Verdict {
    pid: u32,
    process: String,
    store: Option<StoreKind>,
    path: Option<PathBuf>,
    trusted: bool,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

pub(super) async fn run(args: &TrustVerifyArgs) -> u8 {
    match verify(args).await {
        Ok(verdicts) => {
            let failed = verdicts.iter().any(|verdict| !verdict.trusted);
            print(args.control.output.output, &verdicts, || drawn(&verdicts));
            if failed { exit::FAILED } else { exit::OK }
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
    }
}

async fn verify(args: &TrustVerifyArgs) -> Result<Vec<Verdict>, Error> {
    let dir = args.ca_dir.clone().unwrap_or_else(default_ca_dir);
    let authority = Arc::new(Authority::load(&dir)?);
    let anchors = Anchors::from_pem(&authority.anchors_pem())?;
    let server = Server::new(&authority)?;
    let mut pids = args.pid.clone();
    if pids.is_empty() {
        ask::<TrustRow>(&args.control.socket, Method::GET, "/trust", |row| {
            pids.push(row.pid);
            true
        })
        .await?;
    }
    let mut verdicts = Vec::new();
    let mut seen = HashSet::new();
    for pid in pids {
        let process = named(pid);
        let one = |store: Option<&Store>, result: Result<(), String>| Verdict {
            pid,
            process: process.clone(),
            store: store.map(|store| store.kind),
            path: store.map(|store| store.path.clone()),
            trusted: result.is_ok(),
            advice: result.is_err().then_some(ADVICE),
            reason: result
                .err()
                .unwrap_or_else(|| "a handshake was completed".to_owned()),
        };
        match live::stores(pid, &anchors) {
            Ok(stores) if stores.is_empty() => {
                verdicts.push(one(None, Err("its root has no store of certificates".to_owned())));
            }
            Ok(stores) => {
                // Processes of one root share its stores; each is tried once.
                for store in stores
                    .iter()
                    .filter(|store| seen.insert((root_of(pid), store.path.clone())))
                {
                    verdicts.push(one(Some(store), server.shake_hands(store)));
                }
            }
            // Those that the daemon named may have ended meanwhile.
            Err(_) if args.pid.is_empty() && !Path::new(&format!("/proc/{pid}")).exists() => {}
            Err(error) => verdicts.push(one(None, Err(causes(&error)))),
        }
    }
    Ok(verdicts)
}

/// The agent's side: a leaf of the CA for a name that it may sign for.
struct Server {
    config: Arc<ServerConfig>,
    name: ServerName<'static>,
}

impl Server {
    fn new(authority: &Arc<Authority>) -> Result<Self, Error> {
        let permitted = authority
            .permitted()
            .first()
            .map_or("verify.invalid", String::as_str);
        let name = ServerName::try_from(permitted.to_owned());
        let name = name.unwrap_or_else(|_| ServerName::try_from("verify.invalid").expect("a name"));
        let leaves = Leaves::new(authority.clone(), Arc::new(|_: &HostName| true), Metrics::new())?;
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(leaves));
        Ok(Self {
            config: Arc::new(config),
            name,
        })
    }

    /// A whole handshake with a client that trusts the store and nothing else.
    fn shake_hands(&self, store: &Store) -> Result<(), String> {
        if let Some(problem) = &store.problem {
            return Err(problem.clone());
        }
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(store.roots.iter().cloned());
        if roots.is_empty() {
            return Err("no root of this CA is found there".to_owned());
        }
        let text = |error: &dyn std::error::Error| chain(error);
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build();
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| text(&error))?
            .with_webpki_verifier(verifier.map_err(|error| text(&error))?)
            .with_no_client_auth();
        let client = ClientConnection::new(Arc::new(config), self.name.clone());
        let mut client = client.map_err(|error| text(&error))?;
        let mut server = ServerConnection::new(self.config.clone()).map_err(|error| text(&error))?;
        for _ in 0..TURNS {
            if !client.is_handshaking() && !server.is_handshaking() {
                return Ok(());
            }
            let mut bytes = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut bytes).map_err(|error| text(&error))?;
            }
            server.read_tls(&mut &*bytes).map_err(|error| text(&error))?;
            server.process_new_packets().map_err(|error| text(&error))?;
            let mut bytes = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut bytes).map_err(|error| text(&error))?;
            }
            let mut rest = &*bytes;
            while !rest.is_empty() {
                client.read_tls(&mut rest).map_err(|error| text(&error))?;
                client.process_new_packets().map_err(|error| text(&error))?;
            }
        }
        Err("the handshake does not end".to_owned())
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn named(pid: u32) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // It goes to a terminal.
    name.trim()
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Tells apart roots and namespaces.
fn root_of(pid: u32) -> Option<(u64, u64, u64)> {
    let namespace = fs::metadata(format!("/proc/{pid}/ns/mnt")).ok()?;
    let root = fs::metadata(format!("/proc/{pid}/root")).ok()?;
    Some((namespace.ino(), root.dev(), root.ino()))
}

fn drawn(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return "no process is enrolled".to_owned();
    }
    let mut text = String::new();
    for verdict in verdicts {
        let word = if verdict.trusted { "ok" } else { "FAILED" };
        let store = verdict.path.as_deref().unwrap_or(Path::new("/")).display();
        let Verdict {
            pid, process, reason, ..
        } = verdict;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{word:<7} {process}[{pid}] {store}: {reason}");
    }
    if let Some(advice) = verdicts.iter().find_map(|verdict| verdict.advice) {
        let _ = writeln!(text, "what to do: {advice}");
    }
    text
}

//! The configuration: read from a file or from three variables, checked, and turned into what each stage
//! takes. An error names file, line, key, value and what is allowed.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use url::Url;

use crate::audit;
use crate::confine;
use crate::decide::OnUnknownName;
use crate::files;
use crate::kubernetes;
use crate::limits;
use crate::policy::credentials::Issuer;
use crate::policy::{HostPattern, Route};
use crate::secret::Secret;
use crate::sign;
use crate::token::settings::{Pacing, TokenVault};
use crate::token::shared;
use crate::token::{ClientAuth, Encoding, Kind, VaultSettings};
use crate::traces;
use crate::verify;

mod builtin;
mod capture;
mod check;
mod raw;
mod trust;
mod workloads;

pub(crate) use check::explain;
pub use raw::{OnAgentDown, Quic};
pub use trust::{DEFAULT_DIR as DEFAULT_TRUST_DIR, Install, Trust};

/// Reads an environment variable; a function, so that tests never touch the process's own.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A checked configuration.
pub struct Config {
    pub intercept: Intercept,
    /// Port of the agent's listeners, 127.34.67.1 and [::1]; 0 takes a free one.
    pub port: u16,
    /// Time for what is open to finish when the agent stops or hands over.
    pub drain: Duration,
    pub vaults: BTreeMap<Arc<str>, VaultConfig>,
    pub verifiers: BTreeMap<Arc<str>, VerifierConfig>,
    /// The vaults that sign tokens of our own.
    pub signers: BTreeMap<Arc<str>, sign::VaultSettings>,
    pub keysets: Vec<sign::keyset::Settings>,
    /// Where generated keys are kept.
    pub keysets_dir: PathBuf,
    pub routes: Vec<Route>,
    /// The fleet's second-level cache of tokens.
    pub shared_cache: Option<SharedCache>,
    /// PEM files with roots for providers, besides the system's.
    pub extra_roots: Vec<PathBuf>,
    /// The admin socket of the daemon.
    pub socket: PathBuf,
    pub metrics: Option<SocketAddr>,
    /// Whether `metrics` was asked for, and not just the default.
    pub metrics_asked: bool,
    /// Whether that port has a page for people.
    pub page: bool,
    /// None: no audit trail besides the log.
    pub audit: Option<audit::Settings>,
    /// Where spans go, and PEM files with roots for that.
    pub traces: Option<(traces::Settings, Vec<PathBuf>)>,
    pub ca_dir: PathBuf,
    pub trust: Trust,
    /// Whom the data path runs as.
    pub user: confine::User,
    /// None: pods are not watched.
    pub kubernetes: Option<kubernetes::Settings>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intercept {
    /// cgroups whose subtrees are enrolled, below the cgroup2 mount.
    pub cgroups: Vec<String>,
    pub ports: Vec<u16>,
    pub bypass: Vec<IpNet>,
    pub capture: Capture,
    pub quic: Quic,
    pub on_agent_down: OnAgentDown,
    pub on_unknown_name: OnUnknownName,
    /// Directory with the facts of pods, see [`crate::workload::Directory`].
    pub pod_facts: Option<PathBuf>,
}

/// Which connections on captured ports are looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Capture {
    #[default]
    All,
    /// Those to addresses of the routes' hosts.
    Dns {
        hosts: Vec<HostPattern>,
        unsure_for: Duration,
    },
    Cidr(Vec<IpNet>),
}

/// A vault's settings, with the files of its roots still to be read.
pub struct VaultConfig {
    pub settings: VaultSettings,
    pub extra_roots: Vec<PathBuf>,
    /// The verifier of the tokens that it gives.
    pub validate: Option<Arc<str>>,
}

/// A verifier's settings, with the files of its roots still to be read.
pub struct VerifierConfig {
    pub settings: verify::Settings,
    pub extra_roots: Vec<PathBuf>,
}

/// The shared cache's settings, with the files of its roots still to be read.
pub struct SharedCache {
    pub settings: shared::Settings,
    pub extra_roots: Vec<PathBuf>,
}

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the configuration {}", file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{}:{}{message}", file.display(), line.map(|line| format!("{line}: ")).unwrap_or_else(|| " ".to_owned()))]
    Syntax {
        file: PathBuf,
        /// Unknown for a file that has no such place, as an empty one.
        line: Option<u64>,
        message: String,
    },
    #[error("{}:{line}: {key}: {value:?} {problem}", file.display())]
    Value {
        file: PathBuf,
        line: u64,
        key: String,
        value: String,
        problem: String,
    },
    #[error(
        "there is no configuration: give --config FILE, or set AUTH0_DOMAIN, AUTH0_CLIENT_ID and AUTH0_CLIENT_SECRET ({missing} is not set)"
    )]
    Nothing { missing: &'static str },
    #[error("environment variable {variable}: {value:?} {problem}")]
    Variable {
        variable: &'static str,
        value: String,
        problem: String,
    },
}

impl Config {
    /// Reads and checks `file`.
    pub fn load(file: &Path, env: Env<'_>) -> Result<Self, Error> {
        let text = files::read_to_string(file).map_err(|source| Error::Read {
            file: file.to_owned(),
            source,
        })?;
        Self::parse(&text, file, env)
    }

    /// Checks `text`; `file` is its name in errors.
    pub fn parse(text: &str, file: &Path, env: Env<'_>) -> Result<Self, Error> {
        let raw: raw::Raw = serde_saphyr::from_str(text).map_err(|error| {
            let (line, message) = check::explain(text, &error);
            Error::Syntax {
                file: file.to_owned(),
                line,
                message,
            }
        })?;
        check::Checker { file, env }.config(raw)
    }

    /// No file at all: three variables and the built-in table of hosts.
    pub fn from_env(env: Env<'_>) -> Result<Self, Error> {
        let get = |name: &'static str| {
            env(name)
                .filter(|value| !value.is_empty())
                .ok_or(Error::Nothing { missing: name })
        };
        let domain = get("AUTH0_DOMAIN")?;
        let client_id = get("AUTH0_CLIENT_ID")?;
        let secret = Secret::new(get("AUTH0_CLIENT_SECRET")?);
        let token_endpoint = endpoint_of(&domain).map_err(|problem| Error::Variable {
            variable: "AUTH0_DOMAIN",
            value: domain,
            problem: problem.to_owned(),
        })?;
        let name: Arc<str> = "main".into();
        let mut routes = builtin::routes(&name);
        for route in &mut routes {
            route.credentials.issuers = vec![Issuer::At(token_endpoint.authority().to_owned())];
        }
        let settings = VaultSettings {
            name: name.clone(),
            kind: Kind::TokenVault(TokenVault::default()),
            token_endpoint,
            discover: false,
            client_id,
            client_auth: ClientAuth::SecretPost(secret),
            encoding: Encoding::Form,
            extra_roots: Vec::new(),
            timeout: limits::TOKEN_TIME,
            ttl_default: limits::TOKEN_TTL_DEFAULT,
            ttl_max: limits::TOKEN_TTL_MAX,
            pacing: Pacing::default(),
            when: Vec::new(),
        };
        Ok(Self {
            intercept: Intercept::default(),
            port: DEFAULT_PORT,
            drain: limits::DRAIN_TIME,
            vaults: BTreeMap::from([(
                name.clone(),
                VaultConfig {
                    settings,
                    extra_roots: Vec::new(),
                    validate: None,
                },
            )]),
            verifiers: BTreeMap::new(),
            signers: BTreeMap::new(),
            keysets: Vec::new(),
            keysets_dir: keys_beside(&default_ca_dir()),
            routes,
            shared_cache: None,
            extra_roots: Vec::new(),
            socket: default_socket(),
            metrics: Some(default_metrics()),
            metrics_asked: false,
            page: false,
            audit: None,
            traces: None,
            ca_dir: default_ca_dir(),
            trust: Trust::default(),
            user: confine::User::by_default(&passwd()),
            kubernetes: None,
        })
    }

    /// The DNS subtrees that the CA has to be able to sign for.
    pub fn subtrees(&self) -> Vec<String> {
        subtrees(&self.routes)
    }
}

/// The same for the built-in hosts, for which no credentials are needed.
pub fn builtin_subtrees() -> Vec<String> {
    subtrees(&builtin::routes(&"main".into()))
}

fn subtrees(routes: &[Route]) -> Vec<String> {
    let all: HashSet<&str> = routes
        .iter()
        .flat_map(|r| &r.hosts)
        .map(HostPattern::subtree)
        .collect();
    let mut all: Vec<String> = all.into_iter().map(str::to_owned).collect();
    all.sort();
    all
}

impl Default for Intercept {
    fn default() -> Self {
        Self {
            cgroups: Vec::new(),
            ports: vec![443],
            bypass: ["127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10"]
                .map(|net| net.parse().expect("a network"))
                .to_vec(),
            capture: Capture::All,
            quic: Quic::Block,
            on_agent_down: OnAgentDown::Closed,
            on_unknown_name: OnUnknownName::Tunnel,
            pod_facts: None,
        }
    }
}

pub const DEFAULT_PORT: u16 = 15443;
/// Where the daemon's admin socket is when the configuration does not say.
pub const DEFAULT_SOCKET: &str = "/run/tv-agent/admin.sock";

fn default_socket() -> PathBuf {
    PathBuf::from(DEFAULT_SOCKET)
}

fn default_metrics() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15020))
}

/// Without the file there are no names.
fn passwd() -> String {
    files::read_to_string(Path::new("/etc/passwd")).unwrap_or_default()
}

pub fn default_ca_dir() -> PathBuf {
    PathBuf::from("/var/lib/tv-agent/ca")
}

/// The directory `keys` beside the CA's.
fn keys_beside(ca_dir: &Path) -> PathBuf {
    ca_dir.with_file_name("keys")
}

/// `https://DOMAIN/oauth/token`.
fn endpoint_of(domain: &str) -> Result<Url, &'static str> {
    let allowed = "is not a domain; allowed: a host name without scheme or path, such as tenant.eu.auth0.com";
    let name = crate::addr::HostName::parse(domain).ok_or(allowed)?;
    Url::parse(&format!("https://{name}/oauth/token")).map_err(|_| allowed)
}

#[cfg(test)]
mod tests;

//! A small internet around one agent: names, Auth0, GitHub, Google and a host that no route names.
//!
//! The e2e tests and the demo share it. It lives in the namespaces of the thread that makes it; the agent binary
//! and the clients are started from that thread.

mod answer;
mod config;
mod daemon;
mod hosts;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::fakes::auth0::Auth0;
use crate::fakes::dns::Dns;
use crate::fakes::origin::{Origin, Setup, Site, git};
use crate::fakes::pki::Pki;
use crate::process::{self, Finished, Running};
use crate::sandbox::{self, Sandbox};
use crate::tools;
pub use answer::Answer;
pub use config::to_yaml;
pub use daemon::{Daemon, holds};
use hosts::{addresses, sockets};

pub const TENANT: &str = "acme.eu.auth0.com";
pub const GITHUB_API: &str = "api.github.com";
pub const GITHUB: &str = "github.com";
pub const GOOGLE: &str = "www.googleapis.com";
pub const GOOGLE_GRPC: &str = "pubsub.googleapis.com";
/// A host that no route names.
pub const UNROUTED: &str = "packages.example.org";

pub const CLIENT_ID: &str = "tv-agent-client";
pub const CLIENT_SECRET: &str = "s3cret/with:odd+chars";

/// Longest run of one client under the agent.
const CLIENT_TIME: Duration = Duration::from_secs(30);

/// Each host's last address part; see [`hosts`].
const AUTH0_AT: u8 = 10;
const GITHUB_AT: u8 = 20;
const GOOGLE_AT: u8 = 30;
const UNROUTED_AT: u8 = 40;

/// Everything around the agent. Dropped, it is gone, and complains about calls that nobody expected.
pub struct World {
    pub auth0: Auth0,
    pub github: Origin,
    pub google: Origin,
    pub unrouted: Origin,
    pub dns: Dns,
    pub pki: Pki,
    /// The commit at the tip of github.com/acme/demo.git; `None` where git is not installed.
    pub repository_head: Option<String>,
    agent: PathBuf,
    dir: TempDir,
    count: AtomicU32,
    spares: AtomicU8,
    /// Where the Python clients are, once [`tools::install_python_clients`] has put them there.
    python: Option<PathBuf>,
    _sandbox: Sandbox,
}

impl World {
    /// Runs `test` in a world of its own, on a thread of its own; skips it, saying why, where that cannot be.
    pub fn run(test: impl FnOnce(&World) + Send) {
        if !sandbox::available_or_skip() {
            return;
        }
        let agent = match agent_binary() {
            Ok(agent) => agent,
            Err(reason) => {
                let ci = std::env::var("CI").as_deref() == Ok("true");
                assert!(!ci, "this test must run in CI: {reason}");
                eprintln!("skipped: {reason}");
                return;
            }
        };
        std::thread::scope(|scope| {
            let name = std::thread::current().name().unwrap_or("world").to_owned();
            let inside = move || test(&World::enter(&agent).expect("a world"));
            let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, inside);
            let ended = thread.expect("a thread").join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        });
    }

    /// Moves this thread into namespaces of its own and builds the world there.
    ///
    /// # Errors
    /// When a file cannot be written or an address not be bound.
    pub fn enter(agent: &Path) -> io::Result<Self> {
        let hosts = [AUTH0_AT, GITHUB_AT, GOOGLE_AT, UNROUTED_AT];
        let hosts = hosts.into_iter().chain(hosts::SPARES);
        let sandbox = sandbox::enter(&hosts.flat_map(addresses).collect::<Vec<_>>());
        // Its own, or the one daemon of this world would be the one daemon of the machine.
        mount(
            Some("tmpfs"),
            "/run",
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=755"),
        )?;
        sandbox.bind_file(
            "nameserver 127.0.0.1\noptions timeout:1 attempts:2\n",
            "/etc/resolv.conf",
        )?;
        sandbox.bind_file("127.0.0.1 localhost\n::1 localhost\n", "/etc/hosts")?;
        if Path::new("/etc/nsswitch.conf").exists() {
            let nsswitch = "passwd: files\ngroup: files\nhosts: files dns\n";
            sandbox.bind_file(nsswitch, "/etc/nsswitch.conf")?;
        }
        let pki = Pki::new("World Root");
        let dns = Dns::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)))?;
        let origin = |site, at, names: &[&str]| {
            names.iter().for_each(|name| dns.set(name, &addresses(at)));
            Origin::start(&Setup {
                site,
                addrs: &sockets(at),
                identity: &pki.leaf(names),
                alpn: &["h2", "http/1.1"],
            })
        };
        let github = origin(
            Site::GitHub,
            GITHUB_AT,
            &[GITHUB_API, GITHUB, "uploads.github.com"],
        )?;
        let google = origin(
            Site::Google,
            GOOGLE_AT,
            &[GOOGLE, GOOGLE_GRPC, "gmail.googleapis.com"],
        )?;
        let unrouted = origin(Site::Plain, UNROUTED_AT, &[UNROUTED])?;
        dns.set(TENANT, &addresses(AUTH0_AT));
        let auth0 = Auth0::start(&sockets(AUTH0_AT), &pki.leaf(&[TENANT]), CLIENT_ID, CLIENT_SECRET)?;
        let dir = tempfile::Builder::new().prefix("tv-world-").tempdir()?;
        std::fs::create_dir(dir.path().join("home"))?;
        std::fs::write(dir.path().join("root.pem"), pki.root_pem())?;
        std::fs::write(dir.path().join("client-secret"), CLIENT_SECRET)?;
        let repository_head = match git::Repository::create() {
            Ok(repository) => {
                let head = repository.head().to_owned();
                github.serve_repository(repository);
                Some(head)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        Ok(Self {
            auth0,
            github,
            google,
            unrouted,
            dns,
            pki,
            repository_head,
            agent: agent.to_owned(),
            dir,
            count: AtomicU32::new(0),
            spares: AtomicU8::new(0),
            python: tools::python_clients(),
            _sandbox: sandbox,
        })
    }

    /// A new user: an Auth0 access token that the vault knows and that no provider may ever see.
    pub fn user(&self, name: &str) -> String {
        let token = subject_token(name);
        self.auth0.know(&token);
        for origin in [&self.github, &self.google, &self.unrouted] {
            origin.forbid(&token);
        }
        token
    }

    /// `user` connects GitHub: the vault then holds `token`, which GitHub accepts, for an hour.
    pub fn connect_github(&self, user: &str, token: &str, account: &str) {
        self.auth0.connect(user, "github", token, 3600);
        self.github.accept(token, account);
    }

    /// `user` connects Google.
    pub fn connect_google(&self, user: &str, token: &str, account: &str) {
        self.auth0.connect(user, "google-oauth2", token, 3600);
        self.google.accept(token, account);
    }

    /// A directory that vanishes with the world.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The root that signed every fake's certificate, as a PEM file.
    pub fn root_file(&self) -> PathBuf {
        self.dir.path().join("root.pem")
    }

    /// The root certificate of the agent's own CA, once there is one.
    pub fn agent_root(&self) -> PathBuf {
        self.dir.path().join("ca/root.pem")
    }

    /// A configuration with a route each for GitHub and Google. Change it as JSON before it is used.
    pub fn config(&self) -> Value {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let metrics = format!("127.0.0.1:{}", 15_020 + number);
        json!({
            "intercept": { "ports": [443], "capture": "all" },
            "vaults": { "main": {
                "kind": "auth0_token_vault",
                "domain": TENANT,
                "client_id": CLIENT_ID,
                "client_auth": { "method": "client_secret_post", "secret": { "file": path("client-secret") } },
                "extra_roots": [path("root.pem")],
            } },
            "routes": [
                { "name": "github", "hosts": [GITHUB_API, "uploads.github.com", GITHUB],
                  "vault": "main", "connection": "github" },
                { "name": "google", "hosts": ["*.googleapis.com"],
                  "vault": "main", "connection": "google-oauth2" },
            ],
            "upstream": { "extra_roots": [path("root.pem")] },
            "admin": { "socket": path(&format!("admin-{number}.sock")), "metrics": metrics },
            "ca": { "dir": path("ca") },
        })
    }

    /// Writes `config` as YAML, as a user would.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self, config: &Value) -> io::Result<PathBuf> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.path().join(format!("tv-agent-{number}.yaml"));
        std::fs::write(&path, to_yaml(config))?;
        Ok(path)
    }

    /// A command in this world with PATH, HOME and, for Python clients that no system brings, PYTHONPATH in its
    /// environment, and nothing else.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.clean(Command::new(program.as_ref()))
    }

    /// Runs `client` here without any agent.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn plain(&self, client: &[&str]) -> io::Result<Finished> {
        process::run(self.command(client[0]).args(&client[1..]), CLIENT_TIME)
    }

    /// The agent's own command line, environment cleared.
    pub fn agent(&self) -> Command {
        self.command(&self.agent)
    }

    /// `tv-agent exec --config … -- client`, with [`World::config`].
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn exec(&self, client: &[&str]) -> io::Result<Finished> {
        self.exec_with(&self.config(), client)
    }

    /// As [`World::exec`], with a configuration of its own.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn exec_with(&self, config: &Value, client: &[&str]) -> io::Result<Finished> {
        self.start_exec(config, client)?.finish(CLIENT_TIME)
    }

    /// As [`World::exec_with`], without waiting for the end.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_exec(&self, config: &Value, client: &[&str]) -> io::Result<Running> {
        let mut command = self.exec_command(config)?;
        command.args(client).stdin(Stdio::null());
        Ok(process::start(&mut command)?.sweeping())
    }

    /// `tv-agent exec --config … --`; the command is still to be added.
    ///
    /// # Errors
    /// When the configuration cannot be written.
    pub fn exec_command(&self, config: &Value) -> io::Result<Command> {
        let config = self.write_config(config)?;
        let mut command = self.agent();
        command.arg("exec").arg("--config").arg(config).arg("--");
        Ok(command)
    }

    /// Runs `tv-agent` with `arguments` to its end.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn tv_agent(&self, arguments: &[&str]) -> io::Result<Finished> {
        process::run(self.agent().args(arguments), CLIENT_TIME)
    }

    /// The agent's program file.
    pub fn agent_file(&self) -> &Path {
        &self.agent
    }

    /// Calls that no fake expected, each with the fake's name; they no longer count as failures.
    pub fn take_unexpected(&self) -> Vec<String> {
        let fakes = [
            ("Auth0", self.auth0.unexpected()),
            ("GitHub", self.github.unexpected()),
            ("Google", self.google.unexpected()),
            (UNROUTED, self.unrouted.unexpected()),
        ];
        let named = |(name, calls): (&str, &crate::fakes::Unexpected)| {
            calls
                .take()
                .into_iter()
                .map(|call| format!("{name}: {call}"))
                .collect::<Vec<_>>()
        };
        fakes.into_iter().flat_map(named).collect()
    }

    fn clean(&self, mut command: Command) -> Command {
        command
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("HOME", self.dir.path().join("home"))
            .envs(self.python.iter().map(|path| ("PYTHONPATH", path)))
            .current_dir(self.dir.path());
        command
    }
}

/// The agent to test: `TV_AGENT`, which `cargo xtask` sets to one that carries its kernel half.
///
/// # Errors
/// A sentence that says how to run it.
pub fn agent_binary() -> Result<PathBuf, String> {
    let Some(path) = std::env::var_os("TV_AGENT").map(PathBuf::from) else {
        return Err("TV_AGENT names no agent binary; run cargo xtask test, or cargo xtask demo".to_owned());
    };
    match path.canonicalize() {
        Ok(path) if path.is_file() => Ok(path),
        _ => Err(format!(
            "TV_AGENT={}: no such file; build it: cargo xtask build",
            path.display()
        )),
    }
}

/// A token of the form that Auth0 gives for a custom API: a JWT, valid for an hour, its signature random bytes.
pub fn subject_token(user: &str) -> String {
    let now = time::OffsetDateTime::now_utc().unix_timestamp();
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = part(json!({ "alg": "RS256", "typ": "at+jwt", "kid": "k1" }));
    let claims = part(json!({
        "iss": format!("https://{TENANT}/"), "sub": format!("auth0|{user}"),
        "aud": "https://api.acme.example", "iat": now, "exp": now + 3600,
    }));
    format!(
        "{header}.{claims}.{}",
        BASE64_URL_SAFE_NO_PAD.encode(format!("signature of {user}"))
    )
}

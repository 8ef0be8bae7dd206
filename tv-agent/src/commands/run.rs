//! `tv-agent run`: the daemon.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};

use super::{LISTEN_V4, beat, cgroup2_mount, chain, kernel_policy, listen_v6, own_cgroup};
use crate::admin::{self, Admin};
use crate::agent::{self, Agent, Wiring};
use crate::ca::{self, Authority};
use crate::cli::{RunArgs, exit};
use crate::config::{self, Config, Intercept};
use crate::metrics::{Metrics, ResultLabels};
use crate::redirect::{self, Redirect};
use crate::workload::Workloads;

mod socket;

/// The name of the one daemon of a machine among the instances.
const INSTANCE: &str = "daemon";
/// The kernel half takes the agent for dead five seconds after the last one.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the configuration file is looked at. Its digest, not inotify: a ConfigMap is swapped by symlinks.
const RELOAD: Duration = Duration::from_secs(2);
/// How often it is seen whether an enrolled cgroup was removed and made again, which takes the programs off it.
const COVER: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(
        "{}: intercept.cgroups is empty, so nothing would be intercepted; name the cgroups of the workloads",
        file.display()
    )]
    NoCgroups { file: PathBuf },
    #[error(
        "{}: intercept.cgroups: {path:?} does not exist below {}; create it, or correct the path",
        file.display(), mount.display()
    )]
    NoSuchCgroup {
        file: PathBuf,
        path: String,
        mount: PathBuf,
    },
    #[error("the agent itself runs in the enrolled cgroup {path}; start it in a cgroup of its own")]
    OwnCgroup { path: String },
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(transparent)]
    Kernel(#[from] super::KernelHalf),
    #[error(transparent)]
    Redirect(#[from] redirect::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error(transparent)]
    Socket(#[from] crate::control::Error),
    #[error(transparent)]
    Mount(#[from] super::NoCgroup2),
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
    #[error("cannot read /proc/self/cgroup")]
    Cgroup(#[source] std::io::Error),
}

pub async fn run(args: &RunArgs) -> u8 {
    match daemon(&args.config).await {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            if matches!(
                error,
                Error::Config(_) | Error::NoCgroups { .. } | Error::NoSuchCgroup { .. }
            ) {
                exit::USAGE
            } else {
                exit::FAILED
            }
        }
    }
}

/// The parts that a reload touches.
struct Daemon {
    file: PathBuf,
    mount: PathBuf,
    agent: Agent,
    redirect: Redirect,
    /// The enrolled directories, each with the id of the cgroup that is covered.
    enrolled: HashMap<PathBuf, u64>,
    /// Ids of cgroups that could not be covered, and of which that was said.
    uncovered: HashSet<u64>,
    workloads: Arc<Workloads>,
    metrics: Metrics,
    intercept: Intercept,
    settled: Settled,
}

/// What a reload cannot change.
#[derive(PartialEq, Eq)]
struct Settled {
    port: u16,
    metrics: Option<SocketAddr>,
    socket: PathBuf,
    ca_dir: PathBuf,
}

impl Settled {
    fn of(config: &Config) -> Self {
        Self {
            port: config.port,
            metrics: config.metrics,
            socket: config.socket.clone(),
            ca_dir: config.ca_dir.clone(),
        }
    }
}

async fn daemon(file: &Path) -> Result<(), Error> {
    let mut digest = digest_of(file);
    let config = super::load(Some(file))?;
    let mount = cgroup2_mount()?;
    let enrolled = directories(file, &config.intercept, &mount)?;
    let authority = Arc::new(Authority::load(&config.ca_dir)?);
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;

    let mut redirect = super::kernel_half(INSTANCE)?;
    super::raise_open_files();
    if let Some(log) = redirect.kernel_log() {
        tokio::spawn(log.run());
    }
    let handles = Arc::new(redirect.handles());
    let metrics = Metrics::new();
    let workloads = Arc::new(Workloads::new(mount.clone(), enrolled.clone()));
    let (intercept, settled) = (config.intercept.clone(), Settled::of(&config));
    let ready = Arc::new(AtomicBool::new(false));
    if let Some(address) = config.metrics {
        let counters = handles.clone();
        let more = Arc::new(move || counters.counters());
        Admin {
            metrics: metrics.clone(),
            ready: ready.clone(),
            more,
        }
        .serve(address)
        .await?;
    }
    let wiring = Wiring {
        origins: handles.clone(),
        own: handles.clone(),
        namespaces: Some(handles.clone()),
        narrow: Some(handles.clone()),
        workloads: workloads.clone(),
        authority,
        metrics: metrics.clone(),
        listen_v4: (LISTEN_V4, settled.port).into(),
        listen_v6: listen_v6(settled.port),
    };
    let socket = config.socket.clone();
    let agent = Agent::start(config, wiring).await?;
    let (callers, counted) = (workloads.clone(), metrics.clone());
    socket::serve(&socket, &agent, handles, callers, counted, ready.clone()).await?;
    let mut daemon = Daemon {
        file: file.to_owned(),
        mount,
        agent,
        redirect,
        enrolled: HashMap::new(),
        uncovered: HashSet::new(),
        workloads,
        metrics,
        intercept,
        settled,
    };
    daemon.apply(&enrolled)?;
    ready.store(true, Ordering::Relaxed);
    tracing::info!(listen = %daemon.agent.listeners().v4, cgroups = ?daemon.intercept.cgroups, "intercepting");

    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut look = tokio::time::interval(RELOAD);
    let mut cover = tokio::time::interval(COVER);
    loop {
        tokio::select! {
            _ = heartbeat.tick() => beat(&daemon.redirect, &daemon.agent),
            _ = cover.tick() => daemon.cover(),
            _ = look.tick() => {
                let now = digest_of(file);
                // A file that cannot be read just now is being replaced: look again.
                if now.is_some() && now != digest {
                    digest = now;
                    daemon.reload();
                }
            }
            _ = hangup.recv() => {
                digest = digest_of(file);
                daemon.reload();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!(
        "stopping; enrolled workloads stay refused until an agent runs again, or `tv-agent cleanup`"
    );
    ready.store(false, Ordering::Relaxed);
    daemon.agent.stop().await;
    // The links stay pinned: a workload must never get past a stopped agent with the wrong token.
    Ok(())
}

impl Daemon {
    /// Brings the kernel half in line with the configuration, coverage first.
    fn apply(&mut self, enrolled: &[PathBuf]) -> Result<(), Error> {
        let belt = self.agent_cgroup(enrolled)?;
        self.redirect
            .apply(&kernel_policy(&self.intercept, self.agent.listeners(), belt))?;
        self.redirect.heartbeat()?;
        let mut ids = HashMap::new();
        for directory in enrolled {
            self.redirect.attach(directory)?;
            let id = redirect::cgroup_id(directory).map_err(Error::Cgroup)?;
            ids.insert(directory.clone(), id);
        }
        for directory in self.redirect.attached().iter().filter(|d| !enrolled.contains(d)) {
            self.redirect.detach(directory)?;
        }
        self.enrolled = ids;
        // What an agent before this one left for other cgroups, now that all of ours are covered.
        self.redirect.retire_stale()?;
        self.workloads.set_roots(enrolled.to_vec());
        Ok(())
    }

    /// Id of the agent's own cgroup, when that lies below an enrolled one: the sockets that libraries open
    /// carry no flag, and must get past the kernel half.
    fn agent_cgroup(&self, enrolled: &[PathBuf]) -> Result<Option<u64>, Error> {
        let own = own_cgroup(&self.mount).map_err(Error::Cgroup)?;
        if enrolled.contains(&own) {
            return Err(Error::OwnCgroup {
                path: own.display().to_string(),
            });
        }
        if enrolled.iter().any(|directory| own.starts_with(directory)) {
            return redirect::cgroup_id(&own).map(Some).map_err(Error::Cgroup);
        }
        Ok(None)
    }

    /// Attaches to enrolled cgroups that were made again: service managers remove a service's cgroup when it
    /// stops, and the programs go with it.
    fn cover(&mut self) {
        for (directory, covered) in &mut self.enrolled {
            // One that cannot be looked at is gone, and so is everybody who was in it.
            let made_again = redirect::cgroup_id(directory).ok().filter(|id| id != covered);
            let Some(id) = made_again else { continue };
            match self.redirect.attach(directory) {
                Ok(()) => {
                    *covered = id;
                    tracing::warn!(
                        cgroup = %directory.display(),
                        "the cgroup was removed and made again, and was not intercepted for a moment; enrol the \
                         one above it, which stays"
                    );
                }
                // Tried again each time, told once.
                Err(error) if self.uncovered.insert(id) => {
                    tracing::error!(cgroup = %directory.display(), "NOT intercepted: {}", chain(&error));
                }
                Err(_) => {}
            }
        }
    }

    /// Takes the file's new contents whole, or keeps the old configuration.
    fn reload(&mut self) {
        let result = match self.try_reload() {
            Ok(()) => {
                tracing::info!("configuration reloaded");
                "ok"
            }
            Err(error) => {
                tracing::error!(
                    "the new configuration is refused, the old one stays: {}",
                    chain(&error)
                );
                "refused"
            }
        };
        self.metrics
            .config_reloads
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    fn try_reload(&mut self) -> Result<(), Error> {
        let config = super::load(Some(&self.file))?;
        let enrolled = directories(&self.file, &config.intercept, &self.mount)?;
        self.agent_cgroup(&enrolled)?;
        if Settled::of(&config) != self.settled {
            tracing::warn!("listen.port, admin and ca.dir take effect when the agent is restarted");
        }
        let intercept = config.intercept.clone();
        let prepared = self.agent.prepare(config)?;
        // The kernel half can still say no; then everything is as before.
        let old = std::mem::replace(&mut self.intercept, intercept);
        if let Err(error) = self.apply(&enrolled) {
            self.intercept = old;
            let enrolled = directories(&self.file, &self.intercept, &self.mount)?;
            self.apply(&enrolled)?;
            return Err(error);
        }
        self.agent.install(prepared);
        Ok(())
    }
}

fn directories(file: &Path, intercept: &Intercept, mount: &Path) -> Result<Vec<PathBuf>, Error> {
    if intercept.cgroups.is_empty() {
        return Err(Error::NoCgroups {
            file: file.to_owned(),
        });
    }
    let directory = |path: &String| {
        let directory = mount.join(path.trim_start_matches('/'));
        if directory.is_dir() {
            Ok(directory)
        } else {
            Err(Error::NoSuchCgroup {
                file: file.to_owned(),
                path: path.clone(),
                mount: mount.to_owned(),
            })
        }
    };
    intercept.cgroups.iter().map(directory).collect()
}

fn digest_of(file: &Path) -> Option<[u8; 32]> {
    std::fs::read(file).ok().map(|bytes| Sha256::digest(bytes).into())
}

/// Exposed for `check`: whether every enrolled cgroup is there.
pub fn missing_cgroups(config: &Config, mount: &Path) -> Vec<String> {
    let gone = |path: &&String| !mount.join(path.trim_start_matches('/')).is_dir();
    config.intercept.cgroups.iter().filter(gone).cloned().collect()
}

//! `tv-agent run`: the daemon.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::{LISTEN_V4, beat, cgroup2_mount, chain, kernel_policy, listen_v6};
use crate::admin;
use crate::agent::{self, Agent, Installer, Wiring};
use crate::ca;
use crate::cli::{RunArgs, exit};
use crate::config::{self, Intercept};
use crate::control::LogFilter;
use crate::handover::{self, Estate, Event};
use crate::kubernetes;
use crate::limits;
use crate::metrics::Metrics;
use crate::redirect::{self, Handles, Redirect};
use crate::trust::Ledger;
use crate::workload::Workloads;

mod authority;
mod cover;
mod ends;
mod enrolled;
mod host;
mod node;
mod pods;
mod reload;
mod settled;
mod socket;
mod takeover;

use cover::Cover;
use ends::Ends;
pub use enrolled::missing_cgroups;
use enrolled::{Enrolled, agent_cgroup, directories};
pub use host::enter_cgroup_namespace;
use pods::Pods;
use settled::Settled;
use socket::Doing;
use takeover::{Begun, Local};

/// The name of the one daemon of a machine among the instances.
const INSTANCE: &str = "daemon";
/// The kernel half takes the agent for dead five seconds after the last one.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the configuration file is looked at. Its digest, not inotify: a ConfigMap is swapped by symlinks.
const RELOAD: Duration = Duration::from_secs(2);

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
    #[error(transparent)]
    Handover(#[from] handover::Error),
    #[error(
        "listen.port is {wanted}, and the running agent listens on {running}: sockets that are handed over keep their \
         address; take it back, or stop the running agent first"
    )]
    OtherPort { wanted: u16, running: SocketAddr },
    #[error("the running agent (process {pid}) lives in another network namespace; start this one there")]
    Elsewhere { pid: i32 },
    #[error("a socket cannot be handed over")]
    Descriptor(#[source] io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot handle signals")]
    Signals(#[source] io::Error),
    #[error("cannot read /proc/self/cgroup")]
    Cgroup(#[source] io::Error),
}

pub async fn run(args: &RunArgs, log: LogFilter) -> u8 {
    match daemon(args, log).await {
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
    cover: Cover,
    /// None: all that is below the enrolled cgroups is covered.
    pods: Option<Pods>,
    handles: Handles,
    workloads: Arc<Workloads>,
    metrics: Metrics,
    intercept: Intercept,
    settled: Settled,
    /// The subtrees of the routes in force, for which the CA has to sign.
    wanted: watch::Sender<Vec<String>>,
    /// Whether the file was refused when it was last read.
    refused: bool,
}

async fn daemon(args: &RunArgs, log: LogFilter) -> Result<(), Error> {
    super::guard_memory();
    let file = &*args.config;
    let mut digest = digest_of(file);
    let mut config = super::load(Some(file))?;
    let mount = cgroup2_mount()?;
    let enrolled = directories(file, &config.intercept, &mount, config.kubernetes.is_some())?;
    let ca_digest = ca::digest(&config.ca_dir);
    let authority = authority::load(&config)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    let mut end = Ends::new().map_err(Error::Signals)?;

    let Begun {
        mut redirect,
        door,
        sockets,
        before,
    } = takeover::begin(args.take_over, &config).await?;
    super::raise_open_files();
    if let Some(log) = redirect.kernel_log() {
        tokio::spawn(log.run());
    }
    let handles = redirect.handles();
    let shared = Arc::new(handles.clone());
    let metrics = Metrics::new();
    let workloads = Arc::new(Workloads::new(mount.clone(), enrolled.fixed.clone()));
    let (intercept, settled) = (config.intercept.clone(), Settled::of(&config));
    let wanted = watch::Sender::new(config.subtrees());
    let ready = Arc::new(AtomicBool::new(false));
    let mut node = node::start(config.kubernetes.take(), shared.clone(), &metrics).await;
    let wiring = Wiring {
        origins: shared.clone(),
        own: shared.clone(),
        namespaces: Some(shared.clone()),
        narrow: Some(shared),
        workloads: workloads.clone(),
        authority,
        installer: Installer::of(&config.trust),
        metrics: metrics.clone(),
        ledger: Ledger::default(),
        pods: node.as_ref().map(|node| node.table() as _),
        listen_v4: (LISTEN_V4, settled.port).into(),
        listen_v6: listen_v6(settled.port),
    };
    let sockets = sockets.complete(&settled).await?;
    let cover = Cover::new(redirect);
    let agent = match before {
        None => Agent::start(config, wiring).await?,
        Some(before) => {
            before
                .follow(config, wiring, &cover, &enrolled.fixed, &mount)
                .await?
        }
    };
    let local = sockets.serve(
        &agent,
        handles.clone(),
        workloads.clone(),
        metrics.clone(),
        Doing {
            ready: ready.clone(),
            watched: node.as_ref().map(kubernetes::Node::health),
        },
        log,
    )?;
    let pods = match &mut node {
        Some(node) => {
            node.follow(agent.flows());
            Some(node::pods(node, &cover, &workloads, &metrics, &mount).map_err(Error::Cgroup)?)
        }
        None => None,
    };
    let mut daemon = Daemon {
        file: file.to_owned(),
        mount,
        agent,
        cover,
        pods,
        handles,
        workloads,
        metrics,
        intercept,
        settled,
        wanted,
        refused: false,
    };
    daemon.apply(&enrolled)?;
    daemon.cover.watch(&daemon.mount).map_err(Error::Thread)?;
    if let Some(pods) = &daemon.pods {
        pods.watch().map_err(Error::Thread)?;
    }
    let (events, mut asked) = mpsc::channel(4);
    let retire = daemon.handles.clone();
    let (kept, theirs) = takeover::twice(door)?;
    let ready_time = limits::HANDOVER_READY_TIME;
    handover::serve(theirs, ready_time, move |retired| retire.retire(retired), events)
        .map_err(Error::Thread)?;
    let (authorities, mut renewed) = mpsc::channel(1);
    let ca_dir = daemon.settled.ca_dir.clone();
    tokio::spawn(authority::tend(
        ca_dir,
        ca_digest,
        daemon.wanted.subscribe(),
        authorities,
    ));
    ready.store(true, Ordering::Relaxed);
    tracing::info!(listen = %daemon.agent.listeners().v4, cgroups = ?daemon.intercept.cgroups, "intercepting");

    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut look = tokio::time::interval(RELOAD);
    // While another agent takes over, what it was told stays so.
    let mut giving = false;
    let handed_over = loop {
        tokio::select! {
            _ = heartbeat.tick() => beat(&daemon.handles, &daemon.agent),
            _ = look.tick(), if !giving => {
                let now = digest_of(file);
                // A file that cannot be read just now is being replaced: look again.
                if now.is_some() && now != digest {
                    digest = now;
                    daemon.reload();
                }
            }
            _ = hangup.recv(), if !giving => {
                digest = digest_of(file);
                daemon.reload();
            }
            Some(authority) = renewed.recv(), if !giving => daemon.take_authority(authority),
            Some(event) = asked.recv() => match event {
                Event::Asked(reply) => {
                    giving = true;
                    // Who asked may have given up.
                    let _ = reply.send(daemon.estate(&kept, &local).await);
                }
                Event::Abandoned => {
                    giving = false;
                    daemon.agent.keep().await;
                    daemon.go_on();
                }
                Event::Taken => break true,
            },
            () = end.asked() => break false,
        }
    };
    ready.store(false, Ordering::Relaxed);
    let (drain, agent) = (daemon.settled.drain, daemon.agent);
    let draining: Pin<Box<dyn Future<Output = ()>>> = if handed_over {
        tracing::info!(?drain, "another agent has taken over; finishing what is open");
        local.close().await;
        daemon.cover.with(Redirect::leave);
        drop(kept);
        Box::pin(agent.hand_over())
    } else {
        tracing::info!(
            ?drain,
            "stopping; enrolled workloads stay refused until an agent runs again, or `tv-agent cleanup`"
        );
        Box::pin(agent.stop())
    };
    // Who has handed over is told to stop once in any case, by who supervises it.
    let mut told = !handed_over;
    tokio::pin!(draining);
    let mut drained = false;
    while !drained || handed_over && args.linger && !told {
        tokio::select! {
            () = &mut draining, if !drained => drained = true,
            () = end.asked() => {
                if told {
                    tracing::warn!("told to stop again: ending at once");
                    break;
                }
                told = true;
            }
        }
    }
    // The links stay pinned: a workload must never get past a stopped agent with the wrong token.
    Ok(())
}

impl Daemon {
    /// Brings the kernel half in line with the configuration, coverage first.
    fn apply(&mut self, enrolled: &Enrolled) -> Result<(), Error> {
        let Enrolled { fixed, trees } = enrolled;
        let belt = agent_cgroup(&self.mount, fixed)?;
        self.cover
            .apply(&kernel_policy(&self.intercept, self.agent.listeners(), belt))?;
        self.handles.heartbeat()?;
        self.cover.attach(fixed)?;
        match &self.pods {
            Some(pods) => pods.settle(trees.clone(), fixed.clone()),
            None => self.workloads.set_roots(fixed.clone()),
        }
        self.cover.keep_only(fixed)?;
        Ok(())
    }

    fn directories(&self, intercept: &Intercept) -> Result<Enrolled, Error> {
        directories(&self.file, intercept, &self.mount, self.pods.is_some())
    }

    /// All that a successor needs.
    async fn estate(&self, door: &OwnedFd, local: &Local) -> Option<Estate> {
        let inheritance = self.agent.bequeath().await?;
        takeover::estate(&self.cover, door, local, inheritance)
            .inspect_err(|error| tracing::error!(%error, "cannot hand over"))
            .ok()
    }

    /// Undoes what a successor did that did not come to serve.
    fn go_on(&mut self) {
        let again = self.directories(&self.intercept);
        if let Err(error) = again.and_then(|enrolled| self.apply(&enrolled)) {
            tracing::error!("the kernel half: {}", chain(&error));
        }
    }
}

fn digest_of(file: &Path) -> Option<[u8; 32]> {
    std::fs::read(file).ok().map(|bytes| Sha256::digest(bytes).into())
}

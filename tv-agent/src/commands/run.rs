//! `tv-agent run`: the daemon.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use sha2::{Digest as _, Sha256};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::{LISTEN_V4, beat, cgroup2_mount, chain, kernel_policy, listen_v6};
use crate::agent::{self, Grounds, Inheritance, Installer, Means};
use crate::audit::AtPath;
use crate::ca::{self, Authority};
use crate::cli::{RunArgs, exit};
use crate::config::Intercept;
use crate::control::LogFilter;
use crate::handover::{self, Estate, Event};
use crate::limits;
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::redirect::{Handles, Redirect};
use crate::strays;
use crate::trust::{Here, Ledger};
use crate::warden::{self, Answers, DataPath, Lodgings, Naming, Orders, Signers, Spaces};
use crate::workload::{Recognised, Workloads};

mod authority;
mod cover;
mod ends;
mod enrolled;
mod host;
mod error;
mod facts;
mod loaded;
mod node;
mod pods;
mod reload;
mod settled;
mod takeover;

use cover::Cover;
use ends::Ends;
pub use enrolled::missing_cgroups;
use enrolled::{Enrolled, agent_cgroup, directories};
use error::Error;
pub use host::enter_cgroup_namespace;
use loaded::Loaded;
use pods::{Pods, Tools};
use settled::Settled;
use takeover::{Begun, Local};

/// The name of the one daemon of a machine among the instances.
const INSTANCE: &str = "daemon";
/// The kernel half takes the agent for dead five seconds after the last one.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How often the configuration file is looked at. Its digest, not inotify: a ConfigMap is swapped by symlinks.
const RELOAD: Duration = Duration::from_secs(2);

/// `options`: those of the log, for the data path.
pub async fn run(args: &RunArgs, log: LogFilter, options: &[String]) -> u8 {
    match daemon(args, log, options).await {
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
    grounds: Grounds,
    orders: Orders,
    naming: Naming,
    signers: Signers,
    /// The CA in force, for those who install it.
    authority: watch::Sender<Arc<Authority>>,
    scope: Arc<ArcSwap<strays::Scope>>,
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

async fn daemon(args: &RunArgs, log: LogFilter, options: &[String]) -> Result<(), Error> {
    super::guard_memory();
    let began = Instant::now();
    let file = &*args.config;
    let mut digest = digest_of(file);
    let Loaded { config, named, text } = Loaded::from(file)?;
    let mount = cgroup2_mount()?;
    let enrolled = directories(file, &config.intercept, &mount, config.kubernetes.is_some())?;
    let ca_digest = ca::digest(&config.ca_dir);
    let authority = authority::load(&config)?;
    agent::check_permitted(&config, &authority)?;
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
    let naming = Naming::new(named);
    let signers = Signers::new(authority.clone());
    let listening = Arc::new(OnceLock::new());
    let lodgings = config.kubernetes.as_ref().map(|_| Lodgings::default());
    let answers = Answers {
        recognised: Recognised {
            origins: shared.clone(),
            workloads: workloads.clone(),
        },
        own: shared.clone(),
        spaces: Spaces::default(),
        signers: signers.clone(),
        narrow: shared.clone(),
        sight: {
            let workloads = workloads.clone();
            Here {
                roots: Arc::new(move || workloads.roots()),
            }
        },
        audit: naming.audit().map(AtPath),
        naming: naming.clone(),
        facts: facts::of(
            began,
            listening.clone(),
            handles.clone(),
            workloads.clone(),
            metrics.clone(),
        ),
        log,
        pods: lodgings.clone(),
    };
    let mut data_path = DataPath::start(Path::new("/proc/self/exe"), options, config.user, answers)?;
    let orders = data_path.orders().clone();
    orders
        .begin(file, text.as_fd(), &authority, warden::home())
        .await?;
    let authority = watch::Sender::new(authority);
    let scope = Arc::new(ArcSwap::from_pointee(agent::scope(&intercept)));
    let ledger = Ledger::default();
    tokio::spawn(orders.clone().follow(ledger.clone()));
    let means = Means {
        own: shared.clone(),
        facts: Some(shared),
        workloads: workloads.clone(),
        installer: Installer::of(&config.trust),
        ledger,
        metrics: metrics.clone(),
        authority: authority.subscribe(),
        scope: {
            let scope = scope.clone();
            Arc::new(move || scope.load_full())
        },
        tell: orders.teller(),
        serve: orders.server(),
        // The data path has the connections to origins, and is told when a namespace is left.
        sweep: Arc::new(|| {}),
    };
    let local = sockets.complete(&settled).await?;
    let cover = Cover::new(redirect);
    let grounds = match before {
        None => {
            let v4 = (LISTEN_V4, settled.port).into();
            let inheritance = Inheritance::bind(&*means.own, v4, listen_v6(settled.port))?;
            Grounds::open(inheritance, means)?
        }
        Some(before) => {
            before
                .follow(&intercept, means, &cover, &enrolled.fixed, &mount)
                .await?
        }
    };
    listening.get_or_init(|| grounds.listeners());
    local.serve(&orders).await?;
    let pods = match (&config.kubernetes, &lodgings) {
        (Some(settings), Some(lodgings)) => {
            node::listed(lodgings.orders(), settings.unknown).await;
            let tools = Tools {
                cover: cover.clone(),
                workloads: workloads.clone(),
                metrics: metrics.clone(),
                orders: lodgings.orders(),
                tell: orders.noter(),
                unknown: settings.unknown,
                own: super::own_cgroup(&mount).map_err(Error::Cgroup)?,
            };
            Some(Pods::new(tools))
        }
        _ => None,
    };
    let mut daemon = Daemon {
        file: file.to_owned(),
        mount,
        grounds,
        orders,
        naming,
        signers,
        authority,
        scope,
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
    daemon.orders.ready(true).await?;
    tracing::info!(listen = %daemon.grounds.listeners().v4, cgroups = ?daemon.intercept.cgroups, "intercepting");

    let heartbeat = tokio::spawn(heartbeat(daemon.orders.clone(), daemon.handles.clone()));
    let mut look = tokio::time::interval(RELOAD);
    // While another agent takes over, what it was told stays so.
    let mut giving = false;
    let handed_over = loop {
        tokio::select! {
            error = data_path.ended() => return Err(error.into()),
            _ = look.tick(), if !giving => {
                let now = digest_of(file);
                // A file that cannot be read just now is being replaced: look again.
                if now.is_some() && now != digest {
                    digest = now;
                    daemon.reload().await;
                }
            }
            _ = hangup.recv(), if !giving => {
                digest = digest_of(file);
                daemon.reload().await;
            }
            Some(authority) = renewed.recv(), if !giving => daemon.take_authority(authority).await,
            Some(event) = asked.recv() => match event {
                Event::Asked(reply) => {
                    giving = true;
                    // Who asked may have given up.
                    let _ = reply.send(daemon.estate(&kept, &local).await);
                }
                Event::Abandoned => {
                    giving = false;
                    daemon.grounds.keep().await;
                    daemon.go_on();
                }
                Event::Taken => break true,
            },
            () = end.asked() => break false,
        }
    };
    heartbeat.abort();
    // One that is ending itself needs not be told.
    let _ = daemon.orders.ready(false).await;
    let (drain, grounds) = (daemon.settled.drain, daemon.grounds);
    let phase = if handed_over {
        tracing::info!(?drain, "another agent has taken over; finishing what is open");
        // A successor answers there.
        drop(local);
        daemon.cover.with(Redirect::leave);
        drop(kept);
        Phase::HandedOver
    } else {
        tracing::info!(
            ?drain,
            "stopping; enrolled workloads stay refused until an agent runs again, or `tv-agent cleanup`"
        );
        Phase::Ending
    };
    // Who has handed over is told to stop once in any case, by who supervises it.
    let mut told = !handed_over;
    let draining = async { tokio::join!(data_path.end(handed_over), grounds.leave(phase)) };
    tokio::pin!(draining);
    let mut drained = false;
    while !drained || handed_over && args.linger && !told {
        tokio::select! {
            _ = &mut draining, if !drained => drained = true,
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
            .apply(&kernel_policy(&self.intercept, self.grounds.listeners(), belt))?;
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
        let inheritance = self.grounds.bequeath().await?;
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

/// Tells the kernel half that the agent lives for as long as both processes do, and answer each other.
async fn heartbeat(orders: Orders, handles: Handles) {
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match orders.beat().await {
            Ok(()) => beat(&handles),
            Err(error) => tracing::error!("{}", chain(&error)),
        }
    }
}

fn digest_of(file: &Path) -> Option<[u8; 32]> {
    std::fs::read(file).ok().map(|bytes| Sha256::digest(bytes).into())
}

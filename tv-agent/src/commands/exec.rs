//! `tv-agent exec`: one command in a cgroup and mount namespace of its own, intercepted.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

use super::{LISTEN_V4, RUN_DIR, beat, cgroup2_mount, chain, kernel_policy, listen_v6};
use crate::admin::Admin;
use crate::agent::{self, Agent, Wiring};
use crate::ca::{self, Authority};
use crate::cli::{ExecArgs, exit};
use crate::config::{self, Config};
use crate::enter::{self, EnterSpec};
use crate::metrics::Metrics;
use crate::redirect::{self, Redirect};
use crate::snapshot::Current;
use crate::trust;
use crate::workload::Workloads;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(transparent)]
    Kernel(#[from] super::KernelHalf),
    #[error(transparent)]
    Redirect(#[from] redirect::Error),
    #[error(transparent)]
    Trust(#[from] trust::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error(transparent)]
    Mount(#[from] super::NoCgroup2),
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot handle signals")]
    Signals(#[source] std::io::Error),
}

pub async fn run(args: &ExecArgs) -> u8 {
    match intercepted(args).await {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("exec: {}", chain(&error));
            if matches!(error, Error::Config(_)) {
                exit::USAGE
            } else {
                exit::NOT_RUN
            }
        }
    }
}

async fn intercepted(args: &ExecArgs) -> Result<u8, Error> {
    let core_dumps = super::guard_memory();
    let config = super::load(args.config.as_deref())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::Signals)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(Error::Signals)?;
    // The terminal sends these two to the command as well; it decides what they mean.
    let _interrupt = signal(SignalKind::interrupt()).map_err(Error::Signals)?;
    let _quit = signal(SignalKind::quit()).map_err(Error::Signals)?;

    let instance = format!("exec-{}", std::process::id());
    let mount = cgroup2_mount()?;
    let mut kernel = Kernel(Some(super::kernel_half(&instance)?));
    let authority = Arc::new(authority(&config)?);
    let redirect = kernel.0.as_mut().expect("just loaded");
    let directory = Directory::make(Path::new(RUN_DIR).join(&instance))?;
    let cgroup = Cgroup::make(mount.join(redirect::exec_cgroup_name(&instance)))?;

    let environment = |name: &str| std::env::var_os(name);
    let root = trust::Root::open(Path::new("/"))?;
    let extra = trust::extra(&environment, &args.command, &root).unwrap_or_else(|error| {
        tracing::warn!(
            "exec: only the usual places are searched for stores: {}",
            chain(&error)
        );
        trust::Extra::default()
    });
    let trust = trust::prepare(
        &directory.0.join("trust"),
        &trust::Anchors::from_pem(&authority.anchors_pem())?,
        &environment,
        &root,
        &extra,
    )?;
    for trust::Unreached { path, why } in &trust.unreached {
        tracing::debug!("exec: {} does not get the CA: {why}", path.display());
    }
    let spec = directory.0.join("enter.json");
    EnterSpec::new(cgroup.0.clone(), trust, super::raise_open_files(), core_dumps)
        .write(&spec)
        .map_err(|source| Error::Io {
            what: "write",
            path: spec.clone(),
            source,
        })?;

    let intercept = config.intercept.clone();
    let metrics = Metrics::new();
    let handles = Arc::new(redirect.handles());
    let published = Arc::new(OnceLock::<Current>::new());
    serve_metrics(&config, &metrics, &handles, published.clone()).await;
    let wiring = Wiring {
        pods: None,
        origins: handles.clone(),
        own: handles.clone(),
        namespaces: Some(handles.clone()),
        narrow: Some(handles),
        workloads: Arc::new(Workloads::new(mount, vec![cgroup.0.clone()])),
        authority,
        installer: None,
        metrics,
        ledger: trust::Ledger::default(),
        // A free port: several run side by side, and beside a daemon.
        listen_v4: (LISTEN_V4, 0).into(),
        listen_v6: listen_v6(0),
    };
    let agent = Agent::start(config, wiring).await?;
    published.get_or_init(|| agent.current().clone());
    redirect.apply(&kernel_policy(&intercept, agent.listeners(), None))?;
    redirect.heartbeat()?;
    redirect.attach(&cgroup.0)?;

    let own_exe = Path::new("/proc/self/exe");
    let mut child = tokio::process::Command::from(enter::command(own_exe, &spec, &args.command))
        .spawn()
        .map_err(|source| Error::Io {
            what: "start",
            path: own_exe.to_owned(),
            source,
        })?;
    // From here on a failure of ours must leave the command refused, not uncovered.
    let redirect = kernel.0.take().expect("loaded above");
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .map(Pid::from_raw);
    let beating = redirect.handles();
    let mut heartbeat = tokio::time::interval(Duration::from_secs(1));
    let status = loop {
        tokio::select! {
            status = child.wait() => break status,
            _ = terminate.recv() => forward(pid, Signal::SIGTERM),
            _ = hangup.recv() => forward(pid, Signal::SIGHUP),
            _ = heartbeat.tick() => {
                beat(&beating);
                agent.sweep();
            }
        }
    };
    let status = status.map_err(|source| Error::Io {
        what: "wait for",
        path: own_exe.to_owned(),
        source,
    })?;
    agent.stop_now().await;
    if cgroup.remove() {
        // The command has run: its code is the answer, whatever becomes of our leftovers.
        if let Err(error) = redirect.release() {
            tracing::warn!("{}; `tv-agent cleanup` can try again", chain(&error));
        }
    } else {
        directory.leave();
        tracing::warn!(
            "processes that the command started still run; their connections to captured ports are refused from \
             now on, until they end and `tv-agent cleanup` is run"
        );
    }
    Ok(code_of(status))
}

/// The configured CA if there is one, else one for this run only, whose root key is gone at once.
fn authority(config: &Config) -> Result<Authority, ca::Error> {
    match Authority::load(&config.ca_dir) {
        Err(ca::Error::Missing { .. }) => Authority::ephemeral(&config.subtrees()),
        other => other,
    }
}

/// Only when asked for: the default port is the daemon's.
async fn serve_metrics(
    config: &Config,
    metrics: &Metrics,
    handles: &Arc<redirect::Handles>,
    published: Arc<OnceLock<Current>>,
) {
    let Some(address) = config.metrics.filter(|_| config.metrics_asked) else {
        return;
    };
    let (counters, rendered) = (handles.clone(), metrics.clone());
    let admin = Admin {
        metrics: Arc::new(move || rendered.render()),
        ready: Arc::new(AtomicBool::new(true)),
        more: Arc::new(move || counters.named_counters()),
        keys: Arc::new(move || published.get().map(|current| current.load().keysets.clone())),
        page: None,
    };
    if let Err(error) = admin.serve(address).await {
        tracing::warn!("{}", chain(&error));
    }
}

fn forward(pid: Option<Pid>, signal: Signal) {
    if let Some(pid) = pid {
        // It may just have ended; then `wait` tells.
        let _ = kill(pid, signal);
    }
}

/// As a shell reports it: 128 and the signal's number for a command that a signal ended.
fn code_of(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(exit::FAILED)
}

/// A kernel half that is taken out again when the command cannot be started.
struct Kernel(Option<Redirect>);

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Redirect::release) {
            tracing::warn!("{}", chain(&error));
        }
    }
}

/// A directory that is removed with all that is in it.
struct Directory(PathBuf);

impl Directory {
    /// Below [`RUN_DIR`]; both let everybody pass, for a command that runs as somebody else than root.
    fn make(path: PathBuf) -> Result<Self, Error> {
        let failed = |source| Error::Io {
            what: "make",
            path: path.clone(),
            source,
        };
        fs::create_dir(&path).map_err(failed)?;
        let directory = Self(path.clone());
        for open in [Path::new(RUN_DIR), &path] {
            // Not by the mode of mkdir(2), which the umask cuts.
            fs::set_permissions(open, Permissions::from_mode(0o755)).map_err(failed)?;
        }
        Ok(directory)
    }

    /// For processes whose mounts show it; cleanup removes it when they are gone.
    fn leave(self) {
        std::mem::forget(self);
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, path = %self.0.display(), "cannot remove");
        }
    }
}

/// A cgroup that is removed when nobody is in it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: PathBuf) -> Result<Self, Error> {
        fs::create_dir(&path).map_err(|source| Error::Io {
            what: "make the cgroup",
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    /// False while processes are left in it.
    fn remove(&self) -> bool {
        // A process that has just ended may still be counted for a moment.
        (0..20).any(|_| {
            let removed = fs::remove_dir(&self.0).is_ok() || !self.0.exists();
            if !removed {
                std::thread::sleep(Duration::from_millis(5));
            }
            removed
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.remove();
    }
}

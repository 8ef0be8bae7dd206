//! Beginning as the one daemon of the machine: afresh, or in the place of a running one.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinHandle;

use super::{Cover, Doing, Error, INSTANCE, Settled, agent_cgroup, kernel_policy, socket};
use crate::admin::{self, Admin};
use crate::agent::{Agent, Inheritance, Wiring};
use crate::commands::{PIN_ROOT, RUN_DIR, explained, kernel_half};
use crate::config::Config;
use crate::control::{self, LogFilter};
use crate::handover::{self, Estate, Predecessor};
use crate::metrics::Metrics;
use crate::page::View;
use crate::redirect::{Handles, InstanceLock, Listeners, Redirect};
use crate::workload::Workloads;

/// What there is before anything listens.
pub(super) struct Begun {
    pub(super) redirect: Redirect,
    /// Where a successor knocks.
    pub(super) door: OwnedFd,
    pub(super) sockets: Found,
    pub(super) before: Option<Before>,
}

/// A running daemon that waits for us.
pub(super) struct Before {
    predecessor: Predecessor,
    inheritance: Inheritance,
    listeners: Listeners,
}

/// Local sockets of the running daemon.
#[derive(Default)]
pub(super) struct Found {
    admin: Option<(PathBuf, OwnedFd)>,
    metrics: Option<(SocketAddr, OwnedFd)>,
}

/// The local sockets, listening.
pub(super) struct Sockets {
    admin: (PathBuf, UnixListener),
    metrics: Option<(SocketAddr, TcpListener)>,
    /// Whether the latter has a page.
    page: bool,
}

/// The local sockets, served.
pub(super) struct Local {
    tasks: Vec<JoinHandle<()>>,
    admin: (PathBuf, OwnedFd),
    metrics: Option<(SocketAddr, OwnedFd)>,
}

/// Takes the lock and loads the kernel half; with `take_over`, those of the running daemon, if there is one.
pub(super) async fn begin(take_over: bool, config: &Config) -> Result<Begun, Error> {
    let path = handover::socket_path(Path::new(RUN_DIR), INSTANCE);
    let running = if take_over { ask(path.clone()).await? } else { None };
    let Some((predecessor, estate)) = running else {
        let redirect = kernel_half(INSTANCE)?;
        return Ok(Begun {
            redirect,
            door: handover::open_door(&path)?,
            sockets: Found::default(),
            before: None,
        });
    };
    let inheritance = estate.inheritance;
    let failed = |error| Error::Descriptor(error);
    let listeners = Listeners {
        v4: inheritance.v4.address().map_err(failed)?,
        v6: inheritance
            .v6
            .as_ref()
            .map(|v6| v6.address())
            .transpose()
            .map_err(failed)?,
    };
    if listeners.v4.port() != config.port {
        return Err(Error::OtherPort {
            wanted: config.port,
            running: listeners.v4,
        });
    }
    let pid = predecessor.pid();
    let probe = std::net::TcpListener::bind("127.0.0.1:0").map_err(failed)?;
    if crate::sys::netns_cookie(probe.as_fd()).map_err(failed)? != inheritance.v4.netns() {
        return Err(Error::Elsewhere { pid });
    }
    let lock = InstanceLock::adopt(Path::new(RUN_DIR), INSTANCE, estate.lock)?;
    let redirect = explained(Redirect::take_over(Path::new(PIN_ROOT), INSTANCE, lock))?;
    tracing::info!(pid, namespaces = inheritance.rooms.len(), "taking over");
    Ok(Begun {
        redirect,
        door: estate.door,
        sockets: Found {
            admin: Some(estate.admin),
            metrics: estate.metrics,
        },
        before: Some(Before {
            predecessor,
            inheritance,
            listeners,
        }),
    })
}

async fn ask(path: PathBuf) -> Result<Option<(Predecessor, Estate)>, Error> {
    // It blocks, and needs the runtime for the sockets that it gets.
    let asked = tokio::task::spawn_blocking(move || handover::ask(&path));
    Ok(asked.await.map_err(|error| Error::Thread(error.into()))??)
}

impl Before {
    /// Takes the place: the programs first, then accepting beside the running daemon, then its end. Whatever fails
    /// before that leaves it as it was.
    pub(super) async fn follow(
        self,
        config: Config,
        wiring: Wiring,
        cover: &Cover,
        enrolled: &[PathBuf],
        mount: &Path,
    ) -> Result<Agent, Error> {
        let belt = agent_cgroup(mount, enrolled)?;
        let policy = kernel_policy(&config.intercept, self.listeners, belt);
        cover.with(|redirect| redirect.check(&policy))?;
        cover.attach(enrolled)?;
        let agent = Agent::go_on(config, wiring, self.inheritance).await?;
        let predecessor = self.predecessor;
        tokio::task::spawn_blocking(move || predecessor.serving())
            .await
            .map_err(|error| Error::Thread(error.into()))??;
        cover.with(|redirect| redirect.lock().map_or(Ok(()), InstanceLock::claim))?;
        Ok(agent)
    }
}

impl Found {
    /// With those that are wanted and were not found made.
    pub(super) async fn complete(self, settled: &Settled) -> Result<Sockets, Error> {
        let path = settled.socket.clone();
        let admin = match self.admin {
            Some((found, socket)) if found == path => adopt_unix(socket)?,
            _ => control::listen(&path).await?,
        };
        let metrics = match (settled.metrics, self.metrics) {
            (None, _) => None,
            (Some(address), Some((found, socket))) if found == address => Some((address, adopt_tcp(socket)?)),
            (Some(address), _) => Some((address, admin::listen(address).await?)),
        };
        Ok(Sockets {
            admin: (path, admin),
            metrics,
            page: settled.page,
        })
    }
}

impl Sockets {
    pub(super) fn serve(
        self,
        agent: &Agent,
        handles: Handles,
        workloads: Arc<Workloads>,
        metrics: Metrics,
        doing: Doing,
        log: LogFilter,
    ) -> Result<Local, Error> {
        let copy = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(Error::Descriptor);
        let (path, admin) = self.admin;
        let status = socket::status(
            agent,
            handles.clone(),
            workloads.clone(),
            metrics.clone(),
            doing.clone(),
        );
        let mut local = Local {
            tasks: Vec::new(),
            admin: (path, copy(admin.as_fd())?),
            metrics: None,
        };
        if let Some((address, listener)) = self.metrics {
            local.metrics = Some((address, copy(listener.as_fd())?));
            let current = agent.current().clone();
            let (flows, processes, shown) =
                (agent.flows().clone(), agent.processes().clone(), status.clone());
            let view = move || View::of(shown(), flows.follow().0, processes.known());
            let admin = Admin {
                metrics: metrics.clone(),
                ready: doing.ready,
                more: Arc::new(move || handles.counters()),
                keys: Arc::new(move || Some(current.load().keysets.clone())),
                page: self.page.then(|| Arc::new(view) as _),
            };
            local.tasks.push(admin.serve_on(listener));
        }
        let admin = socket::serve(admin, agent, status, workloads, log, metrics);
        local.tasks.push(admin);
        Ok(local)
    }
}

impl Local {
    /// A successor answers on these sockets.
    pub(super) async fn close(self) {
        for task in self.tasks {
            task.abort();
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }
}

/// What is given to a successor.
pub(super) fn estate(
    cover: &Cover,
    door: &OwnedFd,
    local: &Local,
    inheritance: Inheritance,
) -> std::io::Result<Estate> {
    let metrics = local.metrics.as_ref();
    let lock = cover.with(|redirect| redirect.lock().map(InstanceLock::share));
    Ok(Estate {
        lock: lock.ok_or(std::io::ErrorKind::NotConnected)??,
        door: door.try_clone()?,
        admin: (local.admin.0.clone(), local.admin.1.try_clone()?),
        metrics: metrics
            .map(|(address, socket)| Ok::<_, std::io::Error>((*address, socket.try_clone()?)))
            .transpose()?,
        inheritance,
    })
}

/// One to keep, and one to give away.
pub(super) fn twice(door: OwnedFd) -> Result<(OwnedFd, OwnedFd), Error> {
    let copy = door.try_clone().map_err(Error::Descriptor)?;
    Ok((door, copy))
}

fn adopt_unix(socket: OwnedFd) -> Result<UnixListener, Error> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true).map_err(Error::Descriptor)?;
    UnixListener::from_std(listener).map_err(Error::Descriptor)
}

fn adopt_tcp(socket: OwnedFd) -> Result<TcpListener, Error> {
    let listener = std::net::TcpListener::from(socket);
    listener.set_nonblocking(true).map_err(Error::Descriptor)?;
    TcpListener::from_std(listener).map_err(Error::Descriptor)
}

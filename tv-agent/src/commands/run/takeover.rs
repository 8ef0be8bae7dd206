//! Beginning as the one daemon of the machine: afresh, or in the place of a running one.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use super::{Cover, Error, INSTANCE, Settled, agent_cgroup, kernel_policy};
use crate::admin;
use crate::agent::{Grounds, Inheritance, Means};
use crate::commands::{PIN_ROOT, RUN_DIR, explained, kernel_half};
use crate::config::{Config, Intercept};
use crate::control;
use crate::handover::{self, Estate, Predecessor};
use crate::redirect::{InstanceLock, Listeners, Redirect};
use crate::warden::Orders;

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

/// The local sockets, listening; kept for a successor.
pub(super) struct Local {
    admin: (PathBuf, OwnedFd),
    metrics: Option<(SocketAddr, OwnedFd)>,
    /// Whether the latter has a page.
    page: bool,
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
        intercept: &Intercept,
        means: Means,
        cover: &Cover,
        enrolled: &[PathBuf],
        mount: &Path,
    ) -> Result<Grounds, Error> {
        let belt = agent_cgroup(mount, enrolled)?;
        let policy = kernel_policy(intercept, self.listeners, belt);
        cover.with(|redirect| redirect.check(&policy))?;
        cover.attach(enrolled)?;
        let grounds = Grounds::open(self.inheritance, means)?;
        let predecessor = self.predecessor;
        tokio::task::spawn_blocking(move || predecessor.serving())
            .await
            .map_err(|error| Error::Thread(error.into()))??;
        cover.with(|redirect| redirect.lock().map_or(Ok(()), InstanceLock::claim))?;
        Ok(grounds)
    }
}

impl Found {
    /// With those that are wanted and were not found made.
    pub(super) async fn complete(self, settled: &Settled) -> Result<Local, Error> {
        let path = settled.socket.clone();
        let admin = match self.admin {
            Some((found, socket)) if found == path => socket,
            _ => {
                let made = control::listen(&path).await?.into_std();
                made.map_err(Error::Descriptor)?.into()
            }
        };
        let metrics = match (settled.metrics, self.metrics) {
            (None, _) => None,
            (Some(address), Some((found, socket))) if found == address => Some((address, socket)),
            (Some(address), _) => {
                let made = admin::listen(address).await?.into_std();
                Some((address, made.map_err(Error::Descriptor)?.into()))
            }
        };
        Ok(Local {
            admin: (path, admin),
            metrics,
            page: settled.page,
        })
    }
}

impl Local {
    /// Has them answered on.
    pub(super) async fn serve(&self, orders: &Orders) -> Result<(), Error> {
        let metrics = self.metrics.as_ref().map(|(_, socket)| socket.as_fd());
        orders
            .serve_local(self.admin.1.as_fd(), metrics, self.page)
            .await?;
        Ok(())
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

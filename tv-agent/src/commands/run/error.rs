//! Why the daemon does not start, or does not take a new configuration.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::commands::{KernelHalf, NoCgroup2};
use crate::{admin, agent, ca, config, control, handover, redirect, warden};

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
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
    Kernel(#[from] KernelHalf),
    #[error(transparent)]
    Redirect(#[from] redirect::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error(transparent)]
    Warden(#[from] warden::Error),
    #[error(transparent)]
    Admin(#[from] admin::Error),
    #[error(transparent)]
    Socket(#[from] control::Error),
    #[error(transparent)]
    Mount(#[from] NoCgroup2),
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

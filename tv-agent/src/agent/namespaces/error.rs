//! Why a namespace is not served.

use std::io;

use crate::accept;
use crate::limits;
use crate::redirect;

/// Why a namespace is not served. Its workloads stay refused, or uncaptured where the policy fails open.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("it cannot be entered (CAP_SYS_ADMIN and CAP_SYS_PTRACE are needed)")]
    Enter(#[source] io::Error),
    #[error("its loopback interface is down; bring it up: ip link set lo up")]
    LoopbackDown,
    #[error("the agent's port is taken there; choose another listen.port, or stop who has it")]
    PortTaken(#[source] accept::Error),
    #[error(transparent)]
    Listen(accept::Error),
    #[error("the kernel half cannot be told of it")]
    Kernel(#[from] redirect::Error),
    #[error("{} network namespaces are served already", limits::NAMESPACES)]
    TooMany,
}

impl Error {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Enter(_) => "enter",
            Self::LoopbackDown => "loopback_down",
            Self::PortTaken(_) => "port_taken",
            Self::Listen(_) => "listen",
            Self::Kernel(_) => "kernel",
            Self::TooMany => "too_many",
        }
    }

    pub(super) fn listen(error: accept::Error) -> Self {
        match &error {
            accept::Error::Bind { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Self::PortTaken(error)
            }
            accept::Error::Bind { .. } | accept::Error::Flag { .. } | accept::Error::Netns { .. } => {
                Self::Listen(error)
            }
        }
    }
}

//! What the two processes of the daemon say to each other: the warden, which has every privilege, and the data path,
//! which has none and parses what the network sends.
//!
//! Sequenced packets over socket pairs, descriptors along with them (SCM_RIGHTS). JSON, as at the hand-over and with the
//! helper of `trust`: a connection takes one round trip, of which that is a few microseconds, and nothing is decoded by
//! code of our own. What is not in these enums cannot be asked for.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::addr::{NetnsCookie, PeerAddr};
use crate::audit::FileId;
use crate::ca::{KeyKind, Public};
use crate::flows::Flow;
use crate::kubernetes::{Note, Order as Covering, Orders};
use crate::limits;
use crate::redirect::Narrowing;
use crate::sign::Due;
use crate::trust::{Installation, Listed, Looked, MntnsId, ProcessKey};
use crate::workload::Call;

mod line;

pub use line::{Line, Pending, Received, pair, receive, receive_blocking, send, send_blocking, watched};

/// Of the messages below. Both processes are one program; this tells when the file was replaced between two starts.
pub const PROTOCOL: u32 = 1;

/// The hidden command of the data path.
pub const COMMAND: &str = "__data-path";

/// The first packet, with the ends of the two lines on which the data path asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    pub version: String,
    pub uid: u32,
    pub gid: u32,
}

/// One packet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frame<T> {
    /// An answer has that of its question.
    pub id: u64,
    pub body: T,
}

/// What the data path asks the warden. All that it can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum Ask {
    /// Who is behind a connection that was accepted in a namespace that is served.
    Take {
        netns: NetnsCookie,
        peer: PeerAddr,
    },
    /// A flagged socket in a namespace that is served; None: the agent's own.
    Socket {
        netns: Option<u64>,
        ipv4: bool,
    },
    /// Nothing: whether somebody answers.
    Beat,
    /// A leaf for a key of the data path.
    Mint {
        /// SHA-256 of the certificate that it shall stand under, hexadecimal.
        issuer: String,
        host: String,
        kind: KeyKind,
        public_key: Vec<u8>,
    },
    /// An address of a routed host.
    Keep {
        address: IpAddr,
        seconds: u64,
    },
    /// Removes candidates that have had their time.
    Sweep {
        open: HashSet<IpAddr>,
    },
    Look {
        keys: Vec<ProcessKey>,
    },
    List {
        pids: Vec<u32>,
    },
    /// A file that the configuration names.
    Open {
        path: PathBuf,
    },
    /// A new key of a generated set that the configuration names.
    Key {
        set: String,
        due: Due,
    },
    /// The audit trail's file, if it is not this one.
    Audit {
        known: Option<FileId>,
    },
    /// Which pods are to be covered: a part of the whole, `more` of which follows.
    Pods {
        orders: Orders,
        more: bool,
    },
    /// What only the warden knows of itself.
    Facts,
    /// What is logged: changed, or told.
    Log {
        filter: Option<String>,
    },
}

/// The warden's answers. The descriptors that come along stand in brackets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    Call(Option<Box<Call>>),
    /// [socket]
    Socket,
    Minted {
        leaf: Vec<u8>,
        not_after: i64,
    },
    Done,
    Swept(Option<Narrowing>),
    /// A failed look with its error number.
    Looked(Vec<Result<Looked, i32>>),
    Listed(Vec<Listed>),
    /// [file]
    File,
    /// The file is the one that is known.
    Same,
    Facts(Box<Facts>),
    Filter(String),
    Failed(Failure),
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kernel's error number, where it comes from there.
    pub errno: Option<i32>,
    pub why: String,
}

/// See [`Ask::Facts`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub pid: u32,
    pub uptime_s: u64,
    pub listeners: Vec<String>,
    pub cgroups: Vec<PathBuf>,
    pub uncaptured: u64,
    pub narrowing: Option<Narrowing>,
    /// The kernel half's counters.
    pub counters: Vec<(String, u64)>,
    /// In the OpenMetrics text format.
    pub metrics: String,
}

/// What the warden tells the data path; each is answered by a [`Reply`] when it is done.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Order {
    /// The first one, with the configuration's text. [text]
    Begin {
        /// Its name, for errors.
        file: PathBuf,
        authority: Box<Public>,
        /// The mount namespace that the agent lives in.
        home: Option<MntnsId>,
    },
    /// Accept from a listener, to the end: when the reply comes. [listener]
    Serve {
        id: u64,
        netns: Option<(u64, NetnsCookie)>,
    },
    /// Accept no more from it.
    Leave {
        id: u64,
        deserted: bool,
    },
    /// Serve the admin socket, and the port for metrics if there is one. [socket, port]
    Local {
        page: bool,
    },
    /// Whether the CA is loaded and the kernel half attached.
    Ready(bool),
    /// Build all that a configuration needs, without using it. [text]
    Prepare,
    /// Put in force what was prepared.
    Install,
    /// Forget it.
    Abandon,
    Authority(Box<Public>),
    Ledger(Changes),
    /// Something that happened, to be told with the rest.
    Flow(Box<Flow>),
    /// What a pod is to be told by an Event.
    Note(Box<Note>),
    /// Once a second: let go of what is idle, and say that you live.
    Beat,
    /// The end: finish what is open.
    End {
        handed_over: bool,
    },
}

/// What became another in the ledger of installations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub attended: bool,
    pub removed: Vec<MntnsId>,
    pub installed: Vec<(MntnsId, Installation)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Failed(String),
}

impl Ask {
    /// Whether connections wait for it; the others have a line of their own, where they may take longer.
    pub fn is_urgent(&self) -> bool {
        matches!(
            self,
            Self::Take { .. } | Self::Socket { .. } | Self::Beat | Self::Mint { .. } | Self::Keep { .. }
        )
    }
}

/// The questions that tell which pods are to be covered, each small enough for a packet.
pub fn pods(orders: &Orders) -> Vec<Ask> {
    let all: Vec<_> = orders.pods.iter().collect();
    let mut parts: Vec<&[_]> = all.chunks(limits::WIRE_PODS).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let last = parts.len() - 1;
    let part = |(index, pods): (usize, &[(&String, &Covering)])| Ask::Pods {
        orders: Orders {
            pods: pods
                .iter()
                .map(|(uid, order)| ((*uid).clone(), (*order).clone()))
                .collect(),
            listed: orders.listed,
        },
        more: index < last,
    };
    parts.into_iter().enumerate().map(part).collect()
}

impl From<Failure> for std::io::Error {
    fn from(failure: Failure) -> Self {
        match failure.errno {
            Some(errno) => Self::from_raw_os_error(errno),
            None => Self::other(failure.why),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self {
            errno: error.raw_os_error(),
            why: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests;

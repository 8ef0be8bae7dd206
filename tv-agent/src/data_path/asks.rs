//! What the data path has the warden do, behind the traits by which its stages ask for it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::net::TcpSocket;
use tokio::sync::watch;

use crate::addr::{NetnsCookie, PeerAddr};
use crate::audit::{FileId, Trail};
use crate::ca::{Elsewhere, Minted, Request};
use crate::dial::Sockets;
use crate::files::Opener;
use crate::kubernetes::Orders;
use crate::limits;
use crate::netns::Netns;
use crate::redirect::{Narrow, Narrowing};
use crate::sign::{Due, Keeper};
use crate::trust::{self, Listed, Looked, MntnsId, ProcessKey, Sight};
use crate::wire::{self, Answer, Ask, Facts, Line, Received};
use crate::workload::{Call, Callers};

/// Both lines to the warden. Cheap to clone.
#[derive(Clone)]
pub(super) struct Asks {
    urgent: Line<Ask, Answer>,
    slow: Line<Ask, Answer>,
    home: Option<MntnsId>,
}

impl Asks {
    pub(super) fn start(urgent: OwnedFd, slow: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            urgent: Line::start(urgent, false)?,
            slow: Line::start(slow, false)?,
            home: None,
        })
    }

    pub(super) fn living_in(self, home: Option<MntnsId>) -> Self {
        Self { home, ..self }
    }

    /// What only the warden knows; nothing when it does not answer.
    pub(super) fn facts(&self) -> Facts {
        match self.ask(Ask::Facts) {
            Ok((Answer::Facts(facts), _)) => *facts,
            _ => Facts::default(),
        }
    }

    /// Changes what the warden logs, or asks for it.
    pub(super) fn log(&self, filter: Option<&str>) -> Result<String, String> {
        let filter = filter.map(str::to_owned);
        match self.ask(Ask::Log { filter }) {
            Ok((Answer::Filter(filter), _)) => Ok(filter),
            Ok(_) => Err(unexpected().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Whether the warden answers.
    pub(super) async fn beat(&self) -> io::Result<()> {
        self.ask_soon(Ask::Beat).await.map(drop)
    }

    /// Tells which pods are to be covered, as that changes.
    pub(super) async fn tell_pods(self, mut orders: watch::Receiver<Arc<Orders>>) {
        loop {
            let now = orders.borrow_and_update().clone();
            for part in wire::pods(&now) {
                if let Err(error) = self
                    .slow
                    .ask(part, &[], limits::WIRE_SLOW_TIME)
                    .await
                    .and_then(answered)
                {
                    tracing::error!(%error, "which pods are to be covered could not be told");
                    break;
                }
            }
            if orders.changed().await.is_err() {
                return;
            }
        }
    }

    fn ask(&self, ask: Ask) -> io::Result<Received<Answer>> {
        let (line, limit) = if ask.is_urgent() {
            (&self.urgent, limits::WIRE_TIME)
        } else {
            (&self.slow, limits::WIRE_SLOW_TIME)
        };
        answered(line.ask_blocking(ask, limit)?)
    }

    async fn ask_soon(&self, ask: Ask) -> io::Result<Received<Answer>> {
        answered(self.urgent.ask(ask, &[], limits::WIRE_TIME).await?)
    }
}

fn answered((answer, along): Received<Answer>) -> io::Result<Received<Answer>> {
    match answer {
        Answer::Failed(failure) => Err(failure.into()),
        answer => Ok((answer, along)),
    }
}

fn unexpected() -> io::Error {
    io::Error::other("the warden answered something else")
}

/// The one descriptor of an answer.
fn only(along: Vec<OwnedFd>) -> io::Result<OwnedFd> {
    along.into_iter().next().ok_or_else(unexpected)
}

impl Callers for Asks {
    fn take<'a>(
        &'a self,
        netns: NetnsCookie,
        peer: PeerAddr,
    ) -> Pin<Box<dyn Future<Output = io::Result<Option<Call>>> + Send + 'a>> {
        Box::pin(async move {
            match self.ask_soon(Ask::Take { netns, peer }).await? {
                (Answer::Call(call), _) => Ok(call.map(|call| *call)),
                _ => Err(unexpected()),
            }
        })
    }
}

impl Sockets for Asks {
    fn socket<'a>(
        &'a self,
        netns: &'a Netns,
        ipv4: bool,
    ) -> Pin<Box<dyn Future<Output = io::Result<TcpSocket>> + Send + 'a>> {
        Box::pin(async move {
            let netns = netns.number();
            match self.ask_soon(Ask::Socket { netns, ipv4 }).await? {
                (Answer::Socket, along) => {
                    let socket = std::net::TcpStream::from(only(along)?);
                    Ok(TcpSocket::from_std_stream(socket))
                }
                _ => Err(unexpected()),
            }
        })
    }
}

impl Narrow for Asks {
    fn keep(&self, address: IpAddr, time: Duration) {
        let (asks, seconds) = (self.clone(), time.as_secs());
        tokio::spawn(async move {
            let kept = asks.ask_soon(Ask::Keep { address, seconds }).await;
            if let Err(error) = kept {
                tracing::warn!(%error, %address, "the kernel half was not told of an address");
            }
        });
    }

    fn sweep(&self, open: &HashSet<IpAddr>) -> Option<Narrowing> {
        match self.ask(Ask::Sweep { open: open.clone() }) {
            Ok((Answer::Swept(narrowing), _)) => narrowing,
            _ => None,
        }
    }
}

impl Sight for Asks {
    fn home(&self) -> Option<MntnsId> {
        self.home
    }

    fn look(&self, keys: &[ProcessKey]) -> Vec<io::Result<Looked>> {
        let mut all = Vec::with_capacity(keys.len());
        for keys in keys.chunks(limits::WIRE_PROCESSES) {
            match self.ask(Ask::Look { keys: keys.to_vec() }) {
                Ok((Answer::Looked(looked), _)) if looked.len() == keys.len() => {
                    let each = looked.into_iter();
                    all.extend(each.map(|one| one.map_err(io::Error::from_raw_os_error)));
                }
                // Nothing can be told of them now.
                _ => all.extend(keys.iter().map(|_| Err(io::ErrorKind::PermissionDenied.into()))),
            }
        }
        all
    }

    fn list(&self, pids: Vec<u32>) -> Vec<Listed> {
        match self.ask(Ask::List { pids }) {
            Ok((Answer::Listed(listed), _)) => listed,
            _ => Vec::new(),
        }
    }
}

impl Opener for Asks {
    fn open(&self, path: &Path) -> io::Result<File> {
        match self.ask(Ask::Open {
            path: path.to_owned(),
        })? {
            (Answer::File, along) => Ok(only(along)?.into()),
            _ => Err(unexpected()),
        }
    }
}

impl Trail for Asks {
    fn opened(&self, known: Option<FileId>) -> io::Result<Option<File>> {
        match self.ask(Ask::Audit { known })? {
            (Answer::Same, _) => Ok(None),
            (Answer::File, along) => Ok(Some(only(along)?.into())),
            _ => Err(unexpected()),
        }
    }
}

impl Keeper for Asks {
    fn change(&self, name: &str, due: Due) -> io::Result<()> {
        let set = name.to_owned();
        match self.ask(Ask::Key { set, due })? {
            (Answer::Done, _) => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

impl Elsewhere for Asks {
    fn answer(&self, request: &Request<'_>, issuer: &CertificateDer<'_>) -> Result<Minted, String> {
        let ask = Ask::Mint {
            issuer: trust::fingerprint(issuer),
            host: request.host.as_str().to_owned(),
            kind: request.kind,
            public_key: request.public_key.to_vec(),
        };
        match self.ask(ask) {
            Ok((Answer::Minted { leaf, not_after }, _)) => Ok(Minted {
                leaf: CertificateDer::from(leaf),
                not_after: OffsetDateTime::from_unix_timestamp(not_after)
                    .map_err(|error| error.to_string())?,
            }),
            Ok(_) => Err(unexpected().to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

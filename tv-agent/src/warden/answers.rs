//! What the data path may ask for, and what it gets. Threads of their own answer: one pair for what connections wait for,
//! one for the rest.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;

use super::{Lodgings, Naming, Signers, Spaces};
use crate::addr::HostName;
use crate::audit::{AtPath, Trail as _};
use crate::ca::{KeyKind, Request};
use crate::control::LogFilter;
use crate::dial::OwnSocket;
use crate::https::causes;
use crate::limits;
use crate::redirect::Narrow;
use crate::trust::{Here, Sight as _};
use crate::wire::{self, Answer, Ask, Facts, Frame};
use crate::workload::Recognised;

/// How many answer at once, on each line.
const THREADS: usize = 2;

/// What the data path never says while it is what we started.
#[derive(Debug, thiserror::Error)]
pub enum Breach {
    #[error("the data path sent what nobody may ask for")]
    Form(#[source] io::Error),
    #[error("the data path asked on the wrong line")]
    Line,
    #[error("the data path sent descriptors, which are never asked for")]
    Descriptors,
    #[error("the data path asked for more at once than it may: {0}")]
    TooMuch(&'static str),
}

/// All that answers are made of.
pub struct Answers {
    pub recognised: Recognised,
    pub own: Arc<dyn OwnSocket>,
    pub spaces: Spaces,
    pub signers: Signers,
    pub narrow: Arc<dyn Narrow>,
    pub sight: Here,
    pub naming: Naming,
    /// The audit trail's file.
    pub audit: Option<AtPath>,
    pub facts: Arc<dyn Fn() -> Facts + Send + Sync>,
    pub log: LogFilter,
    /// None: no API server is followed.
    pub pods: Option<Lodgings>,
}

type Answered = (Answer, Option<OwnedFd>);

impl Answers {
    /// Answers on both lines until the data path ends. `end` is called when it has to.
    pub(super) fn attend(
        self: Arc<Self>,
        urgent: OwnedFd,
        slow: OwnedFd,
        end: Arc<dyn Fn(Breach) + Send + Sync>,
    ) -> io::Result<()> {
        for (line, name, is_urgent, most) in [
            (urgent, "tv-urgent", true, limits::WIRE_INLINE_BYTES),
            (slow, "tv-slow", false, limits::WIRE_SLOW_BYTES),
        ] {
            let line = Arc::new(line);
            for _ in 0..THREADS {
                let (answers, line, end) = (self.clone(), line.clone(), end.clone());
                let attend = move || {
                    if let Err(breach) = answers.serve(&line, is_urgent, most) {
                        end(breach);
                    }
                };
                std::thread::Builder::new().name(name.into()).spawn(attend)?;
            }
        }
        Ok(())
    }

    fn serve(&self, line: &OwnedFd, is_urgent: bool, most: usize) -> Result<(), Breach> {
        loop {
            let received = match wire::receive_blocking::<Frame<Ask>>(line.as_fd(), most, false) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(Breach::Form(error)),
                // Its end, in whatever way.
                Err(_) => return Ok(()),
            };
            let Some((Frame { id, body: ask }, descriptors)) = received else {
                return Ok(());
            };
            if !descriptors.is_empty() {
                return Err(Breach::Descriptors);
            }
            if ask.is_urgent() != is_urgent {
                return Err(Breach::Line);
            }
            let (body, along) = self.answer(ask)?;
            let along: Vec<_> = along.iter().map(|fd| fd.as_fd()).collect();
            if wire::send_blocking(line.as_fd(), &Frame { id, body }, &along, true).is_err() {
                return Ok(());
            }
        }
    }

    /// One question. What may not be had is refused; what the data path never asks is a breach.
    ///
    /// # Errors
    /// See [`Breach`].
    pub fn answer(&self, ask: Ask) -> Result<Answered, Breach> {
        check(&ask)?;
        Ok(self.try_answer(ask).unwrap_or_else(|error| {
            tracing::debug!(%error, "the data path is refused something");
            (Answer::Failed(error.into()), None)
        }))
    }

    fn try_answer(&self, ask: Ask) -> io::Result<Answered> {
        let answer = match ask {
            Ask::Take { netns, peer } => {
                if !self.spaces.has(netns) {
                    return Err(unknown("namespace"));
                }
                Answer::Call(self.recognised.take_now(netns, peer)?.map(Box::new))
            }
            Ask::Socket { netns, ipv4 } => {
                let netns = self.spaces.find(netns).ok_or_else(|| unknown("namespace"))?;
                let socket = netns.socket_here(ipv4)?;
                self.own.flag(socket.as_fd())?;
                return Ok((Answer::Socket, Some(socket.as_fd().try_clone_to_owned()?)));
            }
            Ask::Beat => Answer::Done,
            Ask::Mint {
                issuer,
                host,
                kind,
                public_key,
            } => self.mint(&issuer, &host, kind, &public_key)?,
            Ask::Keep { address, seconds } => {
                self.keep(address, seconds);
                Answer::Done
            }
            Ask::Sweep { open } => Answer::Swept(self.narrow.sweep(&open)),
            Ask::Look { keys } => {
                let looked = self.sight.look(&keys).into_iter();
                let number = |error: io::Error| match error.raw_os_error() {
                    Some(number) => number,
                    None => libc::ENOENT,
                };
                Answer::Looked(looked.map(|one| one.map_err(number)).collect())
            }
            Ask::List { pids } => Answer::Listed(self.sight.list(pids)),
            Ask::Open { path } => return Ok((Answer::File, Some(self.naming.open(&path)?.into()))),
            Ask::Key { set, due } => {
                self.naming.make_key(&set, due)?;
                Answer::Done
            }
            Ask::Audit { known } => {
                let trail = self.audit.as_ref().ok_or_else(|| unknown("audit trail"))?;
                return Ok(match trail.opened(known)? {
                    Some(file) => (Answer::File, Some(file.into())),
                    None => (Answer::Same, None),
                });
            }
            Ask::Pods { orders, more } => {
                let pods = self.pods.as_ref().ok_or_else(|| unknown("pods"))?;
                pods.take(orders, more)?;
                Answer::Done
            }
            Ask::Facts => Answer::Facts(Box::new((self.facts)())),
            Ask::Log { filter } => {
                Answer::Filter(self.log.change(filter.as_deref()).map_err(io::Error::other)?)
            }
        };
        Ok((answer, None))
    }

    /// Only for a name that a route has, however the asker came to want it.
    fn mint(&self, issuer: &str, host: &str, kind: KeyKind, public_key: &[u8]) -> io::Result<Answer> {
        let host = HostName::parse(host).ok_or_else(|| unknown("host"))?;
        if !self.naming.routes(&host) {
            return Err(unknown("host"));
        }
        let request = Request {
            host: &host,
            kind,
            public_key,
        };
        let authority = self.signers.find(issuer).ok_or_else(|| unknown("issuer"))?;
        let minted = authority
            .sign(&request, OffsetDateTime::now_utc())
            .map_err(|error| io::Error::other(causes(&error)))?;
        Ok(Answer::Minted {
            leaf: minted.leaf.to_vec(),
            not_after: minted.not_after.unix_timestamp(),
        })
    }

    fn keep(&self, address: IpAddr, seconds: u64) {
        const DAY: u64 = 24 * 3600;
        self.narrow.keep(address, Duration::from_secs(seconds.min(DAY)));
    }
}

fn check(ask: &Ask) -> Result<(), Breach> {
    match ask {
        Ask::Look { keys } if keys.len() > limits::WIRE_PROCESSES => Err(Breach::TooMuch("processes")),
        Ask::List { pids } if pids.len() > limits::TRUST_PROCESSES => Err(Breach::TooMuch("processes")),
        Ask::Sweep { open } if open.len() > limits::CONNECTIONS => Err(Breach::TooMuch("addresses")),
        Ask::Pods { orders, .. } if orders.pods.len() > limits::WIRE_PODS => Err(Breach::TooMuch("pods")),
        Ask::Log { filter: Some(filter) } if filter.len() > limits::LOG_FILTER_BYTES => {
            Err(Breach::TooMuch("words of a filter"))
        }
        _ => Ok(()),
    }
}

fn unknown(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("the data path has no such {what}"),
    )
}

#[cfg(test)]
mod tests;

//! Connections of enrolled processes that the programs never saw, found and reported.
//!
//! A hook follows the cgroup that a socket was made in: one that was made outside and passed in, or was connected
//! before its cgroup was enrolled, goes past the agent, and nothing can call it back. So every few seconds the
//! established connections to captured ports are listed, in each network namespace of a workload, and those that an
//! enrolled process holds are told, once each.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use crate::addr::OriginAddr;
use crate::clock;
use crate::diag::{self, Answer, Connection, Protocol};
use crate::flows::Flow;
use crate::limits;
use crate::metrics::{Metrics, ReasonLabels};
use crate::netns::{Found, Netns, NetnsId, Visitors};
use crate::phase::{self, Phase};
use crate::redirect::Recorded;
use crate::workload::{Workload, Workloads};

mod holders;
mod probe;

pub use probe::probe;

use holders::{Holder, Holders};

/// How often namespaces are looked at. A look costs one dump of the kernel's table each, and no more unless a
/// suspicious connection is found.
const PERIOD: Duration = Duration::from_secs(5);

/// Which connections should not be there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub ports: Vec<u16>,
    pub bypass: Vec<IpNet>,
    /// UDP to the same ports is refused.
    pub block_quic: bool,
    /// Only candidate addresses are captured: a connection elsewhere is left alone, as it should be.
    pub narrowed: bool,
}

impl Scope {
    /// Where connections may be left alone by design, only what was made outside is certain to have gone past.
    fn tells(&self, reason: Reason) -> bool {
        !self.narrowed || reason == Reason::ForeignSocket
    }

    /// Whether a connection to `peer` should have gone to the agent. A captured one shows the agent's listener as its
    /// peer, whose port is never captured.
    fn concerns(&self, peer: SocketAddr) -> bool {
        self.ports.contains(&peer.port()) && !self.bypass.iter().any(|net| net.contains(&peer.ip()))
    }
}

/// Takes the records of what was found; the facts of pods are still to be added.
pub type Tell = Arc<dyn Fn(Flow) + Send + Sync>;

/// How it got past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The socket's cgroup is not enrolled.
    ForeignSocket,
    /// The socket's cgroup is enrolled.
    NotRedirected,
    /// The kernel does not say which cgroup it is.
    Unknown,
}

impl Reason {
    pub const ALL: [Self; 3] = [Self::ForeignSocket, Self::NotRedirected, Self::Unknown];

    fn of(socket_cgroup: Option<u64>, enrolled: impl FnOnce(u64) -> bool) -> Self {
        match socket_cgroup.map(enrolled) {
            Some(true) => Self::NotRedirected,
            Some(false) => Self::ForeignSocket,
            None => Self::Unknown,
        }
    }

    /// Label in metrics and flows.
    pub fn label(self) -> &'static str {
        match self {
            Self::ForeignSocket => "foreign_socket",
            Self::NotRedirected => "not_redirected",
            Self::Unknown => "unknown",
        }
    }

    fn counter(self, metrics: &Metrics) -> Counter {
        let reason = self.label();
        metrics.uncaptured.get_or_create_owned(&ReasonLabels { reason })
    }

    fn explanation(self) -> &'static str {
        match self {
            Self::ForeignSocket => {
                "its socket was made outside of the enrolled cgroups; restart the workload inside, or enrol the \
                 cgroup that it starts in"
            }
            Self::NotRedirected => {
                "it was open before its cgroup was enrolled, was made while no agent ran (on_agent_down: open), or \
                 another tool's program changed its destination; restart the workload"
            }
            Self::Unknown => "restart the workload inside an enrolled cgroup",
        }
    }
}

/// Connections found so far.
pub fn count(metrics: &Metrics) -> u64 {
    Reason::ALL
        .map(|reason| reason.counter(metrics).get())
        .iter()
        .sum()
}

/// One that was found.
#[derive(Clone, Debug)]
struct Stray {
    netns: NetnsId,
    connection: Connection,
    holder: Holder,
    reason: Reason,
    workload: Workload,
}

/// What is already told, so that each is told once.
#[derive(Debug, Default)]
struct Told(HashMap<u64, NetnsId>);

impl Told {
    /// Those of `seen` that are new. Forgets connections that are gone from the namespaces that were `looked_at`, and
    /// all of namespaces that are not `alive`.
    fn news(
        &mut self,
        seen: Vec<Stray>,
        looked_at: &HashSet<NetnsId>,
        alive: impl Fn(NetnsId) -> bool,
    ) -> Vec<Stray> {
        let now: HashSet<u64> = seen.iter().map(|stray| stray.connection.cookie).collect();
        self.0
            .retain(|cookie, netns| alive(*netns) && (now.contains(cookie) || !looked_at.contains(netns)));
        let mut news = seen;
        news.retain(|stray| {
            let room = self.0.len() < limits::STRAYS;
            let cookie = stray.connection.cookie;
            let known = self.0.contains_key(&cookie);
            if room && !known {
                self.0.insert(cookie, stray.netns);
            }
            room && !known
        });
        news
    }
}

/// Everything that a look needs.
pub struct Watch {
    pub found: watch::Receiver<Arc<Found>>,
    pub visitors: Visitors,
    /// The namespace that the agent runs in.
    pub home: NetnsId,
    pub workloads: Arc<Workloads>,
    /// What is in force now.
    pub scope: Arc<dyn Fn() -> Arc<Scope> + Send + Sync>,
    pub tell: Tell,
    pub metrics: Metrics,
}

impl Watch {
    /// Looks every few seconds until the agent stops, or a successor looks.
    pub async fn run(self, mut watched: watch::Receiver<Phase>) {
        let mut told = Told::default();
        let mut holders = Holders::new();
        let mut turn = 0;
        let mut failed = false;
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                () = phase::reached(&mut watched, Phase::HandedOver) => return,
            }
            let askers = self.askers(&mut turn).await;
            let look = Look {
                scope: (self.scope)(),
                workloads: self.workloads.clone(),
                holders,
            };
            // Short, but it reads /proc.
            let looked = tokio::task::spawn_blocking(move || look.run(askers)).await;
            let Ok(looked) = looked else {
                tracing::error!(
                    "connections that go past the agent are not looked for any more; restart the agent"
                );
                return;
            };
            holders = looked.holders;
            if let Some(error) = looked.error.filter(|_| !failed) {
                failed = true;
                tracing::warn!(%error, "connections that go past the agent cannot be looked for; see `tv-agent check`");
            }
            let alive = {
                let found = self.found.borrow();
                let known: HashSet<NetnsId> = found.namespaces.keys().copied().collect();
                known
            };
            let news = told.news(looked.strays, &looked.complete, |id| {
                id == self.home || alive.contains(&id)
            });
            self.tell(&news);
        }
    }

    /// A netlink socket in the agent's own namespace and in some of the workloads', in turn.
    async fn askers(&self, turn: &mut usize) -> Vec<(NetnsId, OwnedFd)> {
        let mut others: Vec<(NetnsId, i32)> = {
            let found = self.found.borrow();
            let namespaces = found.namespaces.iter().filter(|(id, _)| **id != self.home);
            namespaces.map(|(id, seen)| (*id, seen.process)).collect()
        };
        others.sort_unstable_by_key(|(id, _)| id.ino);
        let skip = next_turn(turn, others.len(), limits::STRAY_NAMESPACES);
        let mut askers = Vec::new();
        if let Ok(asker) = Netns::OWN.asker().await {
            askers.push((self.home, asker));
        }
        for (id, process) in others.into_iter().skip(skip).take(limits::STRAY_NAMESPACES) {
            // One that is gone, or cannot be entered, is told of by those who serve it.
            if let Ok(netns) = Netns::open(process, id, &self.visitors).await
                && let Ok(asker) = netns.asker().await
            {
                askers.push((id, asker));
            }
        }
        askers
    }

    fn tell(&self, news: &[Stray]) {
        let (logged, more) = logged(news.len(), limits::STRAYS_LOGGED);
        for (index, stray) in news.iter().enumerate() {
            let reason = stray.reason.label();
            stray.reason.counter(&self.metrics).inc();
            let origin = stray.connection.peer;
            if index < logged {
                tracing::warn!(
                    reason, protocol = ?stray.connection.protocol, %origin, process = stray.holder.process, name = stray.holder.name,
                    cgroup = stray.workload.cgroup.as_deref().map(|cgroup| &*cgroup.path),
                    "a connection goes past the agent, with the workload's own token: {}", stray.reason.explanation()
                );
            }
            let mut flow = Flow {
                kind: "connection".to_owned(),
                origin: Some(OriginAddr(origin).to_string()),
                outcome: "uncaptured".to_owned(),
                reason: Some(reason.to_owned()),
                ..Flow::default()
            };
            stray.workload.introduce(&mut flow);
            (self.tell)(flow);
        }
        if more > 0 {
            tracing::warn!(
                more,
                "as many further connections go past the agent; see `tv-agent flows`"
            );
        }
    }
}

/// Where this turn begins among `count`, when each takes `most`; the next begins behind it.
fn next_turn(turn: &mut usize, count: usize, most: usize) -> usize {
    let begin = if *turn < count { *turn } else { 0 };
    *turn = begin + most;
    begin
}

/// How many of `count` are logged one by one, and how many together.
fn logged(count: usize, most: usize) -> (usize, usize) {
    (count.min(most), count.saturating_sub(most))
}

/// One look at some namespaces, away from the runtime.
struct Look {
    scope: Arc<Scope>,
    workloads: Arc<Workloads>,
    holders: Holders,
}

struct Looked {
    strays: Vec<Stray>,
    /// Namespaces whose every connection was seen, and every descriptor that could be one.
    complete: HashSet<NetnsId>,
    /// The first one.
    error: Option<std::io::Error>,
    holders: Holders,
}

impl Look {
    fn run(mut self, askers: Vec<(NetnsId, OwnedFd)>) -> Looked {
        let mut complete = HashSet::new();
        let mut error = None;
        let mut suspects: Vec<(NetnsId, Connection)> = Vec::new();
        let (first, last) = (self.scope.ports.iter().min(), self.scope.ports.iter().max());
        if let (Some(first), Some(last)) = (first, last) {
            let ports = *first..=*last;
            for (netns, asker) in askers {
                match self.connections(&asker, &ports) {
                    Ok(answer) => {
                        if !answer.truncated {
                            complete.insert(netns);
                        }
                        suspects.extend(answer.connections.into_iter().map(|one| (netns, one)));
                    }
                    Err(problem) => error = error.or(Some(problem)),
                }
            }
        }
        // Without an inode, no process holds it.
        suspects.retain(|(_, one)| one.inode != 0 && self.scope.concerns(one.peer));
        let mut strays = Vec::new();
        if !suspects.is_empty() {
            let wanted: HashSet<u32> = suspects.iter().map(|(_, one)| one.inode).collect();
            let roots: Arc<Vec<PathBuf>> = self.workloads.roots();
            let (found, whole) = self.holders.find(&roots, &wanted, limits::STRAY_DESCRIPTORS);
            if !whole {
                complete.clear();
            }
            let named = suspects.into_iter().filter_map(|(netns, connection)| {
                let holder = found.get(&connection.inode)?.clone();
                Some(self.name(netns, connection, holder))
            });
            strays.extend(named.filter(|stray| self.scope.tells(stray.reason)));
        }
        Looked {
            strays,
            complete,
            error,
            holders: self.holders,
        }
    }

    fn connections(&self, asker: &OwnedFd, ports: &RangeInclusive<u16>) -> std::io::Result<Answer> {
        let mut answer = diag::established(asker, Protocol::Tcp, ports, limits::STRAY_CONNECTIONS)?;
        // A kernel may list TCP and not UDP.
        if self.scope.block_quic
            && !answer.truncated
            && let Ok(more) = diag::established(asker, Protocol::Udp, ports, limits::STRAY_CONNECTIONS)
        {
            answer.connections.extend(more.connections);
            answer.truncated = more.truncated;
        }
        Ok(answer)
    }

    fn name(&self, netns: NetnsId, connection: Connection, holder: Holder) -> Stray {
        let identify = |cgroup_id| {
            let recorded = Recorded {
                origin: OriginAddr(connection.peer),
                cgroup_id,
                tgid: holder.process.cast_unsigned(),
                uid: connection.uid,
                // It holds the socket now, whenever that was connected.
                connected: clock::since_boot(),
            };
            self.workloads.identify(&recorded)
        };
        // Only what lies below an enrolled cgroup has a path there.
        let reason = Reason::of(connection.cgroup, |id| identify(id).cgroup.is_some());
        let workload = identify(holder.cgroup_id);
        Stray {
            netns,
            connection,
            holder,
            reason,
            workload,
        }
    }
}

#[cfg(test)]
mod tests;

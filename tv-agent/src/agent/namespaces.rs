//! The network namespaces of workloads: a listener in each while an enrolled process lives there.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Serve;
use crate::accept::{self, Listener};
use crate::dial::OwnSocket;
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::{self, Found, Netns, NetnsId, Seen, Visitors};
use crate::phase::{self, Phase};
use crate::redirect::{Listeners, NetnsFacts};

mod error;
mod incomplete;
mod room;

use error::Error;
use incomplete::{Incomplete, count_failure};
pub(super) use room::Order;
pub use room::Room;

/// A namespace without a process is kept for so long: jobs that follow each other need not wait for a listener.
const LINGER: Duration = Duration::from_secs(1);
/// A failure is told when it lasts: for an instant, each new pod's loopback is down.
const PATIENCE: Duration = Duration::from_secs(1);
// Those that are being left are still told of.
const _: () = assert!(2 * limits::NAMESPACES <= tv_ebpf::abi::NETNS_ENTRIES);
/// How often routes are looked at, and of how many namespaces each time.
const REFRESH: Duration = Duration::from_millis(500);
const REFRESHED: usize = 128;

/// All of them, and what is needed to serve one more.
pub(super) struct Namespaces {
    /// Serves one listener until told to stop, and its connections to their end.
    pub(super) serve: Serve,
    /// Closes idle connections to origins that were made in namespaces since closed.
    pub(super) sweep: Arc<dyn Fn() + Send + Sync>,
    /// The address of the agent's own listeners, which is the address everywhere.
    pub(super) listeners: Listeners,
    pub(super) own: Arc<dyn OwnSocket>,
    pub(super) facts: Arc<dyn NetnsFacts>,
    pub(super) visitors: Visitors,
    pub(super) metrics: Metrics,
    /// The namespace that the agent runs in.
    pub(super) home: NetnsId,
    pub(super) limit: usize,
}

/// A namespace that cannot be served so far.
struct Failing {
    since: Instant,
    /// The reason that was told, so that each is told once.
    told: Option<&'static str>,
}

enum Event {
    Found,
    Refresh,
    Ended,
    /// The thread that looks has ended.
    Blind,
    Order(Order),
    Stop,
}

/// Our hold on a namespace, shared by all that is served there.
struct Hold {
    netns: Netns,
    facts: Arc<dyn NetnsFacts>,
    sweep: Arc<dyn Fn() + Send + Sync>,
}

/// The last listener and connection are gone.
impl Drop for Hold {
    fn drop(&mut self) {
        self.netns.close();
        if let Some(cookie) = self.netns.cookie() {
            self.facts.forget(cookie);
        }
        // Kept connections to origins live there too.
        (self.sweep)();
    }
}

struct Served {
    netns: Netns,
    hold: Weak<Hold>,
    cgroup: Arc<Path>,
    v4: Listener,
    v6: Option<Listener>,
    /// Since when no process is seen there.
    deserted: Option<Instant>,
    stop: watch::Sender<Phase>,
}

impl Namespaces {
    /// Serves `rooms` and what is found while the agent serves, then lets the connections of all namespaces finish.
    pub(super) async fn run(
        self,
        rooms: Vec<Room>,
        mut found: watch::Receiver<Arc<Found>>,
        mut orders: mpsc::Receiver<Order>,
        mut agent: watch::Receiver<Phase>,
    ) {
        let mut served: HashMap<NetnsId, Served> = HashMap::new();
        let mut failed: HashMap<NetnsId, Failing> = HashMap::new();
        let mut accepting = JoinSet::new();
        let mut incomplete = Incomplete::default();
        let mut refresh = tokio::time::interval(REFRESH);
        let mut turn = 0;
        let mut frozen = false;
        for room in rooms {
            match self.adopt(room, &mut accepting) {
                Ok((id, namespace)) => drop(served.insert(id, namespace)),
                // Found again, and served then.
                Err(error) => tracing::warn!(%error, "a network namespace could not be taken over"),
            }
        }
        loop {
            let event = tokio::select! {
                changed = found.changed() => changed.map_or(Event::Blind, |()| Event::Found),
                _ = refresh.tick() => Event::Refresh,
                Some(_) = accepting.join_next(), if !accepting.is_empty() => Event::Ended,
                Some(order) = orders.recv() => Event::Order(order),
                () = phase::reached(&mut agent, Phase::HandedOver) => Event::Stop,
            };
            match event {
                Event::Found => {}
                Event::Refresh if frozen => continue,
                Event::Refresh => {
                    self.refresh(&mut served, &mut turn, &mut accepting).await;
                    continue;
                }
                // Keeps the set small.
                Event::Ended => continue,
                Event::Blind => {
                    tracing::error!(
                        "network namespaces are not looked for any more, and refused; restart the agent"
                    );
                    break;
                }
                Event::Order(Order::Freeze(reply)) => {
                    frozen = true;
                    // Who asked may have given up.
                    let _ = reply.send(served.values().filter_map(Served::room).collect());
                    continue;
                }
                Event::Order(Order::Thaw) => frozen = false,
                Event::Stop => break,
            }
            if frozen {
                continue;
            }
            let now = found.borrow_and_update().clone();
            incomplete.tell(&now, &self.metrics);
            failed.retain(|id, _| now.namespaces.contains_key(id));
            for (id, seen) in arrivals(&now, |id| id == self.home || served.contains_key(&id)) {
                match self.admit(id, seen, served.len(), &mut accepting).await {
                    Ok(namespace) => {
                        let cgroup = seen.cgroup.display();
                        tracing::info!(netns = id.ino, %cgroup, "network namespace: intercepting");
                        failed.remove(&id);
                        served.insert(id, namespace);
                    }
                    // Gone between two looks: nobody to be told.
                    Err(Error::Enter(error)) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => self.tell_failure(id, seen, &error, &mut failed),
                }
            }
            leave(&mut served, &now);
            self.metrics
                .namespaces
                .set(i64::try_from(served.len()).unwrap_or(i64::MAX));
        }
        // Each loop sees its sender go, and drains.
        drop(served);
        while accepting.join_next().await.is_some() {}
    }

    /// Listens in one more namespace.
    async fn admit(
        &self,
        id: NetnsId,
        seen: &Seen,
        count: usize,
        accepting: &mut JoinSet<()>,
    ) -> Result<Served, Error> {
        if count >= self.limit {
            return Err(Error::TooMany);
        }
        let opened = Netns::open(seen.process, id, &self.visitors).await;
        let netns = opened.map_err(Error::Enter)?;
        if !netns.loopback_up().await.map_err(Error::Enter)? {
            return Err(Error::LoopbackDown);
        }
        let socket = netns.socket(true).await.map_err(Error::Enter)?;
        let v4 = Listener::on(socket, self.listeners.v4, &*self.own).map_err(Error::listen)?;
        let v6 = self.listen_v6(&netns).await?;
        let v6_routable = v6.is_some() && netns.routes_v6().await.map_err(Error::Enter)?;
        let hold = Arc::new(Hold {
            netns: netns.clone(),
            facts: self.facts.clone(),
            sweep: self.sweep.clone(),
        });
        if let Some(cookie) = netns.cookie() {
            self.facts.set(cookie, v6_routable)?;
            // Its names were looked up while nobody watched.
            if netns::older_than_us(seen.process) {
                self.facts.unsure(cookie);
            }
        }
        Ok(self.serve_in(hold, v4, v6, seen.cgroup.clone(), accepting))
    }

    /// Goes on with what another agent listens to.
    fn adopt(&self, room: Room, accepting: &mut JoinSet<()>) -> io::Result<(NetnsId, Served)> {
        let door = room.door.try_clone()?;
        let (id, netns) = Netns::adopt(door, room.v4.netns(), &self.visitors)?;
        let hold = Arc::new(Hold {
            netns,
            facts: self.facts.clone(),
            sweep: self.sweep.clone(),
        });
        let served = self.serve_in(hold, room.v4, room.v6, room.cgroup, accepting);
        Ok((id, served))
    }

    fn serve_in(
        &self,
        hold: Arc<Hold>,
        v4: Listener,
        v6: Option<Listener>,
        cgroup: Arc<Path>,
        accepting: &mut JoinSet<()>,
    ) -> Served {
        let served = Served {
            netns: hold.netns.clone(),
            hold: Arc::downgrade(&hold),
            cgroup,
            v4: v4.clone(),
            v6: v6.clone(),
            deserted: None,
            stop: watch::Sender::new(Phase::Serving),
        };
        for listener in std::iter::once(v4).chain(v6) {
            self.accept(listener, &served, hold.clone(), accepting);
        }
        served
    }

    /// None where the namespace has no IPv6: it is refused there, and clients use IPv4.
    async fn listen_v6(&self, netns: &Netns) -> Result<Option<Listener>, Error> {
        let Some(address) = self.listeners.v6 else {
            return Ok(None);
        };
        let Ok(socket) = netns.socket(false).await else {
            return Ok(None);
        };
        match Listener::on(socket, address, &*self.own) {
            Ok(listener) => Ok(Some(listener)),
            Err(accept::Error::Bind { source, .. }) if source.kind() == io::ErrorKind::AddrNotAvailable => {
                Ok(None)
            }
            Err(error) => Err(Error::listen(error)),
        }
    }

    fn accept(&self, listener: Listener, served: &Served, hold: Arc<Hold>, accepting: &mut JoinSet<()>) {
        let serving = (self.serve)(listener, served.netns.clone(), served.stop.subscribe());
        accepting.spawn(async move {
            serving.await;
            drop(hold);
        });
    }

    fn tell_failure(&self, id: NetnsId, seen: &Seen, error: &Error, failed: &mut HashMap<NetnsId, Failing>) {
        let reason = error.reason();
        let failing = failed.entry(id).or_insert_with(|| Failing {
            since: Instant::now(),
            told: None,
        });
        if failing.since.elapsed() < PATIENCE || failing.told.replace(reason) == Some(reason) {
            return;
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(
            reason, %error, cause, netns = id.ino, cgroup = %seen.cgroup.display(),
            "network namespace: not intercepted, so its workloads are refused; trying again"
        );
        count_failure(&self.metrics, reason);
    }

    /// Looks at the routes of some namespaces, in turn, and for IPv6 that came late.
    async fn refresh(
        &self,
        served: &mut HashMap<NetnsId, Served>,
        turn: &mut usize,
        accepting: &mut JoinSet<()>,
    ) {
        let skip = if *turn < served.len() { *turn } else { 0 };
        *turn = skip + REFRESHED;
        for namespace in served.values_mut().skip(skip).take(REFRESHED) {
            if namespace.v6.is_none()
                && let Some(hold) = namespace.hold.upgrade()
                && let Ok(Some(listener)) = self.listen_v6(&namespace.netns).await
            {
                self.accept(listener.clone(), namespace, hold, accepting);
                namespace.v6 = Some(listener);
            }
            let (Some(cookie), true) = (namespace.netns.cookie(), namespace.v6.is_some()) else {
                continue;
            };
            let Ok(routable) = namespace.netns.routes_v6().await else {
                continue;
            };
            // Said anew even if nothing changed: an earlier hold on the same namespace may just have ended. It cannot
            // fail for one that is in the map, and for another the agent's own routes count until the next turn.
            let _ = self.facts.set(cookie, routable);
        }
    }
}

impl Served {
    /// None when its last connection has just ended.
    fn room(&self) -> Option<Room> {
        let (v4, v6) = (self.v4.clone(), self.v6.clone());
        Some(Room {
            door: self.netns.door()?,
            v4,
            v6,
            cgroup: self.cgroup.clone(),
        })
    }
}

/// What is seen and not `known`.
fn arrivals(now: &Found, known: impl Fn(NetnsId) -> bool) -> Vec<(NetnsId, &Seen)> {
    let all = now.namespaces.iter().map(|(id, seen)| (*id, seen));
    all.filter(|(id, _)| !known(*id)).collect()
}

/// Stops to listen where nobody has been seen for a while. Connections that are left have a little time:
/// their workloads have ended, and no origin may keep a dead namespace alive.
fn leave(served: &mut HashMap<NetnsId, Served>, now: &Found) {
    served.retain(|id, namespace| {
        if now.namespaces.contains_key(id) || now.truncated {
            namespace.deserted = None;
            return true;
        }
        let since = *namespace.deserted.get_or_insert_with(Instant::now);
        let stays = since.elapsed() < LINGER;
        if !stays {
            tracing::info!(netns = id.ino, cgroup = %namespace.cgroup.display(), "network namespace: left");
            namespace.stop.send_replace(Phase::Deserted);
        }
        stays
    });
}

/// Starts to look for them. Call it in the agent's own namespace.
pub(super) fn watch_cgroups(
    workloads: &Arc<crate::workload::Workloads>,
) -> io::Result<(watch::Receiver<Arc<Found>>, Visitors, NetnsId)> {
    let workloads = workloads.clone();
    let bell = workloads.bell();
    let found = netns::discover(move || workloads.roots(), bell, netns::Bounds::default())?;
    Ok((found, Visitors::new()?, netns::own_id()?))
}

#[cfg(test)]
mod tests;

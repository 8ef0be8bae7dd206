//! Where an agent listens, and what it looks after there: namespaces, connections that go past, trust in its CA. The part
//! that takes privileges; connections are served by whoever is given the listeners.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use super::namespaces::{self, Namespaces, Order};
use super::{Error, Inheritance, Installer, trusting};
use crate::accept::{self, Listener};
use crate::ca::Authority;
use crate::dial::OwnSocket;
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::phase::Phase;
use crate::redirect::{Listeners, NetnsFacts};
use crate::strays;
use crate::trust::Ledger;
use crate::workload::Workloads;

/// Serves one listener until told to stop, and its connections to their end.
pub type Serve = Arc<
    dyn Fn(Listener, Netns, watch::Receiver<Phase>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync,
>;

/// What it takes.
pub struct Means {
    pub own: Arc<dyn OwnSocket>,
    /// None: workloads in other network namespaces than the agent's are not looked for.
    pub facts: Option<Arc<dyn NetnsFacts>>,
    pub workloads: Arc<Workloads>,
    /// Brings the CA to workloads that run; None: nobody does.
    pub installer: Option<Installer>,
    pub ledger: Ledger,
    pub metrics: Metrics,
    /// The CA in force.
    pub authority: watch::Receiver<Arc<Authority>>,
    /// What should be captured now.
    pub scope: Arc<dyn Fn() -> Arc<strays::Scope> + Send + Sync>,
    /// Told of connections that went past.
    pub tell: strays::Tell,
    pub serve: Serve,
    /// Closes idle connections to origins that were made in namespaces since closed.
    pub sweep: Arc<dyn Fn() + Send + Sync>,
}

/// All of it, running.
pub struct Grounds {
    listeners: Listeners,
    /// Listening until the agent ends, as those of the accept loops do.
    home: (Listener, Option<Listener>),
    orders: mpsc::Sender<Order>,
    phase: watch::Sender<Phase>,
    loops: Vec<JoinHandle<()>>,
}

impl Inheritance {
    /// That of an agent after nobody: listeners in the calling thread's network namespace.
    pub fn bind(own: &dyn OwnSocket, v4: SocketAddr, v6: Option<SocketAddr>) -> Result<Self, Error> {
        Ok(Self {
            v4: Listener::bind(v4, own)?,
            v6: v6.map(|address| Listener::bind(address, own)).transpose()?,
            rooms: Vec::new(),
        })
    }

    /// Where it listens in the agent's own namespace.
    pub fn listeners(&self) -> Result<Listeners, Error> {
        let address = |listener: &Listener| {
            listener.address().map_err(|source| accept::Error::Bind {
                address: ([0, 0, 0, 0], 0).into(),
                source,
            })
        };
        Ok(Listeners {
            v4: address(&self.v4)?,
            v6: self.v6.as_ref().map(address).transpose()?,
        })
    }
}

impl Grounds {
    /// Has everything served that was inherited, and what is found from now on. Call in the agent's own namespace.
    pub fn open(inheritance: Inheritance, means: Means) -> Result<Self, Error> {
        let listeners = inheritance.listeners()?;
        let Inheritance { v4, v6, rooms } = inheritance;
        let (phase, watched) = watch::channel(Phase::Serving);
        let (orders, ordered) = mpsc::channel(1);
        let home = (v4.clone(), v6.clone());
        let mut loops = Vec::new();
        for listener in std::iter::once(v4).chain(v6) {
            loops.push(tokio::spawn((means.serve)(listener, Netns::OWN, watched.clone())));
        }
        if let Some(facts) = means.facts {
            let (found, visitors, home) =
                namespaces::watch_cgroups(&means.workloads).map_err(Error::Namespaces)?;
            let watch = strays::Watch {
                found: found.clone(),
                visitors: visitors.clone(),
                home,
                workloads: means.workloads,
                scope: means.scope,
                tell: means.tell,
                metrics: means.metrics.clone(),
            };
            loops.push(tokio::spawn(watch.run(watched.clone())));
            if let Some(installer) = means.installer {
                let install = trusting::run(
                    installer,
                    means.ledger,
                    found.clone(),
                    means.authority,
                    means.metrics.clone(),
                    watched.clone(),
                );
                loops.push(tokio::spawn(install));
            }
            let namespaces = Namespaces {
                serve: means.serve,
                sweep: means.sweep,
                listeners,
                own: means.own,
                facts,
                visitors,
                metrics: means.metrics,
                home,
                limit: limits::NAMESPACES,
            };
            loops.push(tokio::spawn(namespaces.run(rooms, found, ordered, watched)));
        }
        Ok(Self {
            listeners,
            home,
            orders,
            phase,
            loops,
        })
    }

    /// In the agent's own namespace, with the ports that were free.
    pub fn listeners(&self) -> Listeners {
        self.listeners
    }

    /// All that is listened on, for a successor. It goes on, and takes in no further network namespace until
    /// [`keep`](Self::keep).
    pub async fn bequeath(&self) -> Option<Inheritance> {
        let (reply, rooms) = oneshot::channel();
        // Nobody takes orders where other namespaces are not served.
        let asked = self.orders.send(Order::Freeze(reply)).await;
        let rooms = if asked.is_ok() {
            rooms.await.ok()?
        } else {
            Vec::new()
        };
        let (v4, v6) = self.home.clone();
        Some(Inheritance { v4, v6, rooms })
    }

    /// The successor did not come.
    pub async fn keep(&self) {
        // As above.
        let _ = self.orders.send(Order::Thaw).await;
    }

    /// Listens no more, and waits until everything is served to its end.
    pub async fn leave(self, phase: Phase) {
        drop(self.home);
        self.phase.send_replace(phase);
        for task in self.loops {
            // It ends by itself.
            let _ = task.await;
        }
    }

    /// Ends at once.
    pub async fn abandon(self) {
        for task in self.loops {
            task.abort();
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }
}

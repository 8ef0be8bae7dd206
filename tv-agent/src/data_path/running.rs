//! The data path at work: what it serves, and what each order changes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::{Asks, Orders, local};
use crate::accept::Listener;
use crate::addr::NetnsCookie;
use crate::agent::{Agent, Prepared, Reach};
use crate::ca::{Authority, Public};
use crate::config::Config;
use crate::control::LogFilter;
use crate::dial::Dialer;
use crate::https::causes;
use crate::kubernetes::Node;
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::phase::Phase;
use crate::snapshot::Current;
use crate::trust::{Ledger, MntnsId};
use crate::wire::{Changes, Order, Reply};

/// Serving.
pub(super) struct Running {
    agent: Arc<Agent>,
    file: PathBuf,
    ledger: Ledger,
    asks: Asks,
    log: LogFilter,
    orders: Orders,
    ready: Arc<AtomicBool>,
    prepared: Arc<Mutex<Option<Prepared>>>,
    spaces: HashMap<u64, Weak<Hold>>,
    serving: JoinSet<()>,
    stops: HashMap<u64, watch::Sender<Phase>>,
    local: Vec<JoinHandle<()>>,
    /// The watch of this node's pods; None: no API server is followed.
    node: Option<Node>,
}

/// A network namespace, for as long as something is served there.
struct Hold {
    netns: Netns,
    current: Current,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.netns.close();
        // Kept connections to origins live there too.
        self.current.load().upstreams.sweep();
    }
}

impl Running {
    pub(super) fn begin(
        file: PathBuf,
        text: Option<OwnedFd>,
        authority: Public,
        home: Option<MntnsId>,
        asks: &Asks,
        log: &LogFilter,
        orders: &Orders,
    ) -> Result<Self, String> {
        let mut config = parse(&file, text)?;
        let asks = asks.clone().living_in(home);
        let metrics = Metrics::new();
        let mut node = config.kubernetes.take().map(|settings| {
            let dialer = Dialer::by(Arc::new(asks.clone()), limits::CONNECT_TIME);
            Node::start(settings, dialer, metrics.clone())
        });
        let reach = Reach {
            callers: Arc::new(asks.clone()),
            sockets: Arc::new(asks.clone()),
            narrow: Some(Arc::new(asks.clone())),
            sight: Arc::new(asks.clone()),
            trail: Some(Box::new(asks.clone())),
            authority: adopted(authority, &asks)?,
            metrics,
            ledger: Ledger::default(),
            pods: node.as_ref().map(|node| node.table() as _),
        };
        let ledger = reach.ledger.clone();
        let agent = Agent::build(config, reach).map_err(|error| causes(&error))?;
        if let Some(node) = &mut node {
            node.follow(agent.flows());
            tokio::spawn(asks.clone().tell_pods(node.orders()));
        }
        Ok(Self {
            agent: Arc::new(agent),
            file,
            ledger,
            asks,
            log: log.clone(),
            orders: orders.clone(),
            ready: Arc::default(),
            prepared: Arc::default(),
            spaces: HashMap::new(),
            serving: JoinSet::new(),
            stops: HashMap::new(),
            local: Vec::new(),
            node,
        })
    }

    /// One order; what takes long is done beside the others.
    pub(super) async fn follow(&mut self, id: u64, order: Order, along: Vec<OwnedFd>) {
        let done = match order {
            Order::Serve { id: listener, netns } => match self.serve(id, listener, netns, along) {
                Ok(()) => return,
                Err(error) => Err(error.to_string()),
            },
            Order::Prepare => return self.prepare(id, along),
            Order::Leave { id, deserted } => {
                let phase = if deserted {
                    Phase::Deserted
                } else {
                    Phase::HandedOver
                };
                if let Some(stop) = self.stops.remove(&id) {
                    stop.send_replace(phase);
                }
                Ok(())
            }
            Order::Local { page } => self.serve_local(page, along).map_err(|error| error.to_string()),
            Order::Ready(ready) => {
                self.ready.store(ready, Ordering::Relaxed);
                Ok(())
            }
            Order::Install => match self.take_prepared() {
                Some(prepared) => {
                    self.agent.install(prepared);
                    Ok(())
                }
                None => Err("nothing was prepared".to_owned()),
            },
            Order::Abandon => {
                self.take_prepared();
                Ok(())
            }
            Order::Authority(public) => {
                adopted(*public, &self.asks).map(|authority| self.agent.adopt(authority))
            }
            Order::Ledger(changes) => {
                enter_into(&self.ledger, changes);
                Ok(())
            }
            Order::Flow(flow) => {
                self.agent.note(*flow);
                Ok(())
            }
            Order::Note(note) => {
                if let Some(node) = &self.node {
                    node.teller().tell(*note);
                }
                Ok(())
            }
            Order::Beat => {
                self.agent.sweep();
                self.asks.beat().await.map_err(|error| error.to_string())
            }
            Order::Begin { .. } | Order::End { .. } => Err("it has begun already".to_owned()),
        };
        let reply = match done {
            Ok(()) => Reply::Done,
            Err(problem) => Reply::Failed(problem),
        };
        self.orders.reply(id, reply).await;
    }

    /// The reply comes when the last connection has ended.
    fn serve(
        &mut self,
        order: u64,
        id: u64,
        netns: Option<(u64, NetnsCookie)>,
        along: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let socket = along.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
        let listener = Listener::adopt(socket)?;
        let hold = netns.map(|(number, cookie)| self.hold(number, cookie));
        let netns = hold.as_ref().map_or(Netns::OWN, |hold| hold.netns.clone());
        let (stop, stopped) = watch::channel(Phase::Serving);
        self.stops.insert(id, stop);
        // Keeps the set small.
        while self.serving.try_join_next().is_some() {}
        let served = self.agent.serve(listener, netns, stopped);
        let orders = self.orders.clone();
        self.serving.spawn(async move {
            served.await;
            drop(hold);
            orders.reply(order, Reply::Done).await;
        });
        Ok(())
    }

    fn hold(&mut self, number: u64, cookie: NetnsCookie) -> Arc<Hold> {
        self.spaces.retain(|_, hold| hold.strong_count() > 0);
        let known = self.spaces.get(&number).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let hold = Arc::new(Hold {
                netns: Netns::elsewhere(number, cookie),
                current: self.agent.current().clone(),
            });
            self.spaces.insert(number, Arc::downgrade(&hold));
            hold
        })
    }

    /// Reads files and makes keys, while connections are served.
    fn prepare(&self, order: u64, along: Vec<OwnedFd>) {
        let (agent, file, orders) = (self.agent.clone(), self.file.clone(), self.orders.clone());
        let place = self.prepared.clone();
        tokio::spawn(async move {
            let made = parse(&file, along.into_iter().next())
                .and_then(|config| agent.prepare(config).map_err(|error| causes(&error)));
            drop(agent);
            let reply = match made {
                Ok(prepared) => {
                    *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(prepared);
                    Reply::Done
                }
                Err(problem) => Reply::Failed(problem),
            };
            orders.reply(order, reply).await;
        });
    }

    fn take_prepared(&self) -> Option<Prepared> {
        self.prepared
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn serve_local(&mut self, page: bool, along: Vec<OwnedFd>) -> io::Result<()> {
        let mut along = along.into_iter();
        let socket = along.next().ok_or(io::ErrorKind::InvalidData)?;
        let place = local::Place {
            agent: &self.agent,
            asks: &self.asks,
            ready: &self.ready,
            log: &self.log,
            watched: self.node.as_ref().map(Node::health),
        };
        self.local = place.serve(socket, along.next(), page)?;
        Ok(())
    }

    pub(super) async fn end(mut self, handed_over: bool) {
        // What is known of pods stays.
        drop(self.node.take());
        let phase = if handed_over {
            // A successor answers on the local sockets.
            for task in self.local.drain(..) {
                task.abort();
                // Aborted, which is what was asked for.
                let _ = task.await;
            }
            Phase::HandedOver
        } else {
            Phase::Ending
        };
        for stop in self.stops.values() {
            stop.send_replace(phase);
        }
        let mut serving = std::mem::take(&mut self.serving);
        let served = async { while serving.join_next().await.is_some() {} };
        match Arc::try_unwrap(self.agent) {
            Ok(agent) => agent.end(phase, served).await,
            // A configuration is being prepared, of which nobody waits for the end.
            Err(_) => served.await,
        }
    }
}

fn parse(file: &Path, text: Option<OwnedFd>) -> Result<Config, String> {
    let mut read = String::new();
    let text = text.ok_or("there is no configuration")?;
    File::from(text)
        .take(limits::CONFIG_BYTES)
        .read_to_string(&mut read)
        .map_err(|error| error.to_string())?;
    let env = |name: &str| std::env::var(name).ok();
    Config::parse(&read, file, &env).map_err(|error| causes(&error))
}

fn adopted(public: Public, asks: &Asks) -> Result<Arc<Authority>, String> {
    Authority::elsewhere(public, Arc::new(asks.clone()))
        .map(Arc::new)
        .ok_or_else(|| "the CA has no certificate".to_owned())
}

fn enter_into(ledger: &Ledger, changes: Changes) {
    if changes.attended && !ledger.is_attended() {
        ledger.attend();
    }
    for id in changes.removed {
        ledger.removed(id);
    }
    for (id, installation) in changes.installed {
        // It is told since it changed, whatever it is now.
        if ledger.installation(id).as_ref() == Some(&installation) {
            ledger.removed(id);
        }
        ledger.installed(id, installation);
    }
}

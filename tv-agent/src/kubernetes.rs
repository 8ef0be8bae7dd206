//! Stage: what the API server says of this node's pods, which of them are enrolled, and what they are told.
//!
//! Nothing here touches cgroups, and only `credentials.rs` reads files: what leaves towards the kernel half is one
//! value, [`Orders`].

use std::sync::Arc;

use tokio::sync::watch as channel;
use tokio::task::JoinHandle;

use crate::dial::Dialer;
use crate::flows::Flows;
use crate::metrics::Metrics;

mod asked;
mod backoff;
mod client;
mod credentials;
mod enrol;
mod events;
mod health;
mod kubeconfig;
mod notes;
mod objects;
mod page;
mod probe;
mod settings;
mod table;
mod watch;

pub use asked::{Asked, Asking, Enrol, Rules, SIDECARS, asked};
pub use client::{Error as ClientError, Gate};
pub use credentials::{Credentials, Error as CredentialsError, read as read_credentials};
pub use enrol::{Decision, Order, Orders};
pub use events::Teller;
pub use health::{Feed, Health, Status};
pub use kubeconfig::{Error as KubeconfigError, server as server_of};
pub use notes::{Note, Reason};
pub use probe::probe;
pub use settings::{Material, Pace, Server, Settings, Unknown, in_cluster};
pub use table::Table;

/// The watch of one node, running. Dropped, it ends; what is known stays.
pub struct Node {
    table: Arc<Table>,
    orders: channel::Receiver<Arc<Orders>>,
    health: Arc<Health>,
    teller: Teller,
    tasks: Vec<JoinHandle<()>>,
    gate: Gate,
    settings: Arc<Settings>,
    metrics: Metrics,
}

impl Node {
    /// Begins to watch. Never fails: an API server that is away is asked again. Call within a runtime.
    pub fn start(settings: Settings, dialer: Dialer, metrics: Metrics) -> Self {
        let settings = Arc::new(settings);
        let health = Arc::new(Health::new(metrics.clone()));
        let (teller, notes) = notes::channel(metrics.clone());
        let (table, orders) = Table::new(settings.clone(), teller.clone(), metrics.clone());
        let table = Arc::new(table);
        let gate = Gate::new(&settings.server, dialer, settings.pace.clone());
        gate.look(&settings.server, &health);
        let client = gate.client();
        let mut tasks = vec![tokio::spawn(
            gate.clone().tend(settings.server.clone(), health.clone()),
        )];
        for resource in [objects::Resource::Pods, objects::Resource::Namespaces] {
            let watcher = watch::Watcher {
                resource,
                client: client.clone(),
                settings: settings.clone(),
                table: table.clone(),
                health: health.clone(),
            };
            tasks.push(tokio::spawn(watcher.run()));
        }
        let sender = events::Sender::new(client, settings.clone(), table.clone(), metrics.clone());
        tasks.push(tokio::spawn(sender.run(notes)));
        Self {
            table,
            orders,
            health,
            teller,
            tasks,
            gate,
            settings,
            metrics,
        }
    }

    /// The facts of pods, for routes.
    pub fn table(&self) -> Arc<Table> {
        self.table.clone()
    }

    /// What is to be covered, as it changes.
    pub fn orders(&self) -> channel::Receiver<Arc<Orders>> {
        self.orders.clone()
    }

    pub fn health(&self) -> Arc<Health> {
        self.health.clone()
    }

    /// For what others have to say about a pod.
    pub fn teller(&self) -> Teller {
        self.teller.clone()
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Makes Events of what happens to pods' connections and requests, until dropped.
    pub fn follow(&mut self, flows: &Flows) {
        if self.settings.events {
            let (_, live) = flows.follow();
            let follow = notes::follow(live, self.teller.clone(), self.metrics.clone());
            self.tasks.push(tokio::spawn(follow));
        }
    }

    /// Where credentials are put by whoever reads them.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

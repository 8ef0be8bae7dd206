//! The composition root: builds every stage from a configuration, starts the accept loops, reloads, stops.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::accept::{self, Listener};
use crate::ca::{self, Authority, Leaves};
use crate::config::Config;
use crate::connection::Connections;
use crate::dial::{Dialer, OwnSocket};
use crate::exchange::Exchange;
use crate::flows::Flows;
use crate::hello::Caps;
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::places::Places;
use crate::policy::Routes;
use crate::redirect::{Listeners, Narrow, NetnsFacts, OriginLookup};
use crate::snapshot::{Current, Snapshot};
use crate::terminate::Terminator;
use crate::token::{self, Tokens, Vault};
use crate::upstream::{Upstreams, roots};
use crate::workload::Workloads;

mod names;
mod namespaces;

use namespaces::Namespaces;

/// Why the agent does not start, or does not take a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listen(#[from] accept::Error),
    #[error("cannot look for the network namespaces of workloads")]
    Namespaces(#[source] std::io::Error),
    #[error("upstream.extra_roots")]
    Roots(#[from] roots::Error),
    #[error("vaults.{vault}.extra_roots")]
    VaultRoots { vault: Arc<str>, source: roots::Error },
    #[error(transparent)]
    Vault(#[from] token::BuildError),
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(
        "the CA may not sign for {subtree} (route hosts changed since it was made); run `tv-agent ca init` again"
    )]
    NotPermitted { subtree: String },
}

/// What the agent is built on; the kernel half in the product, fakes in tests.
pub struct Wiring {
    pub origins: Arc<dyn OriginLookup>,
    pub own: Arc<dyn OwnSocket>,
    /// None: workloads in other network namespaces than the agent's are not looked for.
    pub namespaces: Option<Arc<dyn NetnsFacts>>,
    /// None: every connection is looked at.
    pub narrow: Option<Arc<dyn Narrow>>,
    pub workloads: Arc<Workloads>,
    pub authority: Arc<Authority>,
    pub metrics: Metrics,
    pub listen_v4: SocketAddr,
    /// None where the namespace has no IPv6 loopback.
    pub listen_v6: Option<SocketAddr>,
}

/// A configuration that can be put in force: see [`Agent::prepare`].
pub struct Prepared(Snapshot);

/// A running agent.
pub struct Agent {
    current: Current,
    dialer: Dialer,
    authority: Arc<Authority>,
    metrics: Metrics,
    listeners: Listeners,
    tokens: Tokens,
    flows: Flows,
    stop: watch::Sender<bool>,
    loops: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Builds everything and starts to accept. Call in the network namespace to listen in.
    pub async fn start(config: Config, wiring: Wiring) -> Result<Self, Error> {
        let Wiring {
            origins,
            own,
            namespaces,
            narrow,
            workloads,
            authority,
            metrics,
            listen_v4,
            listen_v6,
        } = wiring;
        check_permitted(&config, &authority)?;
        let dialer = Dialer::new(own.clone(), limits::CONNECT_TIME);
        let current = Current::new(snapshot(config, &dialer, authority.root_der(), &metrics)?);
        let v4 = Listener::bind(listen_v4, &*own)?;
        let v6 = listen_v6
            .map(|address| Listener::bind(address, &*own))
            .transpose()?;
        let address = |listener: &Listener, wanted| {
            listener.address().map_err(|source| accept::Error::Bind {
                address: wanted,
                source,
            })
        };
        let listeners = Listeners {
            v4: address(&v4, listen_v4)?,
            v6: v6
                .as_ref()
                .zip(listen_v6)
                .map(|(v6, wanted)| address(v6, wanted))
                .transpose()?,
        };
        let tokens = Tokens::new(metrics.clone());
        let flows = Flows::new();
        let (stop, stopped) = watch::channel(false);
        let may_mint = {
            let current = current.clone();
            Arc::new(move |host: &crate::addr::HostName| current.load().routes.names(host))
        };
        let leaves = Leaves::new(authority.clone(), may_mint, metrics.clone())?;
        let candidates = names::candidates(narrow.clone());
        let connections = Arc::new(Connections {
            origins,
            workloads: workloads.clone(),
            candidates: candidates.clone(),
            current: current.clone(),
            dialer: dialer.clone(),
            terminator: Terminator::new(Arc::new(leaves), limits::HANDSHAKE_TIME, metrics.clone()),
            exchange: Exchange {
                current: current.clone(),
                tokens: tokens.clone(),
                metrics: metrics.clone(),
                flows: flows.clone(),
            },
            hello: Caps {
                bytes: limits::HELLO_BYTES,
                time: limits::HELLO_TIME,
            },
            places: Places::new(limits::CONNECTIONS_PER_WORKLOAD),
            metrics: metrics.clone(),
            stop: stopped.clone(),
        });
        let server = Server {
            connections,
            limit: Arc::new(Semaphore::new(limits::CONNECTIONS)),
        };
        let mut loops = Vec::new();
        for listener in std::iter::once(v4).chain(v6) {
            loops.push(tokio::spawn(server.serve(listener, Netns::OWN, stopped.clone())));
        }
        if let Some(facts) = namespaces {
            let (found, visitors, home) = namespaces::watch_cgroups(&workloads).map_err(Error::Namespaces)?;
            let namespaces = Namespaces {
                serve: Box::new(move |listener, netns, stop| Box::pin(server.serve(listener, netns, stop))),
                sweep: {
                    let current = current.clone();
                    Arc::new(move || current.load().upstreams.sweep())
                },
                listeners,
                own,
                facts,
                narrow: narrow.clone(),
                visitors,
                metrics: metrics.clone(),
                home,
                limit: limits::NAMESPACES,
            };
            loops.push(tokio::spawn(namespaces.run(found, stopped.clone())));
        }
        if let Some(narrow) = narrow {
            let sweep = names::sweep(narrow, candidates.clone(), metrics.clone(), stopped.clone());
            loops.push(tokio::spawn(sweep));
        }
        loops.push(tokio::spawn(names::look_up(current.clone(), candidates, stopped)));
        Ok(Self {
            current,
            dialer,
            authority,
            metrics,
            listeners,
            tokens,
            flows,
            stop,
            loops,
        })
    }

    /// Where it listens, with the ports that were free.
    pub fn listeners(&self) -> Listeners {
        self.listeners
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// The configuration in force, for those who only look.
    pub fn current(&self) -> &Current {
        &self.current
    }

    /// Takes a new configuration, or none of it. Open connections go on, their next requests by the new one.
    pub fn reload(&self, config: Config) -> Result<(), Error> {
        self.install(self.prepare(config)?);
        Ok(())
    }

    /// Builds all that a configuration needs, without using it yet.
    pub fn prepare(&self, config: Config) -> Result<Prepared, Error> {
        check_permitted(&config, &self.authority)?;
        let root = self.authority.root_der();
        snapshot(config, &self.dialer, root, &self.metrics).map(Prepared)
    }

    /// Puts in force what was prepared. Cannot fail.
    pub fn install(&self, prepared: Prepared) {
        self.current.replace(prepared.0);
    }

    /// What has to be done now and then: lets go of idle upstream connections.
    pub fn sweep(&self) {
        self.current.load().upstreams.sweep();
    }

    /// Ends at once, with whatever is open.
    pub async fn stop_now(self) {
        for task in self.loops {
            task.abort();
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }

    /// Stops accepting, lets open requests finish for a while, and ends.
    pub async fn stop(self) {
        // Nobody listens any more when all loops have ended already.
        let _ = self.stop.send(true);
        for task in self.loops {
            let _ = task.await;
        }
    }
}

/// Serves the connections of one listener after the other.
struct Server {
    connections: Arc<Connections>,
    /// Connections at once, of all listeners together.
    limit: Arc<Semaphore>,
}

impl Server {
    fn serve(
        &self,
        listener: Listener,
        netns: Netns,
        stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let connections = self.connections.clone();
        let serve = move |stream, peer, cookie| {
            let (connections, netns) = (connections.clone(), netns.clone());
            async move { connections.serve(stream, peer, cookie, netns).await }
        };
        accept::run(listener, self.limit.clone(), stop, limits::DRAIN_TIME, serve)
    }
}

/// Whether the CA may sign for every host of the routes.
///
/// # Errors
/// [`Error::NotPermitted`] with the first one that it may not sign for.
pub fn check_permitted(config: &Config, authority: &Authority) -> Result<(), Error> {
    for subtree in config.subtrees() {
        let permitted = crate::addr::HostName::parse(&subtree).is_some_and(|host| authority.permits(&host));
        if !permitted {
            return Err(Error::NotPermitted { subtree });
        }
    }
    Ok(())
}

fn snapshot(
    config: Config,
    dialer: &Dialer,
    own_root: &CertificateDer<'static>,
    metrics: &Metrics,
) -> Result<Snapshot, Error> {
    let own = std::slice::from_ref(own_root);
    let mut vaults = HashMap::new();
    for (name, vault) in config.vaults {
        let roots = roots::compose(&vault.extra_roots, own).map_err(|source| Error::VaultRoots {
            vault: name.clone(),
            source,
        })?;
        vaults.insert(name, Arc::new(Vault::new(vault.settings, Arc::new(roots))?));
    }
    let roots = Arc::new(roots::compose(&config.extra_roots, own)?);
    Ok(Snapshot {
        routes: Routes::new(config.routes),
        vaults,
        on_unknown_name: config.intercept.on_unknown_name,
        upstreams: Arc::new(Upstreams::new(dialer.clone(), roots, metrics.clone())),
    })
}

//! The composition root: builds every stage from a configuration, starts the accept loops, reloads, stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use crate::accept::{self, Listener};
use crate::audit::{self, Audit};
use crate::ca::{self, Authority, Leaves};
use crate::config::Config;
use crate::connection::Connections;
use crate::dial::{Dialer, Flagging, OwnSocket, Sockets};
use crate::exchange::Exchange;
use crate::flows::{Flow, Flows};
use crate::hello::Caps;
use crate::https;
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::phase::Phase;
use crate::places::Places;
use crate::redirect::{Listeners, Narrow, NetnsFacts, OriginLookup};
use crate::sign;
use crate::snapshot::{Current, Snapshot};
use crate::terminate::Terminator;
use crate::token::shared::Shared;
use crate::token::{self, Tokens};
use crate::traces::{self, Traces};
use crate::trust::{self, Here, Ledger, Processes, Sight};
use crate::tunnel::Pipes;
use crate::upstream::roots;
use crate::workload::{Callers, PodFacts, Recognised, Workloads};

mod authority;
mod compose;
mod ending;
mod grounds;
mod keys;
mod names;
mod namespaces;
mod server;
mod sharing;
mod trusting;

use authority::Authorities;
pub use authority::{check_permitted, check_subtrees};
pub use compose::scope;
use compose::snapshot;
pub use ending::Inheritance;
pub use grounds::{Grounds, Means, Serve};
pub use namespaces::Room;
use server::Server;
pub use trusting::Installer;

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
    #[error("verifiers.{verifier}.extra_roots")]
    VerifierRoots {
        verifier: Arc<str>,
        source: roots::Error,
    },
    #[error("verifiers.{verifier}")]
    Verifier {
        verifier: Arc<str>,
        source: https::Error,
    },
    #[error(transparent)]
    Vault(#[from] token::BuildError),
    #[error("shared_cache.extra_roots")]
    SharedRoots(#[source] roots::Error),
    #[error("shared_cache: cannot set up TLS")]
    Shared(#[source] https::Error),
    #[error(transparent)]
    Keys(#[from] sign::SetError),
    #[error("keysets.{set}.extra_roots")]
    KeysRoots { set: Arc<str>, source: roots::Error },
    #[error("keysets.{set}: cannot make a client for its URL")]
    KeysClient { set: Arc<str>, source: https::Error },
    #[error(transparent)]
    Sign(#[from] sign::Error),
    #[error(transparent)]
    Audit(#[from] audit::Error),
    #[error("traces.extra_roots")]
    TracesRoots(#[source] roots::Error),
    #[error(transparent)]
    Traces(#[from] traces::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(transparent)]
    Trust(#[from] trust::Error),
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
    /// Brings the CA to workloads that run; None: nobody does.
    pub installer: Option<Installer>,
    pub metrics: Metrics,
    /// What was put into which mount namespace.
    pub ledger: Ledger,
    /// The facts of pods; None: those of `intercept.pod_facts`.
    pub pods: Option<Arc<dyn PodFacts>>,
    pub listen_v4: SocketAddr,
    /// None where the namespace has no IPv6 loopback.
    pub listen_v6: Option<SocketAddr>,
}

/// What the data path has others do: in its own process, or in one that may do more.
pub struct Reach {
    pub callers: Arc<dyn Callers>,
    pub sockets: Arc<dyn Sockets>,
    /// None: every connection is looked at.
    pub narrow: Option<Arc<dyn Narrow>>,
    pub sight: Arc<dyn Sight>,
    /// Opens the audit trail's file; None: the agent itself.
    pub trail: Option<Box<dyn audit::Trail>>,
    pub authority: Arc<Authority>,
    pub metrics: Metrics,
    /// What was put into which mount namespace.
    pub ledger: Ledger,
    /// The facts of pods; None: those of `intercept.pod_facts`.
    pub pods: Option<Arc<dyn PodFacts>>,
}

/// A configuration that can be put in force: see [`Agent::prepare`].
pub struct Prepared {
    snapshot: Snapshot,
    shared: Option<Arc<Shared>>,
}

/// A running data path, and where it listens when that is in the same process.
pub struct Agent {
    current: Current,
    dialer: Dialer,
    authorities: Authorities,
    metrics: Metrics,
    server: Arc<Server>,
    grounds: Option<Grounds>,
    tokens: Tokens,
    flows: Flows,
    traces: Option<Traces>,
    processes: Processes,
    pods: Option<Arc<dyn PodFacts>>,
    phase: watch::Sender<Phase>,
    drain: Duration,
    loops: Vec<JoinHandle<()>>,
}

impl Agent {
    /// Builds everything and starts to accept, all in this process. Call in the network namespace to listen in.
    pub async fn start(config: Config, wiring: Wiring) -> Result<Self, Error> {
        check_permitted(&config, &wiring.authority)?;
        let inheritance = Inheritance::bind(&*wiring.own, wiring.listen_v4, wiring.listen_v6)?;
        let workloads = wiring.workloads.clone();
        let reach = Reach {
            callers: Arc::new(Recognised {
                origins: wiring.origins,
                workloads: workloads.clone(),
            }),
            sockets: Arc::new(Flagging(wiring.own.clone())),
            narrow: wiring.narrow,
            sight: Arc::new(Here {
                roots: Arc::new(move || workloads.roots()),
            }),
            trail: None,
            authority: wiring.authority,
            metrics: wiring.metrics.clone(),
            ledger: wiring.ledger.clone(),
            pods: wiring.pods,
        };
        let mut agent = Self::build(config, reach)?;
        let (server, current, flows) = (agent.server.clone(), agent.current.clone(), agent.flows.clone());
        let (sweeping, scope) = (current.clone(), current.clone());
        let means = Means {
            own: wiring.own,
            facts: wiring.namespaces,
            workloads: wiring.workloads,
            installer: wiring.installer,
            ledger: wiring.ledger,
            metrics: wiring.metrics,
            authority: agent.authority(),
            scope: Arc::new(move || scope.load().scope.clone()),
            tell: Arc::new(move |flow| flows.note(of_pod(flow, &current))),
            serve: Arc::new(move |listener, netns, phase| Box::pin(server.serve(listener, netns, phase))),
            sweep: Arc::new(move || sweeping.load().upstreams.sweep()),
        };
        agent.grounds = Some(Grounds::open(inheritance, means)?);
        Ok(agent)
    }

    /// Builds everything that serves connections. Nothing is accepted before [`serve`](Self::serve).
    pub fn build(mut config: Config, reach: Reach) -> Result<Self, Error> {
        let Reach {
            callers,
            sockets,
            narrow,
            sight,
            trail,
            authority,
            metrics,
            ledger,
            pods,
        } = reach;
        check_permitted(&config, &authority)?;
        let (drain, audit, traces) = (config.drain, config.audit.clone(), config.traces.clone());
        let dialer = Dialer::by(sockets, limits::CONNECT_TIME);
        let shared = config.shared_cache.take();
        let shared = sharing::shared(shared, &dialer, authority.anchors(), &metrics, None)?;
        let (roots, facts) = (authority.anchors(), pods.as_ref());
        let current = Current::new(snapshot(config, &dialer, roots, &metrics, None, facts)?);
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
        let room = limits::connections(open_files);
        let tokens = Tokens::new(metrics.clone());
        tokens.share(shared);
        let audit = audit
            .map(|audit| Audit::through(&audit, trail, metrics.clone()))
            .transpose()?;
        let flows = Flows::audited(audit);
        let traces = traces
            .map(|(settings, extra)| compose::traces(&settings, &extra, authority.root_der(), &metrics))
            .transpose()?;
        let (phase, watched) = watch::channel(Phase::Serving);
        let may_mint = {
            let current = current.clone();
            Arc::new(move |host: &crate::addr::HostName| current.load().routes.names(host))
        };
        let leaves = Arc::new(Leaves::new(authority, may_mint, metrics.clone())?);
        let signing = leaves.clone();
        let issuing = move || trust::fingerprint(signing.authority().root_der()).into();
        let processes = Processes::new(sight, ledger, Arc::new(issuing), flows.clone(), metrics.clone());
        let terminator = Terminator::new(leaves.clone(), limits::HANDSHAKE_TIME, metrics.clone());
        let authorities = Authorities::new(leaves, terminator.clone(), metrics.clone());
        let candidates = names::candidates(narrow.clone());
        let connections = Arc::new(Connections {
            callers,
            candidates: candidates.clone(),
            current: current.clone(),
            dialer: dialer.clone(),
            terminator,
            processes: processes.clone(),
            exchange: Exchange {
                current: current.clone(),
                tokens: tokens.clone(),
                metrics: metrics.clone(),
                flows: flows.clone(),
                traces: traces.clone(),
            },
            hello: Caps {
                bytes: limits::HELLO_BYTES,
                time: limits::HELLO_TIME,
            },
            places: Places::new(room / limits::SHARE_OF_WORKLOAD),
            pipes: Pipes::new(limits::TUNNEL_PIPES),
            metrics: metrics.clone(),
            phase: watched.clone(),
        });
        let server = Server {
            connections,
            limit: Arc::new(Semaphore::new(room)),
            drain,
        };
        let mut loops = vec![
            tokio::spawn(keys::tend(current.clone(), watched.clone())),
            tokio::spawn(processes.clone().tend(watched.clone())),
        ];
        if let Some(narrow) = narrow {
            let sweep = names::sweep(narrow, candidates.clone(), metrics.clone(), watched.clone());
            loops.push(tokio::spawn(sweep));
        }
        loops.push(tokio::spawn(names::look_up(current.clone(), candidates, watched)));
        Ok(Self {
            current,
            dialer,
            authorities,
            metrics,
            server: Arc::new(server),
            grounds: None,
            tokens,
            flows,
            traces,
            processes,
            pods,
            phase,
            drain,
            loops,
        })
    }

    /// Serves the connections of `listener`, which stands in `netns`, until `phase` says otherwise, and to their end.
    pub fn serve(
        &self,
        listener: Listener,
        netns: Netns,
        phase: watch::Receiver<Phase>,
    ) -> impl Future<Output = ()> + Send + use<> {
        self.server.serve(listener, netns, phase)
    }

    /// Where it listens, with the ports that were free.
    ///
    /// # Panics
    /// When it does not listen in this process.
    pub fn listeners(&self) -> Listeners {
        self.grounds.as_ref().expect("it was started here").listeners()
    }

    /// Notes what happened elsewhere, with what is known of the pod.
    pub fn note(&self, flow: Flow) {
        self.flows.note(of_pod(flow, &self.current));
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Who trusts the CA.
    pub fn processes(&self) -> &Processes {
        &self.processes
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
    pub fn prepare(&self, mut config: Config) -> Result<Prepared, Error> {
        let authority = self.authorities.present();
        check_permitted(&config, &authority)?;
        let own = authority.anchors();
        let shared = config.shared_cache.take();
        let shared = sharing::shared(shared, &self.dialer, own, &self.metrics, self.tokens.shared())?;
        let before = &self.current.load().keysets;
        let facts = self.pods.as_ref();
        let snapshot = snapshot(config, &self.dialer, own, &self.metrics, Some(before), facts)?;
        Ok(Prepared { snapshot, shared })
    }

    /// Puts in force what was prepared. Cannot fail.
    pub fn install(&self, prepared: Prepared) {
        self.tokens.share(prepared.shared);
        self.current.replace(prepared.snapshot);
    }

    /// What has to be done now and then: lets go of idle upstream connections.
    pub fn sweep(&self) {
        self.current.load().upstreams.sweep();
    }
}

/// With the facts of the pod that it names.
fn of_pod(mut flow: Flow, current: &Current) -> Flow {
    let pod = flow.pod.as_deref().and_then(|uid| current.load().pods.of(uid));
    if let Some(pod) = pod {
        flow.pod_namespace = Some(pod.namespace.clone());
        flow.pod_name = Some(pod.name.clone());
        flow.service_account = Some(pod.service_account.clone());
        let id = flow.container.as_deref();
        flow.container_name = id.and_then(|id| pod.containers.get(id)).cloned();
    }
    flow
}

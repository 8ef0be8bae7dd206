//! The life of a connection, from accept to its end, in the order in which things happen.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::addr::{NetnsCookie, PeerAddr};
use crate::candidates::Candidates;
use crate::decide::{self, Decision};
use crate::dial::{self, Dialer, reset_on_close};
use crate::exchange::{self, Exchange, Session};
use crate::flows::Flow;
use crate::hello::{self, Caps, First, Hello};
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::places::Places;
use crate::redirect::{OriginLookup, Recorded};
use crate::replay::Replay;
use crate::snapshot::Current;
use crate::terminate::{self, Terminator};
use crate::tunnel::{self, Speaker};
use crate::upstream::{self, Protocol, Target};
use crate::workload::{Identity, Workload, Workloads};

/// What all connections share.
pub struct Connections {
    pub origins: Arc<dyn OriginLookup>,
    pub workloads: Arc<Workloads>,
    pub candidates: Candidates,
    pub current: Current,
    pub dialer: Dialer,
    pub terminator: Terminator,
    pub exchange: Exchange,
    pub hello: Caps,
    /// Connections that each workload has open.
    pub places: Places,
    pub metrics: Metrics,
    /// Becomes true when the agent is told to stop.
    pub stop: watch::Receiver<bool>,
}

/// Why a connection ended otherwise than by its own end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the kernel half recorded no such connection: somebody connected to the agent's own port")]
    Unrecorded,
    #[error("the kernel half's table cannot be read")]
    Lookup(#[source] std::io::Error),
    #[error("the connection broke before the workload said anything")]
    Read(#[source] std::io::Error),
    #[error("refused by policy: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error(transparent)]
    Tunnel(#[from] tunnel::Error),
    #[error(transparent)]
    Terminate(#[from] terminate::Error),
    #[error(transparent)]
    Exchange(#[from] exchange::Error),
}

impl Error {
    /// What had been decided when it ended, for metrics and logs.
    fn decision(&self) -> &'static str {
        match self {
            Self::Tunnel(tunnel::Error::Broken(_) | tunnel::Error::Idle { .. }) => "tunnel",
            Self::Exchange(_) => "terminate",
            Self::Unrecorded
            | Self::Lookup(_)
            | Self::Read(_)
            | Self::Refused(_)
            | Self::Dial(_)
            | Self::Tunnel(tunnel::Error::Dial(_))
            | Self::Terminate(_) => "refuse",
        }
    }

    /// Label of the reason in metrics and logs.
    fn reason(&self) -> &'static str {
        match self {
            Self::Unrecorded => "unrecorded",
            Self::Lookup(_) => "lookup_failed",
            Self::Read(_) => "closed_early",
            Self::Refused(why) => why,
            Self::Dial(error) | Self::Tunnel(tunnel::Error::Dial(error)) => error.class().label(),
            Self::Tunnel(tunnel::Error::Broken(_)) => "tunnel_broken",
            Self::Tunnel(tunnel::Error::Idle { .. }) => "tunnel_idle",
            Self::Terminate(error) => error.reason(),
            Self::Exchange(error) => error.reason(),
        }
    }
}

/// How a connection was served, for its record.
type Served = (&'static str, &'static str);

impl Connections {
    /// Serves one accepted connection to its end, and records it, once. `cookie` is that of `netns`.
    pub async fn serve(&self, stream: TcpStream, peer: PeerAddr, cookie: NetnsCookie, netns: Netns) {
        let began = Instant::now();
        let _open = Open::count(&self.metrics);
        let mut flow = Flow {
            kind: "connection".to_owned(),
            ..Flow::default()
        };
        let (decision, reason) = match self.run(stream, peer, cookie, &netns, &mut flow).await {
            Ok(served) => served,
            Err(error) => {
                let (decision, reason) = (error.decision(), error.reason());
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                if decision == "refuse" {
                    tracing::warn!(reason, %error, cause, peer = %peer.0, "connection refused");
                } else {
                    // Workloads and origins come and go as they like: nothing that an operator has to mend.
                    tracing::debug!(decision, reason, %error, cause, peer = %peer.0, "connection broken off");
                }
                (decision, reason)
            }
        };
        self.metrics.connection(decision, reason);
        self.exchange.flows.note(Flow {
            outcome: decision.to_owned(),
            reason: Some(reason.to_owned()),
            took_us: u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX),
            ..flow
        });
    }

    /// `flow` is told who and where to as soon as that is known.
    async fn run(
        &self,
        mut stream: TcpStream,
        peer: PeerAddr,
        cookie: NetnsCookie,
        netns: &Netns,
        flow: &mut Flow,
    ) -> Result<Served, Error> {
        // Who, and where to: from the kernel half alone. Nobody else may be served.
        let Some(recorded) = self.origins.take(cookie, peer).map_err(Error::Lookup)? else {
            reset_on_close(&stream);
            return Err(Error::Unrecorded);
        };
        let workload = self.workloads.identify(&recorded);
        flow.origin = Some(recorded.origin.to_string());
        flow.cgroup = workload.cgroup.as_deref().map(str::to_owned);
        let Identity { unit, pod, container } = workload.identity();
        (flow.unit, flow.pod, flow.container) = (unit, pod, container);
        (flow.tgid, flow.uid) = (workload.tgid, workload.uid);
        let Some(_place) = self.places.take(workload.cgroup_id) else {
            reset_on_close(&stream);
            return Err(Error::Refused("too_many_connections"));
        };
        let _in_use = self.candidates.open(recorded.origin.0.ip());
        let dialer = self.dialer.within(netns);
        // Latency of small requests is lost to Nagle otherwise; a socket without it still works.
        let _ = stream.set_nodelay(true);
        loop {
            let (first, seen) = hello::read(&mut stream, self.hello).await.map_err(Error::Read)?;
            if let First::Hello(hello) = &first {
                flow.host = hello.sni.as_ref().map(ToString::to_string);
            }
            match self.decide(&first, &recorded, &workload) {
                Decision::Refuse(why) => {
                    reset_on_close(&stream);
                    return Err(Error::Refused(why));
                }
                Decision::Tunnel(why) if first == First::Silent => {
                    let (origin, speaker) = wait_for_speaker(&stream, &recorded, &dialer).await?;
                    match speaker {
                        // It was only slow: look at what it says.
                        Speaker::Client => {}
                        Speaker::Nobody => return Ok(("tunnel", "never_spoke")),
                        Speaker::Origin => return self.tunnel_on(stream, origin, why).await,
                    }
                }
                Decision::Tunnel(why) => {
                    tunnel::run(stream, &recorded, &seen, &dialer, limits::TUNNEL_IDLE).await?;
                    return Ok(("tunnel", why));
                }
                Decision::Terminate { host, route } => {
                    flow.route = Some(route.name.to_string());
                    let First::Hello(hello) = first else {
                        unreachable!("only a hello is terminated")
                    };
                    let target = Target {
                        host,
                        origin: recorded.origin,
                        workload: workload.cgroup_id,
                        netns: netns.clone(),
                    };
                    return self
                        .terminate(Replay::new(seen, stream), target, &hello, workload, flow.clone())
                        .await;
                }
            }
        }
    }

    fn decide(&self, first: &First, recorded: &Recorded, workload: &Workload) -> Decision {
        let snapshot = self.current.load();
        let candidate = self.candidates.contains(recorded.origin.0.ip());
        decide::connection(
            first,
            &snapshot.routes,
            workload,
            candidate,
            snapshot.on_unknown_name,
        )
    }

    async fn tunnel_on(
        &self,
        mut stream: TcpStream,
        mut origin: TcpStream,
        why: &'static str,
    ) -> Result<Served, Error> {
        tunnel::copy(&mut stream, &mut origin, &[], limits::TUNNEL_IDLE)
            .await
            .inspect_err(|_| {
                reset_on_close(&stream);
                reset_on_close(&origin);
            })?;
        Ok(("tunnel", why))
    }

    async fn terminate(
        &self,
        io: Replay<TcpStream>,
        target: Target,
        hello: &Hello,
        workload: Workload,
        flow: Flow,
    ) -> Result<Served, Error> {
        self.candidates.learn(target.origin.0.ip());
        // The origin first: its choice of protocol is ours, and one that cannot be reached is told by reset,
        // before the workload believes in a connection.
        let origin_speaks = match self.current.load().upstreams.prepare(&target).await {
            Ok(protocol) => protocol,
            Err(upstream::Error::Dial(error)) => {
                reset_on_close(io.get_ref());
                return Err(error.into());
            }
            // Bad TLS upstream: every request on this connection is told so.
            Err(_) => Protocol::Http2,
        };
        let protocol = terminate::mirror(&hello.alpn, origin_speaks);
        let tls = self.terminator.accept(io, &target.host, protocol).await?;
        let session = Session {
            exchange: self.exchange.clone(),
            workload,
            target,
            flow,
            upgraded: Mutex::default(),
        };
        exchange::serve(tls, protocol_of(protocol, hello), session, self.stop.clone()).await?;
        Ok(("terminate", "routed"))
    }
}

/// One open connection in the metrics, also when a drain cuts it off.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.open_connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open_connections.dec();
    }
}

async fn wait_for_speaker(
    stream: &TcpStream,
    recorded: &Recorded,
    dialer: &Dialer,
) -> Result<(TcpStream, Speaker), Error> {
    let origin = dialer
        .connect(recorded.origin)
        .await
        .inspect_err(|_| reset_on_close(stream))?;
    let speaker = tunnel::first_speaker(stream, &origin, limits::TUNNEL_IDLE).await;
    Ok((origin, speaker))
}

/// A client without ALPN speaks HTTP/1.1, whatever the origin does.
fn protocol_of(mirrored: Protocol, hello: &Hello) -> Protocol {
    if hello.alpn.is_empty() {
        Protocol::Http1
    } else {
        mirrored
    }
}

//! The life of a connection, from accept to its end, in the order in which things happen.

use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use nix::errno::Errno;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::addr::{HostName, NetnsCookie, PeerAddr};
use crate::candidates::Candidates;
use crate::decide::{self, Decision, OnUnknownName};
use crate::dial::{self, Dialer, reset_on_close};
use crate::exchange::{self, Exchange, Session};
use crate::flows::Flow;
use crate::hello::{self, Caps, First, Hello};
use crate::limits;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::phase::Phase;
use crate::places::Places;
use crate::policy::OnUntrusted;
use crate::redirect::Recorded;
use crate::replay::Replay;
use crate::snapshot::Current;
use crate::terminate::{self, Terminator, Word};
use crate::trust::{Ask, Processes};
use crate::tunnel::{self, Pipes, Speaker};
use crate::upstream::{self, Protocol, Target};
use crate::workload::{Call, Callers, Workload};

mod early;

use early::Early;

/// What all connections share.
pub struct Connections {
    pub callers: Arc<dyn Callers>,
    pub candidates: Candidates,
    pub current: Current,
    pub dialer: Dialer,
    pub terminator: Terminator,
    /// Who trusts us.
    pub processes: Processes,
    pub exchange: Exchange,
    pub hello: Caps,
    /// Connections that each workload has open.
    pub places: Places,
    /// For tunnels that carry much.
    pub pipes: Pipes,
    pub metrics: Metrics,
    pub phase: watch::Receiver<Phase>,
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
            Self::Dial(error) => error.class().label(),
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
        let Some((recorded, workload)) = take(&*self.callers, &stream, peer, cookie).await? else {
            reset_on_close(&stream);
            return Err(Error::Unrecorded);
        };
        let workload = workload.of_pod(&*self.current.load().pods);
        flow.origin = Some(recorded.origin.to_string());
        workload.introduce(flow);
        let Some(_place) = self.places.take(workload.cgroup_id) else {
            reset_on_close(&stream);
            return Err(Error::Refused("too_many_connections"));
        };
        let _in_use = self.candidates.open(recorded.origin.0.ip());
        let dialer = self.dialer.within(netns);
        // Latency of small requests is lost to Nagle otherwise; a socket without it still works.
        let _ = stream.set_nodelay(true);
        let began = Instant::now();
        let (mut speaker, mut early) = self.first_word(&stream, &recorded, &dialer).await?;
        let mut caps = Caps {
            time: self.hello.time.saturating_sub(began.elapsed()),
            ..self.hello
        };
        loop {
            let (first, seen) = match speaker {
                Speaker::Client => hello::read(&mut stream, caps).await.map_err(Error::Read)?,
                Speaker::Origin | Speaker::Nobody => (First::Silent, Vec::new()),
            };
            if let First::Hello(hello) = &first {
                flow.host = hello.sni.as_ref().map(ToString::to_string);
            }
            let decision = self.decide(&first, &recorded, &workload);
            match self.trusting(decision, &workload, flow).await {
                Decision::Refuse(why) => {
                    reset_on_close(&stream);
                    return Err(Error::Refused(why));
                }
                Decision::Tunnel(why) => {
                    let origin = early
                        .connect(&dialer, recorded.origin)
                        .await
                        .inspect_err(|_| reset_on_close(&stream))?;
                    if first == First::Silent && speaker != Speaker::Origin {
                        match tunnel::first_speaker(&stream, &origin, limits::TUNNEL_IDLE).await {
                            // It was only slow: look at what it says.
                            Speaker::Client => {
                                (speaker, early, caps) = (Speaker::Client, Early::There(origin), self.hello);
                                continue;
                            }
                            Speaker::Nobody => return Ok(("tunnel", "never_spoke")),
                            Speaker::Origin => {}
                        }
                    }
                    tunnel::run(stream, origin, &seen, &self.pipes, limits::TUNNEL_IDLE).await?;
                    return Ok(("tunnel", why));
                }
                Decision::Terminate { host, .. } => {
                    let First::Hello(hello) = first else {
                        unreachable!("only a hello is terminated")
                    };
                    let target = Target {
                        host,
                        origin: recorded.origin,
                        workload: workload.cgroup_id,
                        netns: netns.clone(),
                    };
                    let dialled = early.unused().await.inspect_err(|_| reset_on_close(&stream))?;
                    let io = Replay::new(seen, stream);
                    return self
                        .terminate(io, target, dialled, &hello, workload, flow.clone())
                        .await;
                }
            }
        }
    }

    /// Who says something first; the origin is dialled meanwhile where a tunnel is likely.
    ///
    /// Not for an address of a routed host, to which connections are kept, and not where unknown names are refused:
    /// there, nothing goes out before the decision.
    async fn first_word(
        &self,
        stream: &TcpStream,
        recorded: &Recorded,
        dialer: &Dialer,
    ) -> Result<(Speaker, Early), Error> {
        let refusing = self.current.load().on_unknown_name == OnUnknownName::Refuse;
        if refusing || self.candidates.contains(recorded.origin.0.ip()) {
            return Ok((Speaker::Client, Early::None));
        }
        let (patience, limit) = (limits::EARLY_DIAL, self.hello.time);
        early::first_word(stream, dialer, recorded.origin, patience, limit)
            .await
            .inspect_err(|_| reset_on_close(stream))
            .map_err(Error::Dial)
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

    /// What is known of the process' trust in our CA has its say; before that, the CA is waited for where it is just
    /// being put.
    async fn trusting(&self, decision: Decision, workload: &Workload, flow: &mut Flow) -> Decision {
        let Decision::Terminate { route, .. } = &decision else {
            return decision;
        };
        flow.route = Some(route.name.to_string());
        let ask = Ask {
            installation: self.current.load().installs,
            runtime: route.on_untrusted == OnUntrusted::Tunnel,
        };
        let standing = self.processes.standing(workload, ask).await;
        decide::trusting(decision, standing)
    }

    async fn terminate(
        &self,
        io: Replay<TcpStream>,
        target: Target,
        dialled: Option<TcpStream>,
        hello: &Hello,
        workload: Workload,
        flow: Flow,
    ) -> Result<Served, Error> {
        self.candidates.learn(target.origin.0.ip());
        // The origin first: its choice of protocol is ours, and one that cannot be reached is told by reset,
        // before the workload believes in a connection.
        let origin_speaks = match self.current.load().upstreams.prepare(&target, dialled).await {
            Ok(protocol) => protocol,
            Err(upstream::Error::Dial(error)) => {
                reset_on_close(io.get_ref());
                return Err(error.into());
            }
            // Bad TLS upstream: every request on this connection is told so.
            Err(_) => Protocol::Http2,
        };
        // Who gave up waiting has seen no certificate.
        if has_left(io.get_ref()) {
            return Err(Error::Refused("closed_early"));
        }
        let protocol = terminate::mirror(&hello.alpn, origin_speaks);
        let tls = self
            .shake_hands(io, &target.host, protocol, &workload, &flow)
            .await?;
        let session = Session {
            exchange: self.exchange.clone(),
            workload,
            target,
            flow,
            upgraded: Mutex::default(),
        };
        exchange::serve(tls, protocol_of(protocol, hello), session, self.phase.clone()).await?;
        Ok(("terminate", "routed"))
    }

    /// The handshake, and what it shows of the process' trust in our CA.
    async fn shake_hands(
        &self,
        io: Replay<TcpStream>,
        host: &HostName,
        protocol: Protocol,
        workload: &Workload,
        flow: &Flow,
    ) -> Result<terminate::Stream<Replay<TcpStream>>, terminate::Error> {
        let root = self.processes.issuing();
        let told = {
            let (processes, workload, flow, root) = (
                self.processes.clone(),
                workload.clone(),
                flow.clone(),
                root.clone(),
            );
            move |word| match word {
                // A root that was exchanged meanwhile may not be the one that was shown.
                _ if processes.issuing() != root => {}
                Word::Spoke => processes.completed(&workload, &root),
                Word::Left(sign) => processes.distrusted(&workload, sign, &root, &flow),
            }
        };
        let shaken = self.terminator.accept(io, host, protocol, told).await;
        if let Some(sign) = shaken.as_ref().err().and_then(terminate::Error::sign)
            && self.processes.issuing() == root
        {
            self.processes.distrusted(workload, sign, &root, flow);
        }
        shaken
    }
}

/// The record of this connection, never that of another one with the same address and port: a client that is
/// gone (ENOTCONN) frees them, and whoever has them next is recorded under the same key.
async fn take(
    callers: &dyn Callers,
    stream: &TcpStream,
    peer: PeerAddr,
    cookie: NetnsCookie,
) -> Result<Option<Call>, Error> {
    stream.peer_addr().map_err(Error::Read)?;
    let call = callers.take(cookie, peer).await.map_err(Error::Lookup)?;
    stream.peer_addr().map_err(Error::Read)?;
    Ok(call)
}

/// Whether the client has closed, as far as is known here. Takes no byte.
fn has_left(stream: &TcpStream) -> bool {
    use nix::sys::socket::{MsgFlags, recv};
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    match recv(stream.as_raw_fd(), &mut [0], flags) {
        Ok(bytes) => bytes == 0,
        Err(errno) => errno != Errno::EAGAIN,
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

/// A client without ALPN speaks HTTP/1.1, whatever the origin does.
fn protocol_of(mirrored: Protocol, hello: &Hello) -> Protocol {
    if hello.alpn.is_empty() {
        Protocol::Http1
    } else {
        mirrored
    }
}

#[cfg(test)]
mod tests;

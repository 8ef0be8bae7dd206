//! What happens to a connect() or sendmsg(): pure, so that a host test can try every combination.
//!
//! Facts are asked for one by one, cheapest first, because each one costs the workload time; the order is
//! part of the contract (an unconcerned port must never cost a listener look-up).

/// IANA protocol numbers.
pub const TCP: u32 = 6;
pub const UDP: u32 = 17;

/// Which kind of destination the socket was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    /// IPv4 on an IPv6 socket, ::ffff:a.b.c.d: goes to the IPv4 listener.
    Mapped,
    V6,
}

/// Why a call ended as it did; the index of its counter. The labels are those of the agent's metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// Sent to the agent's listener.
    Redirected,
    /// Neither TCP nor UDP.
    OtherProtocol,
    /// Not a captured port.
    OtherPort,
    /// A socket that carries the agent's flag.
    OwnSocket,
    /// A socket of a process in the agent's cgroup.
    AgentCgroup,
    /// In a bypassed prefix.
    Bypassed,
    /// UDP to a captured port, refused.
    QuicRefused,
    /// UDP to a captured port, let through by policy.
    QuicAllowed,
    /// Bound to a device (SO_BINDTODEVICE, VRF), where the loopback listener cannot be reached: refused.
    DeviceRefused,
    /// The same, left alone because the policy fails open.
    DeviceLeft,
    /// The agent missed its deadline: refused.
    LateRefused,
    /// The same, left alone because the policy fails open.
    LateLeft,
    /// No listener of ours in this network namespace: refused.
    AbsentRefused,
    /// The same, left alone because the policy fails open.
    AbsentLeft,
    /// Native IPv6 where the namespace cannot route it: refused with ENETUNREACH, so the client tries IPv4.
    V6Unroutable,
    /// The origin could not be remembered: refused.
    RecordFailed,
    /// The client's address could not be handed over; the agent will close the connection.
    HandoverFailed,
    /// getpeername() was shown the origin.
    PeerShown,
    /// Narrowed by name: no candidate, in a namespace that is sure of its names.
    NotCandidate,
    /// Narrowed by prefix: in none of them.
    OutsideCidrs,
    /// A DNS answer about a routed name was read.
    DnsLearnt,
    /// Such an answer was cut short (TC): its namespace is unsure.
    DnsTruncated,
    /// A DNS answer that cannot be read, or not to its end: its namespace is unsure.
    DnsUnreadable,
    /// A DNS answer about a routed name is longer than what is read: its namespace is unsure.
    DnsTooLarge,
    /// There was no room for an address of a routed name: its namespace is unsure.
    DnsNoRoom,
    /// DNS over a stream (TCP port 53) or encrypted (port 853), which is not read: its namespace is unsure.
    DnsUnseen,
}

impl Reason {
    pub const ALL: [Self; 26] = [
        Self::Redirected,
        Self::OtherProtocol,
        Self::OtherPort,
        Self::OwnSocket,
        Self::AgentCgroup,
        Self::Bypassed,
        Self::QuicRefused,
        Self::QuicAllowed,
        Self::DeviceRefused,
        Self::DeviceLeft,
        Self::LateRefused,
        Self::LateLeft,
        Self::AbsentRefused,
        Self::AbsentLeft,
        Self::V6Unroutable,
        Self::RecordFailed,
        Self::HandoverFailed,
        Self::PeerShown,
        Self::NotCandidate,
        Self::OutsideCidrs,
        Self::DnsLearnt,
        Self::DnsTruncated,
        Self::DnsUnreadable,
        Self::DnsTooLarge,
        Self::DnsNoRoom,
        Self::DnsUnseen,
    ];

    pub const fn label(self) -> &'static str {
        match self {
            Self::Redirected => "redirected",
            Self::OtherProtocol => "other_protocol",
            Self::OtherPort => "other_port",
            Self::OwnSocket => "own_socket",
            Self::AgentCgroup => "agent_cgroup",
            Self::Bypassed => "bypassed",
            Self::QuicRefused => "quic_refused",
            Self::QuicAllowed => "quic_allowed",
            Self::DeviceRefused => "device_refused",
            Self::DeviceLeft => "device_left",
            Self::LateRefused => "late_refused",
            Self::LateLeft => "late_left",
            Self::AbsentRefused => "absent_refused",
            Self::AbsentLeft => "absent_left",
            Self::V6Unroutable => "v6_unroutable",
            Self::RecordFailed => "record_failed",
            Self::HandoverFailed => "handover_failed",
            Self::PeerShown => "peer_shown",
            Self::NotCandidate => "not_candidate",
            Self::OutsideCidrs => "outside_cidrs",
            Self::DnsLearnt => "dns_learnt",
            Self::DnsTruncated => "dns_truncated",
            Self::DnsUnreadable => "dns_unreadable",
            Self::DnsTooLarge => "dns_too_large",
            Self::DnsNoRoom => "dns_no_room",
            Self::DnsUnseen => "dns_unseen",
        }
    }
}

/// What to do, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As if no program were attached.
    Leave(Reason),
    /// The call fails: ENETUNREACH for [`Reason::V6Unroutable`], else ECONNREFUSED.
    Refuse(Reason),
    /// To the listener of the destination's family.
    Redirect,
}

/// Which destinations on captured ports are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    All,
    /// Addresses that routed names were seen to have.
    Dns,
    /// Addresses in configured prefixes.
    Cidr,
}

/// What a program can find out about the call. Each method may cost a helper call.
pub trait Facts {
    fn protocol(&self) -> u32;
    fn family(&self) -> Family;
    fn port_captured(&self) -> bool;
    /// The socket carries the flag that only the agent can set.
    fn own_socket(&self) -> bool;
    fn in_agent_cgroup(&self) -> bool;
    fn bypassed(&self) -> bool;
    fn capture(&self) -> Capture;
    /// In a prefix to look at.
    fn in_capture_cidr(&self) -> bool;
    /// An address that a routed name was seen to have. Asking counts as use.
    fn candidate(&self) -> bool;
    /// The namespace may know addresses that nobody saw it learn.
    fn unsure(&self) -> bool;
    fn bound_to_device(&self) -> bool;
    /// The agent let its deadline pass.
    fn late(&self) -> bool;
    /// A flagged socket listens where this destination would be sent.
    fn listener_alive(&self) -> bool;
    fn v6_routable(&self) -> bool;
    fn block_quic(&self) -> bool;
    /// The policy when the agent is absent.
    fn fail_open(&self) -> bool;
}

/// Decides about connect(), and about sendmsg() of an unconnected UDP socket.
#[inline(always)]
pub fn decide(facts: &impl Facts) -> Verdict {
    let protocol = facts.protocol();
    if protocol != TCP && protocol != UDP {
        return Verdict::Leave(Reason::OtherProtocol);
    }
    if !facts.port_captured() {
        return Verdict::Leave(Reason::OtherPort);
    }
    if facts.own_socket() {
        return Verdict::Leave(Reason::OwnSocket);
    }
    if facts.in_agent_cgroup() {
        return Verdict::Leave(Reason::AgentCgroup);
    }
    if facts.bypassed() {
        return Verdict::Leave(Reason::Bypassed);
    }
    match facts.capture() {
        Capture::Dns if !facts.candidate() && !facts.unsure() => return Verdict::Leave(Reason::NotCandidate),
        Capture::Cidr if !facts.in_capture_cidr() => return Verdict::Leave(Reason::OutsideCidrs),
        Capture::All | Capture::Dns | Capture::Cidr => {}
    }
    if protocol == UDP {
        return if facts.block_quic() {
            Verdict::Refuse(Reason::QuicRefused)
        } else {
            Verdict::Leave(Reason::QuicAllowed)
        };
    }
    let absent = if facts.bound_to_device() {
        Some((Reason::DeviceRefused, Reason::DeviceLeft))
    } else if facts.late() {
        Some((Reason::LateRefused, Reason::LateLeft))
    } else if !facts.listener_alive() {
        Some((Reason::AbsentRefused, Reason::AbsentLeft))
    } else {
        None
    };
    match absent {
        Some((_, left)) if facts.fail_open() => Verdict::Leave(left),
        Some((refused, _)) => Verdict::Refuse(refused),
        None if facts.family() == Family::V6 && !facts.v6_routable() => Verdict::Refuse(Reason::V6Unroutable),
        None => Verdict::Redirect,
    }
}

#[cfg(test)]
mod tests;

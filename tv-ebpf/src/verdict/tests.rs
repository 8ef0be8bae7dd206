//! Every combination of facts, against a table of rules written down a second time, and the cost of each path.
extern crate std;

use core::cell::RefCell;
use std::vec::Vec;

use super::*;

#[derive(Clone, Debug)]
struct Fake {
    protocol: u32,
    family: Family,
    captured: bool,
    own: bool,
    cgroup: bool,
    bypassed: bool,
    capture: Capture,
    named: bool,
    unsure: bool,
    device: bool,
    late: bool,
    listener: bool,
    routable: bool,
    quic: bool,
    open: bool,
    asked: RefCell<Vec<&'static str>>,
}

impl Fake {
    /// Left out by narrowing, whatever else holds.
    fn left_out(&self) -> bool {
        match self.capture {
            Capture::All => false,
            Capture::Dns => !self.named && !self.unsure,
            Capture::Cidr => !self.named,
        }
    }

    /// A TCP connect to a captured port while the agent is alive.
    fn captured() -> Self {
        Self {
            protocol: TCP,
            family: Family::V4,
            captured: true,
            own: false,
            cgroup: false,
            bypassed: false,
            capture: Capture::All,
            named: false,
            unsure: false,
            device: false,
            late: false,
            listener: true,
            routable: true,
            quic: true,
            open: false,
            asked: RefCell::default(),
        }
    }

    fn ask<T>(&self, what: &'static str, answer: T) -> T {
        self.asked.borrow_mut().push(what);
        answer
    }
}

impl Facts for Fake {
    fn protocol(&self) -> u32 {
        self.protocol
    }
    fn family(&self) -> Family {
        self.family
    }
    fn port_captured(&self) -> bool {
        self.ask("port", self.captured)
    }
    fn own_socket(&self) -> bool {
        self.ask("own", self.own)
    }
    fn in_agent_cgroup(&self) -> bool {
        self.ask("cgroup", self.cgroup)
    }
    fn bypassed(&self) -> bool {
        self.ask("bypass", self.bypassed)
    }
    fn capture(&self) -> Capture {
        self.capture
    }
    fn in_capture_cidr(&self) -> bool {
        self.ask("cidr", self.named)
    }
    fn candidate(&self) -> bool {
        self.ask("candidate", self.named)
    }
    fn unsure(&self) -> bool {
        self.ask("unsure", self.unsure)
    }
    fn bound_to_device(&self) -> bool {
        self.ask("device", self.device)
    }
    fn late(&self) -> bool {
        self.ask("late", self.late)
    }
    fn listener_alive(&self) -> bool {
        self.ask("listener", self.listener)
    }
    fn v6_routable(&self) -> bool {
        self.routable
    }
    fn block_quic(&self) -> bool {
        self.quic
    }
    fn fail_open(&self) -> bool {
        self.open
    }
}

/// Every combination of the switches, three families, three protocols and three ways to narrow.
fn all() -> impl Iterator<Item = Fake> {
    (0..1u32 << 12).flat_map(|bits| {
        let on = move |bit: u32| bits & (1 << bit) != 0;
        let ways = [Capture::All, Capture::Dns, Capture::Cidr];
        let protocols = [TCP, UDP, 1].into_iter();
        let both = protocols.flat_map(move |protocol| ways.map(|capture| (protocol, capture)));
        both.flat_map(move |(protocol, capture)| {
            [Family::V4, Family::Mapped, Family::V6]
                .into_iter()
                .map(move |family| Fake {
                    protocol,
                    family,
                    capture,
                    named: on(10),
                    unsure: on(11),
                    captured: on(0),
                    own: on(1),
                    cgroup: on(2),
                    bypassed: on(3),
                    device: on(4),
                    late: on(5),
                    listener: on(6),
                    routable: on(7),
                    quic: on(8),
                    open: on(9),
                    asked: RefCell::default(),
                })
        })
    })
}

#[test]
fn only_an_unexcused_tcp_connect_with_a_living_agent_is_redirected() {
    for fake in all() {
        let excused = fake.protocol != TCP || !fake.captured || fake.own || fake.cgroup || fake.bypassed;
        let excused = excused || fake.left_out();
        let reachable = fake.listener && !fake.late && !fake.device;
        let possible = fake.family != Family::V6 || fake.routable;
        assert_eq!(
            decide(&fake) == Verdict::Redirect,
            !excused && reachable && possible,
            "{fake:?}"
        );
    }
}

#[test]
fn a_closed_policy_never_leaves_a_captured_tcp_connect_alone() {
    for fake in all() {
        let concerned = fake.protocol == TCP && fake.captured && !fake.own && !fake.cgroup && !fake.bypassed;
        let concerned = concerned && !fake.left_out();
        if concerned && !fake.open {
            assert!(!matches!(decide(&fake), Verdict::Leave(_)), "{fake:?}");
        }
        if !concerned && fake.protocol != UDP {
            assert!(matches!(decide(&fake), Verdict::Leave(_)), "{fake:?}");
        }
    }
}

#[test]
fn each_reason_has_its_case() {
    use Verdict::{Leave, Refuse};
    type Change = fn(&mut Fake);
    let cases: [(Change, Verdict); 19] = [
        (|_| {}, Verdict::Redirect),
        (|f| f.protocol = 1, Leave(Reason::OtherProtocol)),
        (|f| f.captured = false, Leave(Reason::OtherPort)),
        (|f| f.own = true, Leave(Reason::OwnSocket)),
        (|f| f.cgroup = true, Leave(Reason::AgentCgroup)),
        (|f| f.bypassed = true, Leave(Reason::Bypassed)),
        (|f| f.capture = Capture::Dns, Leave(Reason::NotCandidate)),
        (
            |f| (f.capture, f.unsure) = (Capture::Dns, true),
            Verdict::Redirect,
        ),
        (|f| (f.capture, f.named) = (Capture::Dns, true), Verdict::Redirect),
        (|f| f.capture = Capture::Cidr, Leave(Reason::OutsideCidrs)),
        (
            |f| (f.capture, f.named) = (Capture::Cidr, true),
            Verdict::Redirect,
        ),
        (|f| f.protocol = UDP, Refuse(Reason::QuicRefused)),
        (
            |f| (f.protocol, f.quic) = (UDP, false),
            Leave(Reason::QuicAllowed),
        ),
        (|f| f.device = true, Refuse(Reason::DeviceRefused)),
        (|f| (f.device, f.open) = (true, true), Leave(Reason::DeviceLeft)),
        (|f| f.late = true, Refuse(Reason::LateRefused)),
        (|f| f.listener = false, Refuse(Reason::AbsentRefused)),
        (
            |f| (f.listener, f.open) = (false, true),
            Leave(Reason::AbsentLeft),
        ),
        (
            |f| (f.family, f.routable) = (Family::V6, false),
            Refuse(Reason::V6Unroutable),
        ),
    ];
    for (change, expected) in cases {
        let mut fake = Fake::captured();
        change(&mut fake);
        assert_eq!(decide(&fake), expected, "{fake:?}");
    }
    let mut late = Fake::captured();
    (late.late, late.open) = (true, true);
    assert_eq!(decide(&late), Leave(Reason::LateLeft));
}

#[test]
fn an_unconcerned_call_is_asked_as_little_as_possible() {
    let mut fake = Fake::captured();
    fake.captured = false;
    decide(&fake);
    assert_eq!(*fake.asked.borrow(), ["port"]);
    let mut fake = Fake::captured();
    fake.bypassed = true;
    decide(&fake);
    assert_eq!(*fake.asked.borrow(), ["port", "own", "cgroup", "bypass"]);
}

#[test]
fn narrowing_asks_only_what_its_mode_needs() {
    for (capture, named, asked) in [
        (Capture::Dns, false, &["candidate", "unsure"][..]),
        (Capture::Dns, true, &["candidate", "device", "late", "listener"]),
        (Capture::Cidr, false, &["cidr"]),
        (Capture::Cidr, true, &["cidr", "device", "late", "listener"]),
        (Capture::All, false, &["device", "late", "listener"]),
    ] {
        let fake = Fake {
            capture,
            named,
            ..Fake::captured()
        };
        decide(&fake);
        assert_eq!(&fake.asked.borrow()[4..], asked, "{capture:?} {named}");
    }
}

#[test]
fn quic_is_refused_only_to_what_is_looked_at() {
    for fake in all().filter(|fake| fake.protocol == UDP && fake.left_out()) {
        assert!(matches!(decide(&fake), Verdict::Leave(_)), "{fake:?}");
    }
}

#[test]
fn labels_are_distinct_and_indices_follow_the_list() {
    for (index, reason) in Reason::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
        let same = Reason::ALL.iter().filter(|other| other.label() == reason.label());
        assert_eq!(same.count(), 1, "{reason:?}");
    }
}

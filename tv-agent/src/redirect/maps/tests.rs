//! The policy as the maps hold it.

use super::*;
use crate::redirect::AgentDown;
use crate::redirect::Capture;
use crate::redirect::Listeners;
use ipnet::IpNet;
use std::net::IpAddr;

fn policy() -> KernelPolicy {
    KernelPolicy {
        ports: vec![443],
        bypass: vec![],
        capture: Capture::All,
        block_quic: true,
        on_agent_down: AgentDown::Closed,
        agent_cgroup: None,
        listeners: Listeners {
            v4: "127.34.67.1:15443".parse().unwrap(),
            v6: Some("[::1]:15444".parse().unwrap()),
        },
        v6_routable: true,
    }
}

#[test]
fn settings_carry_the_policy() {
    let settings = settings(&policy(), 7).unwrap();
    assert_eq!(settings.listener_v4.to_ne_bytes(), [127, 34, 67, 1]);
    assert_eq!(
        abi::octets(settings.listener_v6),
        std::net::Ipv6Addr::LOCALHOST.octets()
    );
    assert_eq!((settings.port_v4, settings.port_v6), (15443, 15444));
    assert_eq!(settings.flags, abi::FLAG_BLOCK_QUIC | abi::FLAG_V6_ROUTABLE);
    assert_eq!((settings.generation, settings.agent_cgroup), (7, 0));
}

#[test]
fn each_way_to_narrow_has_its_flag() {
    for (capture, flag) in [
        (Capture::All, 0),
        (Capture::Cidr(vec![]), abi::FLAG_CAPTURE_CIDR),
        (
            Capture::Dns {
                names: vec![],
                unsure_for: Duration::from_secs(1),
            },
            abi::FLAG_CAPTURE_DNS,
        ),
    ] {
        let policy = KernelPolicy { capture, ..policy() };
        let both = abi::FLAG_CAPTURE_CIDR | abi::FLAG_CAPTURE_DNS;
        assert_eq!(settings(&policy, 1).unwrap().flags & both, flag);
    }
}

#[test]
fn without_an_ipv6_listener_ipv6_is_unroutable() {
    let mut policy = policy();
    policy.listeners.v6 = None;
    policy.on_agent_down = AgentDown::Open;
    policy.agent_cgroup = Some(9);
    let settings = settings(&policy, 1).unwrap();
    assert_eq!(settings.flags, abi::FLAG_BLOCK_QUIC | abi::FLAG_OPEN);
    assert_eq!((settings.port_v6, settings.agent_cgroup), (0, 9));
}

#[test]
fn impossible_policies_are_refused() {
    let mut own_port = policy();
    own_port.ports.push(15444);
    assert!(matches!(
        settings(&own_port, 1),
        Err(Error::ListenerCaptured(15444))
    ));
    let mut swapped = policy();
    swapped.listeners.v4 = "[::1]:1".parse().unwrap();
    assert!(matches!(settings(&swapped, 1), Err(Error::ListenerFamily(_))));
    let mut swapped = policy();
    swapped.listeners.v6 = Some("127.0.0.1:1".parse().unwrap());
    assert!(matches!(settings(&swapped, 1), Err(Error::ListenerFamily(_))));
    let net = |n: u32| IpNet::new(IpAddr::from(n.to_be_bytes()), 32).unwrap();
    let many: Vec<IpNet> = (0..=4096).map(net).collect();
    assert!(matches!(
        prefixes(&many, "bypass"),
        Err(Error::TooManyPrefixes {
            count: 4097,
            most: 4096,
            ..
        })
    ));
    assert_eq!(prefixes(&many[1..], "bypass").unwrap().len(), 4096);
}

#[test]
fn an_ipv6_prefix_never_bypasses_ipv4() {
    let nets = |list: &[&str]| {
        let nets: Vec<IpNet> = list.iter().map(|net| net.parse().unwrap()).collect();
        prefixes(&nets, "bypass").unwrap()
    };
    let mapped = to_mapped("0.0.0.0".parse().unwrap());
    assert_eq!(nets(&["::/0"]), [((0, [0; 16]), 1), ((96, mapped), 0)].into());
    // Written out, it is meant: in either order.
    for list in [["::/0", "0.0.0.0/0"], ["0.0.0.0/0", "::/0"]] {
        assert_eq!(nets(&list), [((0, [0; 16]), 1), ((96, mapped), 1)].into());
    }
    let ten = to_mapped("10.0.0.0".parse().unwrap());
    assert_eq!(nets(&["10.1.2.3/8"]), [((104, ten), 1)].into());
    let link_local = to_mapped("fe80::".parse().unwrap());
    assert_eq!(nets(&["fe80::/10"]), [((10, link_local), 1)].into());
}

#[test]
fn a_record_is_good_for_a_while_only() {
    let connected = Duration::from_secs(1000);
    assert!(!is_stale(connected, connected + limits::RECORD_AGE));
    assert!(is_stale(
        connected,
        connected + limits::RECORD_AGE + Duration::from_nanos(1)
    ));
    // The two clocks are read one after the other; a record from the future is no older for it.
    assert!(!is_stale(connected, connected - Duration::from_secs(1)));
}

//! UDP to captured ports, so that QUIC falls back to TCP.

use nix::errno::Errno;

use crate::world::{ORIGIN4, ORIGIN6, named, with_agent, with_world};

#[test]
fn a_captured_port_is_refused() {
    with_agent("udp", |world, agent| {
        let mut workload = world.workload();
        for (to, options) in [(ORIGIN4, ""), (ORIGIN4, "mapped"), (ORIGIN6, "")] {
            let refused = Err(named(Errno::ECONNREFUSED));
            assert_eq!(
                workload.udp_connect(to, options),
                refused,
                "connect {to} {options}"
            );
            assert_eq!(workload.udp_send(to, options), refused, "sendto {to} {options}");
        }
        assert_eq!(agent.count("quic_refused"), 6);
    });
}

#[test]
fn other_ports_and_bystanders_are_untouched() {
    with_agent("udp-other", |world, _| {
        let mut workload = world.workload();
        for to in ["203.0.113.7:53", "[2001:db8::7]:53"] {
            workload.udp_connect(to, "").unwrap();
            workload.udp_send(to, "").unwrap();
        }
        let mut bystander = world.bystander();
        bystander.udp_connect(ORIGIN4, "").unwrap();
        bystander.udp_send(ORIGIN6, "").unwrap();
    });
}

#[test]
fn bypassed_prefixes_and_a_policy_that_allows_quic_are_untouched() {
    with_world("udp-bypass", |world| {
        world.policy.bypass = vec!["203.0.113.7/32".parse().unwrap()];
        let mut agent = world.agent();
        let mut workload = world.workload();
        workload.udp_connect(ORIGIN4, "").unwrap();
        workload.udp_send(ORIGIN4, "").unwrap();
        assert_eq!(workload.udp_send(ORIGIN6, ""), Err(named(Errno::ECONNREFUSED)));
        world.policy.block_quic = false;
        agent.redirect.apply(&world.policy).unwrap();
        workload.udp_connect(ORIGIN6, "").unwrap();
        workload.udp_send(ORIGIN6, "").unwrap();
        assert_eq!(agent.count("quic_allowed"), 2);
    });
}

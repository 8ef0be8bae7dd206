//! Each decision is counted under its own reason, and nothing else is.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;

use tv_agent::addr::NetnsCookie;
use tv_agent::redirect::NetnsFacts as _;
use tv_ebpf::Reason;

use crate::world::{Agent, LISTEN4, ORIGIN4, ORIGIN6, OTHER4, with_world};

#[test]
fn each_decision_moves_its_own_counter() {
    with_world("counters", |world| {
        world.policy.bypass = vec!["198.51.100.9/32".parse().unwrap()];
        let mut agent = world.agent();
        let mut workload = world.workload();
        let expect = |agent: &Agent, before: &BTreeMap<_, u64>, moved: &[&str]| {
            for (name, count) in snapshot(agent) {
                let expected = before[name] + moved.iter().filter(|other| **other == name).count() as u64;
                assert_eq!(count, expected, "{name} after {moved:?}");
            }
        };

        let before = snapshot(&agent);
        assert_eq!(before.len(), Reason::ALL.len());
        // describe() asks for the peer once.
        workload.tcp(ORIGIN4, "").unwrap();
        expect(&agent, &before, &["redirected", "peer_shown"]);

        let before = snapshot(&agent);
        workload.tcp(LISTEN4, "").unwrap();
        expect(&agent, &before, &["other_port"]);

        let before = snapshot(&agent);
        workload.tcp(OTHER4, "").unwrap_err();
        expect(&agent, &before, &["bypassed"]);

        let before = snapshot(&agent);
        workload.udp_send(ORIGIN4, "").unwrap_err();
        expect(&agent, &before, &["quic_refused"]);

        let before = snapshot(&agent);
        workload.tcp(ORIGIN4, "device=lo").unwrap_err();
        expect(&agent, &before, &["device_refused"]);

        let before = snapshot(&agent);
        agent.redirect.set_v6_routable(false).unwrap();
        workload.tcp(ORIGIN6, "").unwrap_err();
        expect(&agent, &before, &["v6_unroutable"]);

        // What is said of the namespace itself counts for more.
        let before = snapshot(&agent);
        let netns = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        agent.handles.set(netns, true).unwrap();
        workload.tcp(ORIGIN6, "").unwrap();
        expect(&agent, &before, &["redirected", "peer_shown"]);
        let before = snapshot(&agent);
        agent.redirect.set_v6_routable(true).unwrap();
        agent.handles.set(netns, false).unwrap();
        workload.tcp(ORIGIN6, "").unwrap_err();
        expect(&agent, &before, &["v6_unroutable"]);
        let before = snapshot(&agent);
        agent.handles.forget(netns);
        workload.tcp(ORIGIN6, "").unwrap();
        expect(&agent, &before, &["redirected", "peer_shown"]);

        let before = snapshot(&agent);
        agent.stop_beating();
        workload.tcp(ORIGIN4, "").unwrap_err();
        expect(&agent, &before, &["late_refused"]);

        let before = snapshot(&agent);
        agent.start_beating();
        agent.doors.close();
        workload.tcp(ORIGIN4, "").unwrap_err();
        expect(&agent, &before, &["absent_refused"]);
    });
}

#[test]
fn the_table_of_namespaces_is_bounded() {
    with_world("namespaces", |world| {
        let redirect = world.load();
        let handles = redirect.handles();
        let most = tv_ebpf::abi::NETNS_ENTRIES as u64;
        for cookie in 1..=most {
            handles.set(NetnsCookie(cookie), true).unwrap();
        }
        assert!(handles.set(NetnsCookie(most + 1), true).is_err());
        handles.set(NetnsCookie(1), false).unwrap();
        handles.forget(NetnsCookie(2));
        handles.set(NetnsCookie(most + 1), true).unwrap();
        redirect.release().unwrap();
    });
}

fn snapshot(agent: &Agent) -> BTreeMap<&'static str, u64> {
    agent.handles.counters().into_iter().collect()
}

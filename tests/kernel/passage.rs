//! Connections that are none of the agent's business.

use std::net::TcpStream;
use std::os::fd::AsFd as _;

use nix::errno::Errno;
use tv_agent::dial::OwnSocket as _;
use tv_tests::cgroup::TestCgroup;

use crate::world::{LISTEN4, ORIGIN4, ORIGIN6, OTHER4, Origin, address, named, with_agent, with_world};

#[test]
fn a_process_outside_the_cgroup_is_untouched() {
    with_agent("outside", |world, agent| {
        let origin = Origin::listen(ORIGIN4);
        let seen = world.bystander().tcp(ORIGIN4, "").unwrap();
        assert_eq!(seen.peer, address(ORIGIN4));
        assert_eq!(origin.visitors(), 1);
        assert!(agent.doors.is_deserted());
        assert!(agent.handles.counters().iter().all(|(_, count)| *count == 0));
    });
}

#[test]
fn other_ports_are_untouched() {
    with_agent("ports", |world, agent| {
        let origin = Origin::listen("203.0.113.7:8443");
        world.workload().tcp("203.0.113.7:8443", "").unwrap();
        assert_eq!(origin.visitors(), 1);
        assert!(agent.doors.is_deserted());
        assert_eq!(agent.count("other_port"), 1);
    });
}

#[test]
fn bypassed_prefixes_are_untouched_and_their_neighbours_are_not() {
    with_world("bypass", |world| {
        world.policy.bypass = vec![
            "203.0.113.0/29".parse().unwrap(),
            "2001:db8::/64".parse().unwrap(),
        ];
        let agent = world.agent();
        let (origin4, origin6) = (Origin::listen(ORIGIN4), Origin::listen(ORIGIN6));
        let mut workload = world.workload();
        workload.tcp(ORIGIN4, "").unwrap();
        workload.tcp(ORIGIN4, "mapped").unwrap();
        workload.tcp(ORIGIN6, "").unwrap();
        assert_eq!((origin4.visitors(), origin6.visitors()), (2, 1));
        assert!(agent.doors.is_deserted());
        workload.tcp(OTHER4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(OTHER4));
    });
}

#[test]
fn an_ipv6_default_prefix_leaves_ipv4_captured() {
    with_world("bypass6", |world| {
        world.policy.bypass = vec!["::/0".parse().unwrap()];
        let agent = world.agent();
        let origin6 = Origin::listen(ORIGIN6);
        let mut workload = world.workload();
        workload.tcp(ORIGIN6, "").unwrap();
        assert_eq!(origin6.visitors(), 1);
        workload.tcp(ORIGIN4, "mapped").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

#[test]
fn a_reload_takes_back_what_it_no_longer_names() {
    with_world("reload", |world| {
        world.policy.bypass = vec!["203.0.113.7/32".parse().unwrap()];
        world.policy.ports = vec![443, 8443];
        let mut agent = world.agent();
        world.policy.bypass = vec!["198.51.100.9/32".parse().unwrap()];
        world.policy.ports = vec![443];
        agent.redirect.apply(&world.policy).unwrap();
        let elsewhere = Origin::listen("203.0.113.7:8443");
        let bypassed = Origin::listen(OTHER4);
        let mut workload = world.workload();
        workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        workload.tcp("203.0.113.7:8443", "").unwrap();
        workload.tcp(OTHER4, "").unwrap();
        assert_eq!((elsewhere.visitors(), bypassed.visitors()), (1, 1));
    });
}

/// The flag lets a socket through, even one of an enrolled cgroup: what a workload's socket is without it.
#[test]
fn a_flagged_socket_passes() {
    with_agent("own", |world, agent| {
        let origin = Origin::listen(ORIGIN4);
        let mut workload = world.workload();
        let (own, fd) = workload.socket().unwrap();
        let (foreign, _) = workload.socket().unwrap();
        let ours = tv_tests::sys::descriptor_of(workload.pid(), fd).unwrap();
        agent.handles.flag(ours.as_fd()).unwrap();
        let seen = workload.connect(own, ORIGIN4).unwrap();
        assert_eq!(seen.peer, address(ORIGIN4));
        assert_eq!((origin.visitors(), agent.count("own_socket")), (1, 1));
        workload.connect(foreign, ORIGIN4).unwrap();
        assert_eq!(agent.recorded().tgid, workload.pid());
        assert_eq!(origin.visitors(), 0);
    });
}

#[test]
fn only_sockets_can_be_flagged() {
    with_agent("flag", |_, agent| {
        let file = std::fs::File::open("/dev/null").unwrap();
        agent.handles.flag(file.as_fd()).unwrap_err();
    });
}

#[test]
fn the_agents_cgroup_passes() {
    with_world("belt", |world| {
        let agents = TestCgroup::new("belt-agent");
        world.policy.agent_cgroup = Some(world.cgroup.id());
        let mut agent = world.agent();
        let origin = Origin::listen(ORIGIN4);
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!((origin.visitors(), agent.count("agent_cgroup")), (1, 1));
        world.policy.agent_cgroup = Some(agents.id());
        agent.redirect.apply(&world.policy).unwrap();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

#[test]
fn a_direct_connect_to_the_listener_has_no_record() {
    with_agent("direct", |world, agent| {
        let mut workload = world.workload();
        let seen = workload.tcp(LISTEN4, "").unwrap();
        assert_eq!(agent.accept().1, None);
        assert_eq!(seen.peer, address(LISTEN4));
        // From outside the cgroup as well.
        let _outside = TcpStream::connect(LISTEN4).unwrap();
        assert_eq!(agent.accept().1, None);
    });
}

#[test]
fn a_detached_cgroup_is_untouched() {
    with_agent("detach", |world, agent| {
        let origin = Origin::listen(ORIGIN4);
        assert_eq!(agent.redirect.attached(), [world.cgroup.path()]);
        agent.redirect.attach(world.cgroup.path()).unwrap();
        assert_eq!(agent.redirect.attached().len(), 1, "twice is once");
        agent.redirect.detach(world.cgroup.path()).unwrap();
        assert!(agent.redirect.attached().is_empty());
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(origin.visitors(), 1);
    });
}

#[test]
fn ipv6_is_refused_where_it_cannot_be_routed() {
    with_agent("noroute", |world, agent| {
        let mut workload = world.workload();
        agent.redirect.set_v6_routable(false).unwrap();
        assert_eq!(workload.tcp(ORIGIN6, ""), Err(named(Errno::ENETUNREACH)));
        workload.tcp(ORIGIN4, "mapped").unwrap();
        assert!(agent.accept().1.is_some(), "v4-mapped is IPv4");
        agent.redirect.set_v6_routable(true).unwrap();
        workload.tcp(ORIGIN6, "").unwrap();
        assert!(agent.accept().1.is_some());
    });
}

//! Connections that go to the agent: with the right origin, caller and appearance.

use std::thread;

use tv_tests::sandbox;

use crate::world::{Doors, LISTEN4, ORIGIN4, ORIGIN6, OTHER4, Origin, address, addresses, with_agent};

#[test]
fn ipv4_with_origin_and_caller() {
    with_agent("v4", |world, agent| {
        let origin = Origin::listen(ORIGIN4);
        let mut workload = world.workload();
        workload.become_user(4711);
        let seen = workload.tcp(ORIGIN4, "").unwrap();
        let (stream, recorded) = agent.accept();
        let recorded = recorded.unwrap();
        assert_eq!(recorded.origin.0, address(ORIGIN4));
        assert_eq!(recorded.cgroup_id, world.cgroup.id());
        assert_eq!(recorded.tgid, workload.pid());
        assert_eq!(recorded.uid, 4711);
        assert_eq!(stream.peer_addr().unwrap(), seen.local);
        assert_eq!(seen.peer, address(ORIGIN4), "getpeername shows the origin");
        assert_eq!(origin.visitors(), 0);
    });
}

#[test]
fn ipv6() {
    with_agent("v6", |world, agent| {
        let origin = Origin::listen(ORIGIN6);
        let seen = world.workload().tcp(ORIGIN6, "").unwrap();
        let recorded = agent.recorded();
        assert_eq!(recorded.origin.0, address(ORIGIN6));
        assert_eq!(recorded.cgroup_id, world.cgroup.id());
        assert_eq!(seen.peer, address(ORIGIN6), "getpeername shows the origin");
        assert_eq!(origin.visitors(), 0);
    });
}

#[test]
fn v4_mapped_goes_to_the_ipv4_listener() {
    with_agent("mapped", |world, agent| {
        let seen = world.workload().tcp(ORIGIN4, "mapped").unwrap();
        let (stream, recorded) = agent.accept();
        assert_eq!(stream.local_addr().unwrap(), address(LISTEN4));
        assert_eq!(recorded.unwrap().origin.0, address(ORIGIN4), "given as IPv4");
        assert_eq!(seen.peer, address("[::ffff:203.0.113.7]:443"));
    });
}

#[test]
fn a_bound_source_address_is_found_too() {
    with_agent("bound", |world, agent| {
        let mut workload = world.workload();
        let seen = workload.tcp(ORIGIN4, "bind=198.51.100.9:40001").unwrap();
        assert_eq!(seen.local, address("198.51.100.9:40001"));
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

#[test]
fn a_record_is_taken_once() {
    with_agent("once", |world, agent| {
        use std::os::fd::AsFd as _;
        use tv_agent::redirect::OriginLookup as _;
        let seen = world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        let netns = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        let again = agent.handles.take(netns, tv_agent::addr::PeerAddr(seen.local));
        assert_eq!(again.unwrap(), None);
    });
}

#[test]
fn one_address_and_port_in_two_namespaces() {
    with_agent("netns", |world, agent| {
        const LOCAL: &str = "bind=127.0.0.1:40002";
        let mut here = world.workload();
        here.tcp(ORIGIN4, LOCAL).unwrap();
        let (handles, world) = (agent.handles.clone(), &*world);
        thread::scope(|scope| {
            let there = scope.spawn(|| {
                sandbox::run(&addresses(), |_| {
                    let doors = Doors::open(&handles);
                    let mut workload = world.workload();
                    workload.tcp(OTHER4, LOCAL).unwrap();
                    doors.accept(&handles).1.unwrap()
                })
            });
            assert_eq!(there.join().unwrap().origin.0, address(OTHER4));
        });
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

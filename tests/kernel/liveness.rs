//! An agent that is gone, hangs, or is impersonated.

use std::net::TcpListener;

use nix::errno::Errno;
use tv_agent::redirect::AgentDown;

use crate::world::{Doors, LISTEN4, ORIGIN4, ORIGIN6, Origin, address, named, with_agent, with_world};

#[test]
fn without_a_listener_a_closed_policy_refuses() {
    with_agent("gone", |world, agent| {
        let (origin4, origin6) = (Origin::listen(ORIGIN4), Origin::listen(ORIGIN6));
        let mut workload = world.workload();
        workload.tcp(ORIGIN4, "").unwrap();
        drop(agent.accept());
        agent.doors.close();
        for (to, options) in [(ORIGIN4, ""), (ORIGIN4, "mapped"), (ORIGIN6, "")] {
            assert_eq!(
                workload.tcp(to, options),
                Err(named(Errno::ECONNREFUSED)),
                "{to} {options}"
            );
        }
        assert_eq!((origin4.visitors(), origin6.visitors()), (0, 0));
        assert_eq!(agent.count("absent_refused"), 3);
    });
}

#[test]
fn without_a_listener_an_open_policy_leaves_alone() {
    with_world("open", |world| {
        world.policy.on_agent_down = AgentDown::Open;
        let mut agent = world.agent();
        let (origin4, origin6) = (Origin::listen(ORIGIN4), Origin::listen(ORIGIN6));
        let mut workload = world.workload();
        workload.tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some(), "redirected while it lives");
        agent.doors.close();
        let seen = workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(seen.peer, address(ORIGIN4));
        workload.tcp(ORIGIN4, "mapped").unwrap();
        workload.tcp(ORIGIN6, "").unwrap();
        assert_eq!((origin4.visitors(), origin6.visitors()), (2, 1));
        assert_eq!(agent.count("absent_left"), 3);
    });
}

#[test]
fn a_strangers_listener_on_our_port_is_not_the_agent() {
    with_agent("stranger", |world, agent| {
        agent.doors.close();
        let stranger = TcpListener::bind(LISTEN4).unwrap();
        stranger.set_nonblocking(true).unwrap();
        assert_eq!(world.workload().tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        assert!(stranger.accept().is_err(), "nobody was sent to it");
    });
}

#[test]
fn a_missed_deadline_counts_as_absence_until_the_next_heartbeat() {
    with_agent("late", |world, agent| {
        let mut workload = world.workload();
        agent.stop_beating();
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        assert_eq!(agent.count("late_refused"), 1);
        agent.start_beating();
        workload.tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        world.policy.on_agent_down = AgentDown::Open;
        agent.redirect.apply(&world.policy).unwrap();
        agent.stop_beating();
        let origin = Origin::listen(ORIGIN4);
        workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!((origin.visitors(), agent.count("late_left")), (1, 1));
    });
}

#[test]
fn before_the_first_heartbeat_nothing_passes() {
    with_world("unborn", |world| {
        let mut redirect = world.load();
        let _doors = Doors::open(&redirect.handles());
        redirect.attach(world.cgroup.path()).unwrap();
        assert_eq!(world.workload().tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
    });
}

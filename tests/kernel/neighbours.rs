//! Other tools' programs on the same hook: before ours, after ours, or there alone. And an older agent of our own.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use tv_agent::redirect::{Error, Redirect, cleanup};
use tv_tests::bpf::{self, Mode, Neighbour};

use crate::world::{Agent, Doors, LISTEN4, ORIGIN4, OTHER4, Origin, World, address, fail, named, with_world};

/// An agent with a neighbour's program attached before its own, and then the other way round.
fn beside(name: &str, neighbour: &Neighbour, test: impl Fn(&World, &Agent, bool) + Send + Sync) {
    for first in [true, false] {
        with_world(&format!("{name}-{first}"), |world| {
            let attach =
                || bpf::attach(&bpf::load(neighbour).unwrap(), world.cgroup.path(), Mode::Multi).unwrap();
            if first {
                attach();
            }
            let agent = world.agent();
            if !first {
                attach();
            }
            test(world, &agent, first);
        });
    }
}

#[test]
fn a_neighbour_that_allows_changes_nothing() {
    beside("allows", &Neighbour::Allows, |world, agent, _| {
        let origin = Origin::listen(ORIGIN4);
        let seen = world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        assert_eq!((seen.peer, origin.visitors()), (address(ORIGIN4), 0));
    });
}

#[test]
fn a_neighbour_that_refuses_is_obeyed() {
    beside("refuses", &Neighbour::Refuses, |world, agent, _| {
        let origin = Origin::listen(ORIGIN4);
        assert_eq!(world.workload().tcp(ORIGIN4, ""), Err(Errno::EPERM));
        assert!(agent.doors.is_deserted());
        assert_eq!(origin.visitors(), 0);
    });
}

/// A load balancer, say: what it chooses is what the workload connects to.
#[test]
fn the_choice_of_a_neighbour_before_us_is_the_origin() {
    let SocketAddr::V4(to) = address(OTHER4) else {
        unreachable!()
    };
    beside("rewrites", &Neighbour::Rewrites(to), |world, agent, first| {
        let (origin, other) = (Origin::listen(ORIGIN4), Origin::listen(OTHER4));
        let seen = world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(origin.visitors(), 0);
        if first {
            assert_eq!(agent.recorded().origin.0, address(OTHER4));
            assert_eq!(other.visitors(), 0);
        } else {
            // After us, it sends the connection away from the agent, and no program of ours can know. What is left is
            // not to lie about the peer; the agent looks for such connections.
            assert_eq!(other.visitors(), 1);
            assert!(agent.doors.is_deserted());
        }
        assert_eq!(seen.peer, address(OTHER4));
    });
}

/// One that rewrites our listener's address only would be a tool made against us; one that rewrites others leaves it.
#[test]
fn a_neighbour_after_us_sees_the_listener() {
    let to = "198.51.100.9:443".parse().unwrap();
    let only = Neighbour::RewritesOnly(Ipv4Addr::new(203, 0, 113, 7), to);
    beside("rewrites-one", &only, |world, agent, first| {
        world.workload().tcp(ORIGIN4, "").unwrap();
        let origin = if first { OTHER4 } else { ORIGIN4 };
        assert_eq!(agent.recorded().origin.0, address(origin));
    });
}

fn assert_refused_by_name(error: &Error, cgroup: &Path) {
    let text = error.to_string();
    assert!(matches!(error, Error::Attach { .. }), "{error:?}");
    assert!(
        text.contains("another tool") && text.contains(&cgroup.display().to_string()),
        "{text}"
    );
}

#[test]
fn a_neighbour_that_wants_to_be_alone_is_named_and_nothing_stays_attached() {
    for mode in [Mode::Exclusive, Mode::Override] {
        with_world("alone", |world| {
            bpf::attach(&bpf::load(&Neighbour::Allows).unwrap(), world.cgroup.path(), mode).unwrap();
            let mut redirect = world.load();
            let error = redirect.attach(world.cgroup.path()).unwrap_err();
            assert_refused_by_name(&error, world.cgroup.path());
            assert!(redirect.attached().is_empty());
            // None of the six hooks that the neighbour does not hold is kept either.
            let pins = fs::read_dir(world.pin_root().join("test"));
            assert_eq!(pins.map_or(0, Iterator::count), 0);
            let origin = Origin::listen(ORIGIN4);
            world.workload().tcp(ORIGIN4, "").unwrap();
            assert_eq!(origin.visitors(), 1);
        });
    }
}

/// Held exclusively above, the hook is lost for everything below; held for overriding, it is not.
#[test]
fn a_neighbour_above_may_allow_us_or_not() {
    for (mode, allowed) in [
        (Mode::Exclusive, false),
        (Mode::Override, true),
        (Mode::Multi, true),
    ] {
        with_world("above", |world| {
            bpf::attach(&bpf::load(&Neighbour::Allows).unwrap(), world.cgroup.path(), mode).unwrap();
            let inner = world.cgroup.path().join("inner");
            fs::create_dir(&inner).unwrap();
            let mut redirect = world.load();
            let attached = redirect.attach(&inner);
            if allowed {
                attached.unwrap_or_else(fail);
            } else {
                assert_refused_by_name(&attached.unwrap_err(), &inner);
            }
            drop(redirect);
            cleanup(&world.pin_root(), world.run_dir()).unwrap();
            fs::remove_dir(&inner).unwrap();
        });
    }
}

/// Nobody can take our programs away by the hook's old interface.
#[test]
fn a_neighbour_cannot_detach_or_displace_us() {
    with_world("displace", |world| {
        let agent = world.agent();
        let program = bpf::load(&Neighbour::Allows).unwrap();
        for mode in [Mode::Exclusive, Mode::Override] {
            assert!(
                bpf::attach(&program, world.cgroup.path(), mode).is_err(),
                "{mode:?}"
            );
        }
        let cgroup = File::open(world.cgroup.path()).unwrap();
        assert!(bpf::detach_any(cgroup.as_fd()).is_err());
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

/// Another instance, with pins of its own, attached to the same cgroup before: it has every connection while it lives.
/// Dead, it refuses; swept away, the new one has them. None ever reaches the origin by itself.
const OLDER: &str = "127.34.67.2:15443";

#[test]
fn an_older_agent_on_the_same_cgroup() {
    with_world("older", |world| {
        let origin = Origin::listen(ORIGIN4);
        let mut policy = world.policy.clone();
        policy.listeners.v4 = address(OLDER);
        policy.listeners.v6 = None;
        let mut older = Redirect::load(&world.pin_root(), world.run_dir(), "older").unwrap_or_else(fail);
        older.apply(&policy).unwrap_or_else(fail);
        let handles = older.handles();
        let doors = Doors::at(OLDER, &handles);
        older.heartbeat().unwrap_or_else(fail);
        older.attach(world.cgroup.path()).unwrap_or_else(fail);

        let agent = world.agent();
        let mut workload = world.workload();
        for _ in 0..3 {
            let seen = workload.tcp(ORIGIN4, "").unwrap();
            let (stream, recorded) = doors.accept(&handles);
            assert_eq!(
                recorded.expect("the older one's record").origin.0,
                address(ORIGIN4)
            );
            assert_eq!(stream.peer_addr().unwrap(), seen.local);
            assert_eq!(seen.peer, address(ORIGIN4), "getpeername shows the origin");
        }
        assert!(agent.doors.is_deserted());

        // Dead: its programs are still there.
        drop((doors, older));
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        let removed = cleanup(&world.pin_root(), world.run_dir()).unwrap();
        assert_eq!(
            removed.iter().filter(|r| r.what == "link").count(),
            7,
            "{removed:?}"
        );
        let seen = workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        assert_eq!(seen.peer, address(ORIGIN4));
        assert_ne!(seen.peer, address(LISTEN4));
        assert_eq!(origin.visitors(), 0);
    });
}

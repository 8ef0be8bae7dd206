//! What is used again is not taken for what it was: a 4-tuple, a cgroup's name.

use std::fs;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tv_agent::addr::PeerAddr;
use tv_agent::redirect::{OriginLookup as _, cgroup_id};
use tv_agent::workload::Workloads;
use tv_tests::cgroup::TestCgroup;

use crate::world::{ORIGIN4, OTHER4, address, with_agent};

#[test]
fn an_address_and_port_used_again_are_the_new_ones() {
    with_agent("tuple", |world, agent| {
        const LOCAL: &str = "bind=127.0.0.1:40003";
        let other = TestCgroup::new("tuple-other");
        agent.redirect.attach(other.path()).unwrap();
        // Reset before it is accepted: its record stays behind.
        let mut first = world.workload();
        first.tcp(ORIGIN4, &format!("{LOCAL} reset")).unwrap();
        let mut second = world.workload_in(&other);
        let seen = second.tcp(OTHER4, LOCAL).unwrap();

        // Both wait in the queue, the dead one first, and both seem to come from the same address and port.
        let (dead, peer) = agent.doors.v4().accept().unwrap();
        assert_eq!(peer, seen.local);
        assert!(dead.peer_addr().is_err(), "what the agent tells it by");
        let (stream, recorded) = agent.accept();
        let recorded = recorded.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), seen.local);
        assert_eq!(recorded.cgroup_id, other.id());
        assert_eq!(recorded.origin.0, address(OTHER4));
        assert_eq!(recorded.tgid, second.pid());
        let netns = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        assert_eq!(agent.handles.take(netns, PeerAddr(peer)).unwrap(), None);
    });
}

#[test]
fn the_time_of_connect_is_recorded() {
    with_agent("time", |world, agent| {
        let now = || Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
        let mut workload = world.workload();
        let before = now();
        workload.tcp(ORIGIN4, "").unwrap();
        let recorded = agent.recorded();
        assert!((before..=now()).contains(&recorded.connected), "{recorded:?}");
        // By it and the cgroup, the process is known to be the one that connected.
        let mount = tv_agent::redirect::cgroup2_mount().unwrap();
        let workloads = Workloads::new(mount, vec![world.cgroup.path().into()]);
        let found = workloads.identify(&recorded);
        assert_eq!(found.cgroup.unwrap().path, world.cgroup.name());
        assert_eq!(found.process.as_deref(), Some("tv-probe"));
        let earlier = tv_agent::redirect::Recorded {
            connected: Duration::from_secs(1),
            ..recorded
        };
        assert_eq!(workloads.identify(&earlier).process, None);
    });
}

#[test]
fn a_cgroup_made_again_under_its_name_is_another_one() {
    with_agent("again", |world, agent| {
        let path = world.cgroup.path().join("service");
        fs::create_dir(&path).unwrap();
        let old = cgroup_id(&path).unwrap();
        fs::remove_dir(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_ne!(cgroup_id(&path).unwrap(), old);
        let mut workload = world.workload();
        // Its answer shows that it has entered the world's cgroup, out of which it is taken here.
        workload.socket().unwrap();
        fs::write(path.join("cgroup.procs"), workload.pid().to_string()).unwrap();
        workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().cgroup_id, cgroup_id(&path).unwrap());
        drop(workload);
        while fs::remove_dir(&path).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
}

//! One agent after another on the same maps, programs and links: what the next finds, takes, checks and replaces.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use tv_agent::addr::PeerAddr;
use tv_agent::redirect::{Error, InstanceLock, OriginLookup as _, Redirect, cleanup};
use tv_ebpf::abi;
use tv_tests::sys::{self, MapLayout, fd_fact, map_entries, pin_map, pinned};

use crate::world::{ORIGIN4, Origin, World, address, fail, named, with_agent, with_world};

const TUPLE_KEY: usize = size_of::<tv_ebpf::TupleKey>();

fn directory(world: &World) -> PathBuf {
    world.pin_root().join(format!("v{}/test", abi::ABI_VERSION))
}

fn ids(directory: &Path, names: impl IntoIterator<Item = String>, fact: &str) -> Vec<u64> {
    let id = |name: String| fd_fact(pinned(&directory.join(name)).unwrap().as_fd(), fact).expect("an id");
    names.into_iter().map(id).collect()
}

fn map_ids(world: &World) -> Vec<u64> {
    let names = abi::MAPS.iter().map(|name| (*name).to_owned());
    ids(&directory(world), names, "map_id")
}

fn of_links(world: &World, fact: &str) -> Vec<u64> {
    let id = world.cgroup.id();
    let names = abi::PROGRAMS.map(|name| format!("{id}-{name}"));
    ids(&directory(world), names, fact)
}

#[test]
fn the_next_agent_has_the_same_maps_and_links_and_its_own_programs() {
    with_world("next", |world| {
        let agent = world.agent();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        let before = (map_ids(world), of_links(world, "link_id"));
        let programs = of_links(world, "prog_id");
        drop(agent);
        let agent = world.agent();
        assert_eq!((map_ids(world), of_links(world, "link_id")), before);
        let now = of_links(world, "prog_id");
        assert!(now.iter().all(|program| !programs.contains(program)), "{now:?}");
        let by_name = ids(&directory(world), abi::PROGRAMS.map(str::to_owned), "prog_id");
        assert_eq!(by_name, now, "what is pinned by name is what runs");
        assert_eq!(agent.count("redirected"), 1, "counters go on");
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        let attached = sys::bpf_links();
        let ours = attached
            .iter()
            .filter(|link| fd_fact(link.as_fd(), "cgroup_id") == Some(world.cgroup.id()));
        assert_eq!(ours.count(), abi::PROGRAMS.len(), "no link besides");
    });
}

/// Whoever comes from the port of a connection that a dead agent never accepted must not be taken for it.
#[test]
fn connections_that_died_with_an_agent_are_forgotten() {
    with_world("forgotten", |world| {
        let agent = world.agent();
        let seen = world.workload().tcp(ORIGIN4, "").unwrap();
        let netns = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        drop(agent);
        let tuples = pinned(&directory(world).join(abi::TUPLES)).unwrap();
        assert_eq!(map_entries(tuples.as_fd(), TUPLE_KEY), 1);
        let agent = world.agent();
        assert_eq!(map_entries(tuples.as_fd(), TUPLE_KEY), 0);
        assert_eq!(agent.handles.take(netns, PeerAddr(seen.local)).unwrap(), None);
    });
}

#[test]
fn a_map_of_another_layout_is_refused_by_name() {
    with_world("layout", |world| {
        let load = || Redirect::load(&world.pin_root(), world.run_dir(), "test");
        drop(world.agent());
        // BPF_MAP_TYPE_HASH, as the programs have it.
        let right = MapLayout {
            kind: 1,
            key: 8,
            value: 4,
            entries: u32::try_from(abi::NETNS_ENTRIES).unwrap(),
            flags: 0,
        };
        let wrong = [
            ("type 9", MapLayout { kind: 9, ..right }),
            ("keys of 4", MapLayout { key: 4, ..right }),
            ("values of 8", MapLayout { value: 8, ..right }),
            ("16 entries", MapLayout { entries: 16, ..right }),
            ("flags 0x1", MapLayout { flags: 1, ..right }),
        ];
        let path = directory(world).join(abi::NETNS);
        for (word, layout) in wrong {
            fs::remove_file(&path).unwrap();
            pin_map(layout, &path).unwrap();
            let error = load().unwrap_err().to_string();
            for word in [word, abi::NETNS, "tv-agent cleanup", "type 1, keys of 8"] {
                assert!(error.contains(word), "no {word:?} in: {error}");
            }
        }
        // Another map of the right layout will do; nothing has been changed, and the workload is refused meanwhile.
        assert_eq!(world.workload().tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        fs::remove_file(&path).unwrap();
        pin_map(right, &path).unwrap();
        drop(load().unwrap_or_else(fail));
        // What is no map at all.
        fs::remove_file(&path).unwrap();
        fs::rename(directory(world).join(abi::PROGRAMS[0]), &path).unwrap();
        let refused = load().unwrap_err();
        assert!(
            matches!(refused, Error::NotAMap { .. } | Error::Layout { .. }),
            "{refused}"
        );
        // And what the error says helps.
        cleanup(&world.pin_root(), world.run_dir()).unwrap_or_else(fail);
        let agent = world.agent();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
    });
}

/// ENOLINK: somebody has detached it, so it cannot be updated.
#[test]
fn a_link_that_is_attached_no_more_is_replaced() {
    with_world("enolink", |world| {
        let origin = Origin::listen(ORIGIN4);
        drop(world.agent());
        let before = of_links(world, "link_id");
        let pin = directory(world).join(format!("{}-{}", world.cgroup.id(), abi::PROGRAMS[0]));
        tv_agent::sys::detach_pinned_link(&pin).unwrap();
        let program = pinned(&directory(world).join(abi::PROGRAMS[0])).unwrap();
        let error = tv_agent::sys::update_pinned_link(&pin, program.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::ENOLINK as i32));
        let agent = world.agent();
        let after = of_links(world, "link_id");
        assert_ne!(after[0], before[0]);
        assert_eq!(after[1..], before[1..], "the others were updated in place");
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        assert_eq!(origin.visitors(), 0);
        // Something else at that place is replaced too.
        drop(agent);
        fs::remove_file(&pin).unwrap();
        fs::rename(directory(world).join(abi::PROGRAMS[0]), &pin).unwrap();
        let agent = world.agent();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
    });
}

/// Of a version with other maps: its programs refuse until ours are attached, and go then.
#[test]
fn a_dead_agent_of_another_abi_version_is_replaced_without_a_gap() {
    with_world("abi", |world| {
        let origin = Origin::listen(ORIGIN4);
        drop(world.agent());
        let other = world.pin_root().join("v0");
        fs::rename(directory(world).parent().unwrap(), &other).unwrap();
        let mut workload = world.workload();
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        let agent = world.agent();
        // Both are attached: the other one's has no listener to send anybody to.
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        agent.redirect.retire_stale().unwrap_or_else(fail);
        assert!(!other.join("test").exists());
        workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        assert_eq!(origin.visitors(), 0);
    });
}

/// The lock is one for all versions.
#[test]
fn a_live_agent_of_another_abi_version_is_refused() {
    with_agent("abi-live", |world, agent| {
        let other = world.pin_root().join("v0");
        fs::rename(directory(world).parent().unwrap(), &other).unwrap();
        let second = Redirect::load(&world.pin_root(), world.run_dir(), "test");
        let error = second.unwrap_err().to_string();
        let pid = std::process::id().to_string();
        assert!(error.contains(&pid) && error.contains("--take-over"), "{error}");
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        fs::rename(&other, directory(world).parent().unwrap()).unwrap();
    });
}

#[test]
fn beside_a_live_agent_the_maps_are_shared_until_it_retires() {
    with_agent("beside", |world, agent| {
        let adopt = || {
            let descriptor = agent.redirect.lock().unwrap().share().unwrap();
            let lock = InstanceLock::adopt(world.run_dir(), "test", descriptor).unwrap_or_else(fail);
            Redirect::take_over(&world.pin_root(), "test", lock).unwrap_or_else(fail)
        };
        let before = (map_ids(world), of_links(world, "link_id"));
        let mut workload = world.workload();
        // One that does not come to serve leaves everything as it was.
        let mut next = adopt();
        next.attach(world.cgroup.path()).unwrap_or_else(fail);
        drop(next);
        assert_eq!((map_ids(world), of_links(world, "link_id")), before);
        workload.tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        // One that does: its handles know connections that wait in the listener's queue.
        workload.tcp(ORIGIN4, "").unwrap();
        let mut next = adopt();
        next.attach(world.cgroup.path()).unwrap_or_else(fail);
        let handles = next.handles();
        agent.handles.retire(true);
        next.apply(&world.policy).unwrap_or_else(fail);
        assert!(agent.doors.accept(&handles).1.is_some());
        assert_eq!((map_ids(world), of_links(world, "link_id")), before);
        // The old one writes nothing any more.
        agent.redirect.heartbeat().unwrap_or_else(fail);
        next.handles().stop_heartbeat().unwrap_or_else(fail);
        agent.redirect.heartbeat().unwrap_or_else(fail);
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        next.heartbeat().unwrap_or_else(fail);
        workload.tcp(ORIGIN4, "").unwrap();
        assert!(agent.doors.accept(&handles).1.is_some());
        agent.redirect.leave();
    });
}

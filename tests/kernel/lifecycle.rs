//! Death, restart and cleanup of an instance: never a gap, never a leftover.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use tv_agent::redirect::{Error, Redirect, cgroup2_mount, cleanup, exec_cgroup_name};
use tv_tests::cgroup::TestCgroup;

use crate::world::{ORIGIN4, Origin, address, named, with_agent, with_world};

#[test]
fn a_dead_agents_workload_is_refused_until_cleanup() {
    with_world("dead", |world| {
        let origin = Origin::listen(ORIGIN4);
        let mut workload = world.workload();
        drop(world.agent());
        assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        assert_eq!(origin.visitors(), 0);
        let removed = cleanup(&world.pin_root(), world.run_dir()).unwrap();
        assert_eq!(
            removed.iter().filter(|r| r.what == "link").count(),
            7,
            "{removed:?}"
        );
        workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(origin.visitors(), 1);
        assert!(cleanup(&world.pin_root(), world.run_dir()).unwrap().is_empty());
        assert!(!world.pin_root().exists());
    });
}

#[test]
fn cleanup_leaves_a_live_instance_alone() {
    with_agent("live", |world, agent| {
        assert_eq!(cleanup(&world.pin_root(), world.run_dir()).unwrap(), []);
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        let second = Redirect::load(&world.pin_root(), world.run_dir(), "test");
        assert!(matches!(second, Err(Error::InstanceLive { .. })), "{second:?}");
    });
}

#[test]
fn release_leaves_nothing() {
    with_world("release", |world| {
        let agent = world.agent();
        let origin = Origin::listen(ORIGIN4);
        agent.redirect.release().unwrap();
        assert!(!world.pin_root().exists());
        assert_eq!(files_below(world.run_dir()), 0);
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert_eq!(origin.visitors(), 1);
    });
}

/// One workload connects without pause while agents die and start; the origin never sees it.
#[test]
fn a_restart_over_stale_pins_has_no_gap() {
    with_world("restart", |world| {
        const LIVES: usize = 5;
        let origin = Origin::listen(ORIGIN4);
        let (mut hammer, mut workload) = (world.workload(), world.workload());
        drop(world.agent());
        let done = AtomicBool::new(false);
        let world = &*world;
        let (redirected, refused) = thread::scope(|scope| {
            let _guard = SetOnDrop(&done);
            let hammering = scope.spawn(|| {
                let (mut redirected, mut refused) = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    match hammer.tcp(ORIGIN4, "brief") {
                        Ok(_) => redirected += 1,
                        // By the programs, with the error that the kernel lets them name; or by TCP, between
                        // their look at the listener and the SYN.
                        Err(Errno::ECONNREFUSED | Errno::EPERM) => refused += 1,
                        // The agent closed its queue while this one stood in it.
                        Err(Errno::ECONNRESET | Errno::ENOTCONN) => redirected += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (redirected, refused)
            });
            for _ in 0..LIVES {
                let agent = world.agent();
                assert_eq!(links(&world.pin_root()), 7, "the old links were updated");
                let living = AtomicBool::new(false);
                thread::scope(|scope| {
                    let _guard = SetOnDrop(&living);
                    scope.spawn(|| {
                        while !living.load(Ordering::Relaxed) {
                            agent.doors.drain();
                            thread::sleep(Duration::from_millis(1));
                        }
                    });
                    for _ in 0..20 {
                        workload.tcp(ORIGIN4, "").unwrap();
                    }
                });
            }
            done.store(true, Ordering::Relaxed);
            hammering.join().unwrap()
        });
        assert!(
            redirected > 0 && refused > 0,
            "{redirected} redirected, {refused} refused"
        );
        assert_eq!(origin.visitors(), 0);
    });
}

/// Ends the other thread also when this one fails.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a daemon of another ABI version left, an older one's at an upgrade or a newer one's at a downgrade.
#[test]
fn pins_of_another_version_refuse_until_they_are_replaced() {
    for version in ["v1", "v99"] {
        with_world("version", |world| {
            let origin = Origin::listen(ORIGIN4);
            let mut workload = world.workload();
            drop(world.agent());
            let ours = fs::read_dir(world.pin_root())
                .unwrap()
                .next()
                .unwrap()
                .unwrap()
                .path();
            let theirs = world.pin_root().join(version);
            fs::rename(&ours, &theirs).unwrap();
            assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));

            let agent = world.agent();
            assert!(ours.is_dir() && theirs.is_dir(), "maps of its own, not theirs");
            // Theirs go when ours are there: until then nothing passes.
            assert_eq!(workload.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
            let retired = agent.redirect.retire_stale().unwrap();
            assert!(
                retired.iter().all(|path| path.starts_with(&theirs)),
                "{retired:?}"
            );
            workload.tcp(ORIGIN4, "").unwrap();
            assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
            assert_eq!((links(&world.pin_root()), links(&theirs)), (7, 0));
            assert_eq!(origin.visitors(), 0);
        });
    }
}

#[test]
fn stale_pins_of_other_cgroups_go_when_asked() {
    with_world("stale", |world| {
        let other = TestCgroup::new("stale-other");
        let mut agent = world.agent();
        agent.redirect.attach(other.path()).unwrap();
        drop(agent);
        let mut agent = world.agent();
        assert_eq!(agent.redirect.retire_stale().unwrap().len(), 7);
        assert!(agent.redirect.retire_stale().unwrap().is_empty());
        agent.redirect.attach(other.path()).unwrap();
        assert_eq!(links(&world.pin_root()), 14);
    });
}

#[test]
fn a_cgroup_that_was_made_again_is_captured_again() {
    with_world("again", |world| {
        let mut agent = world.agent();
        let path = world.cgroup.path().join("inner");
        for _ in 0..2 {
            fs::create_dir(&path).unwrap();
            agent.redirect.attach(&path).unwrap();
            assert_eq!(links(&world.pin_root()), 14);
            fs::remove_dir(&path).unwrap();
        }
        assert_eq!(agent.redirect.attached().len(), 2);
        agent.redirect.detach(&path).unwrap();
        assert_eq!(links(&world.pin_root()), 7);
    });
}

#[test]
fn cleanup_removes_a_dead_exec_instances_empty_cgroups() {
    with_world("exec", |world| {
        let instance = format!("exec-{}", std::process::id());
        let load = || Redirect::load(&world.pin_root(), world.run_dir(), &instance).unwrap();
        let directory = cgroup2_mount().unwrap().join(exec_cgroup_name(&instance));
        let guard = RemoveDirectories([directory.join("inner"), directory.clone()]);
        let alive = load();
        fs::create_dir_all(&guard.0[0]).unwrap();
        cleanup(&world.pin_root(), world.run_dir()).unwrap();
        assert!(guard.0[0].exists(), "its owner is alive");
        drop(alive);
        let removed = cleanup(&world.pin_root(), world.run_dir()).unwrap();
        assert_eq!(
            removed.iter().filter(|r| r.what == "cgroup").count(),
            2,
            "{removed:?}"
        );
        assert!(!directory.exists());
    });
}

struct RemoveDirectories([PathBuf; 2]);

impl Drop for RemoveDirectories {
    fn drop(&mut self) {
        for directory in &self.0 {
            // Gone already, unless the test failed.
            let _ = fs::remove_dir(directory);
        }
    }
}

#[test]
fn attaching_needs_a_policy_and_a_cgroup() {
    with_world("needs", |world| {
        let mut bare = Redirect::load(&world.pin_root(), world.run_dir(), "bare").unwrap();
        assert!(matches!(bare.attach(world.cgroup.path()), Err(Error::NoPolicy)));
        bare.apply(&world.policy).unwrap();
        assert!(matches!(
            bare.attach(Path::new("/tmp")),
            Err(Error::NotCgroup2(_))
        ));
        assert!(matches!(
            bare.attach(Path::new("/nonexistent")),
            Err(Error::Path { .. })
        ));
        assert!(bare.attached().is_empty());
        assert_eq!(links(&world.pin_root()), 0);
        // And when nothing was ever attached, nothing stays.
        drop(bare);
        assert_eq!(files_below(&world.pin_root()), 0);
    });
}

#[test]
fn two_instances_side_by_side() {
    with_agent("pair", |world, agent| {
        let other = TestCgroup::new("pair-other");
        let mut second = Redirect::load(&world.pin_root(), world.run_dir(), "second").unwrap();
        let mut policy = world.policy.clone();
        policy.listeners.v4 = address("127.34.67.2:15443");
        policy.listeners.v6 = None;
        second.apply(&policy).unwrap();
        second.attach(other.path()).unwrap();
        // No listener of the second one's: refused there, and only there.
        let mut theirs = tv_tests::probe::Probe::start(env!("CARGO_BIN_EXE_tv-probe"), Some(&other));
        assert_eq!(theirs.tcp(ORIGIN4, ""), Err(named(Errno::ECONNREFUSED)));
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        second.release().unwrap();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some(), "the first one stays");
    });
}

/// Pinned links: their names begin with a cgroup's id.
pub fn links(directory: &Path) -> usize {
    let is_link = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(|c: char| c.is_ascii_digit())
    };
    below(directory).iter().filter(|path| is_link(path)).count()
}

fn files_below(directory: &Path) -> usize {
    below(directory).len()
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() { below(&path) } else { vec![path] }
        })
        .collect()
}

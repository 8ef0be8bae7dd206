//! What can go wrong while programs are loaded, attached and fed. docs/faults.md tells each outcome.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{Backlog, listen};
use tv_agent::addr::PeerAddr;
use tv_agent::redirect::{Error, OriginLookup as _, Redirect, object};
use tv_ebpf::abi::{PROGRAMS, TUPLE_ENTRIES};
use tv_tests::sandbox::BPFFS;

use crate::world::{ORIGIN4, fail, with_agent, with_world};

/// `exit`, and `r0 = 1` in its place.
const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
const ONE: [u8; 8] = [0xb7, 0, 0, 0, 1, 0, 0, 0];

#[test]
fn what_the_verifier_refuses_is_named_with_its_reason() {
    with_world("verifier", |world| {
        let mut tampered = object().expect("an object").to_vec();
        for instruction in tampered.chunks_exact_mut(8).filter(|bytes| *bytes == EXIT) {
            instruction.copy_from_slice(&ONE);
        }
        let refused =
            Redirect::load_object(&tampered, &world.pin_root(), world.run_dir(), "test").unwrap_err();
        let Error::Verifier { program, log, .. } = &refused else {
            fail(refused)
        };
        assert!(PROGRAMS.contains(program), "{program}");
        assert!(!log.is_empty(), "the verifier gives no reason");
        let said = refused.to_string();
        assert!(said.contains(program) && said.contains("report this"), "{said}");
        assert!(!world.pin_root().exists(), "nothing is left");
        // The name is free again, and the object that was built is taken.
        world.agent().redirect.release().unwrap_or_else(fail);
    });
}

#[test]
fn what_is_no_object_is_refused() {
    with_world("garbage", |world| {
        let refused = Redirect::load_object(&[0; 64], &world.pin_root(), world.run_dir(), "test");
        assert!(matches!(refused, Err(Error::Object(_))), "{refused:?}");
    });
}

#[test]
fn a_bpffs_that_is_not_there_is_mounted() {
    with_world("unmounted", |world| {
        umount2(BPFFS, MntFlags::MNT_DETACH).unwrap();
        let agent = world.agent();
        world.workload().tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some());
        agent.redirect.release().unwrap_or_else(fail);
    });
}

#[test]
fn a_bpffs_that_cannot_be_written_is_named() {
    with_world("readonly", |world| {
        let remount = |flags| mount(None::<&str>, BPFFS, None::<&str>, flags, None::<&str>).unwrap();
        remount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY);
        let refused = Redirect::load(&world.pin_root(), world.run_dir(), "test").unwrap_err();
        let said = refused.to_string();
        assert!(matches!(refused, Error::ReadOnly(_)), "{said}");
        assert!(said.contains(BPFFS) && said.contains("remount"), "{said}");
        remount(MsFlags::MS_REMOUNT);
        world.agent().redirect.release().unwrap_or_else(fail);
    });
}

#[test]
fn a_cgroup_that_goes_while_programs_are_attached_leaves_nothing() {
    with_world("races", |world| {
        let mut redirect = world.load();
        redirect.heartbeat().unwrap_or_else(fail);
        let child = world.cgroup.path().join("child");
        let stop = AtomicBool::new(false);
        let (mut attached, mut refused) = (0, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // Either is there already, or not yet.
                    let _ = fs::create_dir(&child);
                    thread::sleep(Duration::from_millis(2));
                    let _ = fs::remove_dir(&child);
                }
                let _ = fs::remove_dir(&child);
            });
            for _ in 0..100 {
                match redirect.attach(&child) {
                    Ok(_) => attached += 1,
                    Err(Error::Path { .. } | Error::Attach { .. } | Error::NotCgroup2(_)) => refused += 1,
                    Err(other) => fail(other),
                }
                thread::sleep(Duration::from_millis(1));
            }
            stop.store(true, Ordering::Relaxed);
        });
        eprintln!("{attached} times attached, {refused} times refused");
        assert!(attached + refused == 100);
        let pins = pins_below(&world.pin_root());
        let links = pins
            .iter()
            .filter(|pin| pin.starts_with(|c: char| c.is_ascii_digit()));
        let most = PROGRAMS.len() * redirect.attached().len();
        assert_eq!(links.count(), most, "{pins:?}");
        assert!(pins.iter().all(|pin| !pin.ends_with("-new")), "{pins:?}");
        redirect.release().unwrap_or_else(fail);
        assert!(!world.pin_root().exists());
    });
}

/// Nobody takes the records of 75,000 connections: the oldest give way, nobody is refused, and who comes then is
/// found.
#[test]
fn a_full_table_of_records_forgets_the_oldest() {
    const EACH: u16 = 25_000;
    const FROM: [&str; 3] = ["127.0.1.1:2000", "127.0.1.2:2000", "127.0.1.3:2000"];
    if std::env::var_os("TV_EMULATED").is_some() {
        eprintln!("skipped: 75,000 connects take minutes on an emulated machine");
        return;
    }
    with_agent("full", |world, agent| {
        let mut workload = world.workload();
        // A longer queue than the standard library's: one that is full costs the next caller a second.
        listen(agent.doors.v4(), Backlog::new(4096).unwrap()).unwrap();
        for from in FROM {
            let flooded = AtomicBool::new(false);
            let (connected, failed) = thread::scope(|scope| {
                let flood = scope.spawn(|| {
                    let done = workload.flood(ORIGIN4, EACH, Some(from.parse().unwrap()));
                    flooded.store(true, Ordering::Relaxed);
                    done
                });
                while !flooded.load(Ordering::Relaxed) {
                    agent.doors.drain();
                    thread::yield_now();
                }
                flood.join().unwrap()
            });
            assert_eq!((connected, failed), (u32::from(EACH), 0), "in ten seconds");
        }
        agent.doors.drain();
        assert_eq!(agent.count("handover_failed"), 0);
        workload.tcp(ORIGIN4, "").unwrap();
        assert!(agent.accept().1.is_some(), "the newest is there");
        let netns = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        let ports = |from: &str| {
            let first: SocketAddr = from.parse().unwrap();
            (0..EACH).map(move |number| SocketAddr::new(first.ip(), first.port() + number))
        };
        let kept = |from: &str| {
            let found = |peer| agent.handles.take(netns, PeerAddr(peer)).unwrap().is_some();
            ports(from).filter(|peer| found(*peer)).count()
        };
        let kept = FROM.map(kept);
        eprintln!("kept of {EACH} each, oldest first: {kept:?}");
        assert!(kept.iter().sum::<usize>() <= TUPLE_ENTRIES, "{kept:?}");
        assert!(kept[0] < kept[2], "{kept:?}");
    });
}

fn pins_below(directory: &Path) -> Vec<String> {
    let mut pins = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pins.extend(pins_below(&entry.path()));
        } else {
            pins.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    pins
}

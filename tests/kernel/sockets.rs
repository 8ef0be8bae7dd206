//! Sockets that are not used in the plainest way.

use std::fs;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use nix::errno::Errno;
use tv_agent::redirect::AgentDown;

use crate::world::{LISTEN4, ORIGIN4, ORIGIN6, OTHER4, Origin, address, named, with_agent};

#[test]
fn non_blocking() {
    with_agent("nonblock", |world, agent| {
        let mut workload = world.workload();
        for to in [ORIGIN4, ORIGIN6] {
            let seen = workload.tcp(to, "nonblocking").unwrap();
            assert_eq!(agent.recorded().origin.0, address(to));
            assert_eq!(seen.peer, address(to));
        }
    });
}

#[test]
fn a_second_connect_of_one_socket_has_its_own_origin() {
    with_agent("unspec", |world, agent| {
        let elsewhere = Origin::listen("203.0.113.7:8443");
        let mut workload = world.workload();
        let first = workload.tcp(ORIGIN4, "").unwrap();
        assert_eq!(agent.recorded().origin.0, address(ORIGIN4));
        let second = workload.again(first.id, OTHER4).unwrap();
        assert_eq!(agent.recorded().origin.0, address(OTHER4));
        assert_eq!(second.peer, address(OTHER4));
        // Not captured this time: no record is left to lie about the peer, or to be handed over.
        let third = workload.again(first.id, "203.0.113.7:8443").unwrap();
        assert_eq!(third.peer, address("203.0.113.7:8443"));
        assert_eq!(elsewhere.visitors(), 1);
        // To the listener itself: a live record must not make it look redirected.
        let fourth = workload.again(first.id, LISTEN4).unwrap();
        assert_eq!(fourth.peer, address(LISTEN4));
        assert_eq!(agent.accept().1, None);
    });
}

#[test]
fn a_socket_bound_to_a_device_cannot_be_redirected() {
    with_agent("device", |world, agent| {
        let origin = Origin::listen(ORIGIN4);
        let mut workload = world.workload();
        assert_eq!(
            workload.tcp(ORIGIN4, "device=lo"),
            Err(named(Errno::ECONNREFUSED))
        );
        assert_eq!(
            workload.tcp(ORIGIN6, "device=lo"),
            Err(named(Errno::ECONNREFUSED))
        );
        assert_eq!((origin.visitors(), agent.count("device_refused")), (0, 2));
        world.policy.on_agent_down = AgentDown::Open;
        agent.redirect.apply(&world.policy).unwrap();
        workload.tcp(ORIGIN4, "device=lo").unwrap();
        assert_eq!((origin.visitors(), agent.count("device_left")), (1, 1));
    });
}

/// Any workload with CAP_NET_RAW may set one (Linux 5.17), so it says nothing.
#[test]
fn a_mark_changes_nothing() {
    with_agent("mark", |world, agent| {
        let mut workload = world.workload();
        // The second is the mark that a service mesh gives its own sockets.
        for mark in [1, 0x539] {
            for to in [ORIGIN4, ORIGIN6] {
                workload.tcp(to, &format!("mark={mark}")).unwrap();
                assert_eq!(agent.recorded().origin.0, address(to));
            }
        }
    });
}

/// connect() runs the programs for the first subflow, a TCP socket; getpeername() for the socket around it.
#[test]
fn mptcp() {
    let path = Path::new("/proc/sys/net/mptcp/enabled");
    if !path.exists() {
        eprintln!("skipped: this kernel has no MPTCP");
        return;
    }
    with_agent("mptcp", |world, agent| {
        fs::write(path, "1").unwrap();
        let mut workload = world.workload();
        let mapped = "[::ffff:198.51.100.9]:443";
        for (to, options, next) in [
            (ORIGIN4, "mptcp", OTHER4),
            (ORIGIN4, "mptcp mapped", mapped),
            (ORIGIN6, "mptcp", ORIGIN6),
        ] {
            let origin = Origin::listen(to);
            let seen = workload.tcp(to, options).unwrap();
            let recorded = agent.recorded();
            assert_eq!(recorded.origin.0, address(to), "{options}");
            assert_eq!(recorded.cgroup_id, world.cgroup.id());
            assert_eq!(origin.visitors(), 0);
            // Connected again, it has another origin.
            let again = workload.again(seen.id, next).unwrap();
            assert_eq!(agent.recorded().origin.0, canonical(address(next)));
            if shows_mptcp_origins() {
                assert_eq!(canonical(seen.peer), address(to), "{options}");
                assert_eq!(again.peer, address(next), "{options}");
            }
        }
        // And none when it is not captured: no record is left to lie about the peer.
        let first = workload.tcp(ORIGIN4, "mptcp").unwrap();
        agent.recorded();
        let again = workload.again(first.id, LISTEN4).unwrap();
        assert_eq!((again.peer, agent.accept().1), (address(LISTEN4), None));
        // Nobody there: refused as any other.
        agent.doors.close();
        let origin = Origin::listen(ORIGIN4);
        assert_eq!(workload.tcp(ORIGIN4, "mptcp"), Err(named(Errno::ECONNREFUSED)));
        assert_eq!(origin.visitors(), 0);
    });
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn shows_mptcp_origins() -> bool {
    let findings = tv_agent::redirect::probe();
    let finding = findings.iter().find(|f| f.name == "helper skc_to_mptcp_sock");
    finding.expect("a finding").detail.starts_with("there")
}

/// The first connection fetches a cookie, the second sends data in its SYN: accepted before the client knows.
#[test]
fn fast_open() {
    with_agent("tfo", |world, agent| {
        // Client and server side, for this namespace.
        fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3").unwrap();
        tv_tests::sys::accept_fast_open(agent.doors.v4().as_fd(), 16).unwrap();
        let mut workload = world.workload();
        for how in ["sendto", "sendto", "connect", "connect"] {
            workload.tcp(ORIGIN4, &format!("fastopen={how}")).unwrap();
            let (mut stream, recorded) = agent.accept();
            assert_eq!(recorded.expect(how).origin.0, address(ORIGIN4));
            let mut early = [0; 5];
            stream.set_nonblocking(false).unwrap();
            stream.read_exact(&mut early).unwrap();
            assert_eq!(&early, b"early");
        }
        assert!(with_data_in_syn() >= 1, "no SYN carried data");
    });
}

/// `TCPFastOpenPassive` of this namespace: a line of names, then a line of numbers.
fn with_data_in_syn() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let mut pairs = names.split(' ').zip(numbers.split(' '));
    let (_, number) = pairs.find(|(name, _)| *name == "TCPFastOpenPassive").unwrap();
    number.parse().unwrap()
}

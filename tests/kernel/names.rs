//! Narrowing: `capture: dns` by the answers that workloads receive, `capture: cidr` by prefix.

use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::errno::Errno;
use tv_agent::addr::HostName;
use tv_agent::redirect::{Capture, Narrow as _, NetnsFacts as _, RoutedName};
use tv_ebpf::abi::{CANDIDATE_ENTRIES, INGRESS};
use tv_ebpf::answer::{FLOOR, MESSAGE_BYTES, STEPS};
use tv_tests::probe::Probe;
use tv_tests::sandbox::bound;

use crate::world::{Agent, ORIGIN4, ORIGIN6, OTHER4, Origin, World, address, named, with_world};

const SERVER4: &str = "198.51.100.9:53";
const SERVER6: &str = "[2001:db8::7]:53";
/// Longer than any test.
const UNSURE: Duration = Duration::from_secs(3600);

/// A name server on a thread of the test's namespace; what it answers is the test's business.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(at: &str, answer: impl Fn(&Message) -> Vec<u8> + Send + 'static) -> Self {
        let socket = bound(|| UdpSocket::bind(at)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut query = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut query) {
                    let query = Message::from_vec(&query[..length]).unwrap();
                    socket.send_to(&answer(&query), peer).unwrap();
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// Answers each question with these records.
    fn with(at: &str, records: Vec<Record>) -> Self {
        Self::start(at, move |query| reply(query, &records).to_vec().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there shows as an answer that does not come.
            let _ = thread.join();
        }
    }
}

fn reply(query: &Message, records: &[Record]) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.add_query(query.queries[0].clone());
    reply.add_answers(records.iter().cloned());
    reply
}

fn host(name: &str) -> Name {
    Name::from_ascii(name).unwrap()
}

fn record(name: &str, ttl: u32, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(host(name), ttl, data)
}

fn alias(name: &str, target: &str) -> Record {
    Record::from_rdata(host(name), 60, RData::CNAME(CNAME(host(target))))
}

fn ip(of: &str) -> IpAddr {
    address(of).ip()
}

fn query(name: &str) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(host(name), RecordType::A));
    message.to_vec().unwrap()
}

fn routed(name: &str, below: bool) -> RoutedName {
    RoutedName {
        name: HostName::parse(name).unwrap(),
        below,
    }
}

fn by_name(unsure_for: Duration) -> Capture {
    Capture::Dns {
        names: vec![routed("api.example.com", false), routed("example.org", true)],
        unsure_for,
    }
}

/// An agent that narrows by name, and a workload that began after it.
fn with_names(name: &str, test: impl FnOnce(&mut World, &mut Agent, &mut Probe) + Send) {
    with_world(name, |world| {
        world.policy.capture = by_name(UNSURE);
        let mut agent = world.agent();
        let mut workload = world.workload();
        test(world, &mut agent, &mut workload);
    });
}

/// Connects to a server that notices visitors: true when the agent had them instead.
fn captured(agent: &Agent, workload: &mut Probe, to: &str) -> bool {
    let origin = Origin::listen(to);
    workload.tcp(to, "brief").unwrap();
    match origin.visitors() {
        0 => {
            assert_eq!(agent.recorded().origin.0, address(to));
            true
        }
        _ => false,
    }
}

#[test]
fn an_answer_counts_before_the_workload_has_it() {
    with_names("dns", |_, agent, workload| {
        for (server, to, options) in [
            (SERVER4, "127.9.0.1:443", ""),
            (SERVER4, "127.9.0.2:443", "unconnected"),
            (SERVER4, "127.9.0.3:443", "mapped"),
            (SERVER4, "127.9.0.4:443", "mapped unconnected"),
            (SERVER6, "127.9.0.5:443", ""),
            (SERVER6, ORIGIN6, "unconnected"),
        ] {
            assert!(!captured(agent, workload, to), "{to} before");
            let (learnt, left) = (agent.count("dns_learnt"), agent.count("not_candidate"));
            let _server = Server::with(server, vec![record("api.example.com", 30, ip(to))]);
            let options = format!("{options} tcp={to}");
            workload
                .ask_name_server(server, &query("api.example.com"), &options)
                .unwrap();
            assert_eq!(agent.recorded().origin.0, address(to), "{server} {options}");
            assert_eq!(agent.count("dns_learnt"), learnt + 1);
            assert_eq!(agent.count("not_candidate"), left);
        }
    });
}

#[test]
fn names_are_found_in_any_case_below_wildcards_and_behind_aliases() {
    with_names("dns-names", |_, agent, workload| {
        for (to, asked, aliases) in [
            ("127.9.0.1:443", "API.Example.COM", &[][..]),
            ("127.9.0.2:443", "a.example.org", &[]),
            ("127.9.0.3:443", "A.b.c.Example.org", &[]),
            (
                "127.9.0.4:443",
                "api.example.com",
                &["edge.cdn.example", "e7.cdn.example"],
            ),
        ] {
            let mut records = Vec::new();
            let mut owner = asked;
            for target in aliases {
                records.push(alias(owner, target));
                owner = target;
            }
            records.push(record(owner, 1, "192.0.2.3".parse().unwrap()));
            records.push(record(owner, 1, ip(to)));
            let _server = Server::start(SERVER4, move |query| {
                let mut reply = reply(query, &records);
                reply.set_edns(Edns::new());
                reply.to_vec().unwrap()
            });
            workload.ask_name_server(SERVER4, &query(asked), "").unwrap();
            assert!(captured(agent, workload, to), "{asked}");
        }
        assert_eq!(agent.count("dns_learnt"), 4);
    });
}

#[test]
fn other_names_teach_nothing() {
    with_names("dns-other", |_, agent, workload| {
        let _server = Server::with(SERVER4, vec![record("api.example.com", 9, ip(ORIGIN4))]);
        for asked in [
            "example.org",
            "example.com",
            "x.api.example.com",
            "notexample.org",
            "example",
        ] {
            workload.ask_name_server(SERVER4, &query(asked), "").unwrap();
            assert!(!captured(agent, workload, ORIGIN4), "{asked}");
        }
        assert!(agent.handles.candidates().is_empty());
    });
}

#[test]
fn quic_is_refused_to_candidates_only() {
    with_names("dns-quic", |_, agent, workload| {
        workload.udp_connect(ORIGIN4, "").unwrap();
        workload.udp_send(ORIGIN4, "").unwrap();
        agent.handles.keep(ip(ORIGIN4), UNSURE);
        let refused = Err(named(Errno::ECONNREFUSED));
        assert_eq!(workload.udp_connect(ORIGIN4, ""), refused);
        assert_eq!(workload.udp_send(ORIGIN4, ""), refused);
    });
}

/// What the namespace was told cannot be read, or not to its end: everything is looked at there, and only there.
#[test]
fn what_cannot_be_read_makes_its_namespace_unsure() {
    type Spoil = fn(&Message) -> Vec<u8>;
    fn records(count: usize) -> Vec<Record> {
        let numbered = |n: usize| IpAddr::from((0x0a00_0000 + n as u32).to_be_bytes());
        (0..count)
            .map(|n| record("api.example.com", 1, numbered(n)))
            .collect()
    }
    let cases: [(&str, Spoil); 7] = [
        ("dns_truncated", |query| {
            reply(query, &[]).truncate().to_vec().unwrap()
        }),
        ("dns_unreadable", |query| {
            let whole = reply(query, &records(2)).to_vec().unwrap();
            whole[..whole.len() - 3].to_vec()
        }),
        ("dns_unreadable", |query| {
            let mut twice = reply(query, &records(1));
            twice.add_query(query.queries[0].clone());
            twice.to_vec().unwrap()
        }),
        // The question's name as a pointer to itself.
        ("dns_unreadable", |_| {
            [
                &[0, 7, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0][..],
                &[0xc0, 12, 0, 1, 0, 1],
            ]
            .concat()
        }),
        ("dns_unreadable", |_| vec![0, 7, 0x80]),
        ("dns_too_large", |query| {
            reply(query, &records(MESSAGE_BYTES / 16 + 1)).to_vec().unwrap()
        }),
        ("dns_too_large", |query| {
            // An owner name of one label more in each record: steps run out before bytes do.
            let mut bytes = reply(query, &[]).to_vec().unwrap();
            let record = [1, b'x', 1, b'y', 0, 0, 16, 0, 1, 0, 0, 0, 1, 0, 0];
            let count = STEPS / 3 + 1;
            bytes[6..8].copy_from_slice(&u16::try_from(count).unwrap().to_be_bytes());
            bytes.extend(record.repeat(count));
            bytes
        }),
    ];
    with_names("dns-spoilt", |_, agent, workload| {
        assert!(!captured(agent, workload, ORIGIN4));
        for (reason, spoil) in cases {
            let _server = Server::start(SERVER4, spoil);
            let before = agent.count(reason);
            let asked = query("api.example.com");
            workload.ask_name_server(SERVER4, &asked, "").unwrap();
            assert_eq!(agent.count(reason), before + 1, "{reason}");
            assert!(captured(agent, workload, ORIGIN4), "{reason}");
        }
        let narrowing = agent.handles.narrowing().unwrap();
        assert_eq!(narrowing.unsure_namespaces, 1);
        assert_eq!(narrowing.all_unsure_s, 0);
    });
}

/// Of names that no route has, nothing has to be known.
#[test]
fn a_truncated_answer_about_another_name_changes_nothing() {
    with_names("dns-cut-other", |_, agent, workload| {
        let _server = Server::start(SERVER4, |query| reply(query, &[]).truncate().to_vec().unwrap());
        workload
            .ask_name_server(SERVER4, &query("other.example"), "")
            .unwrap();
        assert!(!captured(agent, workload, ORIGIN4));
    });
}

#[test]
fn names_looked_up_out_of_sight_make_unsure() {
    with_names("dns-stream", |_, agent, workload| {
        assert!(!captured(agent, workload, ORIGIN4));
        for (port, options) in [(53, ""), (853, ""), (53, "mapped"), (53, "fastopen=connect")] {
            let server = format!("198.51.100.9:{port}");
            let _listener = bound(|| TcpListener::bind(&server)).unwrap();
            let before = agent.count("dns_unseen");
            workload.tcp(&server, options).unwrap();
            assert!(agent.count("dns_unseen") > before, "{server} {options}");
            assert!(captured(agent, workload, ORIGIN4), "{server} {options}");
        }
        let before = agent.count("dns_unseen");
        workload.udp_connect("198.51.100.9:853", "").unwrap();
        assert_eq!(agent.count("dns_unseen"), before + 1);
    });
}

#[test]
fn a_stream_of_answers_keeps_its_namespace_unsure() {
    with_world("dns-long-stream", |world| {
        world.policy.capture = by_name(Duration::from_millis(300));
        let agent = world.agent();
        let mut workload = world.workload();
        let listener = bound(|| TcpListener::bind("198.51.100.9:53")).unwrap();
        workload.tcp("198.51.100.9:53", "").unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        while agent.handles.narrowing().unwrap().unsure_namespaces > 0 {
            assert!(Instant::now() < until, "unsure for ever");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(!captured(&agent, &mut workload, ORIGIN4));
        std::io::Write::write_all(&mut stream, b"answer").unwrap();
        let until = Instant::now() + Duration::from_secs(2);
        while agent.handles.narrowing().unwrap().unsure_namespaces == 0 {
            assert!(Instant::now() < until, "not seen");
            thread::yield_now();
        }
    });
}

#[test]
fn other_namespaces_stay_sure() {
    with_names("dns-elsewhere", |world, agent, workload| {
        // The workload's own namespace is unsure; what is said of another one leaves it alone, and the other way round.
        let here = tv_agent::sys::netns_cookie(agent.doors.v4().as_fd()).unwrap();
        agent.handles.unsure(tv_agent::addr::NetnsCookie(here.0 + 1));
        assert!(!captured(agent, workload, ORIGIN4));
        agent.handles.unsure(here);
        assert!(captured(agent, workload, ORIGIN4));
        let origin = Origin::listen(ORIGIN4);
        world.bystander().tcp(ORIGIN4, "").unwrap();
        assert_eq!(origin.visitors(), 1);
    });
}

#[test]
fn a_full_table_makes_unsure() {
    with_names("dns-full", |_, agent, workload| {
        for n in 0..CANDIDATE_ENTRIES {
            agent
                .handles
                .keep(IpAddr::from((0x0a00_0000 + n as u32).to_be_bytes()), UNSURE);
        }
        assert!(!captured(agent, workload, ORIGIN4));
        let _server = Server::with(SERVER4, vec![record("api.example.com", 1, ip(ORIGIN4))]);
        workload
            .ask_name_server(SERVER4, &query("api.example.com"), "")
            .unwrap();
        assert_eq!(agent.count("dns_no_room"), 1);
        assert!(captured(agent, workload, OTHER4));
        assert_eq!(agent.handles.narrowing().unwrap().all_unsure_s, 0);
        // What the agent itself finds no room for makes all unsure.
        agent.handles.keep(ip(ORIGIN6), UNSURE);
        assert_ne!(agent.handles.narrowing().unwrap().all_unsure_s, 0);
    });
}

#[test]
fn addresses_are_kept_for_their_time_and_while_used() {
    with_names("dns-kept", |_, agent, workload| {
        let (short, long) = (FLOOR / 60, FLOOR * 3);
        let _server = Server::with(
            SERVER4,
            vec![
                record("api.example.com", short, ip(ORIGIN4)),
                record("api.example.com", long, ip(OTHER4)),
                record("api.example.com", u32::MAX, ip(ORIGIN6)),
            ],
        );
        workload
            .ask_name_server(SERVER4, &query("api.example.com"), "")
            .unwrap();
        let left = |of: &str| {
            let known = agent.handles.candidates();
            let found = known.iter().find(|(address, _)| *address == ip(of));
            found.map(|(_, left)| left.as_secs())
        };
        let slack = 120;
        let around = |seconds: u32| u64::from(seconds) - slack..u64::from(seconds) + slack;
        assert!(around(FLOOR).contains(&left(ORIGIN4).unwrap()));
        assert!(around(long).contains(&left(OTHER4).unwrap()));
        assert!(around(7 * 24 * 3600).contains(&left(ORIGIN6).unwrap()));

        // Its time is over, but somebody is connected, or has just been.
        let stale: IpAddr = "192.0.2.8".parse().unwrap();
        for used in ["192.0.2.8", "192.0.2.9"] {
            agent.handles.keep(used.parse().unwrap(), Duration::ZERO);
        }
        workload.udp_send("192.0.2.9:443", "").unwrap_err();
        agent.handles.sweep(&[stale].into());
        assert!(around(FLOOR).contains(&left("192.0.2.8:443").unwrap()));
        assert!(around(FLOOR).contains(&left("192.0.2.9:443").unwrap()));
        agent.handles.keep("192.0.2.10".parse().unwrap(), Duration::ZERO);
        agent.handles.sweep(&[].into());
        assert_eq!(left("192.0.2.10:443"), None);
        assert!(left(ORIGIN4).is_some());
    });
}

#[test]
fn an_agent_later_than_its_workload_is_unsure_for_a_while() {
    with_world("dns-late", |world| {
        let mut workload = world.workload();
        world.policy.capture = by_name(Duration::from_secs(1));
        let agent = world.agent();
        assert!(captured(&agent, &mut workload, ORIGIN4));
        let until = Instant::now() + Duration::from_secs(5);
        while captured(&agent, &mut workload, ORIGIN4) {
            assert!(Instant::now() < until, "unsure for ever");
            thread::sleep(Duration::from_millis(50));
        }
    });
}

#[test]
fn the_policy_can_change_while_programs_are_attached() {
    with_world("dns-reload", |world| {
        let mut agent = world.agent();
        let mut workload = world.workload();
        let pin = world.pin_root().join(format!(
            "v{}/test/{}-{INGRESS}",
            tv_ebpf::ABI_VERSION,
            tv_agent::redirect::cgroup_id(world.cgroup.path()).unwrap()
        ));
        assert!(!pin.exists());
        assert!(captured(&agent, &mut workload, ORIGIN4));

        // Nobody watched so far.
        world.policy.capture = by_name(Duration::from_millis(1));
        agent.redirect.apply(&world.policy).unwrap();
        assert!(pin.exists());
        thread::sleep(Duration::from_millis(5));
        assert!(!captured(&agent, &mut workload, ORIGIN4));

        let mut names = vec![routed("api.example.com", false)];
        let unsure_for = UNSURE;
        world.policy.capture = Capture::Dns {
            names: names.clone(),
            unsure_for,
        };
        agent.redirect.apply(&world.policy).unwrap();
        assert!(
            !captured(&agent, &mut workload, ORIGIN4),
            "fewer names are no doubt"
        );
        names.push(routed("example.org", true));
        world.policy.capture = Capture::Dns { names, unsure_for };
        agent.redirect.apply(&world.policy).unwrap();
        assert!(captured(&agent, &mut workload, ORIGIN4), "a new name is one");

        world.policy.capture = Capture::All;
        agent.redirect.apply(&world.policy).unwrap();
        assert!(!pin.exists());
        assert_eq!(agent.handles.narrowing(), None);
        assert!(captured(&agent, &mut workload, ORIGIN4));
        agent.redirect.release().unwrap();
        assert!(!world.pin_root().exists());
    });
}

/// Whoever can send datagrams from port 53 can make an address a candidate, and no more.
#[test]
fn a_forged_answer_makes_a_candidate_at_most() {
    with_names("dns-forged", |_, agent, workload| {
        let _server = Server::with(SERVER4, vec![record("api.example.com", 9, ip(OTHER4))]);
        let forged = query("api.example.com");
        workload.ask_name_server(SERVER4, &forged, "").unwrap();
        assert!(captured(agent, workload, OTHER4));
        assert!(!captured(agent, workload, ORIGIN4));
        assert_eq!(agent.handles.candidates().len(), 1);
    });
}

#[test]
fn prefixes_narrow_too() {
    with_world("cidr", |world| {
        world.policy.capture =
            Capture::Cidr(vec!["203.0.113.0/24".parse().unwrap(), "::/0".parse().unwrap()]);
        world.policy.bypass = vec!["203.0.113.7/32".parse().unwrap()];
        let mut agent = world.agent();
        let mut workload = world.workload();
        assert!(!captured(&agent, &mut workload, ORIGIN4), "bypassed first");
        world.policy.bypass.clear();
        agent.redirect.apply(&world.policy).unwrap();
        assert!(captured(&agent, &mut workload, ORIGIN4));
        assert!(!captured(&agent, &mut workload, OTHER4), "::/0 holds no IPv4");
        assert_eq!(agent.count("outside_cidrs"), 1);
        assert!(captured(&agent, &mut workload, ORIGIN6));
        workload.udp_send(OTHER4, "").unwrap();
        world.policy.capture = Capture::Cidr(vec!["198.51.100.9/32".parse().unwrap()]);
        agent.redirect.apply(&world.policy).unwrap();
        assert!(captured(&agent, &mut workload, OTHER4));
        assert!(!captured(&agent, &mut workload, ORIGIN4));
        assert_eq!(agent.handles.narrowing().unwrap().capture, "cidr");
    });
}

/// linux/bpf.h.
const CGROUP_SKB: u64 = 8;
const CGROUP_SOCK_ADDR: u64 = 18;

/// Fields of each program of this type that the process holds, other tests' included (proc_pid_fdinfo(5)).
fn programs<const N: usize>(kind: u64, fields: [&str; N]) -> Vec<[u64; N]> {
    let held = std::fs::read_dir("/proc/thread-self/fdinfo").unwrap();
    // A descriptor may be one that another test has just closed.
    let texts = held.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
    let read = |text: String| {
        let field = |name: &str| {
            let mut lines = text
                .lines()
                .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            lines.next()?.trim().parse::<u64>().ok()
        };
        let values = fields.map(|name| field(name).unwrap_or(0));
        (field("prog_type")? == kind).then_some(values)
    };
    texts.filter_map(read).collect()
}

/// How much of its limit of a million instructions the verifier needed, with room for other compilers.
#[test]
fn the_verifier_has_room_to_spare() {
    with_names("dns-verified", |_, _, _| {
        let counts = programs(CGROUP_SKB, ["verified_insns", "prog_id"]);
        eprintln!("cgroup_skb programs, verified instructions and id: {counts:?}");
        assert!(counts.iter().all(|[count, _]| *count < 500_000), "{counts:?}");
    });
}

/// Prints what the programs cost; asserts only that they did what is measured.
#[test]
fn the_cost_of_an_answer_and_of_a_connect() {
    const ROUNDS: u64 = 500;
    let Ok(_measured) = tv_agent::redirect::count_usage() else {
        eprintln!("skipped: the kernel measures no programs");
        return;
    };
    with_names("dns-cost", |_, agent, workload| {
        let target = "edge.cdn.example";
        let mut records = vec![alias("api.example.com", target)];
        records.extend((1..5).map(|n| record(target, 60, IpAddr::from([192, 0, 2, n]))));
        let _server = Server::with(SERVER4, records);
        // The program of this test is the one that ran most often meanwhile.
        let cost = |kind, run: &mut dyn FnMut()| {
            let all = || programs(kind, ["prog_id", "run_cnt", "run_time_ns"]);
            let before = all();
            (0..ROUNDS).for_each(|_| {
                // An emulated machine takes longer than one is good for.
                agent.redirect.heartbeat().unwrap();
                run();
            });
            let gained = |[id, runs, time]: [u64; 3]| {
                let then = before.iter().find(|then| then[0] == id)?;
                Some((runs - then[1], time - then[2]))
            };
            let (runs, time) = all().into_iter().filter_map(gained).max().unwrap_or_default();
            assert!(runs >= ROUNDS, "{runs}");
            format!("{} ns ({runs} runs)", time / runs)
        };
        for name in [
            "api.example.com",
            "other.example",
            "a.long.name.of.no.route.example",
        ] {
            let asked = query(name);
            let ingress = cost(CGROUP_SKB, &mut || {
                workload.ask_name_server(SERVER4, &asked, "").unwrap();
            });
            eprintln!("an answer about {name}: {ingress}");
        }
        for (to, what) in [
            ("198.51.100.9:444", "other port"),
            ("198.51.100.9:443", "no candidate"),
            ("192.0.2.1:443", "candidate, captured"),
        ] {
            let connect = cost(CGROUP_SOCK_ADDR, &mut || {
                // Nobody listens where it is left alone.
                let _ = workload.tcp(to, "brief");
                agent.doors.drain();
            });
            eprintln!("connect, {what}: {connect}");
        }
        let segment = cost(CGROUP_SKB, &mut || {
            let _ = workload.tcp("192.0.2.1:443", "brief");
            agent.doors.drain();
        });
        eprintln!("a TCP segment received: {segment}");
        assert_eq!(agent.count("dns_learnt"), ROUNDS);
        assert_eq!(agent.count("not_candidate"), ROUNDS);
        assert_eq!(agent.count("redirected"), 2 * ROUNDS);
    });
}

//! Every way to a connection, by clients in four languages: what becomes of each is the table in docs/connections.md.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tv_tests::bpf::{self, Mode, Neighbour};
use tv_tests::process::{self, Running};
use tv_tests::world::{Daemon, World};

use crate::support::{lines, wait_for};

/// A client may have to start a JVM on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// Set it to have the table in the document replaced by what the test found.
const WRITE: &str = "TV_WRITE_TABLE";

const V4: &str = "192.0.2.50";
const V6: &str = "2001:db8::32";
const BYPASSED: &str = "127.0.0.9";
const PORT: u16 = 443;
const OTHER_PORT: u16 = 8443;

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Captured,
    Refused,
    LeftAlone,
    Detected,
}
use Outcome::{Captured, Detected, LeftAlone, Refused};

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Captured => "captured",
            Refused => "refused",
            LeftAlone => "left alone",
            Detected => "detected",
        }
    }
}

/// Columns of the table.
const LANGUAGES: [&str; 4] = ["C", "Python", "Java", "Node"];

/// A method, which languages have it (their initials), and what must become of it.
const METHODS: &[(&str, &str, Outcome)] = &[
    ("IPv4", "CPJ", Captured),
    ("IPv6", "CPJ", Captured),
    ("v4-mapped", "CPJN", Captured),
    ("IPv4, non-blocking", "CPJN", Captured),
    ("IPv6, non-blocking", "CPJN", Captured),
    ("happy eyeballs, both at once", "CPN", Captured),
    ("IPv4, io_uring", "C", Captured),
    ("IPv6, io_uring, async", "C", Captured),
    ("IPv4, MSG_FASTOPEN", "CP", Captured),
    ("IPv6, MSG_FASTOPEN", "C", Captured),
    ("IPv4, TCP_FASTOPEN_CONNECT", "CP", Captured),
    ("IPv4, bind to a source address", "CPJN", Captured),
    ("IPv4, bind with IP_BIND_ADDRESS_NO_PORT", "CP", Captured),
    ("MPTCP, IPv4", "CP", Captured),
    ("MPTCP, IPv6", "CP", Captured),
    ("MPTCP, v4-mapped", "CP", Captured),
    ("MPTCP, IPv6, non-blocking", "CP", Captured),
    ("MPTCP, IPv4, io_uring", "C", Captured),
    ("MPTCP, IPv4, MSG_FASTOPEN", "CP", Captured),
    ("IPv4, SO_MARK", "CP", Captured),
    ("IPv4, again after AF_UNSPEC", "CP", Captured),
    ("IPv4, SO_BINDTODEVICE", "CP", Refused),
    ("MPTCP, IPv4, SO_BINDTODEVICE", "CP", Refused),
    ("made before entering the cgroup", "CP", Detected),
    ("MPTCP, made before entering the cgroup", "C", Detected),
    ("passed by SCM_RIGHTS", "CP", Detected),
    ("connected before entering the cgroup", "CP", Detected),
    ("connected, then passed by SCM_RIGHTS", "CP", Detected),
    ("UDP, connected before entering the cgroup", "CP", Detected),
    ("IPv4, bypassed address", "CPJN", LeftAlone),
    ("IPv4, other port", "CPJN", LeftAlone),
    ("UDP, connect", "CPJN", Refused),
    ("UDP, sendto", "CPJN", Refused),
    ("UDP, sendmsg", "CP", Refused),
    ("UDP, sendmmsg", "C", Refused),
    ("UDP, io_uring sendmsg", "C", Refused),
    ("UDP IPv6, connect", "CPJN", Refused),
    ("UDP IPv6, sendmsg", "CP", Refused),
    ("UDP v4-mapped, sendmsg", "C", Refused),
    ("UDP, other port, sendto", "CPJN", LeftAlone),
    ("SCTP, raw socket", "C", LeftAlone),
];

/// Whether this kernel has the method at all; what it has not is not compared.
fn exists(method: &str) -> bool {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    let disabled = disabled.is_ok_and(|value| value.trim() != "0");
    let without_mptcp = !Path::new("/proc/sys/net/mptcp").exists();
    !(method.contains("MPTCP") && without_mptcp || method.contains("io_uring") && disabled)
}

/// The clients, compiled.
struct Clients {
    directory: PathBuf,
}

impl Clients {
    fn build(world: &World) -> Self {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/paths");
        let directory = world.dir().join("paths");
        std::fs::create_dir(&directory).unwrap();
        let source = |name: &str| sources.join(name).display().to_string();
        let to = directory.display().to_string();
        let program = format!("{to}/paths");
        run(
            "gcc",
            "gcc libc6-dev",
            &[
                "-O1",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
                &program,
                &source("paths.c"),
            ],
        );
        run(
            "javac",
            "default-jdk-headless",
            &["-d", &to, &source("Paths.java")],
        );
        run("python3", "python3", &["--version"]);
        run("node", "nodejs", &["--version"]);
        for script in ["paths.py", "paths.js"] {
            std::fs::copy(sources.join(script), directory.join(script)).unwrap();
        }
        Self { directory }
    }

    fn command(&self, language: &str, method: &str) -> Vec<String> {
        let file = |name: &str| self.directory.join(name).display().to_string();
        match language {
            "C" => vec![file("paths")],
            "Python" => vec!["python3".to_owned(), file("paths.py")],
            "Node" => vec!["node".to_owned(), file("paths.js")],
            _ => {
                let v4 = if method.contains("v4-mapped") || method.contains("IPv6") {
                    "false"
                } else {
                    "true"
                };
                let classes = self.directory.display().to_string();
                let stack = format!("-Djava.net.preferIPv4Stack={v4}");
                [
                    "java",
                    "-XX:TieredStopAtLevel=1",
                    "-XX:+UseSerialGC",
                    &stack,
                    "-cp",
                    &classes,
                    "Paths",
                ]
                .map(str::to_owned)
                .to_vec()
            }
        }
    }
}

/// A tool of the test; without it, what to type.
fn run(program: &str, packages: &str, arguments: &[&str]) {
    let finished = process::run(Command::new(program).args(arguments), LIMIT).unwrap_or_else(|error| {
        panic!("{error}; install it: apt-get install -y {packages}   (or: cargo xtask setup)")
    });
    finished.expect_success();
}

/// Tells everybody who says a line what it sees as the client, and keeps the connection.
fn host(at: SocketAddr) {
    let listener = TcpListener::bind(at).unwrap_or_else(|error| panic!("{at}: {error}"));
    thread::spawn(move || {
        for (mut stream, peer) in std::iter::from_fn(|| listener.accept().ok()) {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone()?);
                reader.read_line(&mut String::new())?;
                writeln!(stream, "{peer}")?;
                // Until the client goes.
                reader.read_line(&mut String::new())
            });
        }
    });
}

/// Hosts for datagrams.
struct Datagrams(Vec<UdpSocket>);

impl Datagrams {
    fn receive() -> Self {
        let at = [(V4, PORT), (V6, PORT), (V4, OTHER_PORT)];
        let open = |(ip, port): (&str, u16)| {
            let socket = UdpSocket::bind((ip, port)).unwrap_or_else(|error| panic!("{ip}: {error}"));
            socket.set_nonblocking(true).unwrap();
            socket
        };
        Self(at.map(open).into())
    }

    /// Whether one came since the last time.
    fn came(&self) -> bool {
        self.0
            .iter()
            .filter(|socket| socket.recv_from(&mut [0; 16]).is_ok())
            .count()
            > 0
    }
}

/// A client that has said how it went.
struct Attempt {
    method: &'static str,
    language: &'static str,
    expected: Outcome,
    said: Vec<String>,
    /// A datagram reached its host.
    came: bool,
    /// Kept: an open connection must be there to be found.
    _client: Running,
}

fn attempt(
    (world, daemon): (&World, &Daemon<'_>),
    clients: &Clients,
    datagrams: &Datagrams,
    language: &'static str,
    row: usize,
) -> Attempt {
    let (method, _, expected) = METHODS[row];
    let command = clients.command(language, method);
    // Those begin outside, and enter by themselves.
    let mut client = if expected == Detected {
        let mut outside = world.command(&command[0]);
        outside.args(&command[1..]);
        outside
    } else {
        let mut inside = daemon.command(&command[0]);
        inside.args(&command[1..]);
        inside
    };
    let v4 = if method.contains("bypassed") { BYPASSED } else { V4 };
    let port = if method.contains("other port") {
        OTHER_PORT
    } else {
        PORT
    };
    client
        .args([method, v4, V6, &port.to_string()])
        .arg(daemon.cgroup().path());
    let mut client = process::start(client.stdin(Stdio::piped())).unwrap();
    let wanted = if method.starts_with("happy") && language == "C" {
        2
    } else {
        1
    };
    let until = Instant::now() + LIMIT;
    loop {
        let text = client.said();
        let whole = text.matches('\n').count();
        if whole >= wanted {
            return Attempt {
                method,
                language,
                expected,
                said: lines(&text).into_iter().map(str::to_owned).collect(),
                // On loopback it is there when the call returns.
                came: datagrams.came(),
                _client: client,
            };
        }
        let over = client.ended().is_some() || Instant::now() >= until;
        assert!(!over, "{language}, {method}: {:?}", client.end());
        thread::sleep(Duration::from_millis(5));
    }
}

impl Attempt {
    fn at(&self) -> String {
        format!("{}, {}: {:?}", self.language, self.method, self.said)
    }

    /// The process that holds a connection which reached its host by itself.
    fn direct(&self) -> Option<u64> {
        self.said
            .iter()
            .find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
                ["open", process, local, _, seen] => {
                    (canonical(local) == canonical(seen)).then(|| process.parse().unwrap())
                }
                ["sent", process] => Some(process.parse().unwrap()),
                _ => None,
            })
    }

    fn outcome(&self, uncaptured: &[Value]) -> Outcome {
        let outcomes: Vec<Outcome> = self
            .said
            .iter()
            .map(|line| self.outcome_of(line, uncaptured))
            .collect();
        assert!(
            outcomes.iter().all(|outcome| *outcome == outcomes[0]),
            "{}",
            self.at()
        );
        outcomes[0]
    }

    fn outcome_of(&self, line: &str, uncaptured: &[Value]) -> Outcome {
        let told = |process: &str| {
            let flows = uncaptured
                .iter()
                .filter(|flow| flow["tgid"].as_u64() == process.parse().ok());
            flows.count()
        };
        match line.split(' ').collect::<Vec<_>>()[..] {
            // The JDK's send() says nothing of a refusal; what counts is that nothing came.
            ["sent"] if self.method.contains(", send") && !self.came => Refused,
            ["sent"] => LeftAlone,
            ["sent", process] => {
                assert!(self.came && told(process) == 1, "{}", self.at());
                Detected
            }
            ["error", "ECONNREFUSED" | "EPERM"] => {
                assert!(!self.came, "{}", self.at());
                Refused
            }
            ["open", process, _, peer, _] => {
                let asked = [V4, V6, BYPASSED].map(|ip| ip.parse().unwrap());
                assert!(
                    asked.contains(&canonical(peer).ip()),
                    "getpeername: {}",
                    self.at()
                );
                assert!(
                    [PORT, OTHER_PORT].contains(&canonical(peer).port()),
                    "getpeername: {}",
                    self.at()
                );
                match (self.direct(), told(process)) {
                    (None, 0) => Captured,
                    (Some(_), 0) => LeftAlone,
                    (Some(_), 1) => Detected,
                    (_, times) => panic!("told {times} times: {}", self.at()),
                }
            }
            _ => panic!("{}", self.at()),
        }
    }
}

fn canonical(text: &str) -> SocketAddr {
    let address: SocketAddr = text.parse().unwrap_or_else(|_| panic!("{text:?} is no address"));
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn uncaptured(world: &World, socket: &str) -> Vec<Value> {
    let finished = world
        .tv_agent(&["flows", "--socket", socket, "-o", "json"])
        .unwrap();
    let flows = lines(finished.expect_success()).into_iter();
    let flows = flows.map(|line| serde_json::from_str::<Value>(line).unwrap());
    flows.filter(|flow| flow["outcome"] == "uncaptured").collect()
}

#[test]
fn the_table_of_connections_is_what_happens() {
    World::run(|world| {
        let clients = Clients::build(world);
        world.deserted("paths.example");
        for (ip, port) in [(V4, PORT), (V6, PORT), (BYPASSED, PORT), (V4, OTHER_PORT)] {
            host(SocketAddr::new(ip.parse().unwrap(), port));
        }
        let config = world.config();
        let socket = config["admin"]["socket"].as_str().unwrap().to_owned();
        let mut daemon = world.daemon("paths", config).unwrap();
        let datagrams = Datagrams::receive();
        let mut attempts = Vec::new();
        for (row, (method, languages, expected)) in METHODS.iter().enumerate() {
            if !exists(method) {
                eprintln!("skipped: this kernel has no {method}");
                continue;
            }
            for language in LANGUAGES
                .into_iter()
                .filter(|language| languages.contains(&language[..1]))
            {
                let attempt = attempt((world, &daemon), &clients, &datagrams, language, row);
                assert_eq!(
                    attempt.direct().is_some(),
                    direct(*expected, &attempt),
                    "{}",
                    attempt.at()
                );
                attempts.push(attempt);
            }
        }
        let strays = || {
            attempts
                .iter()
                .filter(|one| one.expected == Detected)
                .filter_map(Attempt::direct)
        };
        let until = Instant::now() + LIMIT;
        loop {
            let told = uncaptured(world, &socket);
            let missing: Vec<u64> = strays()
                .filter(|process| told.iter().all(|flow| flow["tgid"] != *process))
                .collect();
            if missing.is_empty() {
                break;
            }
            assert!(
                Instant::now() < until,
                "not told of {missing:?}: {told:?}\n{}",
                daemon.stop().stderr
            );
            thread::sleep(Duration::from_millis(200));
        }
        // Whatever else would be told, or told twice, is told by now.
        thread::sleep(Duration::from_secs(6));
        let told = uncaptured(world, &socket);
        let mut rows: BTreeMap<usize, [&str; LANGUAGES.len()]> = BTreeMap::new();
        for attempt in &attempts {
            let outcome = attempt.outcome(&told);
            let row = METHODS
                .iter()
                .position(|(method, ..)| *method == attempt.method)
                .unwrap();
            let column = LANGUAGES
                .iter()
                .position(|language| *language == attempt.language)
                .unwrap();
            rows.entry(row).or_insert(["–"; LANGUAGES.len()])[column] = outcome.word();
            assert_eq!(outcome, attempt.expected, "{}", attempt.at());
        }
        assert_eq!(told.len(), strays().count(), "{told:?}");
        for flow in &told {
            let reason = if flow["reason"] == "foreign_socket" {
                "foreign_socket"
            } else {
                ""
            };
            assert_eq!(reason, flow["reason"], "{flow}");
            assert_eq!(flow["origin"], format!("{V4}:{PORT}"), "{flow}");
            assert_eq!(flow["cgroup"], daemon.cgroup().name(), "{flow}");
        }
        let count = told.len() as u64;
        let metric = r#"tv_agent_uncaptured_connections_total{reason="foreign_socket"}"#;
        assert_eq!(daemon.metric(metric).unwrap(), count);
        let status = world
            .tv_agent(&["status", "--socket", &socket, "-o", "json"])
            .unwrap();
        let status: Value = serde_json::from_str(status.expect_success()).unwrap();
        assert_eq!(status["uncaptured_connections"], count);
        drop(attempts);
        let log = daemon.stop().stderr;
        assert_eq!(log.matches("goes past the agent").count() as u64, count, "{log}");
        compare(&table(&rows));
    });
}

/// Connected in its cgroup while nothing was attached there, and kept.
#[test]
fn a_connection_from_before_the_enrolment_is_told_of_once() {
    World::run(|world| {
        world.deserted("paths.example");
        let host = TcpListener::bind((V4, PORT)).unwrap();
        let mut daemon = world.daemon("before", world.config()).unwrap();
        daemon.stop();
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        let mut client = daemon.command("python3");
        let _client = process::start(client.args(["-c", &kept_open()]).stdin(Stdio::null())).unwrap();
        let _held = host.accept().unwrap();
        daemon.restart().unwrap();
        let metric = r#"tv_agent_uncaptured_connections_total{reason="not_redirected"}"#;
        wait_for("it is told of", LIMIT, || daemon.metric(metric).unwrap() == 1);
        // Another look.
        thread::sleep(Duration::from_secs(6));
        assert_eq!(daemon.metric(metric).unwrap(), 1);
        let log = daemon.stop().stderr;
        assert_eq!(
            log.matches("open before its cgroup was enrolled").count(),
            1,
            "{log}"
        );
    });
}

/// By a program that is attached after ours: nothing of ours can know at connect().
#[test]
fn a_connection_that_another_tool_leads_away_is_told_of() {
    World::run(|world| {
        world.deserted("paths.example");
        world.deserted("elsewhere.example");
        let elsewhere: SocketAddrV4 = "192.0.2.51:443".parse().unwrap();
        let host = TcpListener::bind(elsewhere).unwrap();
        let daemon = world.daemon("away", world.config()).unwrap();
        let neighbour = bpf::load(&Neighbour::Rewrites(elsewhere)).unwrap();
        bpf::attach(&neighbour, daemon.cgroup().path(), Mode::Multi).unwrap();
        let mut client = daemon.command("python3");
        client.args(["-c", &kept_open()]);
        let _client = process::start(client.stdin(Stdio::null())).unwrap();
        let _held = host.accept().unwrap();
        let metric = r#"tv_agent_uncaptured_connections_total{reason="not_redirected"}"#;
        wait_for("it is told of", LIMIT, || daemon.metric(metric).unwrap() == 1);
    });
}

/// A Python script that connects and keeps the connection.
fn kept_open() -> String {
    format!("import socket, time; kept = socket.create_connection(({V4:?}, {PORT})); time.sleep(600)")
}

/// Whether the connection of an attempt that ends so reaches its host by itself.
fn direct(expected: Outcome, attempt: &Attempt) -> bool {
    matches!(expected, Detected | LeftAlone) && attempt.said[0] != "sent"
}

fn table(rows: &BTreeMap<usize, [&str; LANGUAGES.len()]>) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&[&["method"], &LANGUAGES[..]].concat());
    text += &line(&["---"; LANGUAGES.len() + 1]);
    for (row, cells) in rows {
        text += &line(&[&[METHODS[*row].0], &cells[..]].concat());
    }
    text
}

/// That the document shows `table` between its marks.
fn compare(table: &str) {
    const MARKS: [&str; 2] = ["<!-- made by tests/e2e/paths.rs -->\n", "<!-- end -->\n"];
    std::io::stdout().write_all(table.as_bytes()).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/connections.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the first mark");
    let (shown, after) = rest.split_once(MARKS[1]).expect("the second mark");
    if std::env::var_os(WRITE).is_some() {
        let whole = [before, MARKS[0], table, MARKS[1], after].concat();
        std::fs::write(&path, whole).unwrap();
        return;
    }
    let shown: String = shown.split_inclusive('\n').filter(|line| exists(line)).collect();
    assert_eq!(
        shown, table,
        "docs/connections.md shows something else; run this test with {WRITE}=1"
    );
}

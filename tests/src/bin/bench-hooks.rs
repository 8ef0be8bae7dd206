//! What the kernel half costs a workload, side by side with nothing and with nft REDIRECT: `cargo xtask bench hooks`.
//!
//! Two parts. The kernel's own account of each program (time and runs), and the time of connect() as the caller sees
//! it. Connections go over loopback in namespaces of our own; the caller is this program once more (`worker`), inside
//! a cgroup. Nobody accepts while connect() is measured: the kernel finishes handshakes by itself.
#![expect(clippy::print_stdout, reason = "tables are what it is for")]

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::{Domain, SockAddr, Socket, Type};
use tv_agent::addr::PeerAddr;
use tv_agent::dial::OwnSocket as _;
use tv_agent::redirect::{
    AgentDown, Capture, Handles, KernelPolicy, Listeners, OriginLookup as _, Redirect, Usage, count_usage,
};
use tv_tests::cgroup::TestCgroup;
use tv_tests::sandbox::{self, BPFFS};

const CAPTURED4: &str = "203.0.113.7:443";
const CAPTURED6: &str = "[2001:db8::7]:443";
const OTHER4: &str = "203.0.113.7:8443";
const LISTEN4: &str = "127.34.67.1:15443";
const LISTEN6: &str = "[::1]:15443";
/// Where nft's `redirect` sends what leaves by loopback.
const NFT_LISTEN: &str = "127.0.0.1:15443";
const RULES: &str = "table ip bench { chain out { type nat hook output priority -100; policy accept; \
                     tcp dport 443 redirect to :15443\n }\n }\n";

/// Connections that wait for nobody's accept(); less than net.core.somaxconn.
const BATCH: usize = 250;
/// Connects of each case and round; the round's figure is their median.
const PER_ROUND: usize = 500;
const ROUNDS: usize = 40;
/// Connects that the kernel's account is taken over.
const ACCOUNTED: usize = 5_000;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "worker") {
        worker().expect("the bench reads what we say");
        return;
    }
    if let Err(reason) = sandbox::available() {
        eprintln!("bench hooks: {reason}");
        std::process::exit(1);
    }
    let rounds = arguments
        .get(1)
        .map_or(ROUNDS, |rounds| rounds.parse().expect("a number of rounds"));
    let nft = Nft::start();
    let bench = Bench::start();
    bench.report(nft, rounds.max(1));
}

/// The agent's side, and who connects.
struct Bench {
    redirect: Redirect,
    doors: Vec<TcpListener>,
    enrolled: Caller,
    outside: Caller,
    /// After the callers, which live in them.
    cgroup: TestCgroup,
    _other_cgroup: TestCgroup,
    run_dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Self {
        let addresses = [CAPTURED4, CAPTURED6].map(|at| address(at).ip());
        sandbox::enter(&addresses);
        let (cgroup, other_cgroup) = (TestCgroup::new("bench"), TestCgroup::new("bench-outside"));
        let run_dir = tempfile::tempdir().expect("a directory");
        let pins = Path::new(BPFFS).join("tv-agent");
        let mut redirect = Redirect::load(&pins, run_dir.path(), "bench").expect("loaded");
        let policy = KernelPolicy {
            capture: Capture::All,
            ports: vec![443],
            // As the agent's own defaults, so that the look-up costs what it does there.
            bypass: ["127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10"]
                .map(|net| net.parse().expect("a prefix"))
                .to_vec(),
            block_quic: true,
            on_agent_down: AgentDown::Closed,
            agent_cgroup: None,
            listeners: Listeners {
                v4: address(LISTEN4),
                v6: Some(address(LISTEN6)),
            },
            v6_routable: true,
        };
        redirect.apply(&policy).expect("a policy");
        let handles = redirect.handles();
        let mut doors: Vec<TcpListener> = [LISTEN4, LISTEN6].map(listen).into();
        for door in &doors {
            handles.flag(door.as_fd()).expect("flagged");
        }
        doors.extend([CAPTURED4, CAPTURED6, OTHER4].map(listen));
        Self {
            enrolled: Caller::start(Some(&cgroup)),
            outside: Caller::start(Some(&other_cgroup)),
            redirect,
            doors,
            cgroup,
            _other_cgroup: other_cgroup,
            run_dir,
        }
    }

    fn attach(&mut self) {
        self.redirect.heartbeat().expect("a heartbeat");
        self.redirect.attach(self.cgroup.path()).expect("attached");
    }

    fn detach(&mut self) {
        self.redirect.detach(self.cgroup.path()).expect("detached");
        // The kernel frees the programs' list after a grace period.
        std::thread::sleep(Duration::from_millis(20));
    }

    fn report(mut self, nft: Result<Nft, String>, rounds: usize) {
        let kernel = nix::sys::utsname::uname().expect("a kernel");
        println!("Linux {}\n", kernel.release().to_string_lossy());
        self.attach();
        self.account();
        self.detach();
        let mut nft = match nft {
            Ok(nft) => Some(nft),
            Err(reason) => {
                println!("without nft: {reason}\n");
                None
            }
        };
        self.latencies(nft.as_mut(), rounds);
        self.redirect.release().expect("released");
        drop(self.run_dir);
    }

    /// What the kernel says that each program takes, for each kind of connect().
    fn account(&mut self) {
        println!("The kernel's account, per connect() and getpeername():\n");
        println!("| | program | runs | ns per run | ns per connect() |\n|---|---|---|---|---|");
        for (what, to) in [
            ("other port", OTHER4),
            ("captured, IPv4", CAPTURED4),
            ("captured, IPv6", CAPTURED6),
        ] {
            let handles = self.redirect.handles();
            self.enrolled.connect(to, BATCH, true);
            drain(&self.doors, Some(&handles));
            let counting = count_usage().expect("the kernel counts");
            let before = self.redirect.usage().expect("usage");
            for _ in 0..ACCOUNTED / BATCH {
                self.redirect.heartbeat().expect("a heartbeat");
                self.enrolled.connect(to, BATCH, true);
                drain(&self.doors, Some(&handles));
            }
            let after = self.redirect.usage().expect("usage");
            drop(counting);
            let mut in_connect = 0.0;
            for (before, after) in before.iter().zip(&after) {
                let Some(line) = account_line(what, before, after, &mut in_connect) else {
                    continue;
                };
                println!("{line}");
            }
            println!("| {what} | together, without getpeername | | | {in_connect:.0} |");
        }
        println!();
    }

    fn latencies(&mut self, mut nft: Option<&mut Nft>, rounds: usize) {
        let mut cases = Cases::default();
        for _ in 0..rounds {
            cases.add(PLAIN, None, self.measure(CAPTURED4, false));
            cases.add(PLAIN_OUTSIDE, None, self.measure(CAPTURED4, true));
            cases.add("plain, IPv6", None, self.measure(CAPTURED6, false));
            self.attach();
            cases.add(
                "outside the cgroup, attached",
                Some(PLAIN_OUTSIDE),
                self.measure(CAPTURED4, true),
            );
            cases.add("inside, other port", Some(PLAIN), self.measure(OTHER4, false));
            cases.add("captured", Some(PLAIN), self.measure(CAPTURED4, false));
            cases.add(
                "captured, IPv6",
                Some("plain, IPv6"),
                self.measure(CAPTURED6, false),
            );
            self.detach();
            if let Some(nft) = &mut nft {
                cases.add("nft REDIRECT", Some(PLAIN_OUTSIDE), nft.measure(CAPTURED4));
                cases.add(
                    "nft REDIRECT, other port",
                    Some(PLAIN_OUTSIDE),
                    nft.measure(OTHER4),
                );
            }
        }
        println!(
            "connect() over loopback, {rounds} interleaved rounds of {PER_ROUND} (µs: median of the rounds' medians; \
             ratio: median of the rounds' ratios, first to last tenth):\n"
        );
        println!("| | µs | to plain | spread |\n|---|---|---|---|");
        for line in cases.lines() {
            println!("{line}");
        }
    }

    /// The median time of one connect(), nanoseconds.
    fn measure(&mut self, to: &str, outside: bool) -> f64 {
        let handles = self.redirect.handles();
        let Self {
            enrolled,
            outside: bystander,
            doors,
            ..
        } = self;
        let caller = if outside { bystander } else { enrolled };
        measure(caller, to, || drain(doors, Some(&handles)))
    }
}

const PLAIN: &str = "plain";
const PLAIN_OUTSIDE: &str = "plain, the other process";

fn measure(caller: &mut Caller, to: &str, mut drain: impl FnMut()) -> f64 {
    let mut times = Vec::new();
    for _ in 0..PER_ROUND / BATCH {
        times.extend(caller.connect(to, BATCH, false));
        drain();
    }
    median(&mut times)
}

/// A line of the account, when the program ran at all; getpeername is no part of connect().
fn account_line(what: &str, before: &Usage, after: &Usage, in_connect: &mut f64) -> Option<String> {
    let runs = after.runs - before.runs;
    let nanoseconds = (after.time - before.time).as_nanos() as f64;
    if runs == 0 {
        return None;
    }
    let per_connect = nanoseconds / ACCOUNTED as f64;
    if !after.program.contains("getpeername") {
        *in_connect += per_connect;
    }
    Some(format!(
        "| {what} | {} | {:.1} | {:.0} | {per_connect:.0} |",
        after.program,
        runs as f64 / ACCOUNTED as f64,
        nanoseconds / runs as f64,
    ))
}

/// The same connects in another network namespace, where nft's nat sends them to a listener.
struct Nft {
    caller: Caller,
    doors: Vec<TcpListener>,
}

impl Nft {
    fn start() -> Result<Self, String> {
        sandbox::run(&[address(CAPTURED4).ip()], |_| {
            let done = Command::new("nft").arg(RULES).output();
            let done =
                done.map_err(|error| format!("nft cannot be run ({error}); apt-get install -y nftables"))?;
            if !done.status.success() {
                return Err(String::from_utf8_lossy(&done.stderr).trim().replace('\n', " "));
            }
            let mut nft = Self {
                caller: Caller::start(None),
                doors: [NFT_LISTEN, CAPTURED4, OTHER4].map(listen).into(),
            };
            nft.caller.connect(CAPTURED4, 1, false);
            match nft.doors[0].accept() {
                Ok(_) => Ok(nft),
                Err(error) => Err(format!("its rule sends nobody to {NFT_LISTEN}: {error}")),
            }
        })
    }

    fn measure(&mut self, to: &str) -> f64 {
        let Self { caller, doors } = self;
        measure(caller, to, || drain(doors, None))
    }
}

/// Each case's figure of each round, in the order of the first one.
#[derive(Default)]
struct Cases(Vec<(&'static str, Option<&'static str>, Vec<f64>)>);

impl Cases {
    fn add(&mut self, name: &'static str, baseline: Option<&'static str>, figure: f64) {
        match self.0.iter_mut().find(|(known, ..)| *known == name) {
            Some((.., figures)) => figures.push(figure),
            None => self.0.push((name, baseline, vec![figure])),
        }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|(name, baseline, figures)| {
            let time = median(&mut figures.clone()) / 1000.0;
            let baseline = self.0.iter().find(|(known, ..)| Some(*known) == *baseline);
            let Some((.., plain)) = baseline else {
                return format!("| {name} | {time:.1} | | |");
            };
            let mut ratios: Vec<f64> = figures
                .iter()
                .zip(plain)
                .map(|(one, plain)| one / plain)
                .collect();
            let middle = median(&mut ratios);
            let tenth = ratios.len() / 10;
            let (low, high) = (ratios[tenth], ratios[ratios.len() - 1 - tenth]);
            format!("| {name} | {time:.1} | {middle:.3} | {low:.3}-{high:.3} |")
        })
    }
}

/// Sorts, and gives the one in the middle.
fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// A process that connects.
struct Caller {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Caller {
    fn start(cgroup: Option<&TestCgroup>) -> Self {
        let program = std::env::current_exe().expect("our own path");
        let mut command = cgroup.map_or_else(|| Command::new(&program), |cgroup| cgroup.command(&program));
        let mut child = command
            .arg("worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a worker");
        Self {
            orders: child.stdin.take().expect("piped"),
            answers: BufReader::new(child.stdout.take().expect("piped")),
            child,
        }
    }

    /// Connects `count` times, and asks for the peer too if so told; the times of connect(), nanoseconds.
    fn connect(&mut self, to: &str, count: usize, ask_peer: bool) -> Vec<f64> {
        writeln!(self.orders, "{to} {count} {ask_peer}").expect("the worker reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the worker answers");
        let times: Vec<f64> = answer.split_whitespace().flat_map(str::parse).collect();
        assert_eq!(times.len(), count, "the worker ended");
        times
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        // It may have ended by itself; then there is only its status to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads orders until there are no more. On one processor, so that moving does not count.
fn worker() -> io::Result<()> {
    let mut one = CpuSet::new();
    one.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &one)?;
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let to = address(words[0]);
        let (count, ask_peer) = (words[1].parse().expect("a count"), words[2] == "true");
        let (domain, to) = (Domain::for_address(to), SockAddr::from(to));
        let mut times = String::new();
        for _ in 0..count {
            let socket = Socket::new(domain, Type::STREAM, None)?;
            // Closed by a reset: no TIME_WAIT uses up the ports.
            socket.set_linger(Some(Duration::ZERO))?;
            let began = Instant::now();
            socket.connect(&to)?;
            times.push_str(&began.elapsed().as_nanos().to_string());
            times.push(' ');
            if ask_peer {
                socket.peer_addr()?;
            }
        }
        writeln!(output, "{times}")?;
        output.flush()?;
    }
    Ok(())
}

/// Listens with a queue for a whole batch.
fn listen(at: &str) -> TcpListener {
    let at = address(at);
    let open = || {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(TcpListener::from(socket))
    };
    open().unwrap_or_else(|error| panic!("{at}: {error}"))
}

/// Takes and drops whoever waits, with their records.
fn drain(doors: &[TcpListener], records: Option<&Handles>) {
    for door in doors {
        let netns = tv_agent::sys::netns_cookie(door.as_fd()).expect("a cookie");
        while let Ok((_, peer)) = door.accept() {
            if let Some(records) = records {
                // Only those at the agent's doors have one.
                records.take(netns, PeerAddr(peer)).expect("a look-up");
            }
        }
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

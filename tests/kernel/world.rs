//! What every test needs: namespaces, a cgroup, an agent, workloads, and an origin that notices visitors.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, shutdown};
use tv_agent::addr::PeerAddr;
use tv_agent::dial::OwnSocket as _;
use tv_agent::redirect::{
    AgentDown, Capture, Handles, KernelPolicy, Listeners, OriginLookup as _, Recorded, Redirect,
};
use tv_tests::cgroup::TestCgroup;
use tv_tests::probe::Probe;
use tv_tests::sandbox::{self, BPFFS};

pub const ORIGIN4: &str = "203.0.113.7:443";
pub const ORIGIN6: &str = "[2001:db8::7]:443";
pub const OTHER4: &str = "198.51.100.9:443";
pub const LISTEN4: &str = "127.34.67.1:15443";
pub const LISTEN6: &str = "[::1]:15443";

const PATIENCE: Duration = Duration::from_secs(3);

/// One test's machine. The instance is called `test`; pins lie on the sandbox's own bpffs.
pub struct World {
    pub cgroup: TestCgroup,
    pub policy: KernelPolicy,
    run_dir: PathBuf,
}

/// The agent's part: listeners with the flag, and the kernel half behind them. It says that it lives, until it is told
/// otherwise.
pub struct Agent {
    pub redirect: Redirect,
    pub handles: Handles,
    pub doors: Doors,
    beat: Option<Beat>,
}

/// Beats twice a second: one heartbeat is good for five seconds, which a busy machine takes for less than a test.
struct Beat {
    // Closed when dropped, which ends the thread.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The listeners of one network namespace.
#[derive(Default)]
pub struct Doors {
    v4: Option<TcpListener>,
    v6: Option<TcpListener>,
}

/// A server at the address that the workload asks for; nobody should get there unseen.
pub struct Origin(TcpListener);

/// Runs `test` in a sandbox that has the origins' addresses; skips, or fails in CI, where that is impossible.
pub fn with_world(name: &str, test: impl FnOnce(&mut World) + Send) {
    if !available() {
        return;
    }
    sandbox::run(&addresses(), |_| {
        let mut world = World::new(name);
        test(&mut world);
    });
}

/// As [`with_world`], with an agent that captures port 443 in the cgroup and is alive.
pub fn with_agent(name: &str, test: impl FnOnce(&mut World, &mut Agent) + Send) {
    with_world(name, |world| {
        let mut agent = world.agent();
        test(world, &mut agent);
    });
}

pub fn available() -> bool {
    if tv_agent::redirect::object().is_some() {
        return sandbox::available_or_skip();
    }
    let reason = "tv-agent was built without the kernel half; run: cargo xtask build";
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
    eprintln!("skipped: {reason}");
    false
}

pub fn addresses() -> Vec<IpAddr> {
    [ORIGIN4, ORIGIN6, OTHER4]
        .map(|origin| address(origin).ip())
        .to_vec()
}

/// The error that a refusal shows: `errno`, or EPERM where preflight says that the kernel lets none be named.
pub fn named(errno: Errno) -> Errno {
    static CAN_NAME: LazyLock<bool> = LazyLock::new(|| {
        let findings = tv_agent::redirect::probe();
        let finding = findings
            .iter()
            .find(|finding| finding.name == "helper set_retval");
        finding.expect("a finding").detail.starts_with("there")
    });
    if *CAN_NAME { errno } else { Errno::EPERM }
}

pub fn address(text: &str) -> SocketAddr {
    text.parse().expect("a socket address")
}

impl World {
    fn new(name: &str) -> Self {
        let cgroup = TestCgroup::new(name);
        let run_dir = std::env::temp_dir().join(format!(
            "tv-kernel-{}",
            cgroup.path().file_name().expect("a name").to_string_lossy()
        ));
        let policy = KernelPolicy {
            ports: vec![443],
            bypass: vec![],
            capture: Capture::All,
            block_quic: true,
            on_agent_down: AgentDown::Closed,
            agent_cgroup: None,
            listeners: Listeners {
                v4: address(LISTEN4),
                v6: Some(address(LISTEN6)),
            },
            v6_routable: true,
        };
        Self {
            cgroup,
            policy,
            run_dir,
        }
    }

    pub fn pin_root(&self) -> PathBuf {
        Path::new(BPFFS).join("tv-agent")
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The programs, loaded and with the policy, attached nowhere.
    pub fn load(&self) -> Redirect {
        let mut redirect = Redirect::load(&self.pin_root(), &self.run_dir, "test").unwrap_or_else(fail);
        redirect.apply(&self.policy).unwrap_or_else(fail);
        redirect
    }

    pub fn agent(&self) -> Agent {
        let mut redirect = self.load();
        let handles = redirect.handles();
        let doors = Doors::open(&handles);
        let beat = Some(Beat::start(handles.clone()));
        redirect.attach(self.cgroup.path()).unwrap_or_else(fail);
        Agent {
            redirect,
            handles,
            doors,
            beat,
        }
    }

    /// A workload inside the cgroup.
    pub fn workload(&self) -> Probe {
        Probe::start(env!("CARGO_BIN_EXE_tv-probe"), Some(&self.cgroup))
    }

    /// A workload in a cgroup of the test's own.
    pub fn workload_in(&self, cgroup: &TestCgroup) -> Probe {
        Probe::start(env!("CARGO_BIN_EXE_tv-probe"), Some(cgroup))
    }

    /// A process that nothing is attached to.
    pub fn bystander(&self) -> Probe {
        Probe::start(env!("CARGO_BIN_EXE_tv-probe"), None)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Never made by a test that loads nothing.
        let _ = fs::remove_dir_all(&self.run_dir);
    }
}

impl Beat {
    fn start(handles: Handles) -> Self {
        handles.heartbeat().unwrap_or_else(fail);
        let (stop, stopped) = mpsc::channel();
        let beat = move || {
            while stopped.recv_timeout(Duration::from_millis(500)) == Err(RecvTimeoutError::Timeout) {
                handles.heartbeat().unwrap_or_else(fail);
            }
        };
        Self {
            stop: Some(stop),
            thread: Some(std::thread::spawn(beat)),
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.stop = None;
        // It fails when the thread has panicked, which it has said itself.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Agent {
    /// Misses its deadline, as an agent that hangs.
    pub fn stop_beating(&mut self) {
        self.beat = None;
        self.handles.stop_heartbeat().unwrap_or_else(fail);
    }

    /// Beats again.
    pub fn start_beating(&mut self) {
        self.beat = Some(Beat::start(self.handles.clone()));
    }

    /// The next redirected connection and its record.
    pub fn accept(&self) -> (TcpStream, Option<Recorded>) {
        self.doors.accept(&self.handles)
    }

    pub fn recorded(&self) -> Recorded {
        self.accept().1.expect("a recorded connection")
    }

    pub fn count(&self, reason: &str) -> u64 {
        let counters = self.handles.counters();
        let found = counters.iter().find(|(name, _)| *name == reason);
        found.unwrap_or_else(|| panic!("no counter {reason}")).1
    }
}

/// Shut down before they are closed: a child that another test is just forking holds a copy of each descriptor
/// until it executes, and would keep them listening for that moment.
impl Drop for Doors {
    fn drop(&mut self) {
        for listener in self.all() {
            // Fails only where nobody listens any more.
            let _ = shutdown(listener.as_fd().as_raw_fd(), Shutdown::Both);
        }
    }
}

impl Doors {
    /// Listens in the calling thread's network namespace.
    pub fn open(handles: &Handles) -> Self {
        Self {
            v4: Some(flagged(LISTEN4, handles)),
            v6: Some(flagged(LISTEN6, handles)),
        }
    }

    /// Listens at one IPv4 address only.
    pub fn at(v4: &str, handles: &Handles) -> Self {
        Self {
            v4: Some(flagged(v4, handles)),
            v6: None,
        }
    }

    pub fn accept(&self, handles: &Handles) -> (TcpStream, Option<Recorded>) {
        let until = Instant::now() + PATIENCE;
        loop {
            for listener in self.all() {
                let Some((stream, peer)) = try_accept(listener) else {
                    continue;
                };
                let netns = tv_agent::sys::netns_cookie(listener.as_fd()).expect("a cookie");
                return (stream, handles.take(netns, PeerAddr(peer)).expect("a lookup"));
            }
            assert!(Instant::now() < until, "nobody came to the agent");
            sleep(Duration::from_millis(1));
        }
    }

    /// Accepts whoever waits and lets them go; for a flood that would fill the queue.
    pub fn drain(&self) {
        for listener in self.all() {
            while try_accept(listener).is_some() {}
        }
    }

    pub fn is_deserted(&self) -> bool {
        self.all().all(|listener| try_accept(listener).is_none())
    }

    pub fn v4(&self) -> &TcpListener {
        self.v4.as_ref().expect("open doors")
    }

    /// Closed: what the kernel makes of a dead agent's listeners.
    pub fn close(&mut self) {
        *self = Self::default();
    }

    fn all(&self) -> impl Iterator<Item = &TcpListener> {
        [&self.v4, &self.v6].into_iter().flatten()
    }
}

fn flagged(at: &str, handles: &Handles) -> TcpListener {
    let listener = sandbox::bound(|| TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
    handles.flag(listener.as_fd()).expect("flagged");
    listener.set_nonblocking(true).expect("non-blocking");
    listener
}

impl Origin {
    pub fn listen(at: &str) -> Self {
        let listener =
            sandbox::bound(|| TcpListener::bind(at)).unwrap_or_else(|error| panic!("{at}: {error}"));
        listener.set_nonblocking(true).expect("non-blocking");
        Self(listener)
    }

    /// How many connections have come since the last call.
    pub fn visitors(&self) -> usize {
        std::iter::from_fn(|| try_accept(&self.0)).count()
    }
}

fn try_accept(listener: &TcpListener) -> Option<(TcpStream, SocketAddr)> {
    match listener.accept() {
        Ok(accepted) => Some(accepted),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("accept: {error}"),
    }
}

/// Panics with the whole chain of causes.
pub fn fail<T>(error: tv_agent::redirect::Error) -> T {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    panic!("{text}");
}

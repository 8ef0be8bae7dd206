//! A mount namespace with an enrolled process in it, as a container has one, and clients that run inside.

use std::collections::BTreeMap;
use std::io::{PipeWriter, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;
use tv_tests::cgroup::TestCgroup;
use tv_tests::process::{self, Finished, Running};
use tv_tests::world::World;

const LIMIT: Duration = Duration::from_secs(90);

/// Held by a process in an enrolled cgroup; gone with the value.
pub struct Container {
    cgroup: PathBuf,
    holder: Running,
}

impl Container {
    /// With this machine's files, writable or read-only save for /run.
    pub fn start(cgroup: &TestCgroup, read_only: bool) -> Self {
        let prepared = if read_only {
            "mount -o remount,bind,ro / && ! touch /tmp/tv-read-only 2>/dev/null && exec sleep 600"
        } else {
            "exec sleep 600"
        };
        let mut holder = cgroup.command("unshare");
        holder.args(["--mount", "--", "sh", "-c", prepared]);
        let mut container = Self {
            cgroup: cgroup.path().to_owned(),
            holder: process::start(holder.stdin(Stdio::null())).unwrap(),
        };
        let until = Instant::now() + LIMIT;
        while program(container.pid()).as_deref() != Some("sleep") {
            let over = container.holder.ended().is_some() || Instant::now() >= until;
            assert!(!over, "{:?}", container.holder.end());
            std::thread::sleep(Duration::from_millis(5));
        }
        container
    }

    fn pid(&self) -> Pid {
        self.holder.pid()
    }

    /// A command in its mount namespace and in its cgroup, without any environment.
    pub fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"echo $$ >"$0/cgroup.procs" && exec nsenter "$@""#])
            .arg(&self.cgroup)
            .arg(format!("--mount=/proc/{}/ns/mnt", self.pid()))
            .arg("--")
            .args(words)
            .env_clear();
        command
    }

    /// Waits until the daemon has put the CA into its stores and says so of `processes` too; gives what it then says of
    /// each: whether it needs a restart.
    pub fn installed(&self, world: &World, processes: &[Pid]) -> BTreeMap<Pid, bool> {
        let rows = await_rows(world, |rows| {
            let settled = |pid: &Pid| rows.get(pid).is_some_and(|row| row["state"] != "unknown");
            processes.iter().chain([&self.pid()]).all(settled)
        });
        rows.iter().map(|(pid, row)| (*pid, needs_restart(row))).collect()
    }

    /// Runs `python` inside until the CA is in the packages that it leads to, wherever they lie.
    pub fn lead_to_packages(&self, world: &World, python: &str) {
        let root = std::fs::read_to_string(world.agent_root()).unwrap();
        let line = root.lines().nth(1).expect("a line of the certificate");
        let words = [python, "-c", WAIT_FOR_ROOT, line].map(str::to_owned);
        process::run(self.command(&words).stdin(Stdio::null()), LIMIT)
            .unwrap()
            .expect_success();
    }
}

const WAIT_FOR_ROOT: &str = "import certifi, sys, time
while sys.argv[1] not in open(certifi.where()).read():
    time.sleep(0.05)";

/// Foretold, or shown already by a client that tries again and again by itself.
fn needs_restart(row: &Value) -> bool {
    let caches = ["node", "deno", "java", "go"]
        .iter()
        .any(|runtime| row["runtime"] == **runtime);
    row["state"] == "needs_restart" || row["state"] == "untrusted" && caches
}

/// What the daemon says of each process, once that is `enough`.
fn await_rows(world: &World, enough: impl Fn(&BTreeMap<Pid, Value>) -> bool) -> BTreeMap<Pid, Value> {
    let until = Instant::now() + LIMIT;
    loop {
        let rows = rows(world);
        if enough(&rows) {
            return rows;
        }
        assert!(Instant::now() < until, "the CA does not arrive: {rows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn rows(world: &World) -> BTreeMap<Pid, Value> {
    let socket = world.dir().join("trust.sock").display().to_string();
    let listed = world.tv_agent(&["trust", "list", "--socket", &socket, "-o", "json"]);
    let listed = listed.unwrap();
    let rows: Vec<Value> = serde_json::from_str(listed.expect_success()).unwrap();
    let keyed = |row: Value| {
        let pid = i32::try_from(row["pid"].as_i64()?).ok()?;
        Some((Pid::from_raw(pid), row))
    };
    rows.into_iter().filter_map(keyed).collect()
}

fn program(pid: Pid) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(text.trim().to_owned())
}

/// A client that makes a request for each line that it is given, and says in a line how it went.
pub struct Client {
    running: Running,
    input: Option<PipeWriter>,
    heard: usize,
}

impl Client {
    /// # Panics
    /// When it cannot be started.
    pub fn start(command: &mut Command) -> Self {
        let (reader, writer) = std::io::pipe().unwrap();
        Self {
            running: process::start(command.stdin(reader)).unwrap().sweeping(),
            input: Some(writer),
            heard: 0,
        }
    }

    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    pub fn ask(&mut self) {
        self.input
            .as_mut()
            .expect("open until the end")
            .write_all(b"go\n")
            .unwrap();
    }

    /// What it says next.
    pub fn answer(&mut self) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            let said = self.running.said();
            if let Some(line) = said
                .split_inclusive('\n')
                .nth(self.heard)
                .filter(|line| line.ends_with('\n'))
            {
                self.heard += 1;
                return line.trim().to_owned();
            }
            let over = self.running.ended().is_some() || Instant::now() >= until;
            assert!(!over, "no answer: {:?}", self.running.end());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Its input ends, and so does it.
    pub fn end(mut self) -> Finished {
        self.input = None;
        self.running.finish(LIMIT).unwrap()
    }
}

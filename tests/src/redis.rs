//! A real Redis (or Valkey) for tests: on loopback, in a directory of its own, gone on drop.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// What is run, whichever is installed.
const SERVERS: [&str; 2] = ["redis-server", "valkey-server"];
/// For the server to answer, or to be gone.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server of a test's own.
pub struct Redis {
    child: Child,
    port: u16,
    options: Vec<String>,
    password: Option<String>,
    dir: TempDir,
}

impl Redis {
    /// Starts one with `options` as on its command line.
    ///
    /// # Panics
    /// When there is none installed, with the command that does it, or it does not answer.
    pub fn start(options: &[&str]) -> Self {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        let password = options.iter().position(|option| option == "--requirepass");
        let password = password.map(|at| options[at + 1].clone());
        // Another process may take the port in between.
        for _ in 0..5 {
            let dir = tempfile::tempdir().expect("a directory");
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
            let port = free.expect("a free port").port();
            let child = spawn(port, dir.path(), &options);
            let mut redis = Self {
                child,
                port,
                options: options.clone(),
                password: password.clone(),
                dir,
            };
            if redis.answers() {
                return redis;
            }
        }
        panic!("the server does not answer; options {options:?}");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again at its port, with nothing in it.
    pub fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, self.dir.path(), &self.options);
        assert!(self.answers(), "it does not come back");
    }

    /// It goes on to listen, and does nothing, until [`go_on`](Self::go_on).
    pub fn hang(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).expect("a process id");
        kill(Pid::from_raw(pid), signal).expect("our own process");
    }

    /// What it answers to a command, as redis-cli prints it; an error is text as well.
    pub fn ask(&self, command: &[&str]) -> String {
        let output = self
            .cli()
            .args(command)
            .output()
            .expect("redis-cli, of the package redis-tools");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The names of all that is in it, in order.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.ask(&["KEYS", "*"]).lines().map(str::to_owned).collect();
        names.retain(|name| !name.is_empty());
        names.sort();
        names
    }

    /// Begins to write all commands that come into `file`.
    pub fn monitor(&self, file: &Path) -> Monitor {
        let out = std::fs::File::create(file).expect("a file");
        let child = self.cli().arg("MONITOR").stdout(out).spawn().expect("redis-cli");
        let began = Instant::now();
        while !std::fs::read_to_string(file).is_ok_and(|text| text.starts_with("OK")) {
            assert!(began.elapsed() < PATIENCE, "MONITOR says nothing");
            std::thread::sleep(Duration::from_millis(10));
        }
        Monitor(child)
    }

    fn cli(&self) -> Command {
        let mut command = Command::new("redis-cli");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "--raw"]);
        if let Some(password) = &self.password {
            command.env("REDISCLI_AUTH", password);
        }
        command.stdin(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn answers(&mut self) -> bool {
        let began = Instant::now();
        while began.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
            if self.ask(&["PING"]) == "PONG" {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A MONITOR under way; ends with its drop.
pub struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(port: u16, dir: &Path, options: &[String]) -> Child {
    for server in SERVERS {
        let mut command = Command::new(server);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .current_dir(dir)
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command
            .args(["--port", &port.to_string(), "--dir"])
            .arg(dir)
            .args(options);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            spawned => return spawned.expect("a process"),
        }
    }
    panic!(
        "no redis-server or valkey-server; install one with: apt-get install -y redis-server (cargo xtask setup does)"
    );
}

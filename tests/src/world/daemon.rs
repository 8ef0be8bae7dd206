//! `tv-agent run` with one enrolled cgroup, as a node has it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{CLIENT_TIME, World, to_yaml};
use crate::cgroup::TestCgroup;
use crate::process::{self, Finished, Running};

/// Time for the agent to load its programs and attach them.
const START_TIME: Duration = Duration::from_secs(15);

/// A running agent. Dropped, it is asked to end, then killed; its cgroup goes with it.
pub struct Daemon<'w> {
    world: &'w World,
    running: Running,
    config: PathBuf,
    /// Words before the agent's own, of a program that becomes the agent.
    wrapper: Vec<String>,
    metrics: SocketAddr,
    // After the agent: it lets go of the cgroup first.
    cgroup: TestCgroup,
}

impl World {
    /// Makes the agent's CA if there is none and starts the agent with `config`, whose `intercept.cgroups` is set to
    /// one fresh cgroup.
    ///
    /// # Errors
    /// When it ends or is not ready in time; the error holds what it said.
    pub fn daemon(&self, name: &str, config: Value) -> io::Result<Daemon<'_>> {
        self.daemon_under(&[], name, config)
    }

    /// As [`World::daemon`], started by `wrapper`, a command line that is followed by the agent's and executes it.
    ///
    /// # Errors
    /// As [`World::daemon`].
    pub fn daemon_under(&self, wrapper: &[&str], name: &str, mut config: Value) -> io::Result<Daemon<'_>> {
        let cgroup = TestCgroup::new(name);
        config["intercept"]["cgroups"] = json!([cgroup.name()]);
        let metrics = config["admin"]["metrics"].as_str().unwrap_or_default();
        let metrics = metrics.parse().map_err(io::Error::other)?;
        let config = self.write_config(&config)?;
        if !self.agent_root().exists() {
            let mut init = self.agent();
            let made = process::run(init.args(["ca", "init", "--config"]).arg(&config), START_TIME)?;
            if !made.success() {
                return Err(io::Error::other(format!(
                    "tv-agent ca init: {}{}",
                    made.stdout, made.stderr
                )));
            }
        }
        let mut daemon = Daemon {
            world: self,
            running: start(self, wrapper, &config)?,
            config,
            wrapper: wrapper.iter().map(|&word| word.to_owned()).collect(),
            metrics,
            cgroup,
        };
        daemon.wait_until_ready()?;
        Ok(daemon)
    }
}

impl Daemon<'_> {
    pub fn cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    /// The file that it was started with.
    pub fn config_file(&self) -> &Path {
        &self.config
    }

    /// Replaces that file by `config`, with the cgroup that it has.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn rewrite_config(&self, mut config: Value) -> io::Result<()> {
        config["intercept"]["cgroups"] = json!([self.cgroup.name()]);
        std::fs::write(&self.config, to_yaml(&config))
    }

    /// Runs `client` inside the enrolled cgroup.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, client: &[&str]) -> io::Result<Finished> {
        self.run_for(client, CLIENT_TIME)
    }

    /// As [`Daemon::run`], at most `limit`.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run_for(&self, client: &[&str], limit: Duration) -> io::Result<Finished> {
        process::run(self.command(client[0]).args(&client[1..]), limit)
    }

    /// A command that starts inside the enrolled cgroup, its environment cleared.
    pub fn command(&self, program: &str) -> Command {
        self.world.clean(self.cgroup.command(program))
    }

    /// The metrics as the agent serves them.
    ///
    /// # Errors
    /// When it does not answer with status 200.
    pub fn metrics(&self) -> io::Result<String> {
        match self.get("/metrics")? {
            (200, text) => Ok(text),
            (status, text) => Err(io::Error::other(format!("status {status}: {text}"))),
        }
    }

    /// The value of one line of the metrics, `name` with its labels; 0 while there is no such line.
    ///
    /// # Errors
    /// As [`Daemon::metrics`].
    pub fn metric(&self, name: &str) -> io::Result<u64> {
        let text = self.metrics()?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(Ok(0), |value| value.parse().map_err(io::Error::other))
    }

    /// Status and body of one GET at its local HTTP port.
    ///
    /// # Errors
    /// When nobody answers there.
    pub fn get(&self, path: &str) -> io::Result<(u16, String)> {
        get(self.metrics, path)
    }

    /// Its process that serves connections.
    ///
    /// # Errors
    /// When it is gone.
    pub fn data_path(&self) -> io::Result<Pid> {
        let agent = self.pid();
        let children = std::fs::read_to_string(format!("/proc/{agent}/task/{agent}/children"))?;
        let serves = |pid: &&str| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            line.is_ok_and(|line| line.contains("__data-path"))
        };
        let found = children.split_whitespace().find(serves);
        let pid = found.ok_or(io::ErrorKind::NotFound)?.parse();
        pid.map(Pid::from_raw).map_err(io::Error::other)
    }

    /// The user that [`Daemon::data_path`] runs as.
    ///
    /// # Errors
    /// When it is gone.
    pub fn data_path_user(&self) -> io::Result<u32> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.data_path()?))?;
        let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
        let id = ids.and_then(|ids| ids.split_whitespace().next()?.parse().ok());
        id.ok_or(io::ErrorKind::InvalidData.into())
    }

    /// The most memory that the process that serves ever held (VmHWM, proc_pid_status(5)), bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn peak_memory(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.data_path()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: u64 = kib
            .ok_or(io::ErrorKind::InvalidData)?
            .parse()
            .map_err(io::Error::other)?;
        Ok(kib * 1024)
    }

    /// How many descriptors the process that serves has open.
    ///
    /// # Errors
    /// When it is gone.
    pub fn descriptors(&self) -> io::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.data_path()?))?.count())
    }

    /// The processor time that both of its processes have used (proc_pid_stat(5)).
    ///
    /// # Errors
    /// When it is gone.
    pub fn processor_time(&self) -> io::Result<Duration> {
        let ours = processor_time(self.pid())?;
        Ok(ours + processor_time(self.data_path()?)?)
    }

    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        kill(self.running.pid(), signal).map_err(io::Error::from)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.running.kill_alone();
    }

    /// SIGTERM, as an init system does it, and what was said until the end.
    pub fn stop(&mut self) -> Finished {
        self.running.end()
    }

    /// Waits for the end that something else causes.
    ///
    /// # Errors
    /// When it does not come within `limit`.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Finished> {
        self.running.wait(limit)
    }

    /// Starts it again after its end, with the same file and cgroup.
    ///
    /// # Errors
    /// When it ends or is not ready in time.
    pub fn restart(&mut self) -> io::Result<()> {
        let wrapper: Vec<&str> = self.wrapper.iter().map(String::as_str).collect();
        self.running = start(self.world, &wrapper, &self.config)?;
        self.wait_until_ready()
    }

    pub fn pid(&self) -> Pid {
        self.running.pid()
    }

    /// `Some` once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.running.ended()
    }

    /// Starts another agent with `config`, to take the place of this one; what becomes of it is not waited for.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn challenge(&self, config: &Path) -> io::Result<Running> {
        self.start_challenger(config, &[])
    }

    fn start_challenger(&self, config: &Path, more: &[&str]) -> io::Result<Running> {
        let mut command = self.world.agent();
        command.args(["run", "--take-over", "--config"]).arg(config);
        process::start(command.args(more).stdin(Stdio::null()))
    }

    /// Another agent with the same file takes the place of this one, which is given back, draining.
    ///
    /// # Errors
    /// When the new one ends or is not ready in time; the old one then is what it was.
    pub fn succeed(&mut self) -> io::Result<Running> {
        self.succeed_with(&[])
    }

    /// As [`Daemon::succeed`], with more arguments for the new one.
    ///
    /// # Errors
    /// As [`Daemon::succeed`].
    pub fn succeed_with(&mut self, more: &[&str]) -> io::Result<Running> {
        let mut new = self.start_challenger(&self.config, more)?;
        let until = Instant::now() + START_TIME;
        while !holds(new.pid()) {
            let ended = new.ended().is_some();
            if ended || process::interrupted() || Instant::now() >= until {
                let said = new.end();
                return Err(io::Error::other(format!("no succession:\n{}", said.stderr)));
            }
            sleep(Duration::from_millis(2));
        }
        let old = std::mem::replace(&mut self.running, new);
        self.wait_until_ready()?;
        Ok(old)
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let until = Instant::now() + START_TIME;
        while !matches!(self.get("/healthz/ready"), Ok((200, _))) {
            let ended = self.running.ended().is_some();
            if ended || process::interrupted() || Instant::now() >= until {
                let said = self.running.end();
                let what = if ended { "ended" } else { "is not ready" };
                return Err(io::Error::other(format!(
                    "tv-agent run {what}:\n{}{}",
                    said.stdout, said.stderr
                )));
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

fn processor_time(pid: Pid) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, which may hold anything, ends with the last parenthesis; utime and stime are fields 14 and 15.
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
    // USER_HZ, which is 100 on every architecture that Rust's standard library supports.
    Ok(Duration::from_millis(ticks * 10))
}

fn start(world: &World, wrapper: &[&str], config: &Path) -> io::Result<Running> {
    let mut command = match wrapper.split_first() {
        None => world.agent(),
        Some((program, arguments)) => {
            let mut command = world.command(program);
            command.args(arguments).arg(world.agent_file());
            command
        }
    };
    command.arg("run").arg("--config").arg(config);
    process::start(command.stdin(Stdio::null()))
}

/// Whether a process is the one daemon of this world.
pub fn holds(pid: Pid) -> bool {
    let run_dir = Path::new(tv_agent::redirect::DEFAULT_RUN_DIR);
    tv_agent::redirect::instance_process(run_dir, "daemon") == Some(pid.to_string())
}

/// One GET without TLS.
fn get(addr: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

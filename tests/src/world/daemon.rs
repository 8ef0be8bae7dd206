//! `tv-agent run` with one enrolled cgroup, as a node has it.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{CLIENT_TIME, World};
use crate::cgroup::TestCgroup;
use crate::process::{self, Finished, Running};

/// Time for the agent to load its programs and answer.
const START_TIME: Duration = Duration::from_secs(15);

/// A running agent. Dropped, it is asked to end, then killed; its cgroup goes with it.
pub struct Daemon<'w> {
    world: &'w World,
    running: Running,
    metrics: SocketAddr,
    // After the agent: it lets go of the cgroup first.
    cgroup: TestCgroup,
}

impl World {
    /// Makes the agent's CA if there is none and starts the agent with `config`, whose
    /// `intercept.cgroups` is set to one fresh cgroup.
    ///
    /// # Errors
    /// When it ends or does not answer at its metrics address; the error holds what it said.
    pub fn daemon(&self, name: &str, mut config: Value) -> io::Result<Daemon<'_>> {
        let cgroup = TestCgroup::new(name);
        config["intercept"]["cgroups"] = json!([cgroup.name()]);
        let metrics = config["admin"]["metrics"].as_str().unwrap_or_default();
        let metrics = metrics.parse().map_err(io::Error::other)?;
        let path = self.write_config(&config)?;
        if !self.agent_root().exists() {
            let mut init = self.agent();
            let made = process::run(init.args(["ca", "init", "--config"]).arg(&path), START_TIME)?;
            if !made.success() {
                return Err(io::Error::other(format!(
                    "tv-agent ca init: {}{}",
                    made.stdout, made.stderr
                )));
            }
        }
        let mut command = self.agent();
        command.arg("run").arg("--config").arg(path).stdin(Stdio::null());
        let mut daemon = Daemon {
            world: self,
            running: process::start(&mut command)?,
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

    /// Runs `client` inside the enrolled cgroup.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self, client: &[&str]) -> io::Result<Finished> {
        let mut command = self.world.clean(self.cgroup.command(client[0]));
        process::run(command.args(&client[1..]), CLIENT_TIME)
    }

    /// The metrics as the agent serves them.
    ///
    /// # Errors
    /// When it does not answer with status 200.
    pub fn metrics(&self) -> io::Result<String> {
        get(self.metrics, "/metrics")
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.running.kill_alone();
    }

    /// SIGTERM, as an init system does it, and what was said until the end.
    pub fn stop(&mut self) -> Finished {
        self.running.end()
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let until = Instant::now() + START_TIME;
        while self.metrics().is_err() {
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

/// One GET without TLS.
fn get(addr: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(addr)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n"
    )?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
        _ => Err(io::Error::other(text)),
    }
}

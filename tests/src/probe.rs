//! Drives `tv-probe`, a workload that makes sockets on demand inside a cgroup and tells what came of it.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use nix::errno::Errno;

use crate::cgroup::TestCgroup;

/// A running `tv-probe`. Dropping it ends the process.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// A socket that a probe holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connected {
    pub id: usize,
    /// What getpeername() says.
    pub peer: SocketAddr,
    /// What getsockname() says.
    pub local: SocketAddr,
}

impl Probe {
    /// Starts `program` (the path of tv-probe) inside `cgroup`, or beside it.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn start(program: impl AsRef<OsStr>, cgroup: Option<&TestCgroup>) -> Self {
        let mut command = match cgroup {
            Some(cgroup) => cgroup.command(program),
            None => std::process::Command::new(program),
        };
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tv-probe starts");
        let commands = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self {
            child,
            commands,
            answers,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A TCP connect() with the options that `tv-probe` documents.
    ///
    /// # Errors
    /// The error number that the workload saw.
    pub fn tcp(&mut self, to: &str, options: &str) -> Result<Connected, Errno> {
        self.ask(&format!("tcp {to} {options}"))
            .map(|answer| connected(&answer))
    }

    /// A TCP socket over IPv4 that is not connected yet: its id, and its number in the probe's process.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn socket(&mut self) -> Result<(usize, RawFd), Errno> {
        let answer = self.ask("socket")?;
        let (id, fd) = answer.split_once(' ').expect("two numbers");
        Ok((id.parse().expect("an id"), fd.parse().expect("a descriptor")))
    }

    /// Connects a socket that [`socket`](Self::socket) made.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn connect(&mut self, id: usize, to: &str) -> Result<Connected, Errno> {
        self.ask(&format!("connect {id} {to}"))
            .map(|answer| connected(&answer))
    }

    /// Connects an existing socket elsewhere, through AF_UNSPEC.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn again(&mut self, id: usize, to: &str) -> Result<Connected, Errno> {
        self.ask(&format!("again {id} {to}"))
            .map(|answer| connected(&answer))
    }

    /// Up to `count` connects one after the other, each closed by a reset, for ten seconds at most; with `from`, from
    /// consecutive ports on. How many were connected, and how many failed.
    pub fn flood(&mut self, to: &str, count: u16, from: Option<SocketAddr>) -> (u32, u32) {
        let from = from.map_or_else(String::new, |from| format!("bind={from}"));
        let answer = self.ask(&format!("flood {to} {count} {from}")).expect("a flood");
        let (connected, failed) = answer.split_once(' ').expect("two numbers");
        (
            connected.parse().expect("a number"),
            failed.parse().expect("a number"),
        )
    }

    /// connect() of a UDP socket.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn udp_connect(&mut self, to: &str, options: &str) -> Result<(), Errno> {
        self.ask(&format!("udp-connect {to} {options}")).map(drop)
    }

    /// sendto() of an unconnected UDP socket.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn udp_send(&mut self, to: &str, options: &str) -> Result<(), Errno> {
        self.ask(&format!("udp-send {to} {options}")).map(drop)
    }

    /// Sends `query` to `server` by UDP, with the options that `tv-probe` documents. With `tcp=ADDRESS` among them it
    /// connects there as soon as the answer is there.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn ask_name_server(&mut self, server: &str, query: &[u8], options: &str) -> Result<Vec<u8>, Errno> {
        let hex: String = query.iter().map(|byte| format!("{byte:02x}")).collect();
        let answer = self.ask(&format!("ask {server} {hex} {options}"))?;
        let hex = answer.split(' ').next().unwrap_or_default();
        let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        Ok((0..hex.len()).step_by(2).map(pair).collect())
    }

    /// Changes the user id of the whole process.
    pub fn become_user(&mut self, uid: u32) {
        self.ask(&format!("uid {uid}")).expect("setuid");
    }

    fn ask(&mut self, command: &str) -> Result<String, Errno> {
        writeln!(self.commands, "{command}").expect("tv-probe reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("tv-probe answers");
        match answer.trim_end().split_once(' ') {
            Some(("ok", rest)) => Ok(rest.to_owned()),
            Some(("errno", number)) => Err(Errno::from_raw(number.parse().expect("a number"))),
            _ => panic!("tv-probe answered {answer:?} to {command:?}"),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // It may have ended by itself; then there is only its status to collect.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connected(answer: &str) -> Connected {
    let mut fields = answer.split(' ');
    let mut next = || fields.next().unwrap_or_default();
    Connected {
        id: next().parse().expect("an id"),
        peer: next().parse().expect("a peer"),
        local: next().parse().expect("a local address"),
    }
}

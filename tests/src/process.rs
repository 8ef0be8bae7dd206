//! Running a command to its end: bounded in time, stopped when asked, never left behind.

use std::fs;
use std::io::{self, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Time between asking a process group to end and killing it.
const GRACE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(5);

/// Set once, by [`interrupt`]: every running command is then ended, and later ones do not start.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What a command left.
#[derive(Clone, Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// The exit code, or 128 + the signal that ended it, as a shell says it.
    pub fn code(&self) -> i32 {
        let by_signal = || self.status.signal().map(|signal| 128 + signal);
        self.status.code().or_else(by_signal).unwrap_or(-1)
    }

    /// The output when it succeeded.
    ///
    /// # Panics
    /// When it failed, with all that it said.
    pub fn expect_success(&self) -> &str {
        assert!(
            self.success(),
            "exit code {}\n{}\n{}",
            self.code(),
            self.stdout,
            self.stderr
        );
        &self.stdout
    }
}

/// Ends every running command of this process and starts no more.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A process with a group of its own; dropped, the whole group is asked to end, then killed.
pub struct Running {
    child: Child,
    sweep: bool,
    stdout: Option<Collected>,
    stderr: Option<Collected>,
}

/// Starts `command` in a process group of its own, its output being collected.
///
/// # Errors
/// When it cannot be started; `Interrupted` after [`interrupt`].
pub fn start(command: &mut Command) -> io::Result<Running> {
    if interrupted() {
        return Err(io::ErrorKind::Interrupted.into());
    }
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let program = command.get_program().to_owned();
    let mut child = command
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("starting {}: {e}", program.display())))?;
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Ok(Running {
        child,
        sweep: false,
        stdout,
        stderr,
    })
}

/// Runs `command` to its end, at most `limit`.
///
/// # Errors
/// As [`start`]; `TimedOut` after `limit`, the group then being ended.
pub fn run(command: &mut Command, limit: Duration) -> io::Result<Finished> {
    start(command.stdin(Stdio::null()))?.finish(limit)
}

impl Running {
    /// Removes the cgroups that the group's processes were in, should it have to be ended: for
    /// `tv-agent exec`, which makes one and cannot remove it when it is killed.
    #[must_use]
    pub fn sweeping(mut self) -> Self {
        self.sweep = true;
        self
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid fits"))
    }

    /// `Some` once the process itself has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it has written to standard output so far.
    pub fn said(&self) -> String {
        self.stdout.as_ref().map(Collected::so_far).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    pub fn complained(&self) -> String {
        self.stderr.as_ref().map(Collected::so_far).unwrap_or_default()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// `TimedOut` with what it said so far, or `Interrupted`; its group is ended in both cases.
    pub fn finish(mut self, limit: Duration) -> io::Result<Finished> {
        self.wait(limit)
    }

    /// As [`Running::finish`], keeping the value.
    ///
    /// # Errors
    /// As [`Running::finish`]; on `Interrupted` the group ends with this value.
    pub fn wait(&mut self, limit: Duration) -> io::Result<Finished> {
        let until = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.ended() {
                break status;
            }
            if interrupted() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            if Instant::now() >= until {
                let said = self.end();
                let text = format!(
                    "no end within {limit:?}; it said:\n{}{}",
                    said.stdout, said.stderr
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(POLL);
        };
        // Whoever still holds its output open must not hold us.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        Ok(self.output(status))
    }

    /// Asks the whole group to end (SIGTERM), kills it after a grace period, and gives what was said.
    pub fn end(&mut self) -> Finished {
        let cgroups = if self.sweep {
            foreign_cgroups(self.pid())
        } else {
            Vec::new()
        };
        let _ = killpg(self.pid(), Signal::SIGTERM);
        let until = Instant::now() + GRACE;
        while self.ended().is_none() && Instant::now() < until {
            sleep(POLL);
        }
        let finished = self.kill();
        cgroups.iter().for_each(|directory| remove(directory));
        finished
    }

    /// SIGKILL to the whole group.
    pub fn kill(&mut self) -> Finished {
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let status = self.child.wait().unwrap_or_default();
        self.output(status)
    }

    /// SIGKILL to the process alone: its children go on.
    pub fn kill_alone(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn output(&mut self, status: ExitStatus) -> Finished {
        let until = Instant::now() + GRACE;
        let text = |pipe: Option<Collected>| pipe.map(|p| p.text(until)).unwrap_or_default();
        Finished {
            status,
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.end();
        } else {
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
    }
}

/// What comes out of one pipe, read by a thread of its own.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
}

impl Collected {
    /// All of it; what there is at `until`, when a process that left the group still holds the pipe open.
    fn text(self, until: Instant) -> String {
        while !self.reader.is_finished() && Instant::now() < until {
            sleep(POLL);
        }
        self.so_far()
    }

    fn so_far(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn collect(mut pipe: impl Read + Send + 'static) -> Collected {
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let shared = bytes.clone();
    let reader = std::thread::spawn(move || {
        let mut piece = vec![0; 64 * 1024];
        // What came before an error is still worth showing.
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            let mut bytes = shared.lock().unwrap_or_else(PoisonError::into_inner);
            bytes.extend_from_slice(&piece[..length]);
        }
    });
    Collected { bytes, reader }
}

/// The cgroup v2 directories of a process group's members, save the one that this process is in.
fn foreign_cgroups(group: Pid) -> Vec<PathBuf> {
    let Ok(mount) = tv_agent::redirect::cgroup2_mount() else {
        return Vec::new();
    };
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let own = cgroup(Path::new("/proc/self"));
    let of_group = |process: &PathBuf| {
        // proc_pid_stat(5): the name in parentheses may hold anything; state, ppid and pgrp come after it.
        let stat = fs::read_to_string(process.join("stat")).unwrap_or_default();
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        after.split(' ').nth(2) == Some(group.to_string().as_str())
    };
    let members = processes.flatten().map(|entry| entry.path()).filter(of_group);
    let mut found: Vec<_> = members.filter_map(|process| cgroup(&process)).collect();
    found.sort();
    found.dedup();
    found.retain(|path| Some(path) != own.as_ref());
    found
        .iter()
        .map(|path| mount.join(path.trim_start_matches('/')))
        .collect()
}

fn cgroup(process: &Path) -> Option<String> {
    let lines = fs::read_to_string(process.join("cgroup")).ok()?;
    lines
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

/// Removes a cgroup once its last process is gone; one that others use stays.
fn remove(cgroup: &Path) {
    let until = Instant::now() + GRACE;
    while cgroup.exists() && fs::remove_dir(cgroup).is_err() && Instant::now() < until {
        sleep(POLL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_code_are_kept() {
        let finished = run(&mut sh("echo out; echo err >&2; exit 3"), Duration::from_secs(5)).unwrap();
        let said = (
            finished.code(),
            finished.stdout.as_str(),
            finished.stderr.as_str(),
        );
        assert_eq!(said, (3, "out\n", "err\n"));
    }

    #[test]
    fn a_command_that_does_not_end_is_ended_with_its_children() {
        let script = "sleep 600 & echo $!; trap '' TERM; wait; wait";
        let error = run(&mut sh(script), Duration::from_millis(200)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let text = error.to_string();
        let pid = text.lines().last().unwrap().parse().unwrap();
        let gone = || {
            // A zombie of an inherited child has ended, too.
            std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
        };
        let until = Instant::now() + GRACE;
        while !gone() && Instant::now() < until {
            sleep(POLL);
        }
        assert!(gone(), "{:?}", Pid::from_raw(pid));
    }

    #[test]
    fn output_that_a_stranger_holds_open_is_not_waited_for() {
        // The sleeper leaves the group, but keeps the pipe.
        let script = "echo out; setsid sleep 20 & echo $!";
        let started = Instant::now();
        let finished = run(&mut sh(script), Duration::from_secs(5)).unwrap();
        assert!(started.elapsed() < GRACE + Duration::from_secs(2));
        let (out, pid) = finished.stdout.split_once('\n').unwrap();
        assert_eq!(out, "out");
        nix::sys::signal::kill(Pid::from_raw(pid.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    }

    #[test]
    fn a_cgroup_is_swept_when_its_maker_is_killed() {
        if !crate::sandbox::available_or_skip() {
            return;
        }
        let mount = tv_agent::redirect::cgroup2_mount().unwrap();
        let directory = mount.join(format!("tv-test-{}-sweep", std::process::id()));
        let path = directory.display();
        let script =
            format!("mkdir {path} && echo $$ >{path}/cgroup.procs && trap '' TERM; sleep 600 & wait; wait");
        let mut running = start(&mut sh(&script)).unwrap().sweeping();
        let until = Instant::now() + GRACE;
        while foreign_cgroups(running.pid()).is_empty() && Instant::now() < until {
            sleep(POLL);
        }
        assert!(foreign_cgroups(running.pid()).contains(&directory));
        running.end();
        assert!(!directory.exists());
    }
}

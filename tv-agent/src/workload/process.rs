//! The process that connected, if it is still that process: ids are given out again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};

use crate::netns::MountsId;

/// Longer than either file ever is.
const MAX_BYTES: u64 = 8 * 1024;

/// What /proc says of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub command: String,
    /// Clock ticks since boot. With the id, it tells a process from all others that lived since.
    pub started: u64,
}

impl Process {
    /// The process `tgid`, unless that is another one by now: one of another cgroup than `cgroup`, or one that
    /// started after `connected` (since boot).
    pub(super) fn that_connected(
        tgid: u32,
        cgroup: &str,
        connected: Duration,
    ) -> Option<(Self, Option<MountsId>)> {
        let opened = Opened::new(tgid).ok()?;
        let same = in_cgroup(&opened.cgroups, cgroup)
            && began_before(opened.process.started, ticks_per_second()?, connected);
        // Without it, nothing is known of its trust.
        let mounts = || MountsId::of_file(&opened.open("ns/mnt").ok()?).ok();
        same.then(|| (opened.process.clone(), mounts()))
    }

    /// When it started, since boot.
    pub fn since_boot(started: u64) -> Duration {
        let ticks = ticks_per_second().unwrap_or(100).max(1);
        let nanos = u128::from(started) * 1_000_000_000 / u128::from(ticks);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A process of now. The open directory stays that of the process, whatever becomes of its id.
pub struct Opened {
    directory: File,
    pub process: Process,
    cgroups: String,
}

impl Opened {
    /// # Errors
    /// When there is no such process, or it may not be looked at.
    pub fn new(pid: u32) -> io::Result<Self> {
        let directory = File::open(Path::new("/proc").join(pid.to_string()))?;
        let text = |name| {
            Ok::<_, io::Error>(String::from_utf8_lossy(&read(&directory, name, MAX_BYTES)?).into_owned())
        };
        let process = parse(&text("stat")?).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            cgroups: text("cgroup")?,
            process,
            directory,
        })
    }

    /// Its cgroup v2, below the mount.
    pub fn cgroup(&self) -> Option<&str> {
        self.cgroups.lines().find_map(|line| line.strip_prefix("0::"))
    }

    /// At most `limit` bytes of one of its files.
    ///
    /// # Errors
    /// When it cannot be read: the process is gone, or CAP_SYS_PTRACE is missing.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        read(&self.directory, name, limit)
    }

    /// One of its files; `exe` and what is below `ns` are what they lead to.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn open(&self, name: &str) -> io::Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        Ok(File::from(openat(&self.directory, name, flags, Mode::empty())?))
    }

    /// Where one of its links leads.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn link(&self, name: &str) -> io::Result<PathBuf> {
        Ok(readlinkat(&self.directory, name)?.into())
    }
}

fn read(directory: &File, name: &str, limit: u64) -> io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn ticks_per_second() -> Option<u64> {
    u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()
}

/// `pid (command) state …`: the command may hold anything, parentheses too; the start is field 22 (proc_pid_stat(5)).
fn parse(stat: &str) -> Option<Process> {
    let (head, tail) = stat.rsplit_once(')')?;
    let (_, command) = head.split_once('(')?;
    let started = tail.split_ascii_whitespace().nth(22 - 3)?.parse().ok()?;
    // It goes to a terminal.
    let command = command
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    Some(Process { command, started })
}

/// Line `0::PATH` of /proc/PID/cgroup (cgroups(7)).
fn in_cgroup(cgroups: &str, path: &str) -> bool {
    cgroups.lines().any(|line| line.strip_prefix("0::") == Some(path))
}

fn began_before(started: u64, ticks_per_second: u64, connected: Duration) -> bool {
    u128::from(started) * 1_000_000_000 <= connected.as_nanos() * u128::from(ticks_per_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::time::{ClockId, clock_gettime};

    #[test]
    fn the_line_is_read_whatever_the_command_is_called() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        let line = format!("77 (a) b(\u{1b}[2J) {rest}");
        let process = parse(&line).unwrap();
        assert_eq!((process.command.as_str(), process.started), ("a) b(?[2J", 4711));
        for bad in ["", "77", "77 (x", "77 (x) S 1 2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_process_that_is_younger_than_the_connection_is_another_one() {
        let at = Duration::from_millis(10_015);
        assert!(began_before(1001, 100, at), "within the tick of the connection");
        assert!(!began_before(1002, 100, at));
    }

    #[test]
    fn an_id_that_was_given_out_again_names_nobody() {
        let own = std::process::id();
        let cgroups = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let Some(path) = cgroups.lines().find_map(|line| line.strip_prefix("0::")) else {
            return;
        };
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap());
        let (found, mounts) = Process::that_connected(own, path, now).unwrap();
        assert_eq!(mounts, MountsId::of("/proc/self/ns/mnt").ok());
        assert!(!found.command.is_empty() && Process::since_boot(found.started) <= now);
        // The same number, but of another cgroup, or younger than the connection.
        assert_eq!(Process::that_connected(own, "/elsewhere", now), None);
        assert_eq!(Process::that_connected(own, path, Duration::from_millis(1)), None);
        assert_eq!(Process::that_connected(u32::MAX, path, now), None);
    }

    #[test]
    fn no_more_is_read_than_was_asked_for() {
        let own = Opened::new(std::process::id()).unwrap();
        assert_eq!(own.read("maps", 10).unwrap().len(), 10);
        assert_eq!(own.link("exe").unwrap(), std::env::current_exe().unwrap());
    }
}

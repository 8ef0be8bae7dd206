//! The command name of the process that connected, if it is still that process: ids are given out again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{SysconfVar, sysconf};

/// Longer than either file ever is.
const MAX_BYTES: u64 = 8 * 1024;

/// What /proc says of one process.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    command: String,
    /// Clock ticks since boot.
    started: u64,
}

/// The command name of `tgid`, unless that is another process by now: one of another cgroup than `cgroup`, or one
/// that started after `connected` (since boot).
pub fn command(tgid: u32, cgroup: &str, connected: Duration) -> Option<Arc<str>> {
    let (stat, cgroups) = read(&Path::new("/proc").join(tgid.to_string())).ok()?;
    let process = parse(&stat)?;
    let ticks = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    let same = in_cgroup(&cgroups, cgroup) && began_before(process.started, ticks, connected);
    same.then(|| process.command.into())
}

/// Both files of one and the same process: the open directory stays that of the process, whatever becomes of its id.
fn read(directory: &Path) -> io::Result<(String, String)> {
    let directory = File::open(directory)?;
    let read = |name: &str| {
        let file = File::from(openat(&directory, name, OFlag::O_RDONLY, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok::<_, io::Error>(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok((read("stat")?, read("cgroup")?))
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
        let name = command(own, path, now).unwrap();
        assert!(!name.is_empty());
        // The same number, but of another cgroup, or younger than the connection.
        assert_eq!(command(own, "/elsewhere", now), None);
        assert_eq!(command(own, path, Duration::from_millis(1)), None);
        assert_eq!(command(u32::MAX, path, now), None);
    }
}

//! A distribution's own tool, run in this process's own root.

use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::Error;
use super::layout::Distribution;
use super::root::Root;
use crate::limits;

const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

pub(super) fn is_there(root: &Root, distribution: &Distribution) -> bool {
    let at = |directory: &str| root.exists(&Path::new(directory).join(distribution.tool[0]));
    DIRECTORIES.into_iter().any(at)
}

/// # Errors
/// [`Error::Tool`] when it cannot be run, fails, or takes longer than [`limits::TRUST_TOOL_TIME`].
pub(super) fn run(distribution: &Distribution) -> Result<(), Error> {
    let [program, arguments @ ..] = distribution.tool else {
        return Ok(());
    };
    bounded(program, arguments, limits::TRUST_TOOL_TIME)
}

fn bounded(program: &str, arguments: &[&str], limit: Duration) -> Result<(), Error> {
    let failed = |said: String| Error::Tool {
        tool: [&[program], arguments].concat().join(" "),
        said,
    };
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", DIRECTORIES.join(":"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let mut errors = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut said = String::new();
        if let Some(errors) = &mut errors {
            // What is no text is not shown; the rest is read so that the tool can go on.
            let _ = errors.take(64 * 1024).read_to_string(&mut said);
            let _ = std::io::copy(errors, &mut std::io::sink());
        }
        said
    });
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(|error| failed(error.to_string()))? {
            Some(status) => break status,
            None if began.elapsed() > limit => {
                // With what it started. It may end by itself in between; then there is nobody to end.
                let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
                let _ = child.wait();
                return Err(failed(format!("it did not end within {} s", limit.as_secs())));
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let said = reader.join().unwrap_or_default();
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(failed(format!("{status}, {}", last.unwrap_or("it said nothing"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_that_fails_or_does_not_end_is_told() {
        assert!(bounded("sh", &["-c", "exit 0"], Duration::from_secs(60)).is_ok());
        let told = |script: &str, limit| bounded("sh", &["-c", script], limit).unwrap_err().to_string();
        let failed = told("echo no such certificate >&2; exit 3", Duration::from_secs(60));
        assert!(
            failed.contains("no such certificate") && failed.contains('3'),
            "{failed}"
        );
        let slow = told("exec sleep 600", Duration::ZERO);
        assert!(slow.contains("did not end"), "{slow}");
        assert!(bounded("tv-agent-no-such-tool", &[], Duration::ZERO).is_err());
    }
}

//! A cgroup for one test: made below the cgroup v2 mount, gone with the value, with everything in it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long processes are waited for after SIGKILL.
const LAST_GASP: Duration = Duration::from_secs(5);

/// A directory in the cgroup v2 hierarchy. Dropping it kills what is left inside, by pid, and removes it.
#[derive(Debug)]
pub struct TestCgroup {
    path: PathBuf,
    /// Where this process came from, once it has joined.
    home: Mutex<Option<PathBuf>>,
}

impl TestCgroup {
    /// Makes `<cgroup2 mount>/tv-test-<pid>-<n>-<name>`.
    ///
    /// # Panics
    /// When there is no cgroup v2 mount or the directory cannot be made (root is needed).
    pub fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mount = tv_agent::redirect::cgroup2_mount().unwrap_or_else(|error| panic!("{error}"));
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("tv-test-{}-{number}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("mkdir {}: {error}", path.display()));
        Self {
            path,
            home: Mutex::new(None),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path as a configuration names it: below the cgroup v2 mount, with a leading slash.
    pub fn name(&self) -> String {
        format!("/{}", self.path.file_name().unwrap_or_default().to_string_lossy())
    }

    /// The id that the kernel half reports for processes inside.
    pub fn id(&self) -> u64 {
        tv_agent::redirect::cgroup_id(&self.path).expect("the directory exists")
    }

    /// Moves this whole process (all its threads) inside; dropping the cgroup moves it back.
    ///
    /// Not for tests that share a process: the others' sockets and children would be made inside as well.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join_self(&self) -> io::Result<()> {
        let mut home = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if home.is_none() {
            *home = Some(own_cgroup()?);
        }
        self.join(std::process::id())
    }

    /// Moves a process inside. Sockets that it already has keep their old cgroup.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn join(&self, pid: u32) -> io::Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string())
    }

    /// A command whose process is inside before it executes `program`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(r#"echo $$ >"$0/cgroup.procs" && exec "$@""#)
            .arg(&self.path)
            .arg(program);
        command
    }
}

/// Ends what lives in a cgroup and below, and removes it. EBUSY until the last process is gone; a killed one needs a
/// moment.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    let own = std::process::id().cast_signed();
    let pids = fs::read_to_string(path.join("cgroup.procs"))?;
    for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
        if pid != own {
            // ESRCH: it ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    fs::remove_dir(path)
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        let own = std::process::id();
        let home = self.home.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(home) = home
            && let Err(error) = fs::write(home.join("cgroup.procs"), own.to_string())
        {
            eprintln!("leaving {}: {error}", self.path.display());
        }
        let until = Instant::now() + LAST_GASP;
        while let Err(error) = remove(&self.path) {
            if Instant::now() >= until {
                eprintln!("cgroup {} stays behind: {error}", self.path.display());
                return;
            }
            sleep(Duration::from_millis(10));
        }
    }
}

/// The cgroup v2 directory of this process: the `0::` line of /proc/self/cgroup.
fn own_cgroup() -> io::Result<PathBuf> {
    let lines = fs::read_to_string("/proc/self/cgroup")?;
    let path = lines
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    Ok(tv_agent::redirect::cgroup2_mount()?.join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_starts_inside_and_dies_with_the_cgroup() {
        if !crate::sandbox::available_or_skip() {
            return;
        }
        let cgroup = TestCgroup::new("drop");
        let path = cgroup.path().to_owned();
        let seen = cgroup.command("cat").arg("/proc/self/cgroup").output().unwrap();
        let line = format!("0::{}\n", cgroup.name());
        assert!(String::from_utf8_lossy(&seen.stdout).ends_with(&line), "{seen:?}");
        let mut sleeper = cgroup.command("sleep").arg("600").spawn().unwrap();
        drop(cgroup);
        assert!(!path.exists());
        assert!(!sleeper.wait().unwrap().success());
    }
}

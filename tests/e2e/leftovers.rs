//! What an `exec` may leave: nothing when it ends well, else refusal that `tv-agent cleanup` ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tv_tests::world::{UNROUTED, World};

use crate::support::wait_for;

const LIMIT: Duration = Duration::from_secs(30);

/// What a process that outlives its command does: waits for `go-N`, asks, and tells the exit code in `code-N`.
const STRAGGLER: &str = r#"
cd "$0"; echo $$ >pid
for n in 1 2; do
  while [ ! -e go-$n ]; do sleep 0.05; done
  curl --silent --max-time 10 --cacert root.pem --output /dev/null "$1"; echo $? >code-$n.new; mv code-$n.new code-$n
done
"#;

/// Asks the straggler for its next attempt and gives curl's exit code.
fn attempt(world: &World, number: u8) -> i32 {
    let code = world.dir().join(format!("code-{number}"));
    std::fs::write(world.dir().join(format!("go-{number}")), "").unwrap();
    wait_for("the straggler's curl", LIMIT, || code.exists());
    std::fs::read_to_string(code).unwrap().trim().parse().unwrap()
}

/// Ends the straggler, whatever became of the test.
struct Straggler(Pid);

impl Straggler {
    fn of(world: &World) -> Self {
        let pid = world.dir().join("pid");
        let read = || std::fs::read_to_string(&pid).ok()?.trim().parse().ok();
        wait_for("the straggler runs", LIMIT, || read().is_some());
        Self(Pid::from_raw(read().unwrap()))
    }
}

impl Drop for Straggler {
    fn drop(&mut self) {
        // ESRCH: it has ended by itself.
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

#[test]
fn what_a_command_leaves_running_is_refused_until_cleanup() {
    World::run(|world| {
        let before = Traces::now();
        let (dir, url) = (world.dir().display().to_string(), format!("https://{UNROUTED}/"));
        let leave = r#"setsid sh -c "$0" "$1" "$2" >/dev/null 2>&1 </dev/null & until [ -s "$1/pid" ]; do sleep 0.05; done"#;
        let running = world
            .start_exec(&world.config(), &["sh", "-c", leave, STRAGGLER, &dir, &url])
            .unwrap();
        let cgroup = cgroup_of(running.pid());
        let finished = running.finish(LIMIT).unwrap();
        let straggler = Straggler::of(world);
        finished.expect_success();
        assert!(finished.stderr.contains("still run"), "{}", finished.stderr);
        assert!(
            finished.stderr.contains("tv-agent cleanup"),
            "{}",
            finished.stderr
        );

        assert_eq!(attempt(world, 1), 7, "connection refused");
        assert_eq!(world.unrouted.connections().accepted(), 0);

        drop(straggler);
        wait_for("nobody is left in the cgroup", LIMIT, || {
            std::fs::read_to_string(cgroup.join("cgroup.procs"))
                .unwrap()
                .is_empty()
        });
        let cleaned = world.tv_agent(&["cleanup"]).unwrap();
        let removed = cleaned.expect_success();
        assert!(
            removed.contains("removed link") && removed.contains("removed cgroup"),
            "{removed}"
        );
        assert!(
            before == Traces::now() && !cgroup.exists(),
            "{before:?} {:?}",
            Traces::now()
        );
    });
}

#[test]
fn a_killed_exec_leaves_its_command_refused_until_cleanup() {
    World::run(|world| {
        let before = Traces::now();
        let (dir, url) = (world.dir().display().to_string(), format!("https://{UNROUTED}/"));
        let detached = r#"exec setsid sh -c "$0" "$1" "$2" >/dev/null 2>&1"#;
        let running = world
            .start_exec(&world.config(), &["sh", "-c", detached, STRAGGLER, &dir, &url])
            .unwrap();
        let straggler = Straggler::of(world);
        let cgroup = cgroup_of(running.pid());
        kill(running.pid(), Signal::SIGKILL).unwrap();
        assert_eq!(running.finish(LIMIT).unwrap().code(), 128 + 9);
        assert_eq!(attempt(world, 1), 7, "connection refused");
        assert_eq!(world.unrouted.connections().accepted(), 0);
        world.tv_agent(&["cleanup"]).unwrap().expect_success();
        assert_eq!(attempt(world, 2), 0, "the native path is back");
        drop(straggler);
        wait_for("a second cleanup takes the rest", LIMIT, || {
            world.tv_agent(&["cleanup"]).unwrap().expect_success();
            before == Traces::now() && !cgroup.exists()
        });
    });
}

/// The cgroup of the exec that runs as `pid`.
pub fn cgroup_of(pid: Pid) -> PathBuf {
    let name = tv_agent::redirect::exec_cgroup_name(&format!("exec-{pid}"));
    tv_agent::redirect::cgroup2_mount().unwrap().join(name)
}

/// What else an exec could leave: mounts, pins, files in /run.
#[derive(Debug, PartialEq)]
pub struct Traces {
    mounts: usize,
    pins: bool,
    files: Vec<String>,
}

impl Traces {
    pub fn now() -> Self {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        Self {
            mounts: table.lines().count(),
            pins: Path::new("/sys/fs/bpf/tv-agent").exists(),
            files: below(Path::new("/run")),
        }
    }
}

/// Files, and directories that an exec makes for itself.
fn below(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(below(&path));
        }
        if !path.is_dir() || path.to_string_lossy().contains("exec-") {
            found.push(path.display().to_string());
        }
    }
    found.sort();
    found
}

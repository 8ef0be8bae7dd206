//! A container as runtimes make it, of a shell script: a mount namespace, a root of its own, pivot_root.

use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tv_tests::process::{self, Finished, Running};
use tv_tests::world::{Daemon, World};

use crate::support::wait_for;

pub const LIMIT: Duration = Duration::from_secs(20);

/// How it is made.
#[derive(Clone, Copy, Default)]
pub struct Shape {
    pub read_only: bool,
    /// Its mount namespace belongs to a user namespace of its own.
    pub user: bool,
    /// chroot instead of pivot_root.
    pub chroot: bool,
    /// No certificate store, and a C library is not there either: busybox and nothing else.
    pub bare: bool,
}

/// One process in a root of its own, in a cgroup below the daemon's.
pub struct Container {
    pub root: PathBuf,
    cgroup: PathBuf,
    holder: Option<Running>,
}

/// $0 the root, $1 the cgroup, $2 words of how. The new root's mounts are none of this namespace's.
const ENTER: &str = r#"
echo $$ >"$1/cgroup.procs"
unshare='unshare --mount --propagation private'
case $2 in *user*) unshare='unshare --user --map-root-user --mount --propagation private' ;; esac
exec $unshare sh -ec '
mount --rbind "$0" "$0"
case $2 in *bare*) ;; *)
  mount --rbind /usr "$0/usr"; mount --rbind /proc "$0/proc"; mount --rbind /dev "$0/dev" ;;
esac
case $2 in
  *chroot*) exec chroot "$0" sleep 600 ;;
  *) cd "$0"; pivot_root . old ;;
esac
case $2 in *bare*) exec /busybox sh -ec "/busybox umount -l /old; exec /busybox sleep 600" ;; esac
umount --lazy /old
case $2 in *read-only*) mount --options remount,bind,ro / ;; esac
exec sleep 600' "$0" "$1" "$2"
"#;

impl Container {
    /// Its process has its final root when this returns.
    pub fn start(world: &World, daemon: &Daemon<'_>, name: &str, shape: Shape) -> Self {
        let container = Self::begin(world, daemon, name, shape);
        wait_for("its own root", LIMIT, || container.is_settled());
        container
    }

    /// Does not wait for it.
    pub fn begin(world: &World, daemon: &Daemon<'_>, name: &str, shape: Shape) -> Self {
        let root = world.dir().join(name);
        make_root(&root, shape).unwrap();
        Self::begin_in(daemon, name, root, shape)
    }

    pub fn begin_in(daemon: &Daemon<'_>, name: &str, root: PathBuf, shape: Shape) -> Self {
        let cgroup = daemon.cgroup().path().join(name);
        std::fs::create_dir(&cgroup).unwrap();
        let how: Vec<&str> = [
            (shape.read_only, "read-only"),
            (shape.user, "user"),
            (shape.chroot, "chroot"),
            (shape.bare, "bare"),
        ]
        .into_iter()
        .filter_map(|(is, word)| is.then_some(word))
        .collect();
        let mut command = Command::new("sh");
        command
            .args(["-c", ENTER])
            .arg(&root)
            .arg(&cgroup)
            .arg(how.join(" "));
        let holder = process::start(command.stdin(Stdio::null())).unwrap();
        Self {
            root,
            cgroup,
            holder: Some(holder),
        }
    }

    pub fn pid(&self) -> i32 {
        self.holder.as_ref().expect("not ended").pid().as_raw()
    }

    /// Its program is the last one.
    fn is_settled(&self) -> bool {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid())).unwrap_or_default();
        line.ends_with(b"sleep\x00600\x00")
    }

    /// What /proc says of its mounts.
    pub fn mounts(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap_or_default()
    }

    /// Its mounts that are the agent's.
    pub fn ours(&self) -> Vec<String> {
        let mounts = self.mounts();
        let ours = mounts.lines().filter(|line| line.contains("/tv-agent/trust/"));
        ours.map(str::to_owned).collect()
    }

    pub fn wait_until_trusting(&self) {
        wait_for("the CA is there", LIMIT, || !self.ours().is_empty());
    }

    /// What a process there reads.
    pub fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        std::fs::read(format!("/proc/{}/root{path}", self.pid()))
    }

    /// Whether the bundle there holds `root`, PEM.
    pub fn trusts(&self, root: &str) -> bool {
        let bundle = self
            .read("/etc/ssl/certs/ca-certificates.crt")
            .unwrap_or_default();
        String::from_utf8_lossy(&bundle).contains(root.trim())
    }

    /// A command in the container, enrolled, its environment cleared.
    pub fn command(&self, world: &World, client: &[&str]) -> Command {
        let inside = r#"echo $$ >"$0/cgroup.procs" && exec nsenter "$@""#;
        let mut command = world.command("sh");
        let pid = self.pid();
        command.args(["-c", inside]).arg(&self.cgroup);
        command.arg(format!("--mount=/proc/{pid}/ns/mnt"));
        command.arg(format!("--root=/proc/{pid}/root"));
        command.arg(format!("--wd=/proc/{pid}/root")).args(client);
        command
    }

    pub fn run(&self, world: &World, client: &[&str]) -> Finished {
        process::run(&mut self.command(world, client), LIMIT).unwrap()
    }

    /// Out of the enrolled subtree, to `cgroup`.
    pub fn move_to(&self, cgroup: &Path) {
        std::fs::write(cgroup.join("cgroup.procs"), self.pid().to_string()).unwrap();
    }

    pub fn end(&mut self) {
        self.holder = None;
        let until = Instant::now() + LIMIT;
        while std::fs::remove_dir(&self.cgroup).is_err() && self.cgroup.exists() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end();
    }
}

/// This machine's programs and libraries are mounted, its stores copied.
pub fn make_root(root: &Path, shape: Shape) -> io::Result<()> {
    std::fs::create_dir(root)?;
    if shape.bare {
        for directory in ["old", "proc", "etc", "etc/ssl"] {
            std::fs::create_dir(root.join(directory))?;
        }
        std::fs::copy("/bin/busybox", root.join("busybox"))?;
        return Ok(());
    }
    for directory in ["old", "usr", "proc", "dev", "tmp", "etc"] {
        std::fs::create_dir(root.join(directory))?;
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name))?;
    }
    let copied = Command::new("cp")
        .args(["-a", "/etc/ssl"])
        .arg(root.join("etc"))
        .status()?;
    assert!(copied.success());
    for file in ["resolv.conf", "hosts", "nsswitch.conf", "passwd"] {
        let path = Path::new("/etc").join(file);
        if path.exists() {
            std::fs::copy(path, root.join("etc").join(file))?;
        }
    }
    Ok(())
}

//! A network and a mount namespace for one thread, so that no test touches the machine's own.
//!
//! A thread that [`enter`]s one, and every thread and process that it starts afterwards, lives there: loopback
//! with the test's addresses and nothing else, an empty bpffs at /sys/fs/bpf, and whatever
//! [`Sandbox::bind_file`] puts over the files of /etc. The kernel takes all of it away when the last of them ends.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// Where the sandbox's own bpffs is mounted.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Proof that the calling thread lives in namespaces of its own. Not `Send`: they belong to the thread.
#[derive(Debug)]
pub struct Sandbox {
    _of_this_thread: PhantomData<*const ()>,
}

/// Moves the calling thread into namespaces of its own, for the rest of its life.
///
/// Call it at the start of a thread, or of main before other threads exist. `addresses` are added to loopback.
///
/// # Panics
/// When the kernel refuses; [`available`] tells beforehand whether it would.
pub fn enter(addresses: &[IpAddr]) -> Sandbox {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .unwrap_or_else(|error| panic!("unshare(NEWNET|NEWNS): {error}; is this root?"));
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .unwrap_or_else(|error| panic!("making mounts private: {error}"));
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
        .unwrap_or_else(|error| panic!("mounting bpffs at {BPFFS}: {error}"));
    ip(&["link", "set", "lo", "up"]);
    for address in addresses {
        match address {
            IpAddr::V4(v4) => ip(&["addr", "add", &format!("{v4}/32"), "dev", "lo"]),
            // Without nodad the address stays tentative for a second, and bind() fails.
            IpAddr::V6(v6) => ip(&["-6", "addr", "add", &format!("{v6}/128"), "dev", "lo", "nodad"]),
        }
    }
    Sandbox {
        _of_this_thread: PhantomData,
    }
}

/// Runs `test` on a thread of its own inside a sandbox and gives back what it returns; a panic goes on here.
pub fn run<T: Send>(addresses: &[IpAddr], test: impl FnOnce(&Sandbox) -> T + Send) -> T {
    std::thread::scope(|scope| {
        let name = std::thread::current().name().map(str::to_owned);
        std::thread::Builder::new()
            .name(name.unwrap_or_else(|| "sandbox".into()))
            .spawn_scoped(scope, || test(&enter(addresses)))
            .expect("a thread")
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Why a sandbox or the kernel half cannot be had here; `Ok` when both can.
///
/// # Errors
/// A sentence that names what is missing.
pub fn available() -> Result<(), String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("root is needed for namespaces and BPF; run as root".into());
    }
    if !has_capabilities().map_err(|error| format!("/proc/self/status: {error}"))? {
        return Err(
            "root lacks CAP_SYS_ADMIN or CAP_NET_ADMIN; start the container with --privileged".into(),
        );
    }
    if !Path::new(BPFFS).is_dir() {
        return Err(format!(
            "{BPFFS} does not exist: this kernel has no BPF file system"
        ));
    }
    tv_agent::redirect::cgroup2_mount().map_err(|error| error.to_string())?;
    Command::new("ip")
        .arg("-V")
        .output()
        .map_err(|error| format!("ip cannot be run ({error}); install iproute2"))?;
    Ok(())
}

/// True when the test may go on. Otherwise prints why it is skipped, and fails where `CI` is `true`:
/// there, a test that silently does nothing is worse than a red one.
///
/// # Panics
/// When something is missing and the environment has `CI=true`.
pub fn available_or_skip() -> bool {
    let Err(reason) = available() else {
        return true;
    };
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "this test must run in CI: {reason}"
    );
    eprintln!("skipped: {reason}");
    false
}

impl Sandbox {
    /// Lays a file with these contents over `target` (which must exist), inside this sandbox only.
    ///
    /// # Errors
    /// When the file cannot be written or the mount is refused.
    pub fn bind_file(&self, contents: impl AsRef<[u8]>, target: impl AsRef<Path>) -> io::Result<()> {
        let source = scratch_path();
        fs::write(&source, contents)?;
        let bound = mount(
            Some(&source),
            target.as_ref(),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        // The mount keeps the file; its name is no longer needed, so nothing is left behind.
        fs::remove_file(&source)?;
        bound.map_err(io::Error::from)
    }
}

fn scratch_path() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("tv-sandbox-{}-{number}", std::process::id()))
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("running ip: {error}; install iproute2"));
    assert!(
        output.status.success(),
        "ip {}: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
}

fn has_capabilities() -> io::Result<bool> {
    const CAP_NET_ADMIN: u32 = 12;
    const CAP_SYS_ADMIN: u32 = 21;
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    Ok([CAP_NET_ADMIN, CAP_SYS_ADMIN]
        .iter()
        .all(|bit| effective & (1 << bit) != 0))
}

/// Binds as soon as the address is free: a process that another test just forked holds copies of this process's
/// sockets, those that are closed since included, until it execs.
///
/// # Errors
/// What `bind` says at last; that the address is in use, after ten seconds.
pub fn bound<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match bind() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            bound => return bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn a_sandbox_has_its_own_addresses_files_and_bpffs() {
        if !available_or_skip() {
            return;
        }
        let hosts_outside = fs::read("/etc/hosts").unwrap();
        let addresses = ["203.0.113.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
        run(&addresses, |sandbox| {
            for address in addresses {
                TcpListener::bind((address, 443)).unwrap();
            }
            let magic = nix::sys::statfs::statfs(BPFFS).unwrap().filesystem_type();
            assert_eq!(magic, nix::sys::statfs::BPF_FS_MAGIC);
            fs::create_dir(Path::new(BPFFS).join("tv-sandbox")).unwrap();
            sandbox.bind_file("203.0.113.7 api.test\n", "/etc/hosts").unwrap();
            // A child lives in the same place.
            let child = Command::new("cat").arg("/etc/hosts").output().unwrap();
            assert_eq!(child.stdout, b"203.0.113.7 api.test\n");
            assert!(sandbox.bind_file("", "/nonexistent/target").is_err());
        });
        assert!(TcpListener::bind(("203.0.113.7", 0)).is_err());
        assert_eq!(fs::read("/etc/hosts").unwrap(), hosts_outside);
        assert!(!Path::new(BPFFS).join("tv-sandbox").exists());
        let left = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        let prefix = format!("tv-sandbox-{}-", std::process::id());
        assert!(
            !left
                .into_iter()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        );
    }
}

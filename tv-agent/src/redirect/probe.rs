//! Preflight of the kernel half: what this machine has, and how to mend what it lacks.

use std::fs;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::Error;
use super::cgroup::cgroup2_mount;
use super::object::{object, object_sha256};
use crate::sys;

mod features;

pub(super) use features::shows_mptcp_origins;

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub name: &'static str,
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it, where something is to be done.
    pub remedy: Option<String>,
}

/// Looks at everything that [`Redirect::load`](super::Redirect::load) and attaching need, changing nothing.
pub fn probe() -> Vec<Finding> {
    let mut findings = vec![
        object_finding(),
        kernel(),
        btf(),
        cgroup2(),
        bpffs(),
        capabilities(),
        netns_cookie(),
    ];
    findings.extend(features::findings(&features::Running));
    findings
}

/// Supported from here on.
const FLOOR: (u32, u32) = (5, 15);
/// Works from here on, but sockets that net_cls tags escape. Before it SO_NETNS_COOKIE is missing.
const BEST_EFFORT: (u32, u32) = (5, 14);
const COOKIE: &str = "SO_NETNS_COOKIE";

/// Whether user space can learn the number by which the programs know a network namespace (Linux 5.14).
///
/// # Errors
/// [`Error::Unsupported`]: a kernel on which an accepted connection's record could not be looked up.
pub(super) fn tells_netns_cookies() -> Result<(), Error> {
    let cookie = UnixDatagram::unbound().and_then(|socket| sys::netns_cookie(socket.as_fd()));
    cookie.map(drop).map_err(|_| Error::Unsupported(COOKIE))
}

fn netns_cookie() -> Finding {
    match tells_netns_cookies() {
        Ok(()) => finding(COOKIE, true, "there".into(), None),
        Err(_) => finding(
            COOKIE,
            false,
            "the kernel does not have it (Linux 5.14)".into(),
            Some(format!("use Linux {}.{} or later", FLOOR.0, FLOOR.1)),
        ),
    }
}

fn kernel() -> Finding {
    let release = nix::sys::utsname::uname()
        .map(|uts| uts.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    judge_kernel(&release)
}

fn judge_kernel(release: &str) -> Finding {
    let version = parse_version(release);
    let upgrade = Some(format!("use Linux {}.{} or later", FLOOR.0, FLOOR.1));
    let (ok, detail, remedy) = match version {
        Some(version) if version >= FLOOR => (true, format!("Linux {release}"), None),
        Some(version) if version >= BEST_EFFORT => {
            (true, format!("Linux {release}, which is best effort"), upgrade)
        }
        Some(_) => (false, format!("Linux {release} is too old"), upgrade),
        None => (false, format!("no version in `{release}`"), upgrade),
    };
    finding("kernel", ok, detail, remedy)
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn object_finding() -> Finding {
    match (object(), object_sha256()) {
        (Some(object), Some(hash)) => {
            let detail = format!("{} bytes, SHA-256 {hash}", object.len());
            finding("bpf object", true, detail, None)
        }
        _ => finding(
            "bpf object",
            false,
            "this binary was built without the kernel half".into(),
            Some("build it with: cargo xtask build --release".into()),
        ),
    }
}

fn btf() -> Finding {
    let path = "/sys/kernel/btf/vmlinux";
    let ok = Path::new(path).exists();
    let remedy = (!ok).then(|| "use a kernel with CONFIG_DEBUG_INFO_BTF=y".into());
    let detail = if ok {
        path.into()
    } else {
        format!("{path} is missing")
    };
    finding("btf", ok, detail, remedy)
}

fn cgroup2() -> Finding {
    match cgroup2_mount() {
        Ok(path) => finding("cgroup v2", true, path.display().to_string(), None),
        Err(error) => finding(
            "cgroup v2",
            false,
            error.to_string(),
            Some("mount -t cgroup2 none /sys/fs/cgroup".into()),
        ),
    }
}

fn bpffs() -> Finding {
    let path = "/sys/fs/bpf";
    match statfs(path) {
        Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => finding("bpffs", true, path.into(), None),
        Ok(_) => finding(
            "bpffs",
            true,
            format!("not mounted at {path}; the agent mounts it there"),
            None,
        ),
        Err(error) => finding(
            "bpffs",
            false,
            format!("{path}: {error}"),
            Some("use a kernel with CONFIG_BPF_SYSCALL=y, and mount sysfs at /sys".into()),
        ),
    }
}

fn capabilities() -> Finding {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    judge_capabilities(&status)
}

/// linux/capability.h. CAP_SYS_ADMIN includes CAP_BPF, and is needed for mounts and namespaces anyway.
fn judge_capabilities(status: &str) -> Finding {
    const NET_ADMIN: u32 = 12;
    const SYS_PTRACE: u32 = 19;
    const SYS_ADMIN: u32 = 21;
    const BPF: u32 = 39;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let has = |bit: u32| effective & (1 << bit) != 0;
    let missing: Vec<&str> = [
        ("CAP_BPF", has(BPF) || has(SYS_ADMIN)),
        ("CAP_NET_ADMIN", has(NET_ADMIN)),
        ("CAP_SYS_ADMIN", has(SYS_ADMIN)),
        // To find the network namespaces of processes that are not our user's.
        ("CAP_SYS_PTRACE", has(SYS_PTRACE)),
    ]
    .into_iter()
    .filter_map(|(name, present)| (!present).then_some(name))
    .collect();
    if missing.is_empty() {
        let detail = "CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE".into();
        return finding("capabilities", true, detail, None);
    }
    finding(
        "capabilities",
        false,
        format!("missing: {}", missing.join(", ")),
        Some("run as root, or in a privileged container".into()),
    )
}

fn finding(name: &'static str, ok: bool, detail: String, remedy: Option<String>) -> Finding {
    Finding {
        name,
        ok,
        detail,
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_judged_by_their_version() {
        for (release, ok, remedy) in [
            ("6.18.44", true, false),
            ("5.15.0-generic", true, false),
            ("5.14.0-503.el9.x86_64", true, true),
            ("5.10.262+deb11", false, true),
            ("5.9.1", false, true),
            ("4.18.0", false, true),
            ("rolling", false, true),
            ("", false, true),
        ] {
            let finding = judge_kernel(release);
            assert_eq!((finding.ok, finding.remedy.is_some()), (ok, remedy), "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let all = judge_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert!(all.ok, "{all:?}");
        let none = judge_capabilities("CapEff:\t0000000000000000\n");
        assert_eq!(
            none.detail,
            "missing: CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_SYS_PTRACE"
        );
        let container = judge_capabilities("CapEff:\t00000000a80435fb\n");
        assert!(!container.ok && container.remedy.is_some());
        assert!(!judge_capabilities("").ok);
    }

    #[test]
    fn everything_is_looked_at_without_privileges_too() {
        let findings = probe();
        for name in [
            "bpf object",
            "kernel",
            "btf",
            "cgroup v2",
            "bpffs",
            "capabilities",
            "SO_NETNS_COOKIE",
        ] {
            assert!(findings.iter().any(|finding| finding.name == name), "{name}");
        }
        for finding in findings {
            assert!(finding.ok || finding.remedy.is_some(), "{finding:?}");
        }
    }
}

//! What of the sandbox this machine can give, for `tv-agent check`: asked, not tried.

use std::fs;

use crate::sys;

/// The first ABI that keeps signals and abstract sockets inside.
const SCOPES: u32 = 6;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Support {
    pub seccomp: bool,
    /// The kernel's Landlock ABI; 0: it has none, or it is not enabled.
    pub landlock: u32,
    /// Capabilities that are needed and not there.
    pub missing: Vec<&'static str>,
}

/// Asks the kernel.
pub fn support() -> Support {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    Support {
        seccomp: sys::takes_filters(),
        landlock: sys::landlock_abi(),
        missing: missing(&status),
    }
}

impl Support {
    /// Why no data path can be started, with what to do; None: it can.
    pub fn refusal(&self) -> Option<(String, &'static str)> {
        if !self.seccomp {
            let what = "the kernel takes no filter of system calls".to_owned();
            return Some((what, "use a kernel with CONFIG_SECCOMP_FILTER=y"));
        }
        if !self.missing.is_empty() {
            let what = format!("missing: {}", self.missing.join(", "));
            return Some((
                what,
                "run as root, or grant them, so that the data path can stop being root",
            ));
        }
        None
    }

    /// What it will be confined by.
    pub fn detail(&self) -> String {
        match self.landlock {
            0 => "seccomp; no Landlock here: what its user may read, the data path may read".to_owned(),
            abi if abi < SCOPES => {
                format!("seccomp, Landlock ABI {abi} (scopes for signals come with Linux 6.12)")
            }
            abi => format!("seccomp, Landlock ABI {abi}"),
        }
    }
}

/// linux/capability.h. Pure.
fn missing(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    [("CAP_SETGID", 6), ("CAP_SETUID", 7)]
        .into_iter()
        .filter_map(|(name, bit)| (effective & (1 << bit) == 0).then_some(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(missing("CapPrm:\t0\nCapEff:\t00000000000000c0\n").is_empty());
        assert_eq!(missing("CapEff:\t0000000000000080\n"), ["CAP_SETGID"]);
        assert_eq!(missing(""), ["CAP_SETGID", "CAP_SETUID"]);
    }

    #[test]
    fn a_machine_without_seccomp_is_refused_and_one_without_landlock_is_told() {
        let mut support = Support {
            seccomp: true,
            landlock: 7,
            missing: Vec::new(),
        };
        assert_eq!(support.refusal(), None);
        assert!(support.detail().ends_with("ABI 7"));
        support.landlock = 1;
        assert!(support.detail().contains("6.12"));
        support.landlock = 0;
        assert_eq!(support.refusal(), None);
        assert!(support.detail().contains("no Landlock"));
        support.missing = vec!["CAP_SETUID"];
        assert!(support.refusal().unwrap().0.contains("CAP_SETUID"));
        support.seccomp = false;
        assert!(support.refusal().unwrap().1.contains("SECCOMP"));
    }

    /// Whoever asks: the kernel that runs the tests has had filters since 2012.
    #[test]
    fn the_kernel_is_asked() {
        assert!(support().seccomp);
    }
}

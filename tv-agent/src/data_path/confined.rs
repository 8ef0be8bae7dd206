//! Giving up every privilege, for good.

use std::io;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};

/// Whether a process without privileges can be had: what there is for it, or what is missing and the remedy.
///
/// # Errors
/// When there is something missing.
pub fn probe() -> Result<String, (String, String)> {
    judge(&std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
}

/// linux/capability.h.
fn judge(status: &str) -> Result<String, (String, String)> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    let has = |bit: u32| effective.unwrap_or(0) & (1 << bit) != 0;
    let wanted = [("CAP_SETGID", has(6)), ("CAP_SETUID", has(7))];
    let missing: Vec<&str> = wanted
        .into_iter()
        .filter_map(|(name, there)| (!there).then_some(name))
        .collect();
    if missing.is_empty() {
        return Ok("connections are served by a process without privileges".to_owned());
    }
    let remedy = "run as root, or grant the container or unit these capabilities";
    Err((format!("missing: {}", missing.join(", ")), remedy.to_owned()))
}

/// Becomes `uid` and `gid` without any capability, and dies with its parent.
///
/// # Errors
/// When the kernel refuses: CAP_SETUID or CAP_SETGID is missing.
pub(super) fn enter(uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    prctl::set_keepcaps(false)?;
    prctl::set_no_new_privs()?;
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    // Capabilities go with the user (capabilities(7)).
    setresuid(uid, uid, uid)?;
    // After the change of user, which resets both.
    prctl::set_dumpable(false)?;
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert!(judge("CapEff:\t00000000000000c0\n").is_ok());
        let (missing, _) = judge("CapEff:\t0000000000000040\n").unwrap_err();
        assert_eq!(missing, "missing: CAP_SETUID");
        for nothing in ["", "CapEff:\t0000000000000000\n", "CapEff:\tx\n"] {
            let (missing, _) = judge(nothing).unwrap_err();
            assert_eq!(missing, "missing: CAP_SETGID, CAP_SETUID");
        }
    }
}

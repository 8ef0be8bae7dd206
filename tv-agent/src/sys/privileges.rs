//! What a process gives up, and what the kernel can take from it: the calls that nix and the crates do not have.

use std::io;

/// prctl(2) with one argument.
fn prctl(option: libc::c_int, argument: libc::c_ulong) -> io::Result<libc::c_int> {
    const NONE: libc::c_ulong = 0;
    // SAFETY: the options that are asked for here take integers.
    let rc = unsafe { libc::prctl(option, argument, NONE, NONE, NONE) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// Empties this thread's bounding set, so that no execve(2) gives a capability again (capabilities(7)).
///
/// # Errors
/// EPERM: CAP_SETPCAP is missing.
pub fn drop_bounding_set() -> io::Result<()> {
    // The kernel says where they end, by EINVAL; a mask has no more than 64.
    for capability in 0..64 {
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Err(error) if capability > 0 && error.raw_os_error() == Some(libc::EINVAL) => break,
            dropped => drop(dropped?),
        }
    }
    Ok(())
}

/// Takes from user 0 what it has by being user 0, for this thread and for good (securebits, capabilities(7)).
///
/// # Errors
/// EPERM: CAP_SETPCAP is missing.
pub fn lock_securebits() -> io::Result<()> {
    // include/uapi/linux/securebits.h: no capabilities by execve(2), none kept or raised over it; each one locked. That a
    // change of user empties the sets (NO_SETUID_FIXUP) is locked as it is.
    const NOROOT: libc::c_ulong = 0b11;
    const SETUID_FIXUP_LOCKED: libc::c_ulong = 0b1000;
    const KEEP_CAPS_LOCKED: libc::c_ulong = 0b10_0000;
    const NO_CAP_AMBIENT_RAISE: libc::c_ulong = 0b1100_0000;
    let bits = NOROOT | SETUID_FIXUP_LOCKED | KEEP_CAPS_LOCKED | NO_CAP_AMBIENT_RAISE;
    prctl(libc::PR_SET_SECUREBITS, bits).map(drop)
}

/// Empties all other sets of this thread's (capset(2)); the ambient one goes with the inheritable.
///
/// # Errors
/// None that is known: less may always be had.
pub fn drop_capabilities() -> io::Result<()> {
    const VERSION_3: u32 = 0x2008_0522;
    // Version; this thread.
    let header = [VERSION_3, 0];
    // Effective, permitted and inheritable, twice 32 of each.
    let sets = [0u32; 6];
    // SAFETY: the call reads both, which live across it and are as long as version 3 says.
    let rc = unsafe { libc::syscall(libc::SYS_capset, &raw const header, &raw const sets) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Whether the kernel has filters of system calls that can end the process (seccomp(2), Linux 4.14).
pub fn takes_filters() -> bool {
    let action = libc::SECCOMP_RET_KILL_PROCESS;
    // SAFETY: the call reads 32 bits, which live across it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL,
            0,
            &raw const action,
        )
    };
    rc == 0
}

/// The kernel's Landlock ABI; 0: it has none, or it is not enabled (landlock_create_ruleset(2), Linux 5.13).
pub fn landlock_abi() -> u32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no memory of ours.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            VERSION,
        )
    };
    u32::try_from(abi).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In threads of their own, since these are given up for good; each thread has its own.
    #[test]
    fn capabilities_are_given_up() {
        let set = |name: &str| {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
        };
        std::thread::spawn(move || {
            const SETPCAP: u64 = 1 << 8;
            if set("CapEff:") & SETPCAP != 0 {
                drop_bounding_set().unwrap();
                lock_securebits().unwrap();
                assert_eq!(set("CapBnd:"), 0);
            }
            drop_capabilities().unwrap();
            for name in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                assert_eq!(set(name), 0, "{name}");
            }
            for refused in [drop_bounding_set(), lock_securebits()] {
                assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EPERM));
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_kernel_says_what_it_confines_by() {
        assert!(takes_filters());
        // No kernel is a hundred ABIs ahead.
        assert!(landlock_abi() < 100);
    }
}

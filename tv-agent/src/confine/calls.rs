//! The system calls that stay (seccomp). Three filters, since a compiled one knows one action besides its default; of
//! their verdicts the kernel takes the strictest.
//!
//! What is not listed fails with EPERM: libraries, of this version of glibc or another, try some calls and do without.
//! What ends the process is called by no version of anything in it, and is a step of an attack on the kernel or on
//! another process: whoever tries it has taken the process over, and gets no second try. clone3(2) does not exist here,
//! since its flags are out of a filter's sight; glibc then uses clone(2).

use std::collections::BTreeMap;

use libc::{c_int, c_long};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter_all_threads,
};

use super::Error;

mod lists;

use lists::{ALLOWED, ALLOWED_HERE, DEADLY, DEADLY_HERE};

/// A system call, and the arguments for which a rule holds: one of the rules, each with all its conditions. None: any.
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// From now on, for all threads.
pub(super) fn restrict() -> Result<(), Error> {
    // The one that forbids seccomp(2) comes last. Of two equal verdicts the later filter's errno counts: it has to let
    // clone3 pass.
    for program in [absent()?, deadly()?, allowed()?] {
        apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// What this kernel does not have.
fn absent() -> Result<BpfProgram, BackendError> {
    let rules = Rules::from([(libc::SYS_clone3, Vec::new())]);
    compile(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
    )
}

fn deadly() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = [DEADLY, DEADLY_HERE].concat().into_iter().map(any).collect();
    // What is no thread is another process.
    rules.insert(libc::SYS_clone, one(vec![bits(0, libc::CLONE_THREAD, 0)?])?);
    compile(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn allowed() -> Result<BpfProgram, BackendError> {
    let mut rules: Rules = [ALLOWED, ALLOWED_HERE].concat().into_iter().map(any).collect();
    rules.extend(conditional()?);
    compile(
        rules,
        SeccompAction::Errno(libc::EPERM.cast_unsigned()),
        SeccompAction::Allow,
    )
}

fn compile(
    rules: Rules,
    otherwise: SeccompAction,
    action: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = std::env::consts::ARCH.try_into()?;
    SeccompFilter::new(rules, otherwise, action, architecture)?.try_into()
}

/// What is allowed for some arguments only.
fn conditional() -> Result<Rules, BackendError> {
    const NAMESPACES: c_int = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET;
    const WRITING: c_int = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let threads = bits(0, libc::CLONE_THREAD | NAMESPACES, libc::CLONE_THREAD)?;
    let own = is(0, std::process::id().cast_signed())?;
    let rules = [
        // Threads, in the namespaces that the process has.
        (libc::SYS_clone, one(vec![threads])?),
        // abort(3).
        (libc::SYS_tgkill, one(vec![own])?),
        // No file is opened for writing, also where there is no Landlock.
        (libc::SYS_openat, one(vec![bits(2, WRITING, 0)?])?),
        // Memory is writable or executable: machine code comes from files only (modules of the name service).
        (libc::SYS_mmap, memory()?),
        (libc::SYS_mprotect, one(vec![bits(2, libc::PROT_EXEC, 0)?])?),
        (libc::SYS_socket, sockets()?),
        (libc::SYS_socketpair, pairs()?),
        // Limits are read, not set.
        (libc::SYS_prlimit64, one(vec![null(2)?])?),
        (
            libc::SYS_prctl,
            each(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, PR_SET_VMA])?,
        ),
        (libc::SYS_fcntl, each(1, &FCNTL)?),
        (libc::SYS_ioctl, each(1, &IOCTL)?),
        (libc::SYS_setsockopt, each(1, &LEVELS)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, one(vec![bits(1, WRITING, 0)?])?),
    ];
    Ok(rules.into_iter().collect())
}

/// Names of memory areas, which malloc sets (linux/prctl.h).
const PR_SET_VMA: c_int = 0x5356_4d41;
const FCNTL: [c_int; 8] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETPIPE_SZ,
    libc::F_SETPIPE_SZ,
];
const IOCTL: [c_int; 6] = [
    ioctl(libc::FIONBIO),
    ioctl(libc::FIONREAD),
    ioctl(libc::FIOCLEX),
    ioctl(libc::TIOCOUTQ),
    ioctl(libc::TCGETS),
    ioctl(libc::TIOCGWINSZ),
];
/// No ULP of the kernel's, no netfilter.
const LEVELS: [c_int; 5] = [
    libc::SOL_SOCKET,
    libc::IPPROTO_IP,
    libc::IPPROTO_IPV6,
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
];

#[expect(clippy::cast_possible_truncation, reason = "they are below 2^16")]
const fn ioctl(request: libc::Ioctl) -> c_int {
    request as c_int
}

/// TCP and UDP. No AF_UNIX: whatever listens there is another process's. No netlink, raw and packet sockets.
fn sockets() -> Result<Vec<SeccompRule>, BackendError> {
    let mut rules = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (kind, own) in [
            (libc::SOCK_STREAM, libc::IPPROTO_TCP),
            (libc::SOCK_DGRAM, libc::IPPROTO_UDP),
        ] {
            for protocol in [0, own] {
                rules.extend(one(vec![is(0, family)?, bits(1, KIND, kind)?, is(2, protocol)?])?);
            }
        }
    }
    Ok(rules)
}

/// The type of a socket without its flags (SOCK_TYPE_MASK, include/linux/net.h).
const KIND: c_int = 0xf;

/// Between threads. A datagram socket of a pair could still be connected to another process's.
fn pairs() -> Result<Vec<SeccompRule>, BackendError> {
    let mut rules = Vec::new();
    for kind in [libc::SOCK_STREAM, libc::SOCK_SEQPACKET] {
        rules.extend(one(vec![is(0, libc::AF_UNIX)?, bits(1, KIND, kind)?])?);
    }
    Ok(rules)
}

fn memory() -> Result<Vec<SeccompRule>, BackendError> {
    let data = one(vec![bits(2, libc::PROT_EXEC, 0)?])?;
    let code = one(vec![
        bits(2, libc::PROT_EXEC | libc::PROT_WRITE, libc::PROT_EXEC)?,
        bits(3, libc::MAP_ANONYMOUS, 0)?,
    ])?;
    Ok([data, code].concat())
}

fn any(call: c_long) -> (i64, Vec<SeccompRule>) {
    (call, Vec::new())
}

fn one(conditions: Vec<SeccompCondition>) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![SeccompRule::new(conditions)?])
}

/// One rule for each value.
fn each(argument: u8, values: &[c_int]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value: &c_int| SeccompRule::new(vec![is(argument, *value)?]);
    values.iter().map(rule).collect()
}

fn is(argument: u8, value: c_int) -> Result<SeccompCondition, BackendError> {
    compare(argument, SeccompCmpOp::Eq, value)
}

/// Of these bits, those of `value` are set.
fn bits(argument: u8, mask: c_int, value: c_int) -> Result<SeccompCondition, BackendError> {
    compare(
        argument,
        SeccompCmpOp::MaskedEq(mask.cast_unsigned().into()),
        value,
    )
}

/// 32 bits: the kernel takes these arguments for an `int`, whatever stands above.
fn compare(argument: u8, operator: SeccompCmpOp, value: c_int) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Dword,
        operator,
        value.cast_unsigned().into(),
    )
}

fn null(argument: u8) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_both_allowed_and_deadly() {
        let allowed: Vec<c_long> = [ALLOWED, ALLOWED_HERE].concat();
        let deadly: Vec<c_long> = [DEADLY, DEADLY_HERE].concat();
        let both: Vec<_> = allowed.iter().filter(|call| deadly.contains(call)).collect();
        assert!(both.is_empty(), "{both:?}");
        for call in conditional().unwrap().keys() {
            assert!(!allowed.contains(call) && !deadly.contains(call), "{call}");
        }
    }

    /// What they do is shown by the tests of the layer e2e.
    #[test]
    fn the_filters_fit_into_the_kernels_limit() {
        const BPF_MAXINSNS: usize = 4096;
        for program in [absent(), deadly(), allowed()] {
            assert!((1..=BPF_MAXINSNS).contains(&program.unwrap().len()));
        }
    }
}

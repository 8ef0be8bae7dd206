//! What the process that parses the network's bytes gives up, for good: its user, its capabilities, the file system but
//! for a few trees, and all system calls but those that it needs (`calls.rs`).
//!
//! A flaw in a parser then gives an attacker what passes through that process, and no way on: neither root, nor the CA's
//! key, nor other processes, nor most of the kernel's surface.

use std::io;
use std::path::PathBuf;

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, getppid, setgroups, setresgid, setresuid};

use crate::sys;

mod calls;
mod support;
mod trees;
mod user;

pub use support::{Support, support};
pub use trees::default_trees;
pub use user::{DEFAULT_NAME, DEFAULT_UID, Unknown, User};

/// What is left to the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    pub user: User,
    /// Files, and directories with all below them, that it may read as far as its user may.
    pub read: Vec<PathBuf>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confined {
    /// Whether Landlock is in force.
    pub landlock: bool,
    /// What this kernel, or the capabilities that we were started with, could not give; to be logged.
    pub missing: Vec<&'static str>,
}

/// Why the process is not confined. It must not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0} threads run already; a process is confined while it has one")]
    Threads(usize),
    #[error("cannot become user {} and group {}; grant CAP_SETUID and CAP_SETGID", user.uid, user.gid)]
    User { user: User, source: io::Error },
    #[error("cannot give up {what}")]
    GiveUp { what: &'static str, source: io::Error },
    #[error("the process that started this one is gone")]
    Orphan,
    #[error("cannot restrict the file system")]
    Trees(#[from] landlock::RulesetError),
    #[error("cannot compile the filter of system calls")]
    Compile(#[from] seccompiler::BackendError),
    #[error("the kernel takes no filter of system calls; use one with CONFIG_SECCOMP_FILTER=y")]
    Filter(#[from] seccompiler::Error),
}

/// Confines this process. Irrevocable, also when it fails half-way.
///
/// To be called while there is one thread, as root. The process ends with the thread that started it: start it from one
/// that lives as long as the process (PR_SET_PDEATHSIG, prctl(2)). Descriptors that are open stay usable.
///
/// # Errors
/// When anything but what [`Confined`] may say to be missing cannot be had.
pub fn enter(confinement: &Confinement) -> Result<Confined, Error> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(gave_up("a look at our threads"))?;
    let threads = threads.count();
    if threads != 1 {
        return Err(Error::Threads(threads));
    }
    let parent = getppid();
    let mut missing = Vec::new();
    // First what takes capabilities. A container may have started us without CAP_SETPCAP: then both stay, of no use
    // without new privileges.
    if let Err(error) = sys::drop_bounding_set() {
        allow_eperm(
            error,
            "the bounding set",
            "an empty bounding set (CAP_SETPCAP)",
            &mut missing,
        )?;
    }
    if let Err(error) = sys::lock_securebits() {
        allow_eperm(
            error,
            "privileges of user 0",
            "securebits (CAP_SETPCAP)",
            &mut missing,
        )?;
    }
    let User { uid, gid } = confinement.user;
    let (as_uid, as_gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    setgroups(&[])
        .and_then(|()| setresgid(as_gid, as_gid, as_gid))
        .and_then(|()| setresuid(as_uid, as_uid, as_uid))
        .map_err(|errno| Error::User {
            user: confinement.user,
            source: errno.into(),
        })?;
    // Leaving uid 0 has emptied the sets; this is for whoever was started without it, but with capabilities.
    sys::drop_capabilities().map_err(gave_up("capabilities"))?;
    prctl::set_no_new_privs().map_err(|errno| gave_up("new privileges")(errno.into()))?;
    // A change of user resets both of these.
    prctl::set_dumpable(false).map_err(|errno| gave_up("being traced")(errno.into()))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(|errno| gave_up("outliving the parent")(errno.into()))?;
    if getppid() != parent {
        return Err(Error::Orphan);
    }
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| gave_up("core dumps")(errno.into()))?;
    let landlock = trees::restrict(&confinement.read, &mut missing)?;
    // Last: the filter forbids what was called above.
    calls::restrict()?;
    Ok(Confined { landlock, missing })
}

fn gave_up(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::GiveUp { what, source }
}

/// Notes as missing what we may not do, and fails for any other reason.
fn allow_eperm(
    error: io::Error,
    what: &'static str,
    without: &'static str,
    missing: &mut Vec<&'static str>,
) -> Result<(), Error> {
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(gave_up(what)(error));
    }
    missing.push(without);
    Ok(())
}

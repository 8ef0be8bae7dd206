//! The host's view of cgroups, for an agent in a container.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::sched::{CloneFlags, setns};

/// Enters the cgroup namespace of process 1: paths in /proc/PID/cgroup are relative to the reader's namespace, and
/// container runtimes give each container that is not privileged one of its own.
///
/// To be called before there are other threads, which would stay where they are. Nothing happens on a plain host, and
/// in a container that does not see the host's processes.
///
/// # Errors
/// When the kernel refuses (it takes CAP_SYS_ADMIN and CAP_SYS_PTRACE); the agent works on, without names of processes.
pub fn enter_cgroup_namespace() -> io::Result<()> {
    enter(Path::new("/proc/1/ns/cgroup"))
}

fn enter(namespace: &Path) -> io::Result<()> {
    if fs::read_link(namespace)? == fs::read_link("/proc/thread-self/ns/cgroup")? {
        return Ok(());
    }
    setns(File::open(namespace)?, CloneFlags::CLONE_NEWCGROUP)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_there_already_needs_no_privilege() {
        enter(Path::new("/proc/thread-self/ns/cgroup")).unwrap();
        assert!(enter(Path::new("/nonexistent")).is_err());
    }
}

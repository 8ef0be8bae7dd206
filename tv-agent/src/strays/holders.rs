//! Which enrolled process has a socket open: the descriptors in /proc, a bounded number of them at a time.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::limits;
use crate::netns::{processes, subdirectories};
use crate::redirect;

/// A process that has the socket open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) process: i32,
    /// As in /proc/PID/comm.
    pub(super) name: String,
    pub(super) cgroup_id: u64,
}

/// Looks through processes; where one look had to end, the next begins.
#[derive(Debug)]
pub(super) struct Holders {
    /// The first process that the last look had no time for.
    next: i32,
    own_process: i32,
    /// The agent's own cgroup, which may lie below an enrolled one.
    own_cgroup: Option<u64>,
}

impl Holders {
    pub(super) fn new() -> Self {
        let own_cgroup = redirect::cgroup2_mount().ok().and_then(|mount| {
            let lines = fs::read_to_string("/proc/self/cgroup").ok()?;
            let path = lines.lines().find_map(|line| line.strip_prefix("0::"))?;
            redirect::cgroup_id(&mount.join(path.trim_start_matches('/'))).ok()
        });
        Self {
            next: 0,
            own_process: std::process::id().cast_signed(),
            own_cgroup,
        }
    }

    /// The holders of sockets whose inodes are `wanted`, among the processes below `roots`, and whether all of them were
    /// looked at: at most `descriptors` are read.
    pub(super) fn find(
        &mut self,
        roots: &[PathBuf],
        wanted: &HashSet<u32>,
        descriptors: usize,
    ) -> (HashMap<u32, Holder>, bool) {
        let (mut enrolled, complete) = self.enrolled(roots);
        enrolled.sort_unstable();
        let start = enrolled.partition_point(|(process, _)| *process < self.next);
        enrolled.rotate_left(start);
        self.next = 0;
        let mut found = HashMap::new();
        let mut left = descriptors;
        for (process, cgroup_id) in enrolled {
            if found.len() == wanted.len() {
                break;
            }
            if left == 0 {
                self.next = process;
                return (found, false);
            }
            for inode in sockets(process, &mut left) {
                if wanted.contains(&inode) && !found.contains_key(&inode) {
                    found.insert(inode, holder(process, cgroup_id));
                }
            }
        }
        (found, complete)
    }

    /// Processes below `roots` with the ids of their cgroups, and whether that is all of them.
    fn enrolled(&self, roots: &[PathBuf]) -> (Vec<(i32, u64)>, bool) {
        let mut enrolled = Vec::new();
        let mut todo = roots.to_vec();
        let mut visited = 0;
        while let Some(directory) = todo.pop() {
            visited += 1;
            if visited > limits::DISCOVERY_CGROUPS || enrolled.len() > limits::DISCOVERY_PROCESSES {
                return (enrolled, false);
            }
            let Ok(id) = fs::metadata(&directory).map(|metadata| metadata.ino()) else {
                continue;
            };
            if Some(id) != self.own_cgroup {
                let others = processes(&directory)
                    .into_iter()
                    .filter(|process| *process != self.own_process);
                enrolled.extend(others.map(|process| (process, id)));
            }
            todo.extend(subdirectories(&directory));
        }
        (enrolled, true)
    }
}

fn holder(process: i32, cgroup_id: u64) -> Holder {
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Holder {
        process,
        name: name.trim_end().to_owned(),
        cgroup_id,
    }
}

/// Inodes of the sockets that `process` has open. What is over `left` is not looked at.
fn sockets(process: i32, left: &mut usize) -> Vec<u32> {
    // One that is gone has none.
    let entries = fs::read_dir(format!("/proc/{process}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut inodes = Vec::new();
    for entry in entries {
        if *left == 0 {
            break;
        }
        *left -= 1;
        inodes.extend(fs::read_link(entry.path()).ok().as_deref().and_then(inode));
    }
    inodes
}

/// Of `socket:[4711]`.
fn inode(link: &Path) -> Option<u32> {
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn a_link_to_a_socket_has_an_inode() {
        assert_eq!(inode(Path::new("socket:[4711]")), Some(4711));
        for other in [
            "pipe:[1]",
            "/dev/null",
            "socket:[",
            "socket:[x]",
            "socket:[4711] ",
        ] {
            assert_eq!(inode(Path::new(other)), None, "{other}");
        }
    }

    /// A directory that looks like a cgroup with this process in it.
    fn cgroup(name: &str) -> tempfile::TempDir {
        let directory = tempfile::Builder::new().prefix(name).tempdir().unwrap();
        fs::create_dir(directory.path().join("inner")).unwrap();
        fs::write(
            directory.path().join("inner/cgroup.procs"),
            format!("{}\n", std::process::id()),
        )
        .unwrap();
        directory
    }

    fn look(descriptors: usize, own_process: i32) -> (Option<Holder>, bool) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let wanted = inode(&link).unwrap();
        let directory = cgroup("tv-holders");
        let mut holders = Holders {
            next: 0,
            own_process,
            own_cgroup: None,
        };
        let roots = [directory.path().to_owned()];
        let (mut found, whole) = holders.find(&roots, &[wanted].into(), descriptors);
        (found.remove(&wanted), whole)
    }

    #[test]
    fn the_holder_of_a_socket_is_found_below_the_roots() {
        let (holder, whole) = look(10_000, 0);
        assert_eq!(holder.unwrap().process, std::process::id().cast_signed());
        assert!(whole);
    }

    #[test]
    fn the_agent_is_none() {
        let (holder, whole) = look(10_000, std::process::id().cast_signed());
        assert_eq!((holder, whole), (None, true));
    }

    #[test]
    fn a_look_ends_with_its_descriptors_and_the_next_goes_on_there() {
        let directory = cgroup("tv-holders-many");
        let mut sleeper = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let own = std::process::id().cast_signed();
        let other = sleeper.id().cast_signed();
        fs::write(directory.path().join("cgroup.procs"), format!("{other}\n")).unwrap();
        let mut holders = Holders {
            next: 0,
            own_process: 0,
            own_cgroup: None,
        };
        let roots = [directory.path().to_owned()];
        let (found, whole) = holders.find(&roots, &[u32::MAX].into(), 1);
        assert!(found.is_empty() && !whole);
        assert_eq!(holders.next, own.max(other));
        // The other one's turn, then the first one's again.
        holders.find(&roots, &[u32::MAX].into(), 1);
        assert_eq!(holders.next, own.min(other));
        assert!(holders.find(&roots, &[u32::MAX].into(), 10_000).1);
        sleeper.kill().unwrap();
        sleeper.wait().unwrap();
    }
}

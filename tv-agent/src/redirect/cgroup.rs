//! Where the cgroup v2 hierarchy is, and what the kernel calls a directory in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The mount point of the cgroup v2 hierarchy, as the calling thread sees it.
///
/// Hybrid systems mount it beside the v1 controllers (/sys/fs/cgroup/unified), and a container may see only a
/// subtree; the mount that shows the most of the hierarchy wins.
///
/// # Errors
/// When no cgroup v2 mount is visible, or /proc is not readable.
pub fn cgroup2_mount() -> io::Result<PathBuf> {
    // thread-self, not self: a thread may have a mount namespace of its own.
    let mountinfo = fs::read_to_string("/proc/thread-self/mountinfo")?;
    find_cgroup2(&mountinfo).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup",
        )
    })
}

/// The id that programs see as the cgroup of a process: the inode number of its directory (Linux 5.6).
///
/// # Errors
/// When the directory does not exist or cannot be read.
pub fn cgroup_id(directory: &Path) -> io::Result<u64> {
    fs::metadata(directory).map(|metadata| metadata.ino())
}

/// proc_pid_mountinfo(5): id parent major:minor root mount-point options [optional...] - type source options.
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        after
            .starts_with("cgroup2 ")
            .then(|| (unescape(root), unescape(point)))
    });
    // On equal terms the last one wins: it may be mounted over the others.
    mounts
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .min_by_key(|(root, _)| root.trim_end_matches('/').len())
        .map(|(_, point)| PathBuf::from(point))
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_that_shows_most() {
        let hybrid = "\
            24 23 0:22 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            31 24 0:26 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n\
            32 24 0:27 / /sys/fs/cgroup/unified rw shared:11 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let nested = "\
            32 24 0:27 /docker/1 /mnt/part rw - cgroup2 cgroup2 rw\n\
            33 24 0:27 / /mnt/the\\040whole rw - cgroup2 cgroup2 rw\n\
            34 24 0:27 /docker/1/a /mnt/less rw - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(nested), Some("/mnt/the whole".into()));
        assert_eq!(find_cgroup2("24 23 0:22 / /sys rw - sysfs sysfs rw\n"), None);
        assert_eq!(find_cgroup2("nonsense\n\n - cgroup2 \n"), None);
    }

    #[test]
    fn the_id_is_the_inode() {
        let directory = std::env::temp_dir();
        assert_eq!(
            cgroup_id(&directory).unwrap(),
            fs::metadata(&directory).unwrap().ino()
        );
        assert!(cgroup_id(Path::new("/nonexistent")).is_err());
    }
}

//! The mounts of a namespace as /proc/PID/mountinfo lists them (proc_pid_mountinfo(5)), and which of them are ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One mount. Paths are those that the reader's root shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mounted {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// `major:minor` of its file system.
    pub(super) device: String,
    /// What of the file system is mounted.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
    /// Mounts made below it appear elsewhere too.
    pub(super) shared: bool,
}

/// All lines that are understood; others are none of ours.
pub(super) fn parse(text: &[u8]) -> Vec<Mounted> {
    text.split(|byte| *byte == b'\n').filter_map(line).collect()
}

/// `36 35 98:0 /root /point rw,noatime shared:1 master:2 - ext4 /dev/root rw`
fn line(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    let device = std::str::from_utf8(fields.next()?).ok()?.to_owned();
    let (root, point) = (unescaped(fields.next()?), unescaped(fields.next()?));
    let shared = fields
        .skip(1)
        .take_while(|field| *field != b"-")
        .any(|field| field.starts_with(b"shared:"));
    Some(Mounted {
        id,
        parent,
        device,
        root,
        point,
        shared,
    })
}

/// Space, tab, newline and backslash stand as three octal digits.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        bytes.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes).into()
}

/// What tells our mounts from all others: they show something below the directory of the copies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ours {
    device: String,
    below: PathBuf,
}

impl Ours {
    /// `directory` is an absolute path without symlinks, in the mount `id` of `mounts`.
    pub(super) fn of(mounts: &[Mounted], id: u64, directory: &Path) -> Option<Self> {
        let mount = mounts.iter().find(|mount| mount.id == id)?;
        Some(Self {
            device: mount.device.clone(),
            below: mount.root.join(directory.strip_prefix(&mount.point).ok()?),
        })
    }

    /// Those of a directory below it.
    pub(super) fn below(&self, name: &Path) -> Self {
        Self {
            device: self.device.clone(),
            below: self.below.join(name),
        }
    }

    pub(super) fn is(&self, mount: &Mounted) -> bool {
        mount.device == self.device && mount.root != self.below && mount.root.starts_with(&self.below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
25 22 0:23 / /run rw,nosuid shared:5 master:2 propagate_from:2 - tmpfs tmpfs rw,size=1k
90 22 0:23 /tv-agent/trust/4-77/1/certs-0 /etc/ssl/my\\040certs ro,nosuid,nodev,noexec - tmpfs tmpfs rw
91 90 0:23 /tv-agent/trust/4-77/1/b.pem//deleted /b\\134040.pem ro - tmpfs tmpfs rw
nonsense
92 22 0:23 /tv-agent/trustworthy /x ro - tmpfs tmpfs rw
";

    #[test]
    fn lines_are_read_with_their_escapes() {
        let mounts = parse(TEXT);
        let ids: Vec<u64> = mounts.iter().map(|mount| mount.id).collect();
        assert_eq!(ids, [22, 25, 90, 91, 92]);
        assert_eq!((mounts[2].parent, &*mounts[2].device), (22, "0:23"));
        assert_eq!(mounts[2].point, Path::new("/etc/ssl/my certs"));
        assert_eq!(mounts[3].point, Path::new("/b\\040.pem"));
        let shared: Vec<bool> = mounts.iter().map(|mount| mount.shared).collect();
        assert_eq!(shared, [true, true, false, false, false]);
    }

    #[test]
    fn ours_are_those_that_show_something_below_the_directory() {
        let mounts = parse(TEXT);
        let ours = Ours::of(&mounts, 25, Path::new("/run/tv-agent/trust")).unwrap();
        let ids = |ours: &Ours| -> Vec<u64> {
            let ours = mounts.iter().filter(|mount| ours.is(mount));
            ours.map(|mount| mount.id).collect()
        };
        assert_eq!(ids(&ours), [90, 91]);
        assert_eq!(ids(&ours.below(Path::new("4-77"))), [90, 91]);
        assert_eq!(ids(&ours.below(Path::new("4-7"))), [0; 0]);
        // The same path of another file system is another's.
        let other = Ours::of(&mounts, 22, Path::new("/tv-agent/trust")).unwrap();
        assert_eq!(ids(&other), [0; 0]);
        assert_eq!(Ours::of(&mounts, 25, Path::new("/elsewhere")), None);
        assert_eq!(Ours::of(&mounts, 4711, Path::new("/run")), None);
    }
}

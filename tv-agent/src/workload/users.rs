//! Names of users, from the agent's own /etc/passwd and nowhere else: a look-up must never wait for a network.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub const PASSWD: &str = "/etc/passwd";
/// How often it is seen whether the file has changed.
const LOOK: Duration = Duration::from_secs(10);
/// Of a larger file the rest is not looked at.
const MAX_BYTES: u64 = 1024 * 1024;

/// uid → name, kept until the file changes.
pub struct Users {
    file: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    names: HashMap<u32, Arc<str>>,
}

impl Users {
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            seen: Mutex::default(),
        }
    }

    pub fn name(&self, uid: u32) -> Option<Arc<str>> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.looked.is_none_or(|looked| looked.elapsed() >= LOOK) {
            seen.looked = Some(Instant::now());
            let modified = std::fs::metadata(&self.file).and_then(|m| m.modified()).ok();
            if modified != seen.modified {
                seen.modified = modified;
                seen.names.clear();
                for (name, uid) in entries(&text(&self.file)) {
                    // The first of several names is the one that counts, as for getpwuid(3).
                    seen.names.entry(uid).or_insert_with(|| name.into());
                }
            }
        }
        seen.names.get(&uid).cloned()
    }
}

/// The uid of `name` in /etc/passwd.
pub fn uid_of(name: &str) -> Option<u32> {
    let text = text(Path::new(PASSWD));
    entries(&text)
        .find(|(known, _)| *known == name)
        .map(|(_, uid)| uid)
}

fn text(file: &Path) -> String {
    let mut bytes = Vec::new();
    // Without the file there are no names.
    let _ = File::open(file).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `name:password:uid:…` (passwd(5)). Pure.
fn entries(text: &str) -> impl Iterator<Item = (&str, u32)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        Some((name, fields.nth(1)?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_file_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        let users = Users::new(file.clone());
        assert_eq!(users.name(7), None);
        std::fs::write(
            &file,
            "root:x:0:0::/:\nbad\n:x:7:7::/:\n+nis\nlp:x:7:7::/:\nlp2:x:7:7::/:\n",
        )
        .unwrap();
        assert_eq!(users.name(7), None, "looked at a moment ago");
        users.seen.lock().unwrap().looked = None;
        assert_eq!(users.name(7).as_deref(), Some("lp"));
        assert_eq!(users.name(8), None);
        assert_eq!(uid_of("root"), Some(0));
        assert_eq!(uid_of("nobody-of-that-name"), None);
    }

    #[test]
    fn a_huge_file_is_not_read_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        let filler = "#".repeat(usize::try_from(MAX_BYTES).unwrap());
        std::fs::write(&file, format!("first:x:1:1\n{filler}\nlast:x:2:2\n")).unwrap();
        let users = Users::new(file);
        assert_eq!(users.name(1).as_deref(), Some("first"));
        assert_eq!(users.name(2), None);
    }
}

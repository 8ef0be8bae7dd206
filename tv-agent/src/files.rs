//! How files that the configuration names are read: by the process itself, or by one that may, for one that may not.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

/// Opens files for reading.
pub trait Opener: Send + Sync {
    /// # Errors
    /// Those of open(2), or that the file is none that may be read.
    fn open(&self, path: &Path) -> io::Result<File>;
}

static OPENER: OnceLock<Box<dyn Opener>> = OnceLock::new();

thread_local! {
    static RECORDED: RefCell<Option<BTreeSet<PathBuf>>> = const { RefCell::new(None) };
}

/// From now on everything is opened by `opener`. Once for the process; a second one is ignored.
pub fn install(opener: Box<dyn Opener>) {
    // The first one stays: two would contradict each other.
    let _ = OPENER.set(opener);
}

/// # Errors
/// Those of the process' opener.
pub fn open(path: &Path) -> io::Result<File> {
    RECORDED.with_borrow_mut(|recorded| {
        if let Some(recorded) = recorded {
            recorded.insert(path.to_owned());
        }
    });
    match OPENER.get() {
        Some(opener) => opener.open(path),
        None => File::open(path),
    }
}

/// # Errors
/// As [`open`], and those of read(2).
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// # Errors
/// As [`read`]; a file that is no UTF-8.
pub fn read_to_string(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

/// When the file was changed last.
///
/// # Errors
/// As [`open`].
pub fn modified(path: &Path) -> io::Result<SystemTime> {
    open(path)?.metadata()?.modified()
}

/// Runs `load`, and tells which files it opened on this thread.
pub fn recorded<T>(load: impl FnOnce() -> T) -> (T, BTreeSet<PathBuf>) {
    let before = RECORDED.replace(Some(BTreeSet::new()));
    let loaded = load();
    let read = RECORDED.replace(before).unwrap_or_default();
    (loaded, read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_load_opens_is_recorded_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        std::fs::write(&one, "1").unwrap();
        std::fs::write(&other, "2").unwrap();
        assert_eq!(read(&other).unwrap(), b"2");
        let missing = dir.path().join("missing");
        let (text, read) = recorded(|| {
            assert!(open(&missing).is_err());
            read_to_string(&one)
        });
        assert_eq!(text.unwrap(), "1");
        assert_eq!(read, [one, missing].into());
        assert!(recorded(|| ()).1.is_empty());
    }
}

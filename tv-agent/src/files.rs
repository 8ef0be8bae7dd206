//! How a configuration's files are read: by the process itself, or through descriptors that a privileged one hands over.
//!
//! The data path may not open them (`confine.rs`), so whatever it reads by a name of the configuration's goes through
//! here. The privileged process loads the same configuration first, and so knows which files those are ([`recorded`]).

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::limits;

/// Opens a file for reading.
pub trait Opener: Send + Sync {
    /// # Errors
    /// As open(2), or that the file is none of those that may be read.
    fn open(&self, path: &Path) -> io::Result<File>;
}

static OPENER: OnceLock<Box<dyn Opener>> = OnceLock::new();

thread_local! {
    /// What is read meanwhile, per [`recorded`] that runs on this thread.
    static RECORDS: RefCell<Vec<BTreeSet<PathBuf>>> = const { RefCell::new(Vec::new()) };
}

/// From now on everything is opened by `opener`. The data path does this once, at its start; a second one is ignored.
pub fn install(opener: Box<dyn Opener>) {
    if OPENER.set(opener).is_err() {
        tracing::error!("files are opened by two; the first one stays");
    }
}

/// # Errors
/// What the opener says.
pub fn open(path: &Path) -> io::Result<File> {
    RECORDS.with_borrow_mut(|records| {
        for record in records {
            record.insert(path.to_owned());
        }
    });
    match OPENER.get() {
        Some(opener) => opener.open(path),
        None => File::open(path),
    }
}

/// The whole file.
///
/// # Errors
/// As [`open`], and [`io::ErrorKind::FileTooLarge`].
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    // At once, so that a secret leaves no copy behind in a vector that grew.
    let size = file.metadata()?.len().min(limits::FILE_BYTES);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
    file.take(limits::FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limits::FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The whole file, which has to be text.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`].
pub fn read_to_string(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// When the file was changed last.
///
/// # Errors
/// As [`open`].
pub fn modified(path: &Path) -> io::Result<SystemTime> {
    open(path)?.metadata()?.modified()
}

/// What `load` gives, with the files that it asked for on this thread, whether they are there or not.
pub fn recorded<T>(load: impl FnOnce() -> T) -> (T, BTreeSet<PathBuf>) {
    /// Takes its record away again, also when `load` panics.
    struct Record;
    impl Drop for Record {
        fn drop(&mut self) {
            RECORDS.with_borrow_mut(Vec::pop);
        }
    }
    RECORDS.with_borrow_mut(|records| records.push(BTreeSet::new()));
    let record = Record;
    let loaded = load();
    let files = RECORDS.with_borrow_mut(|records| records.last_mut().map(std::mem::take));
    drop(record);
    (loaded, files.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let most = usize::try_from(limits::FILE_BYTES).unwrap();
        std::fs::write(&path, vec![b'x'; most]).unwrap();
        assert_eq!(read(&path).unwrap().len(), most);
        assert!(modified(&path).unwrap() <= SystemTime::now());
        std::fs::write(&path, vec![b'x'; most + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        // Files of /proc say that they are empty.
        assert!(
            read_to_string(Path::new("/proc/self/status"))
                .unwrap()
                .contains("Pid:")
        );
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(
            read_to_string(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert!(modified(&dir.path().join("none")).is_err());
    }

    #[test]
    fn what_a_load_asks_for_is_recorded_also_when_it_is_not_there() {
        let (there, missing) = (Path::new("/proc/self/status"), Path::new("/nonexistent"));
        let (inner, all) = recorded(|| {
            assert!(read(there).is_ok());
            let (error, inner) = recorded(|| open(missing).unwrap_err());
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            inner
        });
        assert_eq!(inner, BTreeSet::from([missing.to_owned()]));
        assert_eq!(all, BTreeSet::from([missing.to_owned(), there.to_owned()]));
        std::panic::catch_unwind(|| recorded(|| panic!("as a load might"))).unwrap_err();
        RECORDS.with_borrow(|records| assert!(records.is_empty()));
    }
}

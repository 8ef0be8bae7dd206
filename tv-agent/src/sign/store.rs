//! Generated key sets on disk: `NAME.json` with the current and the previous key, in a directory of mode 0700.
//! All writers hold a lock, and a file is replaced whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::{Key, KeyError, Stored};
use super::keyset::Generate;
use crate::files;

/// Largest file of keys that is read, bytes; two RSA keys of 4096 bits have 7 KiB.
pub const FILE_BYTES: usize = 64 * 1024;

/// Why a key set cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is larger than {FILE_BYTES} bytes; it is no file of keys", path.display())]
    TooLarge { path: PathBuf },
    #[error(
        "{} can be read by others than its owner (mode {mode:o}); chmod 600 it, and rotate the key twice if somebody may have read it",
        path.display()
    )]
    Mode { path: PathBuf, mode: u32 },
    #[error("{} can be written by others (mode {mode:o}); chmod 700 it", path.display())]
    DirectoryMode { path: PathBuf, mode: u32 },
    #[error("{} is no file of keys of this version (line {line}); restore it, or remove it to make new keys", path.display())]
    Corrupt { path: PathBuf, line: usize },
    #[error("{} holds no key; restore it, or remove it to make new keys", path.display())]
    Empty { path: PathBuf },
    #[error("{}: key {number}", path.display())]
    Key {
        path: PathBuf,
        number: usize,
        source: KeyError,
    },
    #[error("cannot make a key")]
    Generate(#[source] KeyError),
}

#[derive(Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Document {
    /// The current one first.
    keys: Vec<Stored>,
}

/// When a current key gives way to a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Due {
    /// When there is none yet, or it is of another algorithm than is asked for.
    Unfit,
    /// The same, or it was made before that time, which another process may have changed meanwhile.
    Before(u64),
    Now,
}

impl Due {
    fn is_for(self, current: &Stored, how: &Generate) -> bool {
        match self {
            Self::Unfit => current.algorithm != how.algorithm,
            Self::Before(time) => current.created < time,
            Self::Now => true,
        }
    }
}

/// Makes keys for a process that may not write where they are kept.
pub trait Keeper: Send + Sync {
    /// Changes the file of the key set `name` where that is due.
    ///
    /// # Errors
    /// What went wrong, in words.
    fn change(&self, name: &str, due: Due) -> io::Result<()>;
}

static KEEPER: OnceLock<Box<dyn Keeper>> = OnceLock::new();

/// From now on keys are made by `keeper`. Once for the process; a second one is ignored.
pub fn install(keeper: Box<dyn Keeper>) {
    // The first one stays: two would contradict each other.
    let _ = KEEPER.set(keeper);
}

/// The file of one generated key set.
pub struct Store {
    name: String,
    pub path: PathBuf,
    lock: PathBuf,
}

impl Store {
    /// `name` was checked: it is a file name without dots at its start.
    pub fn new(dir: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            path: dir.join(format!("{name}.json")),
            lock: dir.join(format!(".{name}.lock")),
        }
    }

    /// The keys, the current one first; a new one is made when there is none, or the current one is none for
    /// `how`.
    pub fn open(&self, how: &Generate, now: u64) -> Result<Vec<Key>, StoreError> {
        match self.read() {
            Ok(document)
                if document
                    .keys
                    .first()
                    .is_some_and(|key| key.algorithm == how.algorithm) =>
            {
                self.keys(&document)
            }
            Ok(_) => self.change(how, now, Due::Unfit),
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                self.change(how, now, Due::Unfit)
            }
            Err(error) => Err(error),
        }
    }

    /// What is there, without making anything.
    pub fn load(&self) -> Result<Vec<Key>, StoreError> {
        self.keys(&self.read()?)
    }

    /// Makes a new current key. The one before stays as the previous; the one before that is forgotten.
    pub fn rotate(&self, how: &Generate, now: u64) -> Result<Vec<Key>, StoreError> {
        self.change(how, now, Due::Now)
    }

    /// The same, if the current key was made before `before`, which another process may have changed meanwhile.
    pub fn rotate_older(&self, how: &Generate, now: u64, before: u64) -> Result<Vec<Key>, StoreError> {
        self.change(how, now, Due::Before(before))
    }

    /// Under the lock: adds a key when there is none, or when one is `due`.
    pub fn change(&self, how: &Generate, now: u64, due: Due) -> Result<Vec<Key>, StoreError> {
        if let Some(keeper) = KEEPER.get() {
            keeper
                .change(&self.name, due)
                .map_err(failed("change", &self.path))?;
            return self.load();
        }
        self.make_directory()?;
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&self.lock)
            .map_err(failed("create", &self.lock))?;
        lock.lock().map_err(failed("lock", &self.lock))?;
        let mut document = match self.read() {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Document::default()
            }
            other => other?,
        };
        if document.keys.first().is_none_or(|key| due.is_for(key, how)) {
            let (_, stored) = Key::generate(how.algorithm, how.bits, now).map_err(StoreError::Generate)?;
            document.keys.insert(0, stored);
            document.keys.truncate(2);
            self.write(&document)?;
        }
        self.keys(&document)
    }

    fn keys(&self, document: &Document) -> Result<Vec<Key>, StoreError> {
        if document.keys.is_empty() {
            return Err(StoreError::Empty {
                path: self.path.clone(),
            });
        }
        let key = |(index, stored)| {
            Key::from_stored(stored).map_err(|source| StoreError::Key {
                path: self.path.clone(),
                number: index + 1,
                source,
            })
        };
        document.keys.iter().enumerate().map(key).collect()
    }

    fn read(&self) -> Result<Document, StoreError> {
        let (bytes, mode) = read(&self.path)?;
        if mode & 0o077 != 0 {
            return Err(StoreError::Mode {
                path: self.path.clone(),
                mode,
            });
        }
        // The parser's message may repeat what stands in the file.
        serde_json::from_slice(&bytes).map_err(|error| StoreError::Corrupt {
            path: self.path.clone(),
            line: error.line(),
        })
    }

    fn write(&self, document: &Document) -> Result<(), StoreError> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES));
        serde_json::to_writer_pretty(&mut *bytes, document).expect("plain data serialises");
        let temporary = self.path.with_extension("tmp");
        let result = (|| {
            match fs::remove_file(&temporary) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            File::open(self.path.parent().expect("a file in a directory"))?.sync_all()
        })();
        result.map_err(failed("write", &self.path))
    }

    fn make_directory(&self) -> Result<(), StoreError> {
        let dir = self.path.parent().expect("a file in a directory");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(failed("create", dir))?;
        let mode = fs::metadata(dir).map_err(failed("read", dir))?.mode() & 0o7777;
        if mode & 0o022 != 0 {
            return Err(StoreError::DirectoryMode {
                path: dir.to_owned(),
                mode,
            });
        }
        Ok(())
    }
}

/// When a file was changed last; None: it is not there.
pub(super) fn changed(path: &Path) -> Option<SystemTime> {
    files::modified(path).ok()
}

/// A file of keys with its mode.
pub(super) fn read(path: &Path) -> Result<(Zeroizing<Vec<u8>>, u32), StoreError> {
    // All of it at once, so that no copy is left behind by a vector that grew.
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_BYTES + 1));
    let mode = (|| {
        let file = files::open(path)?;
        let mode = file.metadata()?.mode() & 0o7777;
        file.take(FILE_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok(mode)
    })()
    .map_err(failed("read", path))?;
    if bytes.len() > FILE_BYTES {
        return Err(StoreError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok((bytes, mode))
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path: path.clone(),
        source,
    }
}

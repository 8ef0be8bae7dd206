//! The record of what was changed in a root, inside that root: written before each change, so that whatever happens in
//! between can be undone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::place::{Attributes, Place, State};
use super::root::Root;
use super::store::Form;
use super::{Anchors, Error};
use crate::limits;

const DIRECTORIES: [&str; 4] = ["/var", "/var/lib", "/var/lib/tv-agent", DIRECTORY];
const DIRECTORY: &str = "/var/lib/tv-agent/trust";
const RECORD: &str = "journal.json";
const LOCK: &str = "lock";

/// Holds the lock of its root as long as it lives.
pub(super) struct Journal<'a> {
    root: &'a Root,
    pub(super) record: Record,
    _lock: Flock<File>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// PEM.
    pub(super) anchors: String,
    /// Whether everything that was to be done was done.
    pub(super) complete: bool,
    /// Directories that were made for the record itself.
    made: Vec<PathBuf>,
    /// In the order in which they were made.
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Change {
    pub(super) path: PathBuf,
    pub(super) what: What,
    pub(super) before: State,
    /// None: a tool was to change it, and nobody came to see how.
    pub(super) after: Option<State>,
    /// The file beside the record that has the contents before.
    pub(super) kept: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum What {
    Pem,
    Java,
    Link,
    Directory,
}

impl From<Form> for What {
    fn from(form: Form) -> Self {
        match form {
            Form::Pem => Self::Pem,
            Form::Java => Self::Java,
        }
    }
}

impl<'a> Journal<'a> {
    /// Takes the root's lock, and reads what was recorded before; there may be nothing.
    ///
    /// # Errors
    /// [`Error::Busy`] when another holds the lock; [`Error::Journal`] when the record is damaged.
    pub(super) fn open(root: &'a Root) -> Result<Self, Error> {
        let mut made = Vec::new();
        for directory in DIRECTORIES {
            let place = root
                .place(Path::new(directory))?
                .ok_or_else(|| no_directory(directory))?;
            if !root.exists(Path::new(directory)) {
                place.make_directory()?;
                made.push(directory.into());
            }
        }
        let lock = place(root, LOCK)?;
        let unlockable = |source| Error::Write {
            path: lock.path.clone(),
            source,
        };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock.at())
            .map_err(unlockable)?;
        let held = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::Busy {
            path: lock.path.clone(),
        })?;
        // Whoever held it before may have removed it meanwhile.
        if !same_file(&held, &lock.at()) {
            return Err(Error::Busy {
                path: lock.path.clone(),
            });
        }
        let recorded = read(root)?;
        let record = recorded.unwrap_or(Record {
            anchors: String::new(),
            complete: false,
            made,
            changes: Vec::new(),
        });
        Ok(Self {
            root,
            record,
            _lock: held,
        })
    }

    /// Whether there is something to undo.
    pub(super) fn is_empty(&self) -> bool {
        self.record.anchors.is_empty()
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        self.record.changes.iter().any(|change| change.path == path)
    }

    pub(super) fn begin(&mut self, anchors: &Anchors) -> Result<(), Error> {
        self.record.anchors = anchors.pem();
        self.record.complete = false;
        self.save()
    }

    /// Before the change is made. `bytes` are what a file holds now.
    pub(super) fn add(&mut self, mut change: Change, bytes: &[u8]) -> Result<(), Error> {
        if matches!(change.before, State::File { .. }) {
            let name = format!("{}.kept", self.record.changes.len());
            let kept = place(self.root, &name)?;
            kept.clear()?;
            kept.remove()?;
            let mut attributes = Attributes::public();
            // A key store may hold private keys.
            attributes.mode = 0o600;
            kept.replace(bytes, &attributes, false, &State::Absent)?;
            change.kept = Some(name);
        }
        self.record.changes.push(change);
        self.save()
    }

    pub(super) fn complete(&mut self) -> Result<(), Error> {
        self.record.complete = true;
        self.save()
    }

    /// Where the contents are that a changed file had before.
    ///
    /// # Errors
    /// [`Error::Journal`] when they are not those that were recorded.
    pub(super) fn kept(&self, change: &Change) -> Result<Place, Error> {
        let name = change.kept.as_deref().ok_or(Error::Journal)?;
        let kept = place(self.root, name)?;
        if kept.state()?.is_like(&change.before) {
            Ok(kept)
        } else {
            Err(Error::Journal)
        }
    }

    /// Removes the record, last of all, and what was made for it.
    pub(super) fn forget(self) -> Result<(), Error> {
        // The record first: without it nothing else is asked for.
        let record = place(self.root, RECORD)?;
        record.clear()?;
        record.remove()?;
        let directory = self
            .root
            .find(Path::new(DIRECTORY))?
            .ok_or_else(|| no_directory(DIRECTORY))?;
        for entry in directory.entries()? {
            let name = entry.name.to_string_lossy();
            if name.ends_with(".kept") {
                place(self.root, &name)?.remove()?;
            }
        }
        place(self.root, LOCK)?.remove()?;
        let mut made = self.record.made.clone();
        if self.is_empty() {
            // Whoever began ended between making them and saying so.
            made.push(DIRECTORY.into());
        }
        made.sort();
        made.dedup();
        for path in made.iter().rev() {
            if let Some(place) = self.root.place(path)? {
                place.remove()?;
            }
        }
        Ok(())
    }

    pub(super) fn save(&self) -> Result<(), Error> {
        let record = place(self.root, RECORD)?;
        record.clear()?;
        let bytes = serde_json::to_vec(&self.record).map_err(|_| Error::Journal)?;
        let mut attributes = Attributes::public();
        attributes.mode = 0o600;
        let now = record.state()?;
        record.replace(&bytes, &attributes, false, &now)
    }
}

/// Whether something was, or was about to be, recorded in `root`.
pub(super) fn exists(root: &Root) -> bool {
    root.exists(Path::new(DIRECTORY))
}

fn read(root: &Root) -> Result<Option<Record>, Error> {
    let Some(found) = root.find(&Path::new(DIRECTORY).join(RECORD))? else {
        return Ok(None);
    };
    if found.metadata.len() > limits::TRUST_JOURNAL_BYTES {
        return Err(Error::Journal);
    }
    let bytes = found.read()?;
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|_| Error::Journal)
}

fn place(root: &Root, name: &str) -> Result<Place, Error> {
    root.place(&Path::new(DIRECTORY).join(name))?
        .ok_or_else(|| no_directory(DIRECTORY))
}

fn no_directory(path: &str) -> Error {
    Error::Write {
        path: path.into(),
        source: io::ErrorKind::NotADirectory.into(),
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let (Ok(held), Ok(there)) = (file.metadata(), fs::metadata(path)) else {
        return false;
    };
    (held.dev(), held.ino()) == (there.dev(), there.ino())
}

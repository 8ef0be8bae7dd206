//! The audit trail: what was swapped for whom, and what was refused, one JSON line each.
//!
//! Lines go through a bounded queue to a thread of their own, so that a slow disk holds nobody up. A line that
//! cannot be written is tried again; meanwhile the queue fills, and what finds no room in it is counted. Whether
//! requests are refused meanwhile is the operator's choice ([`OnFailure`]).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::limits;
use crate::metrics::{Metrics, ResultLabels};

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Appended to, made with mode 0640; opened anew when the path names another file, so that it can be rotated
    /// by renaming.
    File(PathBuf),
    Stdout,
}

/// What becomes of requests while the trail cannot be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// They are served; lines that found no room are counted.
    #[default]
    Continue,
    /// They are refused.
    Refuse,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub to: Destination,
    pub on_failure: OnFailure,
}

/// The trail cannot be begun.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("audit.to: cannot open {}; make its directory writable for the agent, or name another file", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("audit: cannot start a thread")]
    Thread(#[source] io::Error),
}

/// Takes lines. Cheap to clone.
#[derive(Clone)]
pub struct Audit {
    lines: SyncSender<Vec<u8>>,
    failing: Arc<AtomicBool>,
    on_failure: OnFailure,
    metrics: Metrics,
    node: Arc<str>,
}

/// One line: the record, and where it was made.
#[derive(Serialize)]
struct Line<'a, T> {
    /// RFC 3339, UTC, milliseconds.
    time: String,
    node: &'a str,
    #[serde(flatten)]
    record: &'a T,
}

impl Audit {
    /// Opens the destination and starts to write.
    ///
    /// # Errors
    /// When it cannot be opened now: better than at the first refusal.
    pub fn start(settings: &Settings, metrics: Metrics) -> Result<Self, Error> {
        Self::through(settings, None, metrics)
    }

    /// The same with a file that is opened by `trail`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn through(
        settings: &Settings,
        trail: Option<Box<dyn Trail>>,
        metrics: Metrics,
    ) -> Result<Self, Error> {
        let sink: Box<dyn Sink> = match &settings.to {
            Destination::Stdout => Box::new(io::stdout()),
            Destination::File(path) => {
                let trail = trail.unwrap_or_else(|| Box::new(AtPath(path.clone())));
                Box::new(Rotated::open(trail).map_err(|source| Error::Open {
                    path: path.clone(),
                    source,
                })?)
            }
        };
        Self::with(sink, settings.on_failure, metrics)
    }

    fn with(mut sink: Box<dyn Sink>, on_failure: OnFailure, metrics: Metrics) -> Result<Self, Error> {
        let (lines, queue) = sync_channel(limits::AUDIT_LINES);
        let failing = Arc::new(AtomicBool::new(false));
        let (told, counted) = (failing.clone(), metrics.clone());
        std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_all(&mut *sink, &queue, &told, &counted))
            .map_err(Error::Thread)?;
        Ok(Self {
            lines,
            failing,
            on_failure,
            metrics,
            node: node().into(),
        })
    }

    /// Queues one record; never waits.
    pub fn note(&self, time_ms: u64, record: &impl Serialize) {
        let line = Line {
            time: rfc3339(time_ms),
            node: &self.node,
            record,
        };
        let Ok(mut line) = serde_json::to_vec(&line) else {
            return;
        };
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            self.failing.store(true, Ordering::Relaxed);
            count(&self.metrics, "lost");
        }
    }

    /// Whether requests have to be refused, since they could not be recorded.
    pub fn refuses(&self) -> bool {
        self.on_failure == OnFailure::Refuse && self.failing.load(Ordering::Relaxed)
    }
}

fn count(metrics: &Metrics, result: &'static str) {
    metrics.audit.get_or_create(&ResultLabels { result }).inc();
}

/// As the fleet calls it (`NODE_NAME`, from Kubernetes' downward API), else the host's name.
fn node() -> String {
    std::env::var("NODE_NAME")
        .ok()
        // By uname(2), since the data path does not see /proc.
        .or_else(|| nix::unistd::gethostname().ok()?.into_string().ok())
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}

fn rfc3339(time_ms: u64) -> String {
    use time::format_description::well_known::Rfc3339;
    let nanoseconds = i128::from(time_ms) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| time_ms.to_string())
}

/// Something that takes whole lines.
trait Sink: Send {
    /// Appends `lines`.
    ///
    /// # Errors
    /// With the number of bytes that were written all the same.
    fn append(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)>;
}

impl Sink for io::Stdout {
    fn append(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut out = self.lock();
        write_counted(&mut out, lines)?;
        out.flush().map_err(|error| (lines.len(), error))
    }
}

/// Device and inode of a file.
pub type FileId = (u64, u64);

/// A file that may be renamed away, and made anew, at any time; opened by another process where this one may not.
pub trait Trail: Send {
    /// The file as it is now, to append to; None when that is `known`.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn opened(&self, known: Option<FileId>) -> io::Result<Option<File>>;
}

/// Opens it here.
pub struct AtPath(pub PathBuf);

impl Trail for AtPath {
    fn opened(&self, known: Option<FileId>) -> io::Result<Option<File>> {
        let now = std::fs::metadata(&self.0)
            .ok()
            .map(|facts| (facts.dev(), facts.ino()));
        if known.is_some() && now == known {
            return Ok(None);
        }
        let mut how = OpenOptions::new();
        how.append(true).create(true).mode(0o640).open(&self.0).map(Some)
    }
}

struct Rotated {
    trail: Box<dyn Trail>,
    file: File,
    id: FileId,
}

impl Rotated {
    fn open(trail: Box<dyn Trail>) -> io::Result<Self> {
        let file = trail.opened(None)?.ok_or(io::ErrorKind::NotFound)?;
        let facts = file.metadata()?;
        Ok(Self {
            id: (facts.dev(), facts.ino()),
            trail,
            file,
        })
    }

    fn look(&mut self) -> io::Result<()> {
        if let Some(file) = self.trail.opened(Some(self.id))? {
            let facts = file.metadata()?;
            (self.id, self.file) = ((facts.dev(), facts.ino()), file);
        }
        Ok(())
    }
}

impl Sink for Rotated {
    fn append(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        self.look().map_err(|error| (0, error))?;
        write_counted(&mut self.file, lines)
    }
}

fn write_counted(out: &mut impl Write, lines: &[u8]) -> Result<(), (usize, io::Error)> {
    let mut done = 0;
    while done < lines.len() {
        match out.write(&lines[done..]) {
            Ok(0) => return Err((done, io::ErrorKind::WriteZero.into())),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((done, error)),
        }
    }
    Ok(())
}

/// How long a destination that failed is left alone.
const PAUSE: Duration = Duration::from_millis(500);
/// Bytes that are written at once, where as many wait.
const BATCH: usize = 64 * 1024;

/// The thread: writes what comes until all who could send are gone.
fn write_all(sink: &mut dyn Sink, queue: &Receiver<Vec<u8>>, failing: &AtomicBool, metrics: &Metrics) {
    let mut batch = Vec::new();
    let mut lines = 0;
    let mut failed = false;
    loop {
        if batch.is_empty() {
            match queue.recv() {
                Ok(line) => (batch, lines) = (line, 1),
                Err(_) => return,
            }
        }
        while batch.len() < BATCH
            && let Ok(line) = queue.try_recv()
        {
            batch.extend_from_slice(&line);
            lines += 1;
        }
        match sink.append(&batch) {
            Ok(()) => {
                if failed {
                    tracing::info!("the audit trail is written again");
                }
                failed = false;
                failing.store(false, Ordering::Relaxed);
                metrics
                    .audit
                    .get_or_create(&ResultLabels { result: "written" })
                    .inc_by(std::mem::take(&mut lines));
                batch.clear();
            }
            Err((done, error)) => {
                batch.drain(..done);
                failing.store(true, Ordering::Relaxed);
                count(metrics, "failed");
                if !failed {
                    tracing::error!(%error, "the audit trail cannot be written; it is tried again until it can");
                }
                failed = true;
                std::thread::sleep(PAUSE);
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! What is written, when, and what becomes of it where it cannot be.
use super::*;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

#[derive(Serialize)]
struct Record {
    what: &'static str,
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn counted(metrics: &Metrics, result: &'static str) -> u64 {
    metrics.audit.get_or_create_owned(&ResultLabels { result }).get()
}

fn to_file(path: &Path, on_failure: OnFailure) -> Result<(Audit, Metrics), Error> {
    let metrics = Metrics::new();
    let settings = Settings {
        to: Destination::File(path.to_owned()),
        on_failure,
    };
    Audit::start(&settings, metrics.clone()).map(|audit| (audit, metrics))
}

#[test]
fn a_line_says_when_where_and_what_and_rotation_by_renaming_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.json");
    let (audit, metrics) = to_file(&path, OnFailure::Continue).unwrap();
    audit.note(1_700_000_000_123, &Record { what: "first" });
    wait_for("the first line", || counted(&metrics, "written") == 1);
    let first = &lines(&path)[0];
    assert_eq!(first["time"], "2023-11-14T22:13:20.123Z");
    assert_eq!(
        (&first["what"], first["node"].is_string()),
        (&"first".into(), true)
    );
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    let old = dir.path().join("audit.json.1");
    fs::rename(&path, &old).unwrap();
    audit.note(0, &Record { what: "second" });
    wait_for("the second line", || counted(&metrics, "written") == 2);
    assert_eq!((lines(&old).len(), lines(&path).len()), (1, 1));
    assert_eq!(lines(&path)[0]["what"], "second");
}

#[test]
fn a_place_that_cannot_be_written_is_said_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let error = to_file(&dir.path().join("none/audit.json"), OnFailure::Continue)
        .err()
        .unwrap();
    assert!(error.to_string().contains("none/audit.json"), "{error}");
}

/// A disk that is full until it is told otherwise.
struct Full {
    full: Arc<AtomicBool>,
    written: Arc<Mutex<Vec<u8>>>,
}

impl Sink for Full {
    fn append(&mut self, lines: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = self.written.lock().unwrap();
        if self.full.load(Ordering::Relaxed) {
            // The last block takes a part of a line.
            let part = lines.len().min(3);
            written.extend_from_slice(&lines[..part]);
            return Err((part, io::ErrorKind::StorageFull.into()));
        }
        written.extend_from_slice(lines);
        Ok(())
    }
}

#[test]
fn a_full_disk_holds_nobody_up_and_refuses_where_that_is_asked_for() {
    for on_failure in [OnFailure::Continue, OnFailure::Refuse] {
        let (full, written) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let sink = Full {
            full: full.clone(),
            written: Arc::clone(&written),
        };
        let metrics = Metrics::new();
        let audit = Audit::with(Box::new(sink), on_failure, metrics.clone()).unwrap();
        assert!(!audit.refuses());
        audit.note(0, &Record { what: "one" });
        wait_for("the failure", || counted(&metrics, "failed") > 0);
        assert_eq!(audit.refuses(), on_failure == OnFailure::Refuse);
        // More than the queue and the batch hold.
        let many = 2 * limits::AUDIT_LINES as u64;
        (1..many).for_each(|_| audit.note(0, &Record { what: "more" }));
        assert!(counted(&metrics, "lost") > 0);
        full.store(false, Ordering::Relaxed);
        let done = || counted(&metrics, "written") + counted(&metrics, "lost") == many;
        wait_for("every line written or counted", done);
        assert!(!audit.refuses());
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count() as u64, counted(&metrics, "written"));
        for line in text.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
    }
}

/// Another process, which hands over descriptors and knows when the file was renamed away.
struct Other {
    path: AtPath,
    opened: Arc<std::sync::atomic::AtomicU64>,
}

impl Trail for Other {
    fn opened(&self, known: Option<FileId>) -> io::Result<Option<File>> {
        let opened = self.path.opened(known)?;
        self.opened
            .fetch_add(u64::from(opened.is_some()), Ordering::Relaxed);
        Ok(opened)
    }
}

#[test]
fn the_file_can_be_opened_by_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.json");
    // The path is not ours to open: it would be refused.
    let settings = Settings {
        to: Destination::File(dir.path().join("none/audit.json")),
        on_failure: OnFailure::Continue,
    };
    let opened = Arc::default();
    let other = Other {
        path: AtPath(path.clone()),
        opened: Arc::clone(&opened),
    };
    let metrics = Metrics::new();
    let audit = Audit::through(&settings, Some(Box::new(other)), metrics.clone()).unwrap();
    for (count, what) in [(1, "first"), (2, "second"), (3, "third")] {
        audit.note(0, &Record { what });
        wait_for("the line", || counted(&metrics, "written") == count);
        if what == "second" {
            fs::rename(&path, dir.path().join("audit.json.1")).unwrap();
        }
    }
    assert_eq!(opened.load(Ordering::Relaxed), 2);
    assert_eq!(lines(&path)[0]["what"], "third");
}

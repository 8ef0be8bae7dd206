//! Events on pods: one for each thing that happens to a pod, counted up when it happens again. Nobody waits for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::{BodyExt as _, Limited};
use kube::client::Body;
use kube::core::Request;
use kube::core::params::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::notes::Note;
use super::settings::Settings;
use super::table::Table;
use crate::clock;
use crate::encode;
use crate::limits;
use crate::metrics::Metrics;

/// Shortest time between two writings of one Event.
const REPEAT: Duration = Duration::from_secs(10);
/// Events a second in the long run, and at once.
const PER_SECOND: f64 = 5.0;
const BURST: f64 = 25.0;
/// After a failure nothing is sent for so long.
const PAUSE: Duration = Duration::from_secs(10);
/// How long an Event is remembered after it happened last; then it is a new one.
const KEPT: Duration = Duration::from_secs(600);
/// Longest text, characters; the API server takes 1024 bytes.
const TEXT: usize = 500;

/// As metav1.Time is written: whole seconds.
fn now() -> String {
    let seconds = i64::try_from(clock::unix_now().as_secs()).unwrap_or_default();
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    time.format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_default()
}

/// Where notes are given. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Teller {
    sender: mpsc::Sender<Note>,
    metrics: Metrics,
}

impl Teller {
    pub(super) fn new(sender: mpsc::Sender<Note>, metrics: Metrics) -> Self {
        Self { sender, metrics }
    }

    pub fn tell(&self, note: Note) {
        if self.sender.try_send(note).is_err() {
            self.metrics.kubernetes.events("dropped", 1);
        }
    }
}

/// What was told. Pure: times are given.
#[derive(Default)]
struct Ledger {
    kept: HashMap<(String, &'static str, String), Kept>,
    tokens: f64,
    filled: Option<Instant>,
}

struct Kept {
    name: String,
    text: String,
    first: String,
    last: String,
    count: u64,
    told: u64,
    told_at: Option<Instant>,
    at: Instant,
}

impl Ledger {
    /// Counts a note. False: there is no room for it.
    fn note(&mut self, note: Note, now: Instant, time: &str) -> bool {
        let key = (note.pod, note.reason.label(), note.about);
        if let Some(kept) = self.kept.get_mut(&key) {
            kept.count += 1;
            kept.at = now;
            time.clone_into(&mut kept.last);
            kept.text = note.text;
            return true;
        }
        if self.kept.len() >= limits::EVENTS {
            self.kept.retain(|_, kept| now.duration_since(kept.at) < KEPT);
        }
        if self.kept.len() >= limits::EVENTS {
            return false;
        }
        let digest = Sha256::new()
            .chain_update(format!("{}\n{}\n{}\n{time}", key.0, key.1, key.2))
            .finalize();
        let kept = Kept {
            name: encode::hex(&digest[..8]),
            text: note.text,
            first: time.to_owned(),
            last: time.to_owned(),
            count: 1,
            told: 0,
            told_at: None,
            at: now,
        };
        self.kept.insert(key, kept);
        true
    }

    /// One that is to be written now, if the pace allows it.
    fn due(&mut self, now: Instant) -> Option<(String, &'static str, String)> {
        let due = |kept: &Kept| {
            let rested = kept.told_at.is_none_or(|at| now.duration_since(at) >= REPEAT);
            kept.count > kept.told && rested
        };
        // Those that nobody heard of yet come first.
        let found = self.kept.iter().filter(|(_, kept)| due(kept));
        let key = found
            .min_by_key(|(_, kept)| kept.told)
            .map(|(key, _)| key.clone())?;
        let since = self
            .filled
            .map_or(BURST, |at| now.duration_since(at).as_secs_f64() * PER_SECOND);
        self.filled = Some(now);
        self.tokens = (self.tokens + since).min(BURST);
        if self.tokens < 1.0 {
            return None;
        }
        self.tokens -= 1.0;
        Some(key)
    }
}

/// Writes Events.
pub struct Sender {
    client: kube::Client,
    settings: Arc<Settings>,
    table: Arc<Table>,
    metrics: Metrics,
    ledger: Ledger,
    paused: Option<Instant>,
}

impl Sender {
    pub fn new(client: kube::Client, settings: Arc<Settings>, table: Arc<Table>, metrics: Metrics) -> Self {
        Self {
            client,
            settings,
            table,
            metrics,
            ledger: Ledger::default(),
            paused: None,
        }
    }

    /// Until there are no more notes.
    pub async fn run(mut self, mut notes: mpsc::Receiver<Note>) {
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                note = notes.recv() => match note {
                    Some(note) => self.note(note),
                    None => return,
                },
                _ = tick.tick() => {}
            }
            while let Ok(note) = notes.try_recv() {
                self.note(note);
            }
            if self.paused.is_some_and(|until| Instant::now() < until) {
                continue;
            }
            while let Some(key) = self.ledger.due(Instant::now()) {
                if !self.send(&key).await {
                    self.paused = Some(Instant::now() + PAUSE);
                    break;
                }
            }
        }
    }

    fn note(&mut self, note: Note) {
        if self.settings.events && !self.ledger.note(note, Instant::now(), &now()) {
            self.metrics.kubernetes.events("dropped", 1);
        }
    }

    /// False: the API server takes none now.
    async fn send(&mut self, key: &(String, &'static str, String)) -> bool {
        let Some((namespace, pod, uid)) = self.table.object(&key.0) else {
            self.ledger.kept.remove(key);
            self.metrics.kubernetes.events("unknown_pod", 1);
            return true;
        };
        let Some(kept) = self.ledger.kept.get_mut(key) else {
            return true;
        };
        let name = format!("{pod:.200}.{}", kept.name);
        let request = Request::new(format!("/api/v1/namespaces/{namespace}/events"));
        let text: String = kept.text.chars().filter(|c| !c.is_control()).take(TEXT).collect();
        let count = kept.count;
        let new = kept.told == 0;
        let request = if new {
            let event = json!({
                "apiVersion": "v1", "kind": "Event",
                "metadata": { "name": name, "namespace": namespace },
                "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid },
                "reason": key.1, "message": text, "type": "Warning",
                "source": { "component": "tv-agent", "host": self.settings.node },
                "reportingComponent": "tv-agent", "reportingInstance": self.settings.node,
                "firstTimestamp": kept.first, "lastTimestamp": kept.last, "count": count,
            });
            request.create(&PostParams::default(), event.to_string().into_bytes())
        } else {
            let patch: Patch<Value> =
                Patch::Merge(json!({ "count": count, "lastTimestamp": kept.last, "message": text }));
            request.patch(&name, &PatchParams::default(), &patch)
        };
        kept.told = count;
        kept.told_at = Some(Instant::now());
        let Ok(request) = request else {
            self.metrics.kubernetes.events("failed", 1);
            return true;
        };
        match self.client.send(request.map(Body::from)).await {
            Ok(answer) if answer.status().is_success() => {
                self.metrics
                    .kubernetes
                    .events(if new { "created" } else { "updated" }, 1);
                true
            }
            Ok(answer) => {
                let status = answer.status();
                let body = Limited::new(answer.into_body(), limits::API_STATUS_BYTES).collect();
                // Read, so that the connection ends in order; what it says does not matter.
                let _ = tokio::time::timeout(Duration::from_secs(1), body).await;
                self.metrics.kubernetes.events("failed", 1);
                // It was removed, or never came to be: made anew when it happens again. Its namespace may be going.
                self.ledger.kept.remove(key);
                tracing::debug!(%status, name, "an Event was not taken");
                !(status.is_server_error()
                    || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::UNAUTHORIZED))
            }
            Err(error) => {
                self.metrics.kubernetes.events("failed", 1);
                self.ledger.kept.remove(key);
                tracing::debug!(%error, name, "an Event was not sent");
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::notes::Reason;

    fn note(pod: usize) -> Note {
        Note {
            pod: pod.to_string(),
            reason: Reason::Refused,
            about: "github".into(),
            text: "no".into(),
        }
    }

    #[test]
    fn the_same_again_is_counted_and_told_now_and_then() {
        let mut ledger = Ledger::default();
        let begin = Instant::now();
        for _ in 0..3 {
            assert!(ledger.note(note(1), begin, "t"));
        }
        let key = ledger.due(begin).unwrap();
        let kept = ledger.kept.get_mut(&key).unwrap();
        assert_eq!(kept.count, 3);
        (kept.told, kept.told_at) = (3, Some(begin));
        assert_eq!(ledger.due(begin + REPEAT), None, "nothing new");
        ledger.note(note(1), begin, "t");
        assert_eq!(ledger.due(begin + REPEAT / 2), None);
        assert_eq!(ledger.due(begin + REPEAT), Some(key));
    }

    #[test]
    fn their_pace_and_their_number_are_bounded() {
        let mut ledger = Ledger::default();
        let begin = Instant::now();
        for pod in 0..limits::EVENTS {
            assert!(ledger.note(note(pod), begin, "t"));
        }
        assert!(!ledger.note(note(limits::EVENTS), begin, "t"));
        let mut told = |at: Instant| {
            let mut count = 0;
            while let Some(key) = ledger.due(at) {
                let kept = ledger.kept.get_mut(&key).unwrap();
                (kept.told, kept.told_at) = (kept.count, Some(at));
                count += 1;
            }
            count
        };
        assert_eq!(told(begin), 25);
        assert_eq!(told(begin + Duration::from_secs(2)), 10);
        assert!(
            ledger.note(note(limits::EVENTS), begin + KEPT, "t"),
            "old ones make room"
        );
    }

    #[test]
    fn who_tells_never_waits() {
        let metrics = Metrics::new();
        let (teller, _receiver) = crate::kubernetes::notes::channel(metrics.clone());
        for _ in 0..limits::EVENTS_QUEUED + 2 {
            teller.tell(note(1));
        }
        let line = "tv_agent_kubernetes_events_total{result=\"dropped\"} 2";
        assert!(metrics.render().contains(line));
    }
}

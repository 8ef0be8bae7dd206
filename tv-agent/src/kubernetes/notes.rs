//! What pods are to be told by Events, and from whom that comes: never waited for, dropped when there is too much.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::events::Teller;
use crate::flows::Flow;
use crate::limits;
use crate::metrics::Metrics;

/// Something that happened to a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// As its cgroup names it.
    pub pod: String,
    pub reason: Reason,
    /// With the pod and the reason, what tells it from others.
    pub about: String,
    pub text: String,
}

/// The reasons of Events; part of the interface, see docs/kubernetes.md.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// A request or connection to a routed host was refused.
    Refused,
    /// A process does not trust the CA, or has to be restarted for that.
    TrustMissing,
    /// Connections go past the agent, or the pod's cgroup cannot be covered.
    NotIntercepted,
    /// A label or annotation of ours says something that it may not.
    BadAnnotation,
}

impl Reason {
    pub fn label(self) -> &'static str {
        match self {
            Self::Refused => "TvAgentRefused",
            Self::TrustMissing => "TvAgentTrustMissing",
            Self::NotIntercepted => "TvAgentNotIntercepted",
            Self::BadAnnotation => "TvAgentBadAnnotation",
        }
    }
}

/// A place for notes, and its other end.
pub(super) fn channel(metrics: Metrics) -> (Teller, mpsc::Receiver<Note>) {
    let (sender, receiver) = mpsc::channel(limits::EVENTS_QUEUED);
    (Teller::new(sender, metrics), receiver)
}

/// What a flow is for the pod that it is about, if anything. Pure.
pub fn note_of(flow: &Flow) -> Option<Note> {
    let pod = flow.pod.clone()?;
    let host = flow
        .host
        .as_deref()
        .or(flow.origin.as_deref())
        .unwrap_or("an unknown host");
    let why = flow.reason.as_deref().unwrap_or("no reason given");
    let route = flow.route.as_deref().unwrap_or("none");
    let process = flow.process.as_deref().unwrap_or("a process");
    let (reason, about, text) = match (&*flow.kind, &*flow.outcome) {
        ("request", class) if flow.fault.is_some() => {
            let text = format!("a request to {host} (route {route}) was refused: {class}: {why}");
            (Reason::Refused, format!("{route} {class}"), text)
        }
        // Who breaks off by itself is not refused; what the handshake shows of trust is told below.
        ("connection", "refuse") if !matches!(why, "closed_early" | "unrecorded") => {
            let text = format!("a connection of {process} to {host} was refused: {why}");
            (Reason::Refused, why.to_owned(), text)
        }
        ("connection", "uncaptured") => {
            let text = format!(
                "a connection of {process} to {host} goes past the agent ({why}); restart the container"
            );
            (Reason::NotIntercepted, why.to_owned(), text)
        }
        ("trust", state @ ("untrusted" | "needs_restart")) => {
            let text = format!("{process} (process {}) does not trust the CA: {why}", flow.tgid);
            (Reason::TrustMissing, format!("{state} {process}"), text)
        }
        _ => return None,
    };
    Some(Note {
        pod,
        reason,
        about,
        text,
    })
}

/// Tells what flows are about, until there are no more.
pub(super) async fn follow(mut flows: broadcast::Receiver<Arc<Flow>>, teller: Teller, metrics: Metrics) {
    loop {
        match flows.recv().await {
            Ok(flow) => {
                if let Some(note) = note_of(&flow) {
                    teller.tell(note);
                }
            }
            Err(RecvError::Lagged(count)) => metrics.kubernetes.events("dropped", count),
            Err(RecvError::Closed) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(kind: &str, outcome: &str, fault: Option<&str>, reason: &str) -> Flow {
        Flow {
            kind: kind.into(),
            outcome: outcome.into(),
            fault: fault.map(str::to_owned),
            reason: Some(reason.into()),
            pod: Some("p".into()),
            host: Some("api.github.com".into()),
            route: Some("github".into()),
            ..Flow::default()
        }
    }

    #[test]
    fn only_what_went_wrong_is_told() {
        let reason = |flow: &Flow| note_of(flow).map(|note| note.reason);
        let refused = flow(
            "request",
            "unauthorized",
            Some("caller"),
            "Authorization header required",
        );
        assert_eq!(reason(&refused), Some(Reason::Refused));
        assert_eq!(note_of(&refused).unwrap().about, "github unauthorized");
        assert_eq!(reason(&flow("request", "forwarded", None, "")), None);
        assert_eq!(
            reason(&flow("connection", "refuse", None, "workload_unknown")),
            Some(Reason::Refused)
        );
        assert_eq!(reason(&flow("connection", "refuse", None, "closed_early")), None);
        assert_eq!(reason(&flow("connection", "tunnel", None, "not_routed")), None);
        assert_eq!(
            reason(&flow("connection", "uncaptured", None, "foreign_socket")),
            Some(Reason::NotIntercepted)
        );
        for state in ["untrusted", "needs_restart"] {
            assert_eq!(
                reason(&flow("trust", state, None, "alert")),
                Some(Reason::TrustMissing)
            );
        }
        assert_eq!(reason(&flow("trust", "verified", None, "")), None);
        let elsewhere = Flow { pod: None, ..refused };
        assert_eq!(reason(&elsewhere), None);
    }
}

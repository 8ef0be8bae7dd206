//! What one agent gives another of the namespaces that it serves.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::accept::Listener;

/// A namespace that is served, for a successor.
pub struct Room {
    /// Keeps the namespace alive, and leads into it.
    pub door: Arc<OwnedFd>,
    pub v4: Listener,
    pub v6: Option<Listener>,
    /// Where a process was seen that lives there, for the log.
    pub cgroup: Arc<Path>,
}

/// What the owner of all namespaces is told.
pub(in crate::agent) enum Order {
    /// Tell what is served, and serve nothing new until further notice: a successor could not listen there.
    Freeze(oneshot::Sender<Vec<Room>>),
    /// The successor did not come.
    Thaw,
}

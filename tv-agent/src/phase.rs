//! How far the agent is on its way out, as accept loops and connections see it.

use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// A successor accepts on the same sockets. What is open goes on; who can be told without a race is told to
    /// connect anew: HTTP/2 by GOAWAY, HTTP/1.1 by `connection: close` in its next answer.
    HandedOver,
    /// What is idle is closed.
    Ending,
    /// Nobody lives in the network namespace any more: the rest has `limits::DESERTED_TIME` at most.
    Deserted,
}

/// Waits until the phase is `phase` or a later one; a sender that is gone is the end.
pub async fn reached(watched: &mut watch::Receiver<Phase>, phase: Phase) {
    // An error means that the sender is gone.
    let _ = watched.wait_for(|now| *now >= phase).await;
}

//! What `explain` says of processes by what is known of their trust in our CA.

use std::fmt::Write as _;
use std::sync::Arc;

use serde::Serialize;

use crate::addr::HostName;
use crate::decide::{self, Decision};
use crate::policy::Route;
use crate::trust::{Belief, Standing};

/// What becomes of a connection of a process in one state.
#[derive(Serialize)]
pub(super) struct Stated {
    state: Belief,
    decision: &'static str,
    /// As metrics and flows say it.
    why: &'static str,
}

/// All states, `untrusted` right after the handshake that showed it.
pub(super) fn states(host: &HostName, route: &Arc<Route>) -> Vec<Stated> {
    let stated = |state| {
        let standing = Standing {
            belief: state,
            paused: state == Belief::Untrusted,
        };
        let decision = Decision::Terminate {
            host: host.clone(),
            route: route.clone(),
        };
        let (decision, why) = match decide::trusting(decision, standing) {
            Decision::Terminate { .. } => ("terminate", "routed"),
            Decision::Tunnel(why) => ("tunnel", why),
            Decision::Refuse(why) => ("refuse", why),
        };
        Stated { state, decision, why }
    };
    Belief::ALL.map(stated).into()
}

/// For people: the states in which something else happens than for everybody.
pub(super) fn text(states: &[Stated]) -> String {
    let mut text = String::new();
    for Stated { state, decision, why } in states {
        let what = match *decision {
            "tunnel" => "is tunnelled: the provider sees its own token",
            "refuse" => "is refused for 10 s, or until the CA is installed anew; then it may try again",
            _ => continue,
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  a process that is {} {what} ({why})", state.label());
    }
    text
}

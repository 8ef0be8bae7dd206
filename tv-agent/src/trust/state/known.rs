//! What is remembered of the processes that were seen connecting, for people. Looks at nothing.

use super::{Belief, Processes, Runtime};
use crate::flows::Flow;

/// One process, as it was when it connected first, and what is believed of it now.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who it is; nothing else of the record is filled in.
    pub who: Flow,
    pub runtime: Runtime,
    pub belief: Belief,
    /// How a handshake showed it.
    pub reason: Option<String>,
    /// What to do; empty where nothing is.
    pub advice: String,
}

impl Processes {
    /// At most [`limits::TRUST_PROCESSES`](crate::limits::TRUST_PROCESSES), in no order.
    pub fn known(&self) -> Vec<Known> {
        let issuing = self.issuing();
        let mut table = self.table();
        let keys = table.keys();
        let known = keys.into_iter().filter_map(|key| {
            let record = table.peek(key)?;
            let (installation, version) = record.installed(&self.0.ledger);
            let facts = record.facts(key, installation.as_deref(), version, &issuing);
            let mut who = Flow::default();
            record.who.introduce(&mut who);
            Some(Known {
                who,
                runtime: record.runtime,
                belief: record.evidence.belief(&facts),
                reason: record.evidence.reason(&facts),
                advice: record.evidence.advice(&facts),
            })
        });
        known.collect()
    }
}

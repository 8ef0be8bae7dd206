//! What handshakes have shown of one process, and what is believed of it therefore. Pure: times are parameters.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Runtime;
use crate::limits;
use crate::trust::Installation;

/// Failures in a row that outweigh an earlier success: one process may hold several TLS clients, each with roots of
/// its own.
const OUTWEIGH: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Belief {
    #[default]
    Unknown,
    /// The root is in place where it lives; no handshake has shown yet that it is used.
    Installed,
    /// It has sent data over a handshake with a leaf of ours.
    Verified,
    /// It has turned a leaf of ours down.
    Untrusted,
    /// It keeps the roots of its first use, and started before the root was in place.
    NeedsRestart,
}

impl Belief {
    pub const ALL: [Self; 5] = [
        Self::Unknown,
        Self::Installed,
        Self::Verified,
        Self::Untrusted,
        Self::NeedsRestart,
    ];

    /// For metrics and people.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Installed => "installed",
            Self::Verified => "verified",
            Self::Untrusted => "untrusted",
            Self::NeedsRestart => "needs_restart",
        }
    }
}

/// How a client showed that it does not believe a certificate of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// RFC 8446 §6.2: `bad_certificate`, `certificate_unknown` or `unknown_ca`.
    Alert(&'static str),
    /// It closed after our certificate, in the handshake: Node.js with TLS 1.3.
    Closed,
    /// It finished the handshake and closed without a word: who looks at the certificate afterwards (Node.js with
    /// TLS 1.2, GnuTLS in wget and git).
    Unused,
}

impl std::fmt::Display for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alert(alert) => write!(f, "TLS alert {alert}"),
            Self::Closed => f.write_str("it closed right after our certificate, without an alert"),
            Self::Unused => f.write_str("it finished the handshake and closed without a word"),
        }
    }
}

/// What is known of a process and of where it lives.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// When it started, since boot.
    pub started: Duration,
    pub runtime: Runtime,
    pub installation: Option<&'a Installation>,
    /// Of the installation, see [`Ledger::versioned`](crate::trust::Ledger::versioned).
    pub version: u64,
    /// SHA-256 of the root that leaves lead to now, hexadecimal.
    pub issuing: &'a str,
}

impl Facts<'_> {
    fn is_installed(&self) -> bool {
        self.installation
            .is_some_and(|there| there.roots.contains(self.issuing) && !there.stores.is_empty())
    }

    /// Whether it may have read its roots before they were as they are now, for good.
    fn is_stale(&self) -> bool {
        let older = |there: &Installation| self.started < there.at;
        self.runtime.caches() && self.installation.is_some_and(older)
    }
}

#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The root that it was last proven to trust.
    proof: Option<Arc<str>>,
    distrust: Option<Distrust>,
}

#[derive(Clone, Debug)]
struct Distrust {
    sign: Sign,
    root: Arc<str>,
    version: u64,
    /// Since boot.
    at: Duration,
    /// Without a success in between.
    in_a_row: u32,
}

impl Evidence {
    /// It has sent data over a full handshake with a leaf of `root`.
    pub fn completed(&mut self, root: &Arc<str>) {
        *self = Self {
            proof: Some(root.clone()),
            distrust: None,
        };
    }

    /// It turned down a leaf of `root` at `now`, when the installation had `version`.
    pub fn distrusted(&mut self, sign: Sign, root: &Arc<str>, version: u64, now: Duration) {
        let before = self.distrust.take();
        let same = before.filter(|before| before.root == *root && before.version == version);
        self.distrust = Some(Distrust {
            sign,
            root: root.clone(),
            version,
            at: now,
            in_a_row: same.map_or(1, |before| before.in_a_row.saturating_add(1)),
        });
    }

    pub fn belief(&self, facts: &Facts<'_>) -> Belief {
        let proven = self.proof.as_deref() == Some(facts.issuing);
        match self.standing(facts) {
            Some(distrust) if !proven || distrust.in_a_row >= OUTWEIGH => Belief::Untrusted,
            _ if proven => Belief::Verified,
            _ if !facts.is_installed() => Belief::Unknown,
            _ if facts.is_stale() => Belief::NeedsRestart,
            _ => Belief::Installed,
        }
    }

    /// Whether it is too early for another try.
    pub fn is_paused(&self, facts: &Facts<'_>, now: Duration) -> bool {
        self.belief(facts) == Belief::Untrusted
            && self
                .standing(facts)
                .is_some_and(|distrust| now.saturating_sub(distrust.at) < limits::TRUST_PAUSE)
    }

    /// The roots that it may be taken to trust: proven, and those in place that it can have read.
    pub fn roots(&self, facts: &Facts<'_>) -> BTreeSet<String> {
        let there = facts.installation.filter(|_| !facts.is_stale());
        let there = there.filter(|there| !there.stores.is_empty());
        let mut roots = there.map(|there| there.roots.clone()).unwrap_or_default();
        roots.extend(self.proof.as_deref().map(str::to_owned));
        roots
    }

    /// Why it is believed, where a handshake says more than the belief.
    pub fn reason(&self, facts: &Facts<'_>) -> Option<String> {
        let sign = self.standing(facts)?.sign;
        Some(match self.belief(facts) {
            Belief::Verified => format!("one of its TLS clients turned our certificate down: {sign}"),
            _ => sign.to_string(),
        })
    }

    /// What to do, for people; empty where nothing is.
    pub fn advice(&self, facts: &Facts<'_>) -> String {
        let means = facts.runtime.means();
        let restart = || {
            if facts.runtime.brings_roots() {
                format!("restart it with {means} (`tv-agent trust env`)")
            } else {
                "restart it: it keeps the roots that it read before the CA was installed".to_owned()
            }
        };
        match self.belief(facts) {
            Belief::Installed => String::new(),
            Belief::Verified if self.standing(facts).is_none() => String::new(),
            Belief::Verified => format!("give that client {means} (`tv-agent trust env`)"),
            Belief::NeedsRestart => restart(),
            Belief::Unknown => format!(
                "install the CA where it lives (trust.install: live, or `tv-agent trust install`), or give it {means}"
            ),
            Belief::Untrusted if facts.is_installed() && facts.is_stale() => restart(),
            Belief::Untrusted if facts.is_installed() => format!(
                "it takes its roots from elsewhere: start it with {means} (`tv-agent trust env`); if they are compiled \
                 in or pinned, keep it out of the route (`workloads`), or on_untrusted: tunnel"
            ),
            Belief::Untrusted => format!(
                "install the CA where it lives (trust.install: live, or `tv-agent trust install`) or start it with \
                 {means} (`tv-agent trust env`); if its roots are compiled in or pinned, keep it out of the route \
                 (`workloads`), or on_untrusted: tunnel"
            ),
        }
    }

    /// The last distrust, unless what is installed or issued has changed since.
    fn standing(&self, facts: &Facts<'_>) -> Option<&Distrust> {
        self.distrust
            .as_ref()
            .filter(|distrust| distrust.version == facts.version && &*distrust.root == facts.issuing)
    }
}

#[cfg(test)]
mod tests;

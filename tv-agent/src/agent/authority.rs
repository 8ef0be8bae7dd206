//! The CA of a running agent: who signs now, and the change to another without a connection lost.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Agent, Error};
use crate::addr::HostName;
use crate::ca::{Authority, Leaves};
use crate::config::Config;
use crate::limits;
use crate::metrics::{CertificateLabels, Metrics};
use crate::terminate::Terminator;

/// Everybody who goes by the CA.
pub(super) struct Authorities {
    leaves: Arc<Leaves>,
    terminator: Terminator,
    metrics: Metrics,
    present: watch::Sender<Arc<Authority>>,
}

impl Authorities {
    pub(super) fn new(leaves: Arc<Leaves>, terminator: Terminator, metrics: Metrics) -> Self {
        let authority = leaves.authority();
        tell_ends(&metrics, &authority);
        Self {
            leaves,
            terminator,
            metrics,
            present: watch::Sender::new(authority),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<Authority>> {
        self.present.subscribe()
    }

    pub(super) fn present(&self) -> Arc<Authority> {
        self.present.borrow().clone()
    }
}

impl Agent {
    /// The CA in force, and each that comes after it.
    pub fn authority(&self) -> watch::Receiver<Arc<Authority>> {
        self.authorities.watch()
    }

    /// From now on `authority` signs. Connections go on; where another root signs, no session of before is resumed. Call
    /// it in a runtime.
    /// Roots that are trusted upstream are composed anew by the next [`Agent::prepare`].
    pub fn adopt(&self, authority: Arc<Authority>) {
        let ours = &self.authorities;
        let other_root = ours.present().root_der() != authority.root_der();
        ours.leaves.replace(authority.clone());
        if other_root {
            ours.terminator.forget_sessions();
            // Handshakes that had the old leaf get their tickets when they end, with the new keys.
            let terminator = ours.terminator.clone();
            tokio::spawn(async move {
                tokio::time::sleep(limits::HANDSHAKE_TIME).await;
                terminator.forget_sessions();
            });
        }
        tell_ends(&ours.metrics, &authority);
        ours.present.send_replace(authority);
    }
}

fn tell_ends(metrics: &Metrics, authority: &Authority) {
    metrics.ca_expiry.clear();
    for &(certificate, end) in authority.ends() {
        let gauge = metrics
            .ca_expiry
            .get_or_create(&CertificateLabels { certificate });
        let sooner = match gauge.get() {
            0 => end.unix_timestamp(),
            other => other.min(end.unix_timestamp()),
        };
        gauge.set(sooner);
    }
}

/// Whether the CA may sign for every host of the routes.
///
/// # Errors
/// [`Error::NotPermitted`] with the first one that it may not sign for.
pub fn check_permitted(config: &Config, authority: &Authority) -> Result<(), Error> {
    check_subtrees(config.subtrees(), authority)
}

/// As [`check_permitted`], for what [`Config::subtrees`] gave.
///
/// # Errors
/// The same.
pub fn check_subtrees(
    subtrees: impl IntoIterator<Item = String>,
    authority: &Authority,
) -> Result<(), Error> {
    for subtree in subtrees {
        let permitted = HostName::parse(&subtree).is_some_and(|host| authority.permits(&host));
        if !permitted {
            return Err(Error::NotPermitted { subtree });
        }
    }
    Ok(())
}

//! What was put into which mount namespace, and since when: the memory that the redirect asks.
//!
//! Written by whoever installs, read by connections and by `trust list`. Nothing here touches the system.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::netns::MountsId;

/// What tells a mount namespace from others; see [`crate::netns::MountsId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MntnsId {
    pub number: u64,
    pub ino: u64,
}

impl From<MountsId> for MntnsId {
    fn from(id: MountsId) -> Self {
        let MountsId { number, ino } = id;
        Self { number, ino }
    }
}

/// What a runtime may take its roots from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// One PEM file of the system.
    Bundle,
    /// A directory with hashed names, as OpenSSL looks into.
    Directory,
    /// A `cacert.pem` that a Python package (certifi, pip) brings.
    Certifi,
    /// A JKS or PKCS12 file of a Java runtime.
    Java,
}

/// A store that did not take the CA.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreached {
    pub path: PathBuf,
    pub why: String,
}

/// What is in place in one mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// When the last of it came into place, since boot (CLOCK_BOOTTIME): processes that are older may have read
    /// their stores before.
    pub at: Duration,
    /// SHA-256 of each root that is trusted there now, hexadecimal.
    pub roots: BTreeSet<String>,
    pub stores: BTreeSet<StoreKind>,
    pub unreached: Vec<Unreached>,
}

/// Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub struct Ledger(Arc<Shared>);

#[derive(Default)]
struct Shared {
    namespaces: Mutex<HashMap<MntnsId, Entry>>,
    /// Of the last installation that changed anything.
    version: AtomicU64,
    attended: AtomicBool,
    /// Counts up with each change, for those who wait.
    changes: watch::Sender<u64>,
}

struct Entry {
    installation: Arc<Installation>,
    version: u64,
}

impl Ledger {
    /// Somebody installs wherever enrolled processes live: from now on it is worth while to wait for it.
    pub fn attend(&self) {
        self.0.attended.store(true, Ordering::Relaxed);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// Whether somebody does.
    pub fn is_attended(&self) -> bool {
        self.0.attended.load(Ordering::Relaxed)
    }

    /// An installation was tried in `id`, and this is what is there now. Also when nothing could be done.
    pub fn installed(&self, id: MntnsId, installation: Installation) {
        let mut namespaces = self.namespaces();
        let same = namespaces
            .get(&id)
            .is_some_and(|entry| *entry.installation == installation);
        if !same {
            let version = self.0.version.fetch_add(1, Ordering::Relaxed) + 1;
            let installation = Arc::new(installation);
            namespaces.insert(
                id,
                Entry {
                    installation,
                    version,
                },
            );
        }
        drop(namespaces);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// `id` is gone, or what was put there was taken away.
    pub fn removed(&self, id: MntnsId) {
        self.namespaces().remove(&id);
        self.0.changes.send_modify(|count| *count += 1);
    }

    /// What is in place in `id`; None when nobody has tried yet.
    pub fn installation(&self, id: MntnsId) -> Option<Installation> {
        self.namespaces()
            .get(&id)
            .map(|entry| (*entry.installation).clone())
    }

    /// The same with a number that grows whenever it changes; 0 where nobody has tried yet.
    pub fn versioned(&self, id: MntnsId) -> (Option<Arc<Installation>>, u64) {
        let namespaces = self.namespaces();
        let entry = namespaces.get(&id);
        entry.map_or((None, 0), |entry| {
            (Some(entry.installation.clone()), entry.version)
        })
    }

    /// Counts up with each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// All that is in place, as [`versioned`](Self::versioned) gives it.
    pub fn all(&self) -> HashMap<MntnsId, (Arc<Installation>, u64)> {
        let entry = |(id, entry): (&MntnsId, &Entry)| (*id, (entry.installation.clone(), entry.version));
        self.namespaces().iter().map(entry).collect()
    }

    /// Waits until an installation was tried in `id`, at most `limit`; whether it was.
    pub async fn settled(&self, id: MntnsId, limit: Duration) -> bool {
        let mut changes = self.0.changes.subscribe();
        let there = changes.wait_for(|_| self.namespaces().contains_key(&id));
        tokio::time::timeout(limit, there)
            .await
            .is_ok_and(|waited| waited.is_ok())
    }

    fn namespaces(&self) -> MutexGuard<'_, HashMap<MntnsId, Entry>> {
        self.0.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MntnsId = MntnsId { number: 4, ino: 77 };

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_of_the_installation_and_nobody_waits_for_ever() {
        let ledger = Ledger::default();
        assert!(!ledger.settled(ID, Duration::from_secs(1)).await);
        let waiting = tokio::spawn({
            let ledger = ledger.clone();
            async move { ledger.settled(ID, Duration::from_secs(1)).await }
        });
        tokio::task::yield_now().await;
        let other = MntnsId { ino: 78, ..ID };
        ledger.installed(other, Installation::default());
        let installation = Installation {
            at: Duration::from_secs(5),
            ..Installation::default()
        };
        ledger.installed(ID, installation.clone());
        assert!(waiting.await.unwrap());
        assert_eq!(ledger.installation(ID), Some(installation));
        ledger.removed(ID);
        assert_eq!(ledger.installation(ID), None);
    }

    #[test]
    fn a_try_that_changes_nothing_is_no_change() {
        let ledger = Ledger::default();
        assert_eq!(ledger.versioned(ID), (None, 0));
        ledger.installed(ID, Installation::default());
        let (_, first) = ledger.versioned(ID);
        ledger.installed(ID, Installation::default());
        assert_eq!(ledger.versioned(ID).1, first);
        ledger.removed(ID);
        ledger.installed(ID, Installation::default());
        assert!(
            ledger.versioned(ID).1 > first,
            "what was taken away and came again is a change"
        );
    }
}

//! The CA in force, and the one before it: a leaf is signed by the one whose chain it is shown with.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::ca::Authority;
use crate::trust;

/// The newest first. Cheap to clone; all clones are one.
#[derive(Clone)]
pub struct Signers(Arc<Mutex<Vec<Signer>>>);

/// With the digest of its intermediate.
type Signer = (String, Arc<Authority>);

impl Signers {
    pub fn new(authority: Arc<Authority>) -> Self {
        let signers = Self(Arc::default());
        signers.adopt(authority);
        signers
    }

    /// From now on `authority` signs too; the one before the last does not any more.
    pub fn adopt(&self, authority: Arc<Authority>) {
        let mut all = self.lock();
        all.insert(0, (trust::fingerprint(authority.intermediate_der()), authority));
        all.truncate(2);
    }

    /// By the digest of the intermediate.
    pub(super) fn find(&self, issuer: &str) -> Option<Arc<Authority>> {
        let all = self.lock();
        all.iter()
            .find(|(known, _)| known == issuer)
            .map(|(_, authority)| authority.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Signer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

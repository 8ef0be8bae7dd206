//! One configuration in force: what connections and requests decide by. Replaced whole on reload.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::class::{Class, Refusal};
use crate::decide::OnUnknownName;
use crate::policy::Routes;
use crate::sign::{KeySets, SigningVault};
use crate::token::Vault;
use crate::upstream::Upstreams;

pub struct Snapshot {
    pub routes: Routes,
    pub vaults: HashMap<Arc<str>, Arc<Vault>>,
    /// The vaults that sign tokens of our own.
    pub signers: HashMap<Arc<str>, Arc<SigningVault>>,
    pub keysets: KeySets,
    pub on_unknown_name: OnUnknownName,
    pub upstreams: Arc<Upstreams>,
}

impl Snapshot {
    /// The vault that a route names. The configuration was checked for it, so its absence is our defect.
    pub fn vault(&self, name: &str) -> Result<&Arc<Vault>, Refusal> {
        self.vaults
            .get(name)
            .ok_or_else(|| Refusal::new(Class::Internal, format!("the vault {name} is not loaded")))
    }
}

/// The snapshot in force now.
#[derive(Clone)]
pub struct Current(Arc<ArcSwap<Snapshot>>);

impl Current {
    pub fn new(snapshot: Snapshot) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(snapshot)))
    }

    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load_full()
    }

    pub fn replace(&self, snapshot: Snapshot) {
        self.0.store(Arc::new(snapshot));
    }
}

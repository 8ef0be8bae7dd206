//! One configuration in force: what connections and requests decide by. Replaced whole on reload.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::class::{Class, Refusal};
use crate::decide::OnUnknownName;
use crate::policy::Routes;
use crate::sign::{KeySets, SigningVault};
use crate::strays::Scope;
use crate::token::Vault;
use crate::upstream::Upstreams;
use crate::verify::Verifier;
use crate::workload::PodFacts;

pub struct Snapshot {
    pub routes: Routes,
    pub vaults: HashMap<Arc<str>, Arc<Vault>>,
    pub verifiers: HashMap<Arc<str>, Arc<Verifier>>,
    /// The vaults that sign tokens of our own.
    pub signers: HashMap<Arc<str>, Arc<SigningVault>>,
    pub keysets: KeySets,
    pub on_unknown_name: OnUnknownName,
    /// The CA is brought to where workloads live.
    pub installs: bool,
    pub upstreams: Arc<Upstreams>,
    /// What should be captured.
    pub scope: Arc<Scope>,
    /// Where the facts of pods come from.
    pub pods: Arc<dyn PodFacts>,
}

/// Where a route's tokens come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// A token endpoint.
    Vault(&'a Arc<Vault>),
    /// Ourselves.
    Signer(&'a Arc<SigningVault>),
}

impl Snapshot {
    /// The vault that a route names. The configuration was checked for it, so its absence is our defect.
    pub fn source(&self, name: &str) -> Result<Source<'_>, Refusal> {
        let vault = self.vaults.get(name).map(Source::Vault);
        vault
            .or_else(|| self.signers.get(name).map(Source::Signer))
            .ok_or_else(|| Refusal::new(Class::Internal, format!("the vault {name} is not loaded")))
    }

    /// The verifier that a route names; checked as well.
    pub fn verifier(&self, name: &str) -> Result<&Arc<Verifier>, Refusal> {
        self.verifiers
            .get(name)
            .ok_or_else(|| Refusal::new(Class::Internal, format!("the verifier {name} is not loaded")))
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

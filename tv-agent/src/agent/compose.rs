//! From a configuration to what connections and requests decide by.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use rustls_pki_types::CertificateDer;

use super::{Error, keys};
use crate::config::{Capture, Config, Install, Intercept, Quic};
use crate::dial::Dialer;
use crate::metrics::Metrics;
use crate::policy::Routes;
use crate::secret::Secret;
use crate::sign::{self, KeySets};
use crate::snapshot::Snapshot;
use crate::strays;
use crate::token::{CheckToken, Vault};
use crate::traces::{self, Traces};
use crate::upstream::{Upstreams, roots};
use crate::verify::Verifier;
use crate::workload::{self, PodFacts};

/// `own`: every root of our own, so that none of them is believed upstream. `before`: the key sets in force, which stay
/// where nothing is new about them.
pub(super) fn snapshot(
    config: Config,
    dialer: &Dialer,
    own: &[CertificateDer<'static>],
    metrics: &Metrics,
    before: Option<&KeySets>,
    pods: Option<&Arc<dyn PodFacts>>,
) -> Result<Snapshot, Error> {
    let mut verifiers = HashMap::new();
    for (name, verifier) in config.verifiers {
        let roots = roots::compose(&verifier.extra_roots, own).map_err(|source| Error::VerifierRoots {
            verifier: name.clone(),
            source,
        })?;
        let made = Verifier::new(verifier.settings, Arc::new(roots)).map_err(|source| Error::Verifier {
            verifier: name.clone(),
            source,
        })?;
        verifiers.insert(name, Arc::new(made));
    }
    let mut vaults = HashMap::new();
    for (name, vault) in config.vaults {
        let roots = roots::compose(&vault.extra_roots, own).map_err(|source| Error::VaultRoots {
            vault: name.clone(),
            source,
        })?;
        let mut made = Vault::new(vault.settings, Arc::new(roots))?;
        if let Some(verifier) = vault.validate.and_then(|name| verifiers.get(&name)) {
            made = made.checked_by(verifier.clone());
        }
        vaults.insert(name, Arc::new(made));
    }
    let keysets = keys::open(config.keysets, &config.keysets_dir, own, before)?;
    let mut signers = HashMap::new();
    for (name, settings) in config.signers {
        signers.insert(name, Arc::new(sign::SigningVault::new(settings, &keysets)?));
    }
    let roots = Arc::new(roots::compose(&config.extra_roots, own)?);
    Ok(Snapshot {
        scope: Arc::new(scope(&config.intercept)),
        routes: Routes::new(config.routes),
        vaults,
        verifiers,
        signers,
        keysets,
        on_unknown_name: config.intercept.on_unknown_name,
        installs: config.trust.install == Install::Live,
        upstreams: Arc::new(Upstreams::new(dialer.clone(), roots, metrics.clone())),
        pods: match (pods, config.intercept.pod_facts) {
            (Some(pods), _) => pods.clone(),
            (None, Some(path)) => Arc::new(workload::Directory::new(path)),
            (None, None) => Arc::new(workload::NoFacts),
        },
    })
}

/// What should be captured.
pub fn scope(intercept: &Intercept) -> strays::Scope {
    strays::Scope {
        ports: intercept.ports.clone(),
        bypass: intercept.bypass.clone(),
        block_quic: intercept.quic == Quic::Block,
        narrowed: !matches!(intercept.capture, Capture::All),
    }
}

/// The way to the collector of `traces`.
pub(super) fn traces(
    settings: &traces::Settings,
    extra_roots: &[PathBuf],
    own_root: &CertificateDer<'static>,
    metrics: &Metrics,
) -> Result<Traces, Error> {
    let roots = roots::compose(extra_roots, std::slice::from_ref(own_root)).map_err(Error::TracesRoots)?;
    Ok(Traces::start(settings, Arc::new(roots), metrics)?)
}

impl CheckToken for Verifier {
    fn check<'a>(
        &'a self,
        token: &'a Secret,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + 'a>> {
        Box::pin(async move {
            let checked = Verifier::check(self, token).await;
            checked
                .map(drop)
                .map_err(|error| error.refusal("token that the vault gave").description)
        })
    }
}

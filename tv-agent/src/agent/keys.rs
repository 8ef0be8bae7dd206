//! The key sets of a configuration: opened with it, and looked after while it is in force.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use super::Error;
use crate::clock;
use crate::https;
use crate::phase::{self, Phase};
use crate::sign::keyset::Settings;
use crate::sign::{KeySet, KeySets, Source};
use crate::snapshot::Current;
use crate::upstream::roots;

/// How often it is seen whether a key is too old, or a file changed.
const LOOK: Duration = Duration::from_secs(1);

/// Reads or makes the keys of `sets`; those of URLs come later. A set of `before` that is configured as it was
/// and comes from a URL is taken over with its keys, or there would be none for a moment.
pub(super) fn open(
    sets: Vec<Settings>,
    dir: &Path,
    own: &[CertificateDer<'static>],
    before: Option<&KeySets>,
) -> Result<KeySets, Error> {
    let now = clock::unix_now().as_secs();
    let mut all = Vec::new();
    for settings in sets {
        let known = before.and_then(|before| before.get(&settings.name));
        let remote = matches!(settings.source, Source::Url { .. });
        if let Some(known) = known.filter(|known| remote && *known.settings() == settings) {
            all.push(known.clone());
            continue;
        }
        let client = match &settings.source {
            Source::Url { extra_roots, .. } => {
                let set = || settings.name.clone();
                let roots = roots::compose(extra_roots, own);
                let roots = roots.map_err(|source| Error::KeysRoots { set: set(), source })?;
                let client = https::client(Arc::new(roots));
                Some(client.map_err(|source| Error::KeysClient { set: set(), source })?)
            }
            Source::Generate { .. } | Source::File { .. } => None,
        };
        all.push(Arc::new(KeySet::open(settings, dir, now, client)?));
    }
    Ok(KeySets::new(all))
}

/// Looks after the sets in force, until a successor does or the agent ends. What is wrong is said once, until it changes.
pub(super) async fn tend(current: Current, mut phase: watch::Receiver<Phase>) {
    let mut said: HashMap<Arc<str>, String> = HashMap::new();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = phase::reached(&mut phase, Phase::HandedOver) => return,
        }
        let keysets = current.load().keysets.clone();
        said.retain(|name, _| keysets.get(name).is_some());
        for set in keysets.iter() {
            let name = &set.settings().name;
            match set.tend(clock::unix_now().as_secs()).await {
                Ok(false) => {}
                Ok(true) => {
                    said.remove(name);
                    let kid = set.signing(None).map(|key| key.kid.clone()).unwrap_or_default();
                    tracing::info!(keyset = %name, kid, "other keys are in use");
                }
                Err(error) => {
                    let problem = https::causes(&error);
                    if said.get(name) != Some(&problem) {
                        tracing::warn!(keyset = %name, problem, "the keys stay as they are");
                        said.insert(name.clone(), problem);
                    }
                }
            }
        }
    }
}

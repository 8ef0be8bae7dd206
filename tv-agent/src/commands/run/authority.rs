//! The daemon's CA: renewed while its issuing key can be reached, and taken up when its files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::{Daemon, Error, RELOAD};
use crate::agent;
use crate::ca::{self, Authority};
use crate::commands::chain;
use crate::config::Config;

/// How often it is seen whether the intermediate has to be issued anew; also at once when routes changed.
const RENEWAL: Duration = Duration::from_secs(60);
/// What is wrong is said again after this.
const REMINDER: Duration = Duration::from_secs(24 * 3600);

/// The CA to begin with, renewed first where that is due and can be done.
pub(super) fn load(config: &Config) -> Result<Arc<Authority>, Error> {
    match ca::renew(&config.ca_dir, &config.subtrees()) {
        Ok(done) => done.advice.iter().for_each(|advice| tracing::warn!("{advice}")),
        // Told by loading, which fails as well.
        Err(ca::Error::Missing { .. }) => {}
        Err(error) => tracing::warn!("the CA cannot be renewed: {}", chain(&error)),
    }
    Ok(Arc::new(Authority::load(&config.ca_dir)?))
}

/// Looks after `dir` for as long as somebody listens.
///
/// `wanted`: the subtrees of the routes in force. `seen`: of the files that the present CA was loaded from.
pub(super) async fn tend(
    dir: PathBuf,
    mut seen: [u8; 32],
    mut wanted: watch::Receiver<Vec<String>>,
    loaded: mpsc::Sender<Arc<Authority>>,
) {
    let (mut said, mut due) = (None::<(String, Instant)>, Instant::now());
    let mut look = tokio::time::interval(RELOAD);
    loop {
        look.tick().await;
        let renew = due <= Instant::now() || wanted.has_changed().unwrap_or(false);
        let permitted = renew.then(|| wanted.borrow_and_update().clone());
        if renew {
            due = Instant::now() + RENEWAL;
        }
        let path = dir.clone();
        // It waits for locks, and signs.
        let looked = tokio::task::spawn_blocking(move || look_at(&path, permitted, seen)).await;
        let Ok(Looked { problem, found }) = looked else {
            return;
        };
        if let Some((digest, authority)) = found {
            seen = digest;
            if loaded.send(authority).await.is_err() {
                return;
            }
        }
        match problem {
            None if renew => said = None,
            None => {}
            Some(problem) => {
                let known = said.as_ref();
                if known.is_none_or(|(text, at)| *text != problem || at.elapsed() >= REMINDER) {
                    tracing::warn!("{problem}");
                    said = Some((problem, Instant::now()));
                }
            }
        }
    }
}

#[derive(Default)]
struct Looked {
    problem: Option<String>,
    /// Other files, and the CA in them.
    found: Option<([u8; 32], Arc<Authority>)>,
}

fn look_at(dir: &Path, permitted: Option<Vec<String>>, seen: [u8; 32]) -> Looked {
    let mut looked = Looked::default();
    match permitted.map(|permitted| ca::renew(dir, &permitted)) {
        None => {}
        Some(Ok(done)) => {
            looked.problem = (!done.advice.is_empty()).then(|| done.advice.join(" "));
        }
        Some(Err(error)) => looked.problem = Some(format!("the CA cannot be renewed: {}", chain(&error))),
    }
    let digest = ca::digest(dir);
    if digest != seen {
        match Authority::load(dir) {
            Ok(authority) => looked.found = Some((digest, Arc::new(authority))),
            Err(error) => {
                looked.problem = Some(format!(
                    "the changed CA is refused, the one in force stays: {}",
                    chain(&error)
                ));
            }
        }
    }
    looked
}

impl Daemon {
    /// A CA that was found in the changed files.
    pub(super) async fn take_authority(&mut self, authority: Arc<Authority>) {
        let present = self.authority.borrow().clone();
        if present.chain() == authority.chain() && present.anchors() == authority.anchors() {
            return;
        }
        let subtrees = self.wanted.borrow().clone();
        if let Err(error) = agent::check_subtrees(subtrees, &authority) {
            tracing::error!(
                "the changed CA is refused, the one in force stays: {}",
                chain(&error)
            );
            return;
        }
        let other_anchors = present.anchors() != authority.anchors();
        tracing::info!(until = %authority.not_after(), roots = authority.anchors().len(), "another CA is in force");
        if let Err(error) = self.adopt(authority).await {
            tracing::error!("{}", chain(&error));
            return;
        }
        // Whom we believe upstream depends on what is ours; and what was refused may have waited for this CA.
        if other_anchors || self.refused {
            self.reload().await;
        }
    }

    /// Lets the CA sign for what `config` needs besides the routes in force, where the issuing key is there.
    ///
    /// # Errors
    /// [`agent::Error::NotPermitted`] where it is not, and what can be wrong with it.
    pub(super) async fn widen_authority(&mut self, config: &Config) -> Result<(), Error> {
        let present = self.authority.borrow().clone();
        let Err(not_permitted) = agent::check_permitted(config, &present) else {
            return Ok(());
        };
        // Not less than the present routes need: the rest of the reload can still fail.
        let both = [&self.wanted.borrow()[..], &config.subtrees()].concat();
        match ca::renew(&self.settled.ca_dir, &both) {
            Err(ca::Error::RootKeyNeeded { .. }) => return Err(not_permitted.into()),
            renewed => drop(renewed?),
        }
        self.adopt(Arc::new(Authority::load(&self.settled.ca_dir)?)).await
    }

    /// The key first, then who shows its certificate, then who installs its root.
    async fn adopt(&self, authority: Arc<Authority>) -> Result<(), Error> {
        self.signers.adopt(authority.clone());
        self.orders.adopt(&authority).await?;
        self.authority.send_replace(authority);
        Ok(())
    }
}

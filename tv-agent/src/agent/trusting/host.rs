//! The CA in the machine's own stores, for workloads that share its mount namespace.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Installer, anchors};
use crate::ca::Authority;
use crate::trust::live::{self, HOST_MARK};
use crate::trust::{self, Anchors, Extra, Installation, StoreKind};

/// After a failure (a package manager at work, a full disk).
const AGAIN: Duration = Duration::from_secs(60);

/// What is said of the machine's stores, now and whenever that changes.
pub(super) fn installed(
    installer: &Installer,
    authority: watch::Receiver<Arc<Authority>>,
) -> watch::Receiver<Installation> {
    let alone =
        "the machine's own stores are left alone; see trust.host, or `tv-agent trust install --root /`";
    let (told, said) = watch::channel(live::nothing(alone));
    if installer.host {
        told.send_replace(live::nothing("the CA is not in the machine's own stores yet"));
        tokio::spawn(tend(installer.clone(), authority, told));
    }
    said
}

async fn tend(
    installer: Installer,
    mut authority: watch::Receiver<Arc<Authority>>,
    told: watch::Sender<Installation>,
) {
    loop {
        let wanted = anchors(&authority.borrow_and_update());
        let installer = installer.clone();
        let done = tokio::task::spawn_blocking(move || install(&installer, &wanted)).await;
        let (installation, failed) = match done {
            Ok(Ok(installation)) => {
                let (roots, unreached) = (&installation.roots, &installation.unreached);
                tracing::info!(?roots, ?unreached, "the machine's own stores have the CA");
                (installation, false)
            }
            Ok(Err(problem)) => {
                tracing::warn!("the CA is not in the machine's own stores, trying again: {problem}");
                (live::nothing(problem), true)
            }
            // It panicked, which stands in the log.
            Err(_) => (live::nothing("the installation broke off"), true),
        };
        // Nobody listens when the agent ends.
        if told.send(installation).is_err() {
            return;
        }
        let changed = tokio::select! {
            changed = authority.changed() => changed,
            () = tokio::time::sleep(AGAIN), if failed => Ok(()),
            () = told.closed() => return,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Marked first, so that `cleanup` takes it away again whenever this ends.
fn install(installer: &Installer, anchors: &Anchors) -> Result<Installation, String> {
    let mark = installer.dir.join(HOST_MARK);
    fs::create_dir_all(&installer.dir)
        .and_then(|()| fs::write(&mark, ""))
        .map_err(|error| format!("{}: {error}", mark.display()))?;
    let done = live::host_root().and_then(|root| trust::install(&root, anchors, &Extra::default()));
    let done = done.map_err(|error| live::why(&error))?;
    Ok(Installation {
        roots: anchors.fingerprints(),
        stores: [StoreKind::Bundle, StoreKind::Directory].into(),
        unreached: done.unreached,
        ..live::nothing("")
    })
}

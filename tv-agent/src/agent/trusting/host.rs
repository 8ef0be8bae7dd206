//! The CA in the machine's own stores, for workloads that share its mount namespace.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{Installer, anchors};
use crate::ca::Authority;
use crate::https::causes;
use crate::trust::live::{self, HOST_MARK};
use crate::trust::{self, Anchors, Extra, Installation, Root, StoreKind};

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
        let install = move || {
            let root = live::host_root().map_err(|error| causes(&error))?;
            install(&installer.dir, &root, &wanted)
        };
        let done = tokio::task::spawn_blocking(install).await;
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
fn install(dir: &Path, root: &Root, anchors: &Anchors) -> Result<Installation, String> {
    let mark = dir.join(HOST_MARK);
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(&mark, ""))
        .map_err(|error| format!("{}: {error}", mark.display()))?;
    let done = trust::install(root, anchors, &Extra::default()).map_err(|error| causes(&error))?;
    Ok(Installation {
        roots: anchors.fingerprints(),
        stores: [StoreKind::Bundle, StoreKind::Directory].into(),
        unreached: done.unreached,
        ..live::nothing("")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_put_into_the_machines_stores_is_marked_and_taken_out_again() {
        let temp = tempfile::tempdir().unwrap();
        let (dir, machine) = (temp.path().join("trust"), temp.path().join("machine"));
        let store = machine.join("etc/ssl/certs/ca-certificates.crt");
        let other = Authority::ephemeral(&["example.net".to_owned()]).unwrap();
        fs::create_dir_all(store.parent().unwrap()).unwrap();
        fs::create_dir_all(machine.join("usr/local/share/ca-certificates")).unwrap();
        fs::write(&store, other.root_pem()).unwrap();
        let root = Root::open(&machine).unwrap();
        let authority = Authority::ephemeral(&["example.com".to_owned()]).unwrap();
        let installed = install(&dir, &root, &anchors(&authority)).unwrap();
        assert!(
            installed
                .roots
                .contains(&trust::fingerprint(authority.root_der()))
        );
        let line = authority.root_pem().lines().nth(1).unwrap();
        assert!(fs::read_to_string(&store).unwrap().contains(line));
        assert!(live::is_in_host(&dir));
        live::leave_host(&dir, &root).unwrap();
        assert!(!live::is_in_host(&dir));
        assert_eq!(fs::read_to_string(&store).unwrap(), other.root_pem());
    }

    #[test]
    fn a_directory_that_cannot_be_had_is_told_before_anything_is_done() {
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let authority = Authority::ephemeral(&["example.com".to_owned()]).unwrap();
        let root = Root::open(temp.path()).unwrap();
        let problem = install(&file.join("trust"), &root, &anchors(&authority)).unwrap_err();
        assert!(problem.contains("trust/host"), "{problem}");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }
}

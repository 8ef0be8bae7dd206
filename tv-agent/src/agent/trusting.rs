//! The CA in the mount namespaces of workloads: put there when they are found, looked after, told of.

mod host;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;

use crate::ca::Authority;
use crate::config::{self, Install};
use crate::https::causes;
use crate::metrics::{Metrics, ResultLabels};
use crate::netns::Found;
use crate::phase::{self, Phase};
use crate::trust::live::{self, Live, News, Outcome};
use crate::trust::{Anchors, Installation, Ledger, MntnsId};

/// How the CA gets into workloads that run.
#[derive(Clone)]
pub struct Installer {
    /// Of copies and records.
    pub dir: PathBuf,
    /// This program, as a path to start its helper by.
    pub program: PathBuf,
    /// Whether the machine's own stores get it too, by the distribution's means.
    pub host: bool,
}

impl Installer {
    /// None when nothing is to be installed.
    pub fn of(config: &config::Trust) -> Option<Self> {
        (config.install == Install::Live).then(|| Self {
            dir: config.dir.clone(),
            program: "/proc/self/exe".into(),
            host: config.host,
        })
    }
}

/// Runs until the agent ends or hands over; what is installed stays.
pub(super) async fn run(
    installer: Installer,
    ledger: Ledger,
    mut found: watch::Receiver<Arc<Found>>,
    mut authority: watch::Receiver<Arc<Authority>>,
    metrics: Metrics,
    mut agent: watch::Receiver<Phase>,
) {
    ledger.attend();
    let mut host = host::installed(&installer, authority.clone());
    let mut teller = Teller {
        metrics,
        given_up: HashSet::new(),
        problem: None,
    };
    let mut live = None;
    loop {
        tokio::select! {
            changed = found.changed() => if changed.is_err() { break },
            changed = authority.changed() => if changed.is_err() { break },
            // Its end is no news.
            Ok(()) = host.changed() => {}
            () = phase::reached(&mut agent, Phase::HandedOver) => break,
        }
        let now = found.borrow_and_update().clone();
        let wanted = anchors(&authority.borrow_and_update());
        let said = host.borrow_and_update().clone();
        let looked = tokio::task::spawn_blocking({
            let (installer, ledger, now) = (installer.clone(), ledger.clone(), now.clone());
            move || look(live, &installer, &now, &wanted, said, &ledger)
        });
        // It can only have panicked; a new one finds what the last one did.
        let (kept, news) = looked.await.unwrap_or((None, Ok(Vec::new())));
        live = kept;
        match news {
            Ok(news) => news.into_iter().for_each(|one| teller.tell(&one)),
            Err(error) => teller.give_up(&error, &now, &ledger),
        }
    }
}

/// All that workloads are to trust: more than one root while one takes the other's place.
fn anchors(authority: &Authority) -> Anchors {
    Anchors::from_pem(&authority.anchors_pem()).expect("a CA in force is one of certificates")
}

fn look(
    live: Option<Live>,
    installer: &Installer,
    found: &Found,
    anchors: &Anchors,
    host: Installation,
    ledger: &Ledger,
) -> (Option<Live>, Result<Vec<News>, live::Error>) {
    let live = live.map_or_else(|| Live::open(&installer.dir, &installer.program), Ok);
    match live {
        Ok(mut live) => {
            live.of_host(host, ledger);
            let news = live.look(found, anchors, ledger);
            (Some(live), Ok(news))
        }
        Err(error) => (None, Err(error)),
    }
}

struct Teller {
    metrics: Metrics,
    /// Of which the ledger was told that nothing can be done.
    given_up: HashSet<MntnsId>,
    problem: Option<String>,
}

impl Teller {
    fn tell(&mut self, news: &News) {
        let (id, cgroup) = (news.namespace, news.cgroup.display());
        let result = news.outcome.result();
        let count = self
            .metrics
            .trust_installations
            .get_or_create(&ResultLabels { result });
        count.inc();
        match &news.outcome {
            Outcome::Installed(there) | Outcome::Adopted(there) => {
                let (stores, unreached) = (&there.stores, &there.unreached);
                if !news.first {
                    tracing::debug!(mntns = id.ino, %cgroup, result, ?stores, ?unreached, "mount namespace: renewed");
                } else if there.roots.is_empty() {
                    tracing::warn!(mntns = id.ino, %cgroup, ?unreached, "mount namespace: no store takes the CA");
                } else {
                    tracing::info!(mntns = id.ino, %cgroup, result, ?stores, ?unreached, "mount namespace: trusts the CA");
                }
            }
            Outcome::Failed(error) => tracing::warn!(
                mntns = id.ino, %cgroup, "mount namespace: does not trust the CA, trying again: {}",
                causes(error)
            ),
            Outcome::Left if news.first => {}
            Outcome::Left => tracing::info!(mntns = id.ino, %cgroup, "mount namespace: left"),
        }
    }

    /// Nobody shall wait for an installation that cannot come.
    fn give_up(&mut self, error: &live::Error, found: &Found, ledger: &Ledger) {
        let problem = causes(error);
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("the CA is not installed into workloads, trying again: {problem}");
        }
        let all: HashSet<MntnsId> = found.mounts.keys().map(|id| live::namespace_of(*id)).collect();
        for gone in self.given_up.difference(&all) {
            ledger.removed(*gone);
        }
        self.given_up.retain(|id| all.contains(id));
        for id in all {
            if ledger.installation(id).is_none() {
                ledger.installed(id, live::nothing(problem.clone()));
                self.given_up.insert(id);
            }
        }
        self.problem = Some(problem);
    }
}

//! A new configuration while the daemon runs: whole, or not at all.

use super::enrolled::agent_cgroup;
use super::settled::Settled;
use super::{Daemon, Error};
use crate::commands::chain;
use crate::metrics::ResultLabels;

impl Daemon {
    /// Takes the file's new contents whole, or keeps the old configuration.
    pub(super) fn reload(&mut self) {
        let result = match self.try_reload() {
            Ok(()) => {
                tracing::info!("configuration reloaded");
                "ok"
            }
            Err(error) => {
                tracing::error!(
                    "the new configuration is refused, the old one stays: {}",
                    chain(&error)
                );
                "refused"
            }
        };
        self.refused = result == "refused";
        self.metrics
            .config_reloads
            .get_or_create(&ResultLabels { result })
            .inc();
    }

    fn try_reload(&mut self) -> Result<(), Error> {
        let config = crate::commands::load(Some(&self.file))?;
        let enrolled = self.directories(&config.intercept)?;
        agent_cgroup(&self.mount, &enrolled.fixed)?;
        if Settled::of(&config) != self.settled {
            tracing::warn!(
                "listen, admin, audit, traces, ca.dir, trust and kubernetes take effect when the agent is restarted"
            );
        }
        let intercept = config.intercept.clone();
        let wanted = config.subtrees();
        self.widen_authority(&config)?;
        let prepared = self.agent.prepare(config)?;
        // The kernel half can still say no; then everything is as before.
        let old = std::mem::replace(&mut self.intercept, intercept);
        if let Err(error) = self.apply(&enrolled) {
            self.intercept = old;
            let enrolled = self.directories(&self.intercept)?;
            self.apply(&enrolled)?;
            return Err(error);
        }
        self.agent.install(prepared);
        self.wanted.send_replace(wanted);
        Ok(())
    }
}

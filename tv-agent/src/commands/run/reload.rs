//! A new configuration: both processes take it whole, or neither does.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use super::{Daemon, Enrolled, Error, Loaded, Settled, agent_cgroup};
use crate::agent;
use crate::commands::chain;
use crate::config::Intercept;
use crate::metrics::ResultLabels;

impl Daemon {
    /// Takes the file's new contents whole, or keeps the old configuration.
    pub(super) async fn reload(&mut self) {
        let result = match self.try_reload().await {
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

    async fn try_reload(&mut self) -> Result<(), Error> {
        let Loaded { config, named, text } = Loaded::from(&self.file)?;
        let enrolled = self.directories(&config.intercept)?;
        agent_cgroup(&self.mount, &enrolled.fixed)?;
        if Settled::of(&config) != self.settled {
            tracing::warn!(
                "listen, admin, audit, traces, ca.dir, trust, kubernetes and privileges take effect when the agent is \
                 restarted"
            );
        }
        let intercept = config.intercept.clone();
        let wanted = config.subtrees();
        self.widen_authority(&config).await?;
        self.naming.prepare(named);
        let done = self.put_in_force(text, intercept, &enrolled).await;
        if done.is_err() {
            self.naming.abandon();
        }
        done?;
        self.naming.install();
        self.wanted.send_replace(wanted);
        Ok(())
    }

    /// The data path builds it, the kernel half takes it; either can say no, and everything is as before.
    async fn put_in_force(
        &mut self,
        text: OwnedFd,
        intercept: Intercept,
        enrolled: &Enrolled,
    ) -> Result<(), Error> {
        self.orders.prepare(text.as_fd()).await?;
        let old = std::mem::replace(&mut self.intercept, intercept);
        if let Err(error) = self.apply(enrolled) {
            self.intercept = old;
            self.orders.abandon().await?;
            let enrolled = self.directories(&self.intercept)?;
            self.apply(&enrolled)?;
            return Err(error);
        }
        self.scope.store(Arc::new(agent::scope(&self.intercept)));
        self.orders.install().await?;
        Ok(())
    }
}

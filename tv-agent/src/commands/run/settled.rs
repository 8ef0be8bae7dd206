//! What a reload cannot change.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::{Config, Install};
use crate::confine::User;
use crate::{audit, kubernetes, traces};

#[derive(PartialEq)]
pub(super) struct Settled {
    pub(super) port: u16,
    pub(super) drain: Duration,
    pub(super) metrics: Option<SocketAddr>,
    pub(super) page: bool,
    pub(super) socket: PathBuf,
    pub(super) ca_dir: PathBuf,
    pub(super) audit: Option<audit::Settings>,
    pub(super) traces: Option<(traces::Settings, Vec<PathBuf>)>,
    pub(super) trust: (Install, PathBuf, bool),
    pub(super) kubernetes: Option<String>,
    pub(super) user: User,
}

impl Settled {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            port: config.port,
            drain: config.drain,
            metrics: config.metrics,
            page: config.page,
            socket: config.socket.clone(),
            ca_dir: config.ca_dir.clone(),
            audit: config.audit.clone(),
            traces: config.traces.clone(),
            kubernetes: config.kubernetes.as_ref().map(kubernetes::Settings::summary),
            user: config.user,
            trust: (config.trust.install, config.trust.dir.clone(), config.trust.host),
        }
    }
}

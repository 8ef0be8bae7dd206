//! The record of one request: a metric and one log event, whatever became of it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tracing::Level;

use super::{Outcome, Session};

impl Session {
    /// A refusal is an event of level warn, everything else of level info.
    pub(super) fn record(
        &self,
        route: &Arc<str>,
        method: &Method,
        path: &str,
        outcome: &Outcome,
        took: Duration,
    ) {
        let status = outcome.response.status().as_u16();
        self.exchange.metrics.request(route, outcome.result, status, took);
        // A macro, since the level is part of an event's call site.
        macro_rules! record {
            ($level:expr $(, $name:ident = $value:expr)*) => {
                tracing::event!(
                    target: "tv_agent::audit",
                    $level,
                    cgroup = self.workload.cgroup.as_deref().unwrap_or("unknown"),
                    tgid = self.workload.tgid,
                    uid = self.workload.uid,
                    host = %self.target.host,
                    origin = %self.target.origin,
                    route = &**route,
                    %method,
                    path,
                    result = outcome.result,
                    token = outcome.token.unwrap_or("none"),
                    status,
                    took_us = took.as_micros() as u64,
                    $($name = $value,)*
                    "request"
                )
            };
        }
        match &outcome.refused {
            None => record!(Level::INFO),
            Some(refusal) => record!(
                Level::WARN,
                fault = tracing::field::debug(refusal.class.fault()),
                why = refusal.description.as_str()
            ),
        }
    }
}

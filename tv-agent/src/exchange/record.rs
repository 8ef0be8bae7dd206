//! The record of one request: a metric, a flow and one log event, whatever became of it.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use tracing::Level;

use super::{Outcome, Seen, Session};
use crate::flows::Flow;
use crate::policy::Route;
use crate::trace_context::TraceContext;

impl Session {
    /// A refusal is an event of level warn, everything else of level info.
    pub(super) fn record(
        &self,
        route: Option<&Route>,
        method: &Method,
        path: &str,
        outcome: &Outcome,
        seen: &Seen,
        took: Duration,
    ) {
        let trace = seen.trace.as_ref().map(TraceContext::trace_id);
        let connection = route.and_then(|route| route.wanted.connection.as_deref());
        let connection = seen.connection.as_deref().or(connection);
        let route = &route.map_or_else(|| Arc::from("none"), |route| route.name.clone());
        let status = outcome.response.status().as_u16();
        self.exchange.metrics.request(route, outcome.result, status, took);
        if let Some(identity) = &seen.identity {
            self.exchange.metrics.identity(identity);
        }
        // A macro, since the level is part of an event's call site.
        macro_rules! record {
            ($level:expr $(, $name:ident = $value:expr)*) => {
                tracing::event!(
                    target: "tv_agent::audit",
                    $level,
                    cgroup = self.flow.cgroup.as_deref().unwrap_or("unknown"),
                    unit = self.flow.unit,
                    pod = self.flow.pod,
                    container = self.flow.container,
                    container_name = self.flow.container_name,
                    pod_namespace = self.flow.pod_namespace,
                    pod_name = self.flow.pod_name,
                    service_account = self.flow.service_account,
                    tgid = self.flow.tgid,
                    process = self.flow.process,
                    uid = self.flow.uid,
                    user = self.flow.user,
                    host = %self.target.host,
                    origin = %self.target.origin,
                    route = &**route,
                    %method,
                    path,
                    identity = seen.identity.as_deref(),
                    subject = seen.subject.as_deref(),
                    connection,
                    trace = trace.as_deref(),
                    result = outcome.result,
                    token = outcome.token.unwrap_or("none"),
                    status,
                    took_us = took.as_micros() as u64,
                    $($name = $value,)*
                    "request"
                )
            };
        }
        let flow = Flow {
            kind: "request".to_owned(),
            route: Some(route.to_string()),
            subject: seen.subject.clone(),
            connection: connection.map(str::to_owned),
            token: outcome.token.map(str::to_owned),
            fault: outcome
                .refused
                .as_ref()
                .map(|refusal| format!("{:?}", refusal.class.fault()).to_lowercase()),
            trace: trace.clone(),
            identity: seen.identity.clone(),
            outcome: outcome.result.to_owned(),
            reason: outcome
                .refused
                .as_ref()
                .map(|refusal| refusal.description.clone()),
            request: Some(format!("{method} {path}")),
            status: Some(status),
            took_us: u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            ..self.flow.clone()
        };
        if let Some(traces) = &self.exchange.traces {
            traces.request(&flow, method, seen.trace.as_ref());
        }
        self.exchange.flows.note(flow);
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

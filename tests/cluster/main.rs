//! The chart, its roles, the webhook and the agent's watches on a real API server; one file per topic.

mod manifests;
mod orphans;
mod roles;
mod support;
mod watcher;
mod watches;
mod webhook;

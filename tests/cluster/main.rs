//! The chart, its roles and the agent's watches on a real API server; one file per topic.

mod manifests;
mod orphans;
mod roles;
mod support;
mod watcher;
mod watches;

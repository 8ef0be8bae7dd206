//! Which runtimes trust the agent's CA, when and how: what the table in docs/trust.md says is what happens, with real
//! clients, the real daemon and the real kernel hook.

mod container;
mod exec;
mod matrix;
mod rows;
mod runtimes;

//! Harness of the tests that need more than one crate: namespaces, cgroups and what runs inside them.

pub mod cgroup;
pub mod probe;
pub mod sandbox;
pub mod sys;

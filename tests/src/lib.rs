//! Harness of the tests that need more than one crate: fakes of the outside world, namespaces, cgroups.

pub mod cgroup;
pub mod fakes;
pub mod sandbox;

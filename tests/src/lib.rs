//! Harness of the tests that need more than one crate: fakes of the outside world, namespaces, cgroups,
//! clients.

pub mod api_server;
pub mod bpf;
pub mod cgroup;
pub mod cluster;
pub mod debian;
pub mod demo;
pub mod fakes;
pub mod flow;
pub mod helm;
pub mod js;
pub mod probe;
pub mod process;
pub mod provider;
#[cfg(target_arch = "x86_64")]
pub mod puppet;
pub mod redis;
pub mod sandbox;
pub mod sim;
pub mod sys;
pub mod tools;
pub mod webhook_api;
pub mod world;

//! The real binary, real clients, the real kernel; one file per topic. Everything around it is `World`.

mod absence;
mod clients;
mod commands;
#[cfg(target_arch = "x86_64")]
mod confinement;
mod control;
mod daemon;
mod exec;
mod failures;
mod faults;
mod kubernetes;
mod leftovers;
mod load;
mod names;
mod paths;
mod pods;
mod privileges;
mod real_cluster;
mod rotation;
mod seeing;
mod shared;
mod soak;
mod split;
mod support;
mod takeover;
mod trust_live;
mod trust_state;
mod webhook;

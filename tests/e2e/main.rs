//! The real binary, real clients, the real kernel; one file per topic. Everything around it is `World`.

mod absence;
mod clients;
mod commands;
mod control;
mod daemon;
mod exec;
mod failures;
mod faults;
mod leftovers;
mod load;
mod names;
mod paths;
mod pods;
mod privileges;
mod soak;
mod support;
mod takeover;

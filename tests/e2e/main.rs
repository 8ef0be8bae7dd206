//! The real binary, real clients, the real kernel; one file per topic. Everything around it is `World`.

mod absence;
mod clients;
mod commands;
mod control;
mod daemon;
mod exec;
mod failures;
mod leftovers;
mod load;
mod names;
mod pods;
mod support;

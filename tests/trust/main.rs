//! The CA in the stores of real systems, and what real runtimes make of it. Needs root.

mod container;
mod exec;
mod install;
mod matrix;
mod rows;
mod runtimes;

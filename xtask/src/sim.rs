//! `cargo xtask sim [--nodes N] …`: a fleet under one vault's rate limit, on a virtual clock, as a table.

use std::env;
use std::process::Command;

use crate::{Outcome, process, root};

/// Builds and runs it; all arguments are handed on.
pub fn run(arguments: &[String]) -> Outcome {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["run", "--quiet", "--package", "tv-tests", "--bin", "sim", "--"])
        .args(arguments);
    process::run(&mut cargo)
}

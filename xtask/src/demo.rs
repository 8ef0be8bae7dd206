//! `cargo xtask demo`: builds the agent and the demo, then plays it.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::{Failed, Outcome, build, process, root, target};

/// Builds both, then becomes the demo: returns only when something does not build or start.
pub fn run(_: &[String]) -> Outcome {
    build::run(&[])?;
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    process::run(cargo.args(["build", "--quiet", "--package", "tv-tests", "--bin", "demo"]))?;
    // In place of this process: signals and the exit code are the demo's own.
    let directory = target().join("debug");
    let mut demo = Command::new(directory.join("demo"));
    let error = demo.env("TV_AGENT", directory.join("tv-agent")).exec();
    Err(Failed(format!("{}: {error}", process::line(&demo))))
}

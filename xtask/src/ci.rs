//! `cargo xtask ci`: everything that has to hold before a change is taken.

use std::process::Command;

use crate::{Outcome, demo, process, root, test};

/// Formatting, lints, the dependency list, all tests, the demo.
pub fn run(_: &[String]) -> Outcome {
    process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    process::run(&mut cargo(&lints))?;
    dependencies()?;
    test::run(&[])?;
    demo::run(&[])
}

/// deny.toml guards which crates may come in; the tool that reads it is not part of cargo.
fn dependencies() -> Outcome {
    if process::output(&mut cargo(&["deny", "--version"])).is_none() {
        eprintln!(
            "cargo-deny is not installed, so deny.toml is not checked; cargo install cargo-deny --locked"
        );
        return Ok(());
    }
    process::run(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]))
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

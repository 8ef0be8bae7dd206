//! `cargo xtask soak`: what is too long for every run of the tests.

use std::process::Command;

use crate::{Failed, Outcome, build, process, root, target};

/// What there is, by its name on the command line and the test that does it.
const SOAKS: &[(&str, &str)] = &[("upgrade", "soak::soak_upgrade"), ("kill", "soak::soak_kill")];

/// Runs all soaks, or those that are named, one after the other.
pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.iter().find(|a| SOAKS.iter().all(|(name, _)| name != a)) {
        let known: Vec<&str> = SOAKS.iter().map(|(name, _)| *name).collect();
        return Err(Failed(format!(
            "`{unknown}` is no soak; there are: {}",
            known.join(", ")
        )));
    }
    build::run(&[])?;
    for (name, test) in SOAKS {
        if arguments.is_empty() || arguments.iter().any(|wanted| wanted == name) {
            let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            command.current_dir(root());
            command.args(["test", "--quiet", "-p", "tv-tests", "--test", "e2e", "--"]);
            command.args([test, "--exact", "--ignored", "--nocapture"]);
            command.env("TV_AGENT", target().join("debug/tv-agent"));
            process::run(&mut command)?;
        }
    }
    Ok(())
}

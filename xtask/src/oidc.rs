//! The OpenID provider that the flow tests run: installed by npm from its lock file.

use std::fs;
use std::process::Command;

use crate::{Failed, Outcome, process, root};

/// Installs it unless the lock file is that of the last installation.
pub fn install() -> Outcome {
    let directory = root().join("tests/oidc");
    let marker = directory.join("node_modules/.installed");
    let lock = fs::read_to_string(directory.join("package-lock.json"))
        .map_err(|error| Failed(format!("tests/oidc/package-lock.json: {error}")))?;
    if fs::read_to_string(&marker).is_ok_and(|installed| installed == lock) {
        return Ok(());
    }
    let mut npm = Command::new("npm");
    npm.current_dir(root())
        .args(["ci", "--prefix", "tests/oidc", "--omit=dev", "--ignore-scripts"])
        .args(["--no-audit", "--no-fund", "--loglevel=error"]);
    eprintln!("running: {}", process::line(&npm));
    process::run(&mut npm).map_err(|Failed(why)| {
        Failed(format!(
            "{why}\nthe flow tests need Node.js 20 or later, with npm"
        ))
    })?;
    fs::write(&marker, lock).map_err(|error| Failed(format!("{}: {error}", marker.display())))
}

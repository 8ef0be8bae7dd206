//! Child processes: run, fail with their command line, and free of what `cargo run` put into our environment.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::{Failed, Outcome};

/// Runs to the end, with our terminal.
pub fn run(command: &mut Command) -> Outcome {
    let status = command
        .status()
        .map_err(|error| Failed(format!("{}: {error}", line(command))))?;
    if status.success() {
        return Ok(());
    }
    Err(Failed(format!("{} ended with {status}", line(command))))
}

/// What it prints, when it succeeds.
pub fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Removes what belongs to the cargo and the toolchain that run us, which may not be the ones to be run.
pub fn clear_cargo(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os().filter(|(name, _)| belongs_to_cargo(name)) {
        command.env_remove(name);
    }
    command
}

fn belongs_to_cargo(name: &OsString) -> bool {
    let name = name.to_string_lossy();
    // Where crates come from, and by which proxy, is the user's own and stays.
    let users = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
    ];
    if users.iter().any(|kept| name.starts_with(kept)) {
        return false;
    }
    let removed = ["RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "RUST_RECURSION_COUNT"];
    name.starts_with("CARGO")
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTFLAGS")
        || name.starts_with("RUSTDOC")
        || removed.contains(&name.as_ref())
}

/// The file of a program, on PATH or where Debian keeps those for administrators.
pub fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(more)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// As one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_settings_stay_and_cargos_go() {
        for gone in [
            "CARGO",
            "CARGO_PKG_NAME",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC",
            "RUSTFLAGS",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(belongs_to_cargo(&gone.into()), "{gone}");
        }
        for kept in [
            "PATH",
            "HOME",
            "CARGO_HOME",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_X_INDEX",
            "HTTPS_PROXY",
        ] {
            assert!(!belongs_to_cargo(&kept.into()), "{kept}");
        }
    }

    #[test]
    fn failures_name_the_command() {
        let Failed(text) = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(text.contains("sh -c exit 3") && text.contains('3'), "{text}");
        let Failed(text) = run(&mut Command::new("/nonexistent/tool")).unwrap_err();
        assert!(text.contains("/nonexistent/tool"), "{text}");
        assert_eq!(output(Command::new("echo").arg("hi")).as_deref(), Some("hi"));
        assert_eq!(output(&mut Command::new("false")), None);
    }
}

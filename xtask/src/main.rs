//! The project's own tasks: `cargo xtask COMMAND`. Dispatch only; one file per command.

mod apt;
mod bench;
mod build;
mod ci;
mod cluster;
mod demo;
mod dist;
mod fuzz;
mod kernels;
mod process;
mod recipe;
mod setup;
mod sim;
mod soak;
mod test;
mod tidy;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What a command came to.
pub type Outcome = Result<(), Failed>;

/// Why a command failed: what happened, and what to do.
#[derive(Debug)]
pub struct Failed(pub String);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// For `map_err`: the error at a file, a directory or a program.
fn failed(at: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Failed {
    move |error| Failed(format!("{}: {error}", at.as_ref().display()))
}

type Command = (&'static str, &'static str, fn(&[String]) -> Outcome);

const COMMANDS: &[Command] = &[
    ("setup", "install what the build and the tests need", setup::run),
    (
        "build",
        "[--release] build the kernel half, then the agent",
        build::run,
    ),
    (
        "demo",
        "build, then play the whole path with real clients",
        demo::run,
    ),
    (
        "dist",
        "[--target TRIPLE] [binary] [image] [deb] [sbom] release files, in target/dist",
        dist::run,
    ),
    (
        "cluster",
        "etcd and a real kube-apiserver for the tests, built from Debian's source; minutes",
        cluster::run,
    ),
    ("bench", "hooks: measurements, optimised, as tables", bench::run),
    (
        "sim",
        "[--nodes N] [--subjects N] [--limit N] [--minutes N] [--seed N] a fleet under one vault's rate limit",
        sim::run,
    ),
    ("tidy", "what reviewers should not have to look for", tidy::run),
    (
        "test",
        "[LAYER…] [--kernels [VERSION…]] host, fakes, deploy, cluster, flow, kernel, e2e, trust and kernels (6.1 in qemu)",
        test::run,
    ),
    (
        "soak",
        "[upgrade] [kill] agents that come and go under load, for minutes; needs root",
        soak::run,
    ),
    (
        "fuzz",
        "[SECONDS] [TARGET…] what others send, changed at random",
        fuzz::run,
    ),
    (
        "ci",
        "fmt, clippy, deny, test, demo: all that has to hold",
        ci::run,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let command = arguments.first().map(String::as_str).unwrap_or_default();
    let Some((name, _, run)) = COMMANDS.iter().find(|(name, ..)| *name == command) else {
        eprintln!("usage: cargo xtask COMMAND\n");
        for (name, help, _) in COMMANDS {
            eprintln!("  {name:<8} {help}");
        }
        return ExitCode::from(2);
    };
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failed) => {
            eprintln!("xtask {name}: {failed}");
            ExitCode::FAILURE
        }
    }
}

/// The workspace's root.
fn root() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

/// Where cargo builds.
fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

//! `cargo xtask demo`: builds the agent and the demo, then plays it.

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// Why the demo could not be started.
#[derive(Debug)]
pub enum Error {
    /// A program could not be run at all.
    Start {
        program: OsString,
        source: std::io::Error,
    },
    /// A build failed; it has said why.
    Build { command: String },
    /// This program does not know where it is.
    NoTarget { source: std::io::Error },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Start { program, .. } => write!(f, "cannot run {}", program.display()),
            Self::Build { command } => write!(f, "`{command}` failed; mend what it names and try again"),
            Self::NoTarget { .. } => write!(f, "cannot find the target directory beside this program"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Start { source, .. } | Self::NoTarget { source } => Some(source),
            Self::Build { .. } => None,
        }
    }
}

/// Builds both, then becomes the demo: returns only when something does not build or start.
pub fn run() -> Result<Infallible, Error> {
    let this = std::env::current_exe().map_err(|source| Error::NoTarget { source })?;
    // Cargo puts every program of the dev profile into one directory.
    let directory = this.parent().map(PathBuf::from).unwrap_or_default();
    build(Command::new(&this).arg("build"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    build(Command::new(cargo).args(["build", "--quiet", "--package", "tv-tests", "--bin", "demo"]))?;
    let program = directory.join("demo");
    // In place of this process: signals and the exit code are the demo's own.
    let source = Command::new(&program)
        .env("TV_AGENT", directory.join("tv-agent"))
        .exec();
    Err(Error::Start {
        program: program.into(),
        source,
    })
}

fn build(command: &mut Command) -> Result<(), Error> {
    let status = command.status().map_err(|source| Error::Start {
        program: command.get_program().to_owned(),
        source,
    })?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Build {
        command: format!("{command:?}"),
    })
}

//! Python clients and linters that no system package brings: installed once with pip, below cargo's target directory.
//!
//! It needs nothing but std, so that any task of the project can include it. By hand:
//! `python3 -m pip install --only-binary :all: --target target/tools/python 'grpcio>=1.60,<2' …`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What the tests and the demo import: grpc, requests, httpx.
pub const PYTHON_PACKAGES: [&str; 3] = ["grpcio>=1.60,<2", "requests>=2.31,<3", "httpx>=0.27,<1"];

/// What lints certificates: RFC 5280 by pkilint, a path validator that is stricter than TLS clients by cryptography.
const LINTERS: [&str; 2] = ["pkilint>=0.13,<0.14", "cryptography>=45"];
/// What the trust layer's clients import.
pub const ENVIRONMENT_PACKAGES: [&str; 4] = [
    "grpcio>=1.60,<2",
    "requests>=2.31,<3",
    "httpx>=0.27,<1",
    "aiohttp>=3.9,<4",
];

/// Written last: a directory that has it is complete. Holds what was asked for, and of which Python.
const MARKER: &str = ".installed";

/// Where the packages are, for PYTHONPATH; `None` before [`install_python_clients`].
pub fn python_clients() -> Option<PathBuf> {
    let directory = target_directory().ok()?.join("tools/python");
    directory.join(MARKER).is_file().then_some(directory)
}

/// Installs the packages unless they are there, which is cheap to find out, and tells where.
///
/// # Errors
/// A sentence that says what is missing, with what pip said.
pub fn install_python_clients() -> Result<PathBuf, String> {
    install("python", &PYTHON_PACKAGES)
}

/// As [`install_python_clients`], of certificate linters.
///
/// # Errors
/// As there.
pub fn install_linters() -> Result<PathBuf, String> {
    install("lint", &LINTERS)
}

fn install(name: &str, packages: &[&str]) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let target = target_directory()?;
    let directory = target.join("tools").join(name);
    let wanted = format!("{}{}\n", run(&["--version"])?, packages.join(" "));
    if fs::read_to_string(directory.join(MARKER)).is_ok_and(|marker| marker == wanted) {
        return Ok(directory);
    }
    // Beside its place, and renamed when complete: another process may install at the same time.
    let fresh = target.join(format!("tools/{name}-{}", std::process::id()));
    let installed = pip(&fresh, packages, &wanted).and_then(|()| put(&fresh, &directory, &wanted));
    if installed.is_err() {
        // Nothing is there when pip itself could not be run.
        let _ = fs::remove_dir_all(&fresh);
    }
    installed.map(|()| directory)
}

/// A virtual environment of Debian's Python (else the one on PATH) with [`ENVIRONMENT_PACKAGES`] and a pip of its own;
/// installed unless it is there.
///
/// # Errors
/// A sentence that says what is missing, with what Python or pip said.
pub fn install_python_environment() -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let debian = "/usr/bin/python3";
    let base = if Path::new(debian).exists() {
        debian
    } else {
        "python3"
    };
    let directory = target_directory()?.join("tools/python-trust");
    let wanted = format!(
        "{}{}\n",
        run_with(base, &["--version"])?,
        ENVIRONMENT_PACKAGES.join(" ")
    );
    if fs::read_to_string(directory.join(MARKER)).is_ok_and(|marker| marker == wanted) {
        return Ok(directory);
    }
    // In its place at once: it does not move. Half of one has no marker.
    let place = directory.display().to_string();
    run_with(base, &["-m", "venv", "--clear", &place]).map_err(|error| {
        format!("{error}; install Python's venv: apt-get install -y python3-venv   (or: cargo xtask setup)")
    })?;
    let options = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ];
    let own = directory.join("bin/python").display().to_string();
    run_with(
        &own,
        &[
            &options[..],
            &["--only-binary", ":all:"],
            &ENVIRONMENT_PACKAGES[..],
        ]
        .concat(),
    )?;
    fs::write(directory.join(MARKER), wanted).map_err(|error| format!("{place}: {error}"))?;
    Ok(directory)
}

fn pip(fresh: &Path, packages: &[&str], wanted: &str) -> Result<(), String> {
    let target = fresh.display().to_string();
    let options = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--only-binary",
        ":all:",
        "--target",
        &target,
    ];
    run(&[&options[..], packages].concat())?;
    fs::write(fresh.join(MARKER), wanted).map_err(|error| format!("{target}: {error}"))
}

fn put(fresh: &Path, directory: &Path, wanted: &str) -> Result<(), String> {
    // That of another Python or of other versions.
    let _ = fs::remove_dir_all(directory);
    match fs::rename(fresh, directory) {
        Ok(()) => Ok(()),
        // Another process was faster.
        Err(_) if fs::read_to_string(directory.join(MARKER)).is_ok_and(|marker| marker == wanted) => {
            fs::remove_dir_all(fresh).map_err(|error| format!("{}: {error}", fresh.display()))
        }
        Err(error) => Err(format!("{}: {error}", directory.display())),
    }
}

/// What python3 prints when it is run so.
fn run(arguments: &[&str]) -> Result<String, String> {
    run_with("python3", arguments)
}

fn run_with(python: &str, arguments: &[&str]) -> Result<String, String> {
    let ran = Command::new(python).args(arguments).output();
    let output =
        ran.map_err(|error| format!("{python} cannot be run ({error}); install python3 and its pip"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rev().find(|line| !line.trim().is_empty());
    Err(format!(
        "{python} {}: {}",
        arguments.join(" "),
        last.unwrap_or("failed without a word")
    ))
}

/// Cargo's target directory: the nearest above this program that carries cargo's mark.
pub fn target_directory() -> Result<PathBuf, String> {
    let program = std::env::current_exe().map_err(|error| format!("finding this program: {error}"))?;
    program
        .ancestors()
        .find(|directory| directory.join("CACHEDIR.TAG").is_file())
        .map(Path::to_owned)
        .ok_or_else(|| format!("{} lies in no target directory of cargo", program.display()))
}

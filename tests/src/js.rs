//! Other people's programs for Node, from npm: installed once by the lockfile, below cargo's target directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// What npm needs to know.
const FILES: [&str; 3] = ["package.json", "package-lock.json", ".npmrc"];
/// Packages' scripts never run.
const INSTALL: &str = "npm ci --no-audit --no-fund --ignore-scripts";
/// Written last: a directory that has it is complete. Holds the lockfile that it was made by.
const MARKER: &str = ".installed";

/// A directory with the scripts of `tests/js` and the packages that they import.
///
/// # Errors
/// A sentence that says what is missing, with what npm said.
pub fn install() -> Result<PathBuf, String> {
    install_from("js", "js")
}

/// As [`install`], for the scripts and packages of the directory `source` of this package; `name` is that of the
/// directory among the tools.
///
/// # Errors
/// As [`install`].
pub fn install_from(source: &str, name: &str) -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let lock = fs::read_to_string(source.join("package-lock.json")).map_err(|e| e.to_string())?;
    let target = crate::tools::target_directory()?.join("tools");
    let directory = target.join(name);
    if fs::read_to_string(directory.join(MARKER)).ok().as_ref() != Some(&lock) {
        // Beside its place, and renamed when complete: another process may install at the same time.
        let fresh = target.join(format!("{name}-{}", std::process::id()));
        let installed = npm(&source, &fresh, &lock).and_then(|()| {
            let _ = fs::remove_dir_all(&directory);
            fs::rename(&fresh, &directory).map_err(|e| e.to_string())
        });
        if installed.is_err() {
            // Nothing is there when npm itself could not be run.
            let _ = fs::remove_dir_all(&fresh);
        }
        installed?;
    }
    for entry in fs::read_dir(&source).map_err(|e| e.to_string())?.flatten() {
        if entry
            .path()
            .extension()
            .is_some_and(|extension| extension == "mjs")
        {
            let (from, to) = (entry.path(), directory.join(entry.file_name()));
            // Not while another test's node may read it.
            if fs::read(&from).ok() != fs::read(&to).ok() {
                fs::copy(from, to).map_err(|e| e.to_string())?;
            }
        }
    }
    Ok(directory)
}

fn npm(source: &Path, fresh: &Path, lock: &str) -> Result<(), String> {
    fs::create_dir_all(fresh).map_err(|e| e.to_string())?;
    for name in FILES {
        fs::copy(source.join(name), fresh.join(name)).map_err(|e| format!("{name}: {e}"))?;
    }
    let output = Command::new("npm")
        .args(INSTALL.split(' ').skip(1))
        .current_dir(fresh)
        .output()
        .map_err(|e| {
            format!(
                "npm cannot be run ({e}); install Node.js 20 or later, with npm, or run cargo xtask setup"
            )
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{INSTALL}, in a directory with the files of {}, failed: {said}",
            source.display()
        ));
    }
    fs::write(fresh.join(MARKER), lock).map_err(|e| e.to_string())
}

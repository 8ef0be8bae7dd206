//! A minimal Debian system as files: made once by debootstrap, below cargo's target directory.
//!
//! By hand: `debootstrap --variant=minbase --include=ca-certificates,openssl,python3-certifi bookworm
//! target/tools/debian/root http://deb.debian.org/debian`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::tools::target_directory;

const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";
const PACKAGES: &str = "ca-certificates,openssl,python3-certifi";
/// Written last: a directory that has it is complete.
const MARKER: &str = "made";

/// Makes it unless it is there, and tells where. Whoever wants to change it copies it.
///
/// # Errors
/// A sentence that says what is missing, with what debootstrap said.
pub fn root() -> Result<PathBuf, String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = target_directory()?.join("tools/debian");
    let root = directory.join("root");
    if directory.join(MARKER).is_file() {
        return Ok(root);
    }
    // What an earlier try has left; usually nothing is there.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    // It mounts /proc in there: in a mount namespace of its own, nothing of that stays.
    let ran = Command::new("unshare")
        .args(["--mount", "debootstrap", "--variant=minbase"])
        .arg(format!("--include={PACKAGES}"))
        .arg(SUITE)
        .arg(&root)
        .arg(MIRROR)
        .output()
        .map_err(|error| format!("unshare cannot be run ({error}); install util-linux"))?;
    if !ran.status.success() {
        let said = [ran.stdout, ran.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let last = said.lines().rev().find(|line| !line.trim().is_empty());
        return Err(format!(
            "debootstrap: {}; is it installed? cargo xtask setup",
            last.unwrap_or("failed without a word")
        ));
    }
    fs::write(directory.join(MARKER), SUITE).map_err(|error| format!("{}: {error}", directory.display()))?;
    Ok(root)
}

/// Copies it to `to`, which must not exist.
///
/// # Errors
/// As [`root`], and when there is no room.
pub fn copy_to(to: &Path) -> Result<(), String> {
    let copied = Command::new("cp")
        .args(["--archive", "--reflink=auto"])
        .arg(root()?)
        .arg(to)
        .output()
        .map_err(|error| format!("cp cannot be run: {error}"))?;
    if copied.status.success() {
        return Ok(());
    }
    Err(format!("cp: {}", String::from_utf8_lossy(&copied.stderr)))
}

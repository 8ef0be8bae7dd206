//! Debian's packages, fetched by apt with lists and a cache of its own: the machine's configuration stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Failed, Outcome, failed, process};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What apt is to know of a suite. Only what is needed: sid's other indexes are large.
pub enum Index {
    Packages,
    Sources,
}

/// apt, for one suite, that touches nothing outside `directory`.
pub struct Apt {
    pub directory: PathBuf,
}

impl Apt {
    /// In `directory`, which is made.
    pub fn new(directory: &Path, archive: &str, suite: &str, indexes: &[Index]) -> Result<Self, Failed> {
        let apt = Self {
            directory: directory.to_owned(),
        };
        for directory in ["lists/partial", "cache/archives/partial"] {
            let directory = apt.directory.join(directory);
            fs::create_dir_all(&directory).map_err(failed(&directory))?;
        }
        let from = mirror(archive)?;
        let line = |index: &Index| {
            let (kind, target) = match index {
                Index::Packages => ("deb", "Packages"),
                Index::Sources => ("deb-src", "Sources"),
            };
            format!("{kind} [signed-by={KEYRING} target={target}] {from} {suite} main\n")
        };
        let lines: String = indexes.iter().map(line).collect();
        fs::write(apt.directory.join("sources.list"), lines).map_err(failed(&apt.directory))?;
        apt.run(apt.command("apt-get").args(["update", "--error-on=any"]))?;
        Ok(apt)
    }

    /// The files of `packages`, into the directory.
    pub fn download(&self, packages: &[String]) -> Outcome {
        let mut apt = self.command("apt-get");
        self.run(apt.arg("download").args(packages).current_dir(&self.directory))
    }

    /// The files of a source package, into the directory.
    pub fn download_source(&self, package: &str) -> Outcome {
        let mut apt = self.command("apt-get");
        let apt = apt.args(["source", "--download-only", package]);
        self.run(apt.current_dir(&self.directory))
    }

    /// What apt-cache says.
    pub fn output(&self, arguments: &[&str]) -> Result<String, Failed> {
        let mut apt = self.command("apt-cache");
        apt.args(arguments);
        process::output(&mut apt).ok_or_else(|| Failed(format!("apt-cache {} failed", arguments.join(" "))))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-qq");
        let of = |name: &str| self.directory.join(name).display().to_string();
        for option in [
            format!("Dir::Etc::SourceList={}", of("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={}", of("lists")),
            "Dir::State::Status=/dev/null".into(),
            format!("Dir::Cache={}", of("cache")),
            "APT::Architecture=amd64".into(),
            "Acquire::Languages=none".into(),
            "Acquire::Retries=2".into(),
            "Acquire::http::Timeout=30".into(),
            // The unprivileged user that apt downloads as cannot enter everybody's build directory.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// Runs to the end; a failure tells what apt said.
    fn run(&self, command: &mut Command) -> Outcome {
        let output = command.output().map_err(failed(command.get_program()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said: Vec<&str> = said.lines().filter(|line| line.starts_with("E:")).collect();
        Err(Failed(said.join(" ")))
    }
}

/// Where this machine gets `archive` from.
fn mirror(archive: &str) -> Result<String, Failed> {
    let mut apt = Command::new("apt-get");
    apt.args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]);
    let known = process::output(&mut apt).unwrap_or_default();
    archive_among(&known, archive).ok_or_else(|| {
        Failed(format!(
            "apt knows no mirror of Debian's archive `{archive}`; add one to /etc/apt/sources.list.d"
        ))
    })
}

/// The archive itself, or the place beside another one of Debian's.
fn archive_among(addresses: &str, archive: &str) -> Option<String> {
    let mut beside = None;
    for address in addresses.lines().map(|address| address.trim_end_matches('/')) {
        match address.rsplit_once('/') {
            Some((_, name)) if name == archive => return Some(address.to_owned()),
            Some((mirror, "debian" | "debian-security")) => beside = Some(format!("{mirror}/{archive}")),
            _ => {}
        }
    }
    beside
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_mirror_is_used() {
        let known = "https://example.com/apt/\nhttp://mirror.example/debian-security/\nhttp://mirror.example/debian/\n";
        assert_eq!(
            archive_among(known, "debian").as_deref(),
            Some("http://mirror.example/debian")
        );
        assert_eq!(
            archive_among("http://mirror.example/debian/\n", "debian-security").as_deref(),
            Some("http://mirror.example/debian-security")
        );
        assert_eq!(archive_among("https://example.com/ubuntu/\n", "debian"), None);
    }
}

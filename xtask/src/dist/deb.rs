//! The Debian package (cargo-deb reads tv-agent/Cargo.toml): built, installed into an empty root, looked at by lintian.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::binary::{self, Linking};
use super::{Release, copy, failed, tools};
use crate::{Failed, Outcome, process, root, target};

/// What an installation must bring; the second is kept when the administrator changes it.
const FILES: [&str; 5] = [
    "usr/bin/tv-agent",
    "etc/tv-agent/config.yaml",
    "lib/systemd/system/tv-agent@.service",
    "usr/share/doc/tv-agent/copyright",
    "usr/share/man/man8/tv-agent.8.gz",
];

/// Writes the package; what could not be done, if anything.
pub fn write(release: &Release) -> Result<Option<String>, Failed> {
    if process::on_path("dpkg-shlibdeps").is_none() {
        return Ok(Some(
            "the Debian package needs Debian's tools: apt-get install -y dpkg-dev".to_owned(),
        ));
    }
    // That of the distribution: names are looked up as the host is told to.
    binary::build(release, Linking::Dynamic)?;
    let file = release.file(".deb");
    let program = tools::DEB.get()?;
    let mut deb = Command::new(program);
    process::clear_cargo(&mut deb)
        .current_dir(root())
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        // It takes what was built there.
        .env("CARGO_TARGET_DIR", Linking::Dynamic.target())
        .args(["--package", "tv-agent", "--no-build", "--no-dbgsym", "--locked"])
        .args(["--target", release.triple.name, "--output"])
        .arg(&file);
    process::run(&mut deb)?;
    installs(&file)?;
    lint(&file)?;
    let named = release.directory.join(format!(
        "tv-agent_{}-1_{}.deb",
        release.version, release.triple.debian
    ));
    copy(&file, &named)?;
    fs::remove_file(&file).map_err(failed(&file))?;
    Ok(None)
}

/// Into a root of its own: dpkg runs the scripts with DPKG_ROOT, and they leave this machine's services alone.
fn installs(package: &Path) -> Outcome {
    let place = target().join(format!("dist-root-{}", std::process::id()));
    let done = install_into(&place, package);
    let _ = fs::remove_dir_all(&place);
    done
}

fn install_into(place: &Path, package: &Path) -> Outcome {
    let admin = place.join("var/lib/dpkg");
    for directory in ["info", "updates", "triggers"] {
        let directory = admin.join(directory);
        fs::create_dir_all(&directory).map_err(failed(&directory))?;
    }
    fs::write(admin.join("status"), "").map_err(failed(&admin))?;
    let dpkg = |what: &[&str]| {
        let mut dpkg = Command::new("dpkg");
        dpkg.arg(format!("--root={}", place.display()))
            // Libraries, and this machine's architecture, are not what is looked at.
            .args([
                "--force-depends",
                "--force-architecture",
                "--force-script-chrootless",
            ])
            .args(["--force-not-root", "--log=/dev/null"])
            .args(what);
        process::run(&mut dpkg)
    };
    dpkg(&["--install", &package.display().to_string()])?;
    for file in FILES {
        if !place.join(file).is_file() {
            return Err(Failed(format!("the package installs no /{file}")));
        }
    }
    let configuration = place.join(FILES[1]);
    fs::write(&configuration, "# changed\n").map_err(failed(&configuration))?;
    dpkg(&["--remove", "tv-agent"])?;
    if place.join(FILES[0]).exists() || !configuration.is_file() {
        return Err(Failed(
            "removing the package must take the binary and leave the configuration".to_owned(),
        ));
    }
    dpkg(&["--purge", "tv-agent"])?;
    match configuration.exists() {
        true => Err(Failed("purging the package leaves the configuration".to_owned())),
        false => Ok(()),
    }
}

fn lint(package: &Path) -> Outcome {
    let Some(lintian) = process::on_path("lintian") else {
        eprintln!(
            "lintian is not installed, so the package is not checked by it; apt-get install -y lintian"
        );
        return Ok(());
    };
    let mut lintian = Command::new(lintian);
    lintian
        .args(["--fail-on", "error,warning", "--allow-root"])
        .arg(package);
    process::run(&mut lintian)
}

//! The systemd unit and the package's scripts.

use std::process::Command;

use serde_json::json;

use crate::support::{directory, pod};

fn unit() -> String {
    std::fs::read_to_string(directory("deploy/systemd/tv-agent@.service")).unwrap()
}

fn setting(name: &str) -> String {
    let unit = unit();
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name}")).to_owned()
}

#[test]
fn the_unit_and_the_chart_grant_the_same() {
    let capabilities = setting("CapabilityBoundingSet");
    let names: Vec<&str> = capabilities
        .split(' ')
        .map(|name| name.strip_prefix("CAP_").unwrap())
        .collect();
    assert_eq!(
        pod("plain")["containers"][0]["securityContext"]["capabilities"]["add"],
        json!(names)
    );
}

#[test]
fn systemd_finds_nothing_wrong_and_little_exposed() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    assert!(version.status.success());
    let unit = directory("deploy/systemd/tv-agent@.service");
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    // The package brings it.
    let wrong = said
        .lines()
        .filter(|line| !line.contains("/usr/bin/tv-agent is not executable"));
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&str>::new());
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=yes", "--threshold=40", "--no-pager"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&security.stdout);
    assert!(
        security.status.success(),
        "{}",
        said.lines().last().unwrap_or_default()
    );
}

/// What the agent takes over by must outlive the other instance.
#[test]
fn one_instance_leaves_the_others_sockets() {
    assert_eq!(setting("RuntimeDirectoryPreserve"), "yes");
    assert!(setting("ExecStart").ends_with("--take-over"));
    let drain = 30;
    assert!(setting("TimeoutStopSec").parse::<u32>().unwrap() > drain);
}

#[test]
fn the_packages_scripts_are_sound_and_leave_another_root_alone() {
    for (script, word) in [
        ("postinst", "configure"),
        ("prerm", "remove"),
        ("postrm", "remove"),
    ] {
        let script = directory("deploy/debian").join(script);
        // A systemctl, and an agent, that must not be asked.
        let ran = Command::new("/bin/sh")
            .arg("-eu")
            .arg(&script)
            .args([word, "0.0.1"])
            .env_clear()
            .env("DPKG_ROOT", "/nonexistent")
            .env("PATH", "/nonexistent")
            .output()
            .unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert!(ran.stderr.is_empty(), "{ran:?}");
    }
}

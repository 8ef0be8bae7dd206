//! The list of what the binary is made of: as CycloneDX, and as the binary itself tells it.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{Release, failed, tools};
use crate::{Failed, process, root};

/// Writes `….cdx.json`, and checks the list inside the binary if that was built; what could not be done, if anything.
pub fn write(release: &Release) -> Result<Option<String>, Failed> {
    let program = tools::CYCLONEDX.get()?;
    let manifest = root().join("tv-agent/Cargo.toml");
    let made = root().join("tv-agent/tv-agent.cdx.json");
    let mut cargo = Command::new(program);
    process::clear_cargo(&mut cargo)
        .current_dir(root())
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        .args(["cyclonedx", "--format", "json", "--spec-version", "1.5", "--all"])
        .args(["--target", release.triple.name])
        .args(["--override-filename", "tv-agent.cdx", "--manifest-path"])
        .arg(&manifest);
    process::run(&mut cargo)?;
    let file = release.file(".cdx.json");
    let text = fs::read(&made).map_err(failed(&made))?;
    // It writes one beside each manifest of the workspace.
    for member in ["tv-agent", "tv-ebpf", "tests", "xtask"] {
        let _ = fs::remove_file(root().join(member).join("tv-agent.cdx.json"));
    }
    let mut listed: Value = serde_json::from_slice(&text)
        .map_err(|error| Failed(format!("cargo-cyclonedx wrote no JSON: {error}")))?;
    // A random number, and the builder's own paths: the same list must be the same file.
    if let Some(list) = listed.as_object_mut() {
        list.remove("serialNumber");
    }
    let text = serde_json::to_string_pretty(&listed).map_err(|error| Failed(error.to_string()))?;
    let text = text.replace(&root().display().to_string(), ".");
    fs::write(&file, text + "\n").map_err(failed(&file))?;
    let binary = release.file("");
    if !binary.is_file() {
        return Ok(Some(
            "the binary is not built, so its own list is not checked".to_owned(),
        ));
    }
    let inside = names(&inside(&binary)?, "packages");
    let outside = names(&listed, "components");
    let missing: Vec<&String> = inside.iter().filter(|name| !outside.contains(name)).collect();
    match missing.as_slice() {
        [] => Ok(None),
        _ => Err(Failed(format!(
            "the binary holds packages that the list lacks: {missing:?}"
        ))),
    }
}

/// What cargo-auditable put into the binary.
fn inside(binary: &std::path::Path) -> Result<Value, Failed> {
    let program = tools::AUDIT_INFO.get()?;
    let text = process::output(Command::new(program).arg(binary))
        .ok_or_else(|| Failed(format!("{} lists no dependencies", binary.display())))?;
    serde_json::from_str(&text).map_err(|error| Failed(format!("rust-audit-info: {error}")))
}

/// `name version` of each entry; what runs only at build time, and the binary itself, are no part of it.
fn names(list: &Value, key: &str) -> Vec<String> {
    let entries = list[key].as_array().into_iter().flatten();
    entries
        .filter(|entry| entry["kind"] != "build" && entry["root"] != true)
        .filter_map(|entry| {
            Some(format!(
                "{} {}",
                entry["name"].as_str()?,
                entry["version"].as_str()?
            ))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn packages_of_the_build_and_the_binary_are_not_looked_for() {
        let list = json!({"packages": [
            {"name": "aya", "version": "0.14.0"},
            {"name": "cc", "version": "1.2.0", "kind": "build"},
            {"name": "tv-agent", "version": "0.1.0", "root": true},
        ]});
        assert_eq!(names(&list, "packages"), ["aya 0.14.0"]);
        assert!(names(&list, "components").is_empty());
    }
}

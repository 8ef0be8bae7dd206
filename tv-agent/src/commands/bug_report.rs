//! `tv-agent bug-report`: what helps to find out what is wrong, in one archive, without anything secret.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use serde_json::Value;

use super::{chain, check};
use crate::cli::{BugReportArgs, exit};
use crate::control::ask;

mod redact;

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
struct Error {
    path: PathBuf,
    source: io::Error,
}

pub async fn run(args: &BugReportArgs) -> u8 {
    let parts = collect(args).await;
    match write(&args.out, &parts) {
        Ok(()) => {
            let names: Vec<&str> = parts.iter().map(|part| &*part.name).collect();
            super::print_line(&format!("{}: {}", args.out.display(), names.join(", ")));
            super::print_line(
                "It names workloads, hosts and paths of requests. Look through it before you send it.",
            );
            exit::OK
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
    }
}

/// One file of the archive.
struct Part {
    name: String,
    text: String,
}

/// What cannot be had is told in its place: that is a finding too.
async fn collect(args: &BugReportArgs) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut add = |name: &str, text: Result<String, String>| {
        let text = text.unwrap_or_else(|problem| format!("not available: {problem}\n"));
        parts.push(Part {
            name: name.to_owned(),
            text,
        });
    };
    add("version.json", Ok(pretty(&super::version::version())));
    add("system.txt", Ok(system()));
    let mut findings = check::findings(args.config.as_deref()).await;
    for finding in findings.iter_mut().filter(|finding| !finding.ok) {
        // The message quotes what stands there, which may be a secret in the wrong place.
        if finding.name == "configuration" {
            "not valid; `tv-agent check` says where".clone_into(&mut finding.detail);
        }
    }
    add("check.json", Ok(pretty(&findings)));
    if let Some(file) = &args.config {
        add("config.json", configuration(file));
    }
    for (name, target) in [
        ("status.jsonl", "/status"),
        ("flows.jsonl", "/flows"),
        ("cache.jsonl", "/cache"),
        ("keys.jsonl", "/keys"),
        ("log.jsonl", "/log"),
        ("metrics.txt", "/metrics"),
    ] {
        let mut text = String::new();
        let asked = ask::<Value>(&args.socket, Method::GET, target, |line| {
            match line {
                Value::String(whole) => text.push_str(&whole),
                line => text.push_str(&format!("{line}\n")),
            }
            true
        });
        add(name, asked.await.map(|()| text).map_err(|error| chain(&error)));
    }
    parts
}

fn pretty(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data serialises") + "\n"
}

/// The file's keys and values, whether it is valid or not, as long as it is YAML.
fn configuration(file: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    // The parser's own words may quote the file.
    let value: Value = serde_saphyr::from_str(&text).map_err(|_| "it is no YAML".to_owned())?;
    Ok(pretty(&redact::redacted(value)))
}

/// Of the machine: kernel, system, mounts of cgroups and of bpffs, our own limits and capabilities.
fn system() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_else(|error| format!("{error}\n"));
    let only = |text: String, words: &[&str]| {
        let lines = text
            .lines()
            .filter(|line| words.iter().any(|word| line.contains(word)));
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    [
        ("/proc/version", read("/proc/version")),
        ("/etc/os-release", read("/etc/os-release")),
        (
            "/proc/self/mountinfo",
            only(read("/proc/self/mountinfo"), &["cgroup", " - bpf "]),
        ),
        (
            "/proc/self/status",
            only(
                read("/proc/self/status"),
                &["Cap", "Uid", "NoNewPrivs", "Seccomp"],
            ),
        ),
        ("/proc/self/limits", read("/proc/self/limits")),
        ("/proc/self/cgroup", read("/proc/self/cgroup")),
    ]
    .map(|(name, text)| format!("== {name}\n{text}\n"))
    .concat()
}

fn write(out: &Path, parts: &[Part]) -> Result<(), Error> {
    let failed = |source| Error {
        path: out.to_owned(),
        source,
    };
    // Never over something else, and for nobody else to read.
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(out);
    let written = archive(file.map_err(failed)?, parts);
    if written.is_err() {
        // Half an archive helps nobody; that it cannot be written is what is told.
        let _ = std::fs::remove_file(out);
    }
    written.map_err(failed)
}

fn archive(file: File, parts: &[Part]) -> io::Result<()> {
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        archive.append_data(
            &mut header,
            format!("tv-agent-bug-report/{}", part.name),
            part.text.as_bytes(),
        )?;
    }
    let mut file = archive.into_inner()?.finish()?;
    file.flush()?;
    file.sync_all()
}

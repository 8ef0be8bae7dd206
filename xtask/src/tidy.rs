//! `cargo xtask tidy`: what reviewers should not have to look for. Also runs as a test.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::{Failed, Outcome, root};

mod faults;
mod incidents;
mod layers;

/// Lines of a file before its tests.
const PRODUCTION_LINES: usize = 400;

/// A rule about where something may stand: text, and the files (or folders, with a slash) that may hold it.
struct Place {
    text: &'static str,
    allowed: &'static [&'static str],
    why: &'static str,
}

const PLACES: &[Place] = &[
    Place {
        text: "aya::",
        allowed: &["tv-agent/src/redirect.rs", "tv-agent/src/redirect/"],
        why: "the kernel half has one user",
    },
    Place {
        text: ".expose()",
        // Introspection (RFC 7662) sends the token to its issuer.
        allowed: &[
            "tv-agent/src/inject.rs",
            "tv-agent/src/inject/",
            "tv-agent/src/kubernetes/client.rs",
            "tv-agent/src/token/exchange.rs",
            // Sign-in to the shared cache, and sealing for it.
            "tv-agent/src/token/shared/link.rs",
            "tv-agent/src/token/shared/seal.rs",
            "tv-agent/src/verify/introspect.rs",
        ],
        why: "secrets are exposed where they are taken, sent and sealed only",
    },
    Place {
        text: "TcpSocket::new",
        // netns makes them for the other two.
        allowed: &[
            "tv-agent/src/dial.rs",
            "tv-agent/src/accept.rs",
            "tv-agent/src/netns.rs",
        ],
        why: "every socket of the data path is flagged as our own before it connects",
    },
    Place {
        text: "TcpStream::connect",
        allowed: &[],
        why: "every socket of the data path is flagged as our own before it connects",
    },
    Place {
        text: "unsafe ",
        allowed: &["tv-agent/src/sys.rs", "tv-agent/src/sys/"],
        why: "unsafe code lives in one small place",
    },
    Place {
        text: "dangerous()",
        allowed: &[],
        why: "no switch turns certificate verification off",
    },
    Place {
        text: "println!",
        allowed: &["tv-agent/src/commands.rs", "tv-agent/src/main.rs"],
        why: "libraries log, commands print",
    },
];

/// Files of pure decisions: no clock, no I/O, nothing asynchronous.
const PURE: &[&str] = &[
    "tv-agent/src/policy.rs",
    "tv-agent/src/decide.rs",
    "tv-agent/src/inject.rs",
    "tv-agent/src/inject/client.rs",
    "tv-agent/src/inject/foreign.rs",
    "tv-agent/src/inject/places.rs",
    "tv-agent/src/inject/purge.rs",
    "tv-agent/src/policy/credentials.rs",
    "tv-agent/src/respond.rs",
    "tv-agent/src/sign/claims.rs",
    "tv-agent/src/sign/jwks.rs",
    "tv-agent/src/token/life.rs",
    "tv-agent/src/token/request.rs",
    "tv-agent/src/token/response.rs",
    "tv-agent/src/token/response/meaning.rs",
    "tv-agent/src/token/shared/plan.rs",
    "tv-agent/src/token/when.rs",
    "tv-agent/src/verify/claims.rs",
    "tv-agent/src/oidc/json.rs",
    "tv-agent/src/kubernetes/asked.rs",
    "tv-agent/src/webhook/known.rs",
    "tv-agent/src/webhook/needs.rs",
    "tv-agent/src/webhook/patch.rs",
    "tv-agent/src/webhook/review.rs",
    "tv-ebpf/src/verdict.rs",
];
const IMPURE: &[&str] = &[
    "async ",
    "Instant::now",
    "SystemTime::now",
    "tokio::",
    "std::env",
    "std::fs",
    "std::net::Tcp",
];

/// A rule that is broken, where, and what to do.
pub struct Finding {
    file: PathBuf,
    line: usize,
    text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.text)
    }
}

/// Prints what is not tidy.
pub fn run(_: &[String]) -> Outcome {
    let findings = check(&root());
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => Err(Failed(format!("{count} finding(s), each says what to do"))),
    }
}

/// All findings in the repository at `root`.
pub fn check(root: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    for folder in ["tv-agent", "tv-ebpf", "xtask", "tests"] {
        for file in rust_files(&root.join(folder)) {
            let Ok(text) = std::fs::read_to_string(&file) else {
                continue;
            };
            let name = file.strip_prefix(root).unwrap_or(&file).to_owned();
            findings.extend(check_file(&name, &text));
        }
    }
    findings.extend(layers::check(root));
    findings.extend(faults::check(root));
    findings.extend(incidents::check(root));
    for document in [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "CHANGELOG.md",
    ] {
        if !root.join(document).is_file() {
            findings.push(Finding {
                file: document.into(),
                line: 1,
                text: "is missing".to_owned(),
            });
        }
    }
    findings
}

/// The checks that need one file only. Pure.
fn check_file(name: &Path, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, text: String| {
        findings.push(Finding {
            file: name.to_owned(),
            line: line + 1,
            text,
        });
    };
    if !text.starts_with("//!") {
        find(
            0,
            "begins without `//!`: say in a line what the module is for".to_owned(),
        );
    }
    let production: Vec<&str> = text.lines().take_while(|line| *line != "#[cfg(test)]").collect();
    let is_test = is_test(name);
    if production.len() > PRODUCTION_LINES && !is_test {
        let text = format!(
            "{} lines before the tests: split it, {PRODUCTION_LINES} are allowed",
            production.len()
        );
        find(PRODUCTION_LINES, text);
    }
    for (number, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            find(number, "ends in a space".to_owned());
        }
    }
    let unix = name.to_string_lossy().replace('\\', "/");
    for (number, line) in production.iter().enumerate() {
        let code = line.split("//").next().unwrap_or(line);
        if unix.starts_with("tv-agent/src/") && !is_test {
            for place in PLACES.iter().filter(|place| code.contains(place.text)) {
                if !place.allowed.iter().any(|allowed| unix.starts_with(allowed)) {
                    find(
                        number,
                        format!("`{}` may not stand here: {}", place.text.trim(), place.why),
                    );
                }
            }
        }
        if PURE.contains(&unix.as_str()) {
            for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                find(number, format!("`{}` in a file of pure decisions", word.trim()));
            }
        }
    }
    findings
}

fn is_test(name: &Path) -> bool {
    let stem = name.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    stem == "tests" || name.components().any(|c| c.as_os_str() == "tests")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![folder.to_owned()];
    while let Some(folder) = todo.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                if path.file_name().is_none_or(|name| name != "target") {
                    todo.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(name: &str, text: &str) -> Vec<String> {
        check_file(Path::new(name), text)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_repository_is_tidy() {
        let findings: Vec<String> = check(&root()).iter().map(ToString::to_string).collect();
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let good = "//! Doc.\nfn main() {}\n";
        assert!(texts("tv-agent/src/policy.rs", good).is_empty());
        assert_eq!(texts("tv-agent/src/policy.rs", "fn main() {}\n").len(), 1);
        assert_eq!(
            texts("tv-agent/src/policy.rs", "//! Doc.\nasync fn f() {}\n").len(),
            1
        );
        assert_eq!(
            texts(
                "tv-agent/src/connection.rs",
                "//! Doc.\nlet a = secret.expose();\n"
            )
            .len(),
            1
        );
        assert!(texts("tv-agent/src/inject.rs", "//! Doc.\nlet a = secret.expose();\n").is_empty());
        assert!(texts("tv-agent/src/connection.rs", "//! Doc.\n// never aya::here\n").is_empty());
        let long = format!("//! Doc.\n{}", "//\n".repeat(PRODUCTION_LINES));
        assert_eq!(texts("tv-agent/src/connection.rs", &long).len(), 1);
        let tested = format!("//! Doc.\n#[cfg(test)]\n{}", "//\n".repeat(PRODUCTION_LINES));
        assert!(texts("tv-agent/src/connection.rs", &tested).is_empty());
        assert_eq!(texts("xtask/src/main.rs", "//! Doc. \n").len(), 1);
    }
}

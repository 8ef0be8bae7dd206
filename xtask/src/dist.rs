//! `cargo xtask dist [--target TRIPLE] [PART…]`: what is given to others, in target/dist: a static binary and its list of
//! dependencies, an OCI image, a Debian package, checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use crate::{Failed, Outcome, build, failed, process, root, target};

mod binary;
mod deb;
mod image;
mod sbom;
mod tools;

use binary::{Linking, Triple};

/// All of them, in the order in which they are made.
const PARTS: [&str; 4] = ["binary", "image", "deb", "sbom"];

/// What is made, of which sources.
pub(crate) struct Release {
    pub triple: &'static Triple,
    pub version: String,
    /// Seconds since 1970, of the last commit: every time that is written anywhere.
    pub epoch: u64,
    /// The last commit, `-dirty` when files differ from it.
    pub revision: String,
    /// Where all of it goes.
    pub directory: PathBuf,
}

impl Release {
    /// The name of a file of this release, beginning with the program's, version's and architecture's.
    fn file(&self, end: &str) -> PathBuf {
        let Self { version, triple, .. } = self;
        self.directory
            .join(format!("tv-agent-{version}-{}{end}", triple.architecture))
    }
}

pub fn run(arguments: &[String]) -> Outcome {
    let (triple, parts) = parse(arguments)?;
    let release = Release {
        triple,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        epoch: git(&["log", "-1", "--format=%ct"])?
            .parse()
            .map_err(|_| Failed("git log -1 --format=%ct is no number".into()))?,
        revision: revision()?,
        directory: target().join("dist"),
    };
    build::kernel_half()?;
    fs::create_dir_all(&release.directory).map_err(failed(&release.directory))?;
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    let mut skipped = Vec::new();
    if wanted("binary") || wanted("image") {
        let built = binary::build(&release, Linking::Static)?;
        let file = release.file("");
        copy(&built, &file)?;
        if wanted("image") {
            image::write(&release, &file)?;
        }
    }
    if wanted("deb") {
        skipped.extend(deb::write(&release)?);
    }
    if wanted("sbom") {
        skipped.extend(sbom::write(&release)?);
    }
    checksums(&release.directory)?;
    for skipped in &skipped {
        eprintln!("left out: {skipped}");
    }
    match skipped.is_empty() || parts.is_empty() {
        true => Ok(()),
        // It was asked for by name.
        false => Err(Failed(skipped.join("; "))),
    }
}

fn parse(arguments: &[String]) -> Result<(&'static Triple, Vec<String>), Failed> {
    let mut triple = binary::host()?;
    let mut parts = Vec::new();
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        if word == "--target" {
            let name = words.next().map(String::as_str).unwrap_or_default();
            triple = binary::triple(name)?;
        } else if PARTS.contains(&word.as_str()) {
            parts.push(word.clone());
        } else {
            let allowed = PARTS.join(", ");
            return Err(Failed(format!(
                "unknown argument {word:?}; allowed are --target TRIPLE, {allowed}"
            )));
        }
    }
    Ok((triple, parts))
}

/// SHA256SUMS of all files that lie there, as sha256sum -c reads it.
fn checksums(directory: &Path) -> Outcome {
    const NAME: &str = "SHA256SUMS";
    let mut lines = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_file() && name != NAME {
            let bytes = fs::read(entry.path()).map_err(failed(&entry.path()))?;
            lines.push((name, hex(&Sha256::digest(&bytes))));
        }
    }
    lines.sort();
    let text: String = lines
        .iter()
        .map(|(name, sum)| format!("{sum}  {name}\n"))
        .collect();
    eprint!("{text}");
    let file = directory.join(NAME);
    fs::write(&file, text).map_err(failed(&file))
}

fn revision() -> Result<String, Failed> {
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Ok(match changes.is_empty() {
        true => commit,
        false => format!("{commit}-dirty"),
    })
}

fn git(arguments: &[&str]) -> Result<String, Failed> {
    let mut git = Command::new("git");
    git.current_dir(root()).args(arguments);
    process::output(&mut git).ok_or_else(|| {
        Failed(format!(
            "{} failed; a release is made of a git repository",
            process::line(&git)
        ))
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn copy(from: &Path, to: &Path) -> Outcome {
    // Not onto a file that may be running.
    let _ = fs::remove_file(to);
    fs::copy(from, to).map(drop).map_err(failed(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn targets_and_parts_are_named() {
        let (triple, parts) = parse(&words("--target aarch64-unknown-linux-gnu image")).unwrap();
        assert_eq!(triple.oci, "arm64");
        assert_eq!(parts, ["image"]);
        for (wrong, why) in [
            ("rpm", "rpm"),
            ("--target", "x86_64"),
            ("--target sparc64-unknown-linux-gnu", "aarch64"),
        ] {
            let Err(Failed(text)) = parse(&words(wrong)) else {
                panic!("{wrong}");
            };
            assert!(text.contains(why), "{text}");
        }
    }

    #[test]
    fn checksums_are_those_of_sha256sum() {
        let directory = std::env::temp_dir().join(format!("tv-sums-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("b"), "").unwrap();
        fs::write(directory.join("a"), "abc").unwrap();
        // Twice: the list does not hold its own sum.
        checksums(&directory).unwrap();
        checksums(&directory).unwrap();
        let text = fs::read_to_string(directory.join("SHA256SUMS")).unwrap();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(
            text,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n\
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n"
        );
    }
}

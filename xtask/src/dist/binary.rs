//! The release binary: the same bytes from the same sources and compiler, wherever they are built; its dependencies are
//! listed inside (cargo-auditable).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::{Release, failed, hex, tools};
use crate::{Failed, Outcome, process, root, target};

/// In a target directory.
const OBJECT: &str = "bpf/tv-ebpf.o";

/// A machine that releases are made for.
#[derive(Debug)]
pub struct Triple {
    pub name: &'static str,
    pub architecture: &'static str,
    /// As Debian, and as OCI's platforms call it.
    pub debian: &'static str,
    pub oci: &'static str,
    /// Debian's packages of the C compiler and library, and that compiler.
    packages: &'static [&'static str],
    compiler: &'static str,
}

const TRIPLES: &[Triple] = &[
    Triple {
        name: "x86_64-unknown-linux-gnu",
        architecture: "x86_64",
        debian: "amd64",
        oci: "amd64",
        packages: &["gcc", "libc6-dev"],
        compiler: "x86_64-linux-gnu-gcc",
    },
    Triple {
        name: "aarch64-unknown-linux-gnu",
        architecture: "aarch64",
        debian: "arm64",
        oci: "arm64",
        packages: &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        compiler: "aarch64-linux-gnu-gcc",
    },
];

/// How it finds the C library.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Linking {
    /// It brings all of it: for an image with nothing else in it, and for any distribution.
    Static,
    /// The distribution's, with the host's ways to look up names (nsswitch.conf(5)): for its packages.
    Dynamic,
}

/// The machine's own.
pub fn host() -> Result<&'static Triple, Failed> {
    triple(&format!("{}-unknown-linux-gnu", env::consts::ARCH))
}

pub fn triple(name: &str) -> Result<&'static Triple, Failed> {
    TRIPLES.iter().find(|triple| triple.name == name).ok_or_else(|| {
        let known: Vec<&str> = TRIPLES.iter().map(|triple| triple.name).collect();
        Failed(format!(
            "no releases are made for {name:?}; allowed: {}",
            known.join(", ")
        ))
    })
}

impl Linking {
    /// Where cargo builds it: with other flags it would build all of it again in the same place.
    pub fn target(self) -> PathBuf {
        target().join(match self {
            Self::Static => "dist-static",
            Self::Dynamic => "dist-dynamic",
        })
    }
}

/// Builds it and gives where cargo put it.
pub fn build(release: &Release, linking: Linking) -> Result<PathBuf, Failed> {
    let triple = release.triple;
    standard_library(triple)?;
    if process::on_path(triple.compiler).is_none() {
        crate::setup::packages(triple.packages, "")?;
    }
    let place = linking.target();
    hand_over_the_kernel_half(&place)?;
    let auditable = tools::AUDITABLE.get()?;
    let mut cargo = Command::new(auditable);
    process::clear_cargo(&mut cargo)
        .current_dir(root())
        .env("SOURCE_DATE_EPOCH", release.epoch.to_string())
        .env("CARGO_ENCODED_RUSTFLAGS", flags(linking).join("\x1f"))
        .env("CFLAGS", maps("-ffile-prefix-map=").join(" "))
        .env(variable("CC", triple), triple.compiler)
        .env(linker_variable(triple), triple.compiler)
        .args(["auditable", "build", "--release", "--locked"])
        .args(["--package", "tv-agent", "--target", triple.name, "--target-dir"])
        .arg(&place);
    process::run(&mut cargo)?;
    let built = place.join(triple.name).join("release/tv-agent");
    let digest = hex(&Sha256::digest(kernel_half()?));
    match holds(&fs::read(&built).map_err(failed(&built))?, digest.as_bytes()) {
        true => Ok(built),
        false => Err(Failed(format!(
            "{} was built without the kernel half",
            built.display()
        ))),
    }
}

/// The agent tells its kernel half's digest, so that is in the binary.
fn holds(binary: &[u8], text: &[u8]) -> bool {
    binary.windows(text.len()).any(|window| window == text)
}

fn kernel_half() -> Result<Vec<u8>, Failed> {
    let from = target().join(OBJECT);
    fs::read(&from).map_err(failed(&from))
}

/// The agent's build script looks for it in the directory that is built in.
fn hand_over_the_kernel_half(place: &Path) -> Outcome {
    let (object, to) = (kernel_half()?, place.join(OBJECT));
    if fs::read(&to).is_ok_and(|there| there == object) {
        return Ok(());
    }
    fs::create_dir_all(place.join("bpf")).map_err(failed(place))?;
    fs::write(&to, object).map_err(failed(&to))
}

/// A compiler without the standard library for this machine is told what it takes.
fn standard_library(triple: &Triple) -> Outcome {
    let mut rustc = Command::new("rustc");
    rustc.args(["--print", "target-libdir", "--target", triple.name]);
    let directory = process::output(&mut rustc).map(PathBuf::from);
    let there = |directory: &Path| directory.read_dir().is_ok_and(|mut files| files.next().is_some());
    match directory {
        Some(directory) if there(&directory) => Ok(()),
        _ => Err(Failed(format!(
            "this compiler has no standard library for {name}; install it with:\n  \
             rustup target add {name}",
            name = triple.name
        ))),
    }
}

fn flags(linking: Linking) -> Vec<String> {
    let mut flags = maps("--remap-path-prefix=");
    if linking == Linking::Static {
        flags.push("-Ctarget-feature=+crt-static".to_owned());
    }
    flags
}

/// Names of files get into panics' messages and C's assertions; the builder's own directories must not.
fn maps(option: &str) -> Vec<String> {
    let cargo = env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo = cargo.unwrap_or_else(|| env::home_dir().unwrap_or_default().join(".cargo"));
    // The last that fits is taken: the target directory may lie in the workspace.
    [(root(), "tv-agent"), (target(), "target"), (cargo, "cargo")]
        .iter()
        .map(|(from, to)| format!("{option}{}={to}", from.display()))
        .collect()
}

fn variable(name: &str, triple: &Triple) -> String {
    format!("{name}_{}", triple.name.replace('-', "_"))
}

fn linker_variable(triple: &Triple) -> String {
    let name = triple.name.replace('-', "_").to_uppercase();
    format!("CARGO_TARGET_{name}_LINKER")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_as_cargo_and_cc_read_them() {
        let triple = triple("aarch64-unknown-linux-gnu").unwrap();
        assert_eq!(variable("CC", triple), "CC_aarch64_unknown_linux_gnu");
        assert_eq!(
            linker_variable(triple),
            "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER"
        );
    }

    #[test]
    fn no_directory_of_the_builder_is_left_unmapped() {
        let flags = flags(Linking::Static);
        for directory in [root(), target()] {
            let from = format!("--remap-path-prefix={}=", directory.display());
            assert!(flags.iter().any(|flag| flag.starts_with(&from)), "{flags:?}");
        }
        assert!(flags.contains(&"-Ctarget-feature=+crt-static".to_owned()));
        let shared = super::flags(Linking::Dynamic);
        assert!(
            !shared.iter().any(|flag| flag.contains("crt-static")),
            "{shared:?}"
        );
    }
}

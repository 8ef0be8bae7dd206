//! What it takes to compile for the kernel: a compiler with `core`'s source, bpf-linker, and an LLVM for it.
//!
//! Rust's stable toolchains have no `core` for BPF targets, so it is built along (`-Z build-std`, which a stable
//! compiler accepts with RUSTC_BOOTSTRAP=1). bpf-linker loads an LLVM at run time, which must not be older than
//! the one that wrote the bitcode; so it is given the compiler's own.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;

pub const LINKER_VERSION: &str = "0.10.2";
/// The LLVM that this bpf-linker is made for.
pub const LLVM_MAJOR: u32 = 22;

/// Everything that was found.
#[derive(Debug)]
pub struct Recipe {
    /// Has bin/cargo, bin/rustc and lib/rustlib/src/rust.
    pub sysroot: PathBuf,
    /// What `rustc -vV` says.
    pub compiler: String,
    pub linker: PathBuf,
    /// The shared library to be loaded by bpf-linker.
    pub llvm: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No compiler with `core`'s source, or none whose LLVM fits.
    Compiler,
    Linker,
}

/// Looks for all of it; what is missing otherwise.
pub fn find(target: &Path) -> Result<Recipe, Vec<Missing>> {
    let compiler = sysroots()
        .into_iter()
        .find_map(|sysroot| usable(&sysroot).map(|found| (sysroot, found)));
    let linker = linker(target);
    match (compiler, linker) {
        (Some((sysroot, (compiler, llvm))), Some(linker)) => Ok(Recipe {
            sysroot,
            compiler,
            linker,
            llvm,
        }),
        (compiler, linker) => {
            let missing = [
                compiler.is_none().then_some(Missing::Compiler),
                linker.is_none().then_some(Missing::Linker),
            ];
            Err(missing.into_iter().flatten().collect())
        }
    }
}

/// Where `cargo xtask setup` puts tools.
pub fn tools(target: &Path) -> PathBuf {
    target.join("tools")
}

/// The toolchain on PATH, then rustup's, then Debian's.
fn sysroots() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let current = process::output(Command::new("rustc").args(["--print", "sysroot"]));
    found.extend(current.map(PathBuf::from));
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".rustup")));
    let toolchains = rustup.and_then(|rustup| fs::read_dir(rustup.join("toolchains")).ok());
    let mut toolchains: Vec<PathBuf> = toolchains
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    toolchains.sort();
    found.append(&mut toolchains);
    found.push("/usr".into());
    found
}

/// The compiler's version and LLVM, if it has all that we need.
fn usable(sysroot: &Path) -> Option<(String, PathBuf)> {
    if !has_source(sysroot) {
        return None;
    }
    let mut rustc = Command::new(sysroot.join("bin/rustc"));
    let version = process::output(process::clear_cargo(&mut rustc).arg("-vV"))?;
    if llvm_major(&version)? != LLVM_MAJOR {
        return None;
    }
    Some((version, llvm_of(sysroot)?))
}

fn has_source(sysroot: &Path) -> bool {
    [
        "bin/cargo",
        "bin/rustc",
        "lib/rustlib/src/rust/library/Cargo.lock",
    ]
    .iter()
    .all(|part| sysroot.join(part).exists())
}

fn llvm_major(version: &str) -> Option<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// rustup's toolchains bring their LLVM along (`libLLVM.so.22.1-rust-1.95.0-stable`), distributions have it in a
/// directory of the architecture (`/usr/lib/x86_64-linux-gnu/libLLVM.so.22.1`).
fn llvm_of(sysroot: &Path) -> Option<PathBuf> {
    let below = |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten();
    let mut directories = vec![sysroot.join("lib"), sysroot.join("lib64")];
    directories.extend(
        below(sysroot.join("lib"))
            .map(|entry| entry.path())
            .filter(|path| path.is_dir()),
    );
    directories.push(sysroot.join(format!("lib/llvm-{LLVM_MAJOR}/lib")));
    let prefix = format!("libLLVM.so.{LLVM_MAJOR}");
    directories
        .into_iter()
        .flat_map(below)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// The right version, in target/tools or on PATH.
fn linker(target: &Path) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = std::iter::once(tools(target).join("bin")).chain(env::split_paths(&path));
    directories
        .map(|directory| directory.join("bpf-linker"))
        .find(|linker| linker.exists() && is_right_version(linker))
}

fn is_right_version(linker: &Path) -> bool {
    let version = process::output(Command::new(linker).arg("--version"));
    version.is_some_and(|version| version == format!("bpf-linker {LINKER_VERSION}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn scratch(name: &str, files: &[&str]) -> Scratch {
        let root = env::temp_dir().join(format!("tv-recipe-{}-{name}", std::process::id()));
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        Scratch(root)
    }

    #[test]
    fn a_compiler_without_source_is_not_enough() {
        let without = scratch("bare", &["bin/cargo", "bin/rustc"]);
        assert!(!has_source(&without.0));
        assert_eq!(usable(&without.0), None);
        let with = scratch(
            "full",
            &[
                "bin/cargo",
                "bin/rustc",
                "lib/rustlib/src/rust/library/Cargo.lock",
            ],
        );
        assert!(has_source(&with.0));
    }

    #[test]
    fn each_layout_has_its_llvm() {
        for (name, file) in [
            ("rustup", "lib/libLLVM.so.22.1-rust-1.95.0-stable"),
            ("debian", "lib/x86_64-linux-gnu/libLLVM.so.22.1"),
            ("llvm", "lib/llvm-22/lib/libLLVM.so.22"),
        ] {
            let root = scratch(name, &[file, "lib/x86_64-linux-gnu/libLLVM.so.14"]);
            assert_eq!(llvm_of(&root.0), Some(root.0.join(file)), "{name}");
        }
        let old = scratch("old", &["lib/x86_64-linux-gnu/libLLVM.so.14"]);
        assert_eq!(llvm_of(&old.0), None);
    }

    #[test]
    fn the_compilers_llvm_is_read_from_its_version() {
        let version = "rustc 1.96.0\nrelease: 1.96.0\nLLVM version: 22.1.8";
        assert_eq!(llvm_major(version), Some(22));
        assert_eq!(llvm_major("rustc 1.0"), None);
    }
}

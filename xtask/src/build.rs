//! `cargo xtask build [--release]`: the kernel half to target/bpf/tv-ebpf.o, then the agent, which embeds it.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::recipe::{self, LINKER_VERSION, Recipe};
use crate::{Failed, Outcome, process, root, setup, target};

/// What the kernel half is built from, besides the compiler and this file's own flags.
const INPUTS: [&str; 3] = ["Cargo.toml", "Cargo.lock", "tv-ebpf"];
const FLAGS: [&str; 2] = ["-Cdebuginfo=2", "-Clink-arg=--btf"];

/// The workspace's release profile is made for the agent. The verifier wants optimised code without unwinding,
/// and BTF comes from the debug information.
const PROFILE: [(&str, &str); 6] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "2"),
    ("CARGO_PROFILE_RELEASE_STRIP", "none"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
];

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.iter().find(|argument| *argument != "--release") {
        return Err(Failed(format!(
            "unknown argument {unknown:?}; allowed is --release"
        )));
    }
    kernel_half()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["build", "--package", "tv-agent"])
        .args(arguments);
    process::run(&mut cargo)
}

/// Builds target/bpf/tv-ebpf.o if its inputs changed, installing the tools if they are missing.
pub fn kernel_half() -> Outcome {
    let target = target();
    let recipe = recipe::find(&target).or_else(|missing| {
        setup::install(&target, &missing)?;
        recipe::find(&target).map_err(|missing| Failed(format!("still missing: {missing:?}")))
    })?;
    let build = target.join("bpf-build");
    let object = target.join("bpf/tv-ebpf.o");
    // Not beside the object: the agent's build script watches that directory.
    let stamp = build.join("tv-ebpf.inputs");
    let inputs = fingerprint(&root(), &recipe).map_err(failed("reading the sources of tv-ebpf"))?;
    if object.exists() && fs::read_to_string(&stamp).is_ok_and(|last| last == inputs) {
        return Ok(());
    }
    eprintln!(
        "building the kernel half with {}",
        recipe.compiler.lines().next().unwrap_or_default()
    );
    let built = compile(&recipe, &build)?;
    replace(&built, &object).map_err(failed("writing target/bpf/tv-ebpf.o"))?;
    fs::write(&stamp, inputs).map_err(failed("writing target/bpf-build/tv-ebpf.inputs"))
}

fn compile(recipe: &Recipe, build: &Path) -> Result<PathBuf, Failed> {
    let endian = if cfg!(target_endian = "big") {
        "bpfeb"
    } else {
        "bpfel"
    };
    let triple = format!("{endian}-unknown-none");
    let llvm = llvm_directory(recipe, build).map_err(failed("making a directory with libLLVM only"))?;
    let mut flags = vec![
        format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH),
        format!("-Clinker={}", recipe.linker.display()),
    ];
    flags.extend(FLAGS.map(str::to_owned));
    // Line information names files; without the builder's own paths the object is the same on every machine.
    let homes = [
        (root(), "."),
        (cargo_home(), "cargo"),
        (recipe.sysroot.clone(), "rust"),
    ];
    flags.extend(homes.map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())));
    let mut cargo = Command::new(recipe.sysroot.join("bin/cargo"));
    process::clear_cargo(&mut cargo)
        .current_dir(root())
        .env("RUSTC", recipe.sysroot.join("bin/rustc"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env("LD_LIBRARY_PATH", llvm)
        .envs(PROFILE)
        .args([
            "build",
            "--package",
            "tv-ebpf",
            "--bin",
            "tv-programs",
            "--features",
            "programs",
        ])
        .args([
            "--release",
            "--target",
            &triple,
            "-Zbuild-std=core",
            "--target-dir",
        ])
        .arg(build);
    process::run(&mut cargo)?;
    Ok(build.join(triple).join("release/tv-programs"))
}

fn cargo_home() -> PathBuf {
    let default = || env::home_dir().unwrap_or_default().join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

/// bpf-linker takes the first libLLVM that it finds along LD_LIBRARY_PATH and PATH, whatever its version; so it
/// gets a directory that holds the right one and nothing else.
fn llvm_directory(recipe: &Recipe, build: &Path) -> io::Result<PathBuf> {
    let directory = build.join("llvm");
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => fs::create_dir_all(&directory)?,
    }
    std::os::unix::fs::symlink(&recipe.llvm, directory.join("libLLVM.so"))?;
    Ok(directory)
}

/// Leaves an equal object untouched, so that the agent is not built again.
fn replace(built: &Path, object: &Path) -> io::Result<()> {
    let new = fs::read(built)?;
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = object.parent() {
        fs::create_dir_all(directory)?;
    }
    let staged = built.with_extension("new");
    fs::write(&staged, new)?;
    fs::rename(staged, object)
}

/// One line per input: enough to see what changed.
fn fingerprint(root: &Path, recipe: &Recipe) -> io::Result<String> {
    let mut files = Vec::new();
    for input in INPUTS {
        collect(&root.join(input), &mut files)?;
    }
    files.sort();
    let mut text = format!(
        "{}\nbpf-linker {LINKER_VERSION}\n{FLAGS:?} {PROFILE:?}\n",
        recipe.compiler
    );
    for file in files {
        let contents = fs::read(&file)?;
        let name = file.strip_prefix(root).unwrap_or(&file).display().to_string();
        text.push_str(&format!("{name} {} {:016x}\n", contents.len(), fnv1a(&contents)));
    }
    Ok(text)
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        collect(&entry?.path(), files)?;
    }
    Ok(())
}

/// FNV-1a: tells versions of a file apart; nothing here is an adversary.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> Failed {
    move |error| Failed(format!("{doing}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_follows_compiler_and_sources() {
        let root = env::temp_dir().join(format!("tv-fingerprint-{}", std::process::id()));
        fs::create_dir_all(root.join("tv-ebpf/src")).unwrap();
        for file in ["Cargo.toml", "Cargo.lock", "tv-ebpf/src/lib.rs"] {
            fs::write(root.join(file), file).unwrap();
        }
        let mut recipe = Recipe {
            sysroot: "/usr".into(),
            compiler: "rustc 1".into(),
            linker: "bpf-linker".into(),
            llvm: "libLLVM.so".into(),
        };
        let first = fingerprint(&root, &recipe).unwrap();
        assert_eq!(fingerprint(&root, &recipe).unwrap(), first);
        fs::write(root.join("tv-ebpf/src/lib.rs"), "TV-EBPF/src/lib.rs").unwrap();
        let second = fingerprint(&root, &recipe).unwrap();
        assert_ne!(second, first);
        recipe.compiler = "rustc 2".into();
        assert_ne!(fingerprint(&root, &recipe).unwrap(), second);
        fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn fnv1a_is_the_published_one() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}

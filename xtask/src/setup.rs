//! `cargo xtask setup`: installs what the kernel half's build and the tests lack, or names the commands that do.

use std::path::Path;
use std::process::Command;

use crate::recipe::{self, LINKER_VERSION, LLVM_MAJOR, Missing};
use crate::{Failed, Outcome, kernels, process, target};

const PACKAGES: [&str; 5] = ["rustc-web", "cargo-web", "rust-web-src", "libllvm22", "iproute2"];

/// What the tests compile and run: a program, how to ask whether it is whole, and its packages.
const CLIENTS: [Client; 6] = [
    ("gcc", &["--version"], &["gcc", "libc6-dev"]),
    ("javac", &["-version"], &["default-jdk-headless"]),
    ("node", &["--version"], &["nodejs"]),
    ("npm", &["--version"], &["npm"]),
    ("python3", &["--version"], &["python3"]),
    ("redis-server", &["--version"], &["redis-server"]),
];

/// As above, for the trust layer.
const RUNTIMES: [Client; 11] = [
    ("debootstrap", &["--version"], &["debootstrap"]),
    ("curl", &["--version"], &["curl"]),
    ("wget", &["--version"], &["wget"]),
    ("git", &["--version"], &["git"]),
    ("gh", &["--version"], &["gh"]),
    ("openssl", &["version"], &["openssl"]),
    ("gnutls-cli", &["--version"], &["gnutls-bin"]),
    ("ruby", &["--version"], &["ruby"]),
    ("php", &["-r", "curl_version();"], &["php-cli", "php-curl"]),
    ("go", &["version"], &["golang-go"]),
    // Debian's has the module only with this package.
    ("python3", &["-c", "import ensurepip"], &["python3-venv"]),
];

type Client = (&'static str, &'static [&'static str], &'static [&'static str]);

pub fn run(arguments: &[String]) -> Outcome {
    if let Some(unknown) = arguments.first() {
        return Err(Failed(format!("unknown argument {unknown:?}; there are none")));
    }
    let target = target();
    match recipe::find(&target) {
        Ok(found) => {
            eprintln!("compiler: {}", found.compiler.lines().next().unwrap_or_default());
            eprintln!(
                "core's source: {}",
                found.sysroot.join("lib/rustlib/src/rust").display()
            );
            eprintln!("linker: {} with {}", found.linker.display(), found.llvm.display());
        }
        Err(missing) => install(&target, &missing)?,
    }
    if !has("ip", &["-V"]) {
        packages(&PACKAGES, &rustup())?;
    }
    if !kernels::has_tools() {
        packages(&kernels::PACKAGES, "")?;
    }
    clients()?;
    eprintln!("nothing is missing");
    Ok(())
}

/// Installs the programs that the tests run.
pub fn clients() -> Outcome {
    let missing = CLIENTS.iter().chain(&RUNTIMES);
    let missing = missing.filter(|(program, arguments, _)| !has(program, arguments));
    let missing: Vec<&str> = missing.flat_map(|(.., packages)| *packages).copied().collect();
    if missing.is_empty() {
        return Ok(());
    }
    packages(&missing, "")
}

/// Installs what is missing, and looks again.
pub fn install(target: &Path, missing: &[Missing]) -> Outcome {
    if missing.contains(&Missing::Compiler) {
        eprintln!("missing: a Rust compiler with LLVM {LLVM_MAJOR} and the source of `core`");
        packages(&PACKAGES, &rustup())?;
    }
    if missing.contains(&Missing::Linker) {
        eprintln!("missing: bpf-linker {LINKER_VERSION}; building it takes a few minutes");
        let root = recipe::tools(target);
        let mut cargo = Command::new("cargo");
        // In the tools' directory, so that this workspace's configuration does not apply.
        cargo
            .args([
                "install",
                "bpf-linker",
                "--version",
                LINKER_VERSION,
                "--locked",
                "--root",
            ])
            .arg(&root);
        process::run(announce(process::clear_cargo(&mut cargo)))?;
    }
    recipe::find(target)
        .map(drop)
        .map_err(|missing| Failed(format!("still missing after the installation: {missing:?}")))
}

/// The other way to a compiler with the source of `core`.
fn rustup() -> String {
    format!("\n  rustup component add rust-src   (a toolchain whose `rustc -vV` says LLVM {LLVM_MAJOR})")
}

/// Installs Debian packages, or names the command that does, and another way if there is one.
pub fn packages(names: &[&str], otherwise: &str) -> Outcome {
    let debian = Path::new("/etc/debian_version").exists();
    let root = process::output(Command::new("id").arg("-u")).as_deref() == Some("0");
    if !debian || !root {
        let apt = format!("sudo apt-get install -y {}   (Debian)", names.join(" "));
        return Err(Failed(format!("install them with:\n  {apt}{otherwise}")));
    }
    process::run(announce(Command::new("apt-get").arg("update")))?;
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    process::run(announce(
        apt.args(["install", "-y", "--no-install-recommends"]).args(names),
    ))
}

fn has(program: &str, arguments: &[&str]) -> bool {
    process::output(Command::new(program).args(arguments)).is_some()
}

/// Says what is run.
pub fn announce(command: &mut Command) -> &mut Command {
    eprintln!("running: {}", process::line(command));
    command
}

//! `cargo xtask test --kernels [VERSION…]`: the kernel tests on real Debian kernels, booted by qemu.
//!
//! Emulated (TCG), because nested virtualisation is rarely to be had: a kernel takes about a minute. The guest has
//! the test binary, tv-probe, busybox and ip, and no disk or network card.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::{Failed, Outcome, failed, process, root, setup, target};

mod debian;
mod guest;
mod initramfs;

/// A kernel to be tested on.
pub struct Kernel {
    /// What the command line calls it; the release begins with it, unless it is [`NEWEST`].
    pub name: &'static str,
    /// Debian's archive and suite; the next one is tried when one has no such kernel.
    sources: &'static [(&'static str, &'static str)],
    /// Which of the tests run; empty: all.
    filter: &'static str,
}

/// Oldest first.
const KERNELS: &[Kernel] = &[
    Kernel {
        name: "5.10",
        sources: &[("debian-security", "bullseye-security")],
        // Older than what is supported: the programs load, and the agent says what is missing.
        filter: "floor",
    },
    Kernel {
        name: "6.1",
        sources: &[("debian-security", "bookworm-security"), ("debian", "bookworm")],
        filter: "",
    },
    Kernel {
        name: "6.12",
        sources: &[("debian-security", "trixie-security"), ("debian", "trixie")],
        filter: "",
    },
    Kernel {
        name: NEWEST,
        sources: &[("debian", "sid"), ("debian", "trixie-backports")],
        filter: "",
    },
];
const NEWEST: &str = "newest";
/// The oldest one that is supported and to be had.
const SMOKE: &str = "6.1";

/// Lines of the guest's output that a failure shows; all of it stays in a file.
const SHOWN: usize = 40;

/// Runs on all kernels, or on those that are named.
///
/// One that cannot be had is skipped, and the reason told; one that was named must be had.
pub fn run(names: &[String]) -> Outcome {
    let wanted = select(names)?;
    let tools = tools()?;
    boot(&wanted, &tools, !names.is_empty())
}

/// Runs on one kernel besides the machine's own: the layer `kernels` of `cargo xtask test`.
///
/// Skipped where qemu or the kernel cannot be had, as tests are, unless CI is `true`.
pub fn smoke() -> Outcome {
    let must = env::var("CI").as_deref() == Ok("true");
    let tools = match tools() {
        Err(Failed(reason)) if !must => {
            eprintln!("\n== kernels: skipped: {reason}");
            return Ok(());
        }
        tools => tools?,
    };
    boot(&select(&[SMOKE.to_owned()])?, &tools, must)
}

/// Fetches and boots one after the other; `must`: none may be skipped.
fn boot(wanted: &[&Kernel], tools: &Tools, must: bool) -> Outcome {
    let tests = build_tests()?;
    eprintln!("\n== kernels: the kernel tests in qemu");
    let (mut lines, mut failed) = (Vec::new(), 0);
    for kernel in wanted {
        let began = Instant::now();
        let image = match debian::fetch(kernel, &directory(kernel)) {
            Ok(image) => image,
            Err(Failed(reason)) if !must => {
                lines.push(format!("{:<7} skipped: {reason}", kernel.name));
                continue;
            }
            Err(failed) => return Err(failed),
        };
        eprintln!("{}: booting {}", kernel.name, image.release);
        let log = directory(kernel).join("boot.log");
        let mut boots = 1;
        let mut report = guest::run(&image, &tests, kernel.filter, tools, &log)?;
        while report.again(boots) {
            eprintln!(
                "{}: the guest ended before its tests did; its last lines:\n{}\nbooting once more",
                kernel.name,
                report.last_lines(SHOWN)
            );
            boots += 1;
            report = guest::run(&image, &tests, kernel.filter, tools, &log)?;
        }
        if !report.passed() {
            failed += 1;
            eprintln!("{}\nall of it: {}", report.last_lines(SHOWN), log.display());
        }
        let seconds = began.elapsed().as_secs_f64();
        let mut only = match kernel.filter {
            "" => String::new(),
            filter => format!(" (only {filter})"),
        };
        if boots > 1 {
            only.push_str(&format!(" ({boots} boots)"));
        }
        lines.push(format!(
            "{:<7} {:<26} {report}, {seconds:>3.0} s{only}",
            kernel.name, image.release
        ));
    }
    eprintln!("\n{}", lines.join("\n"));
    match failed {
        0 => Ok(()),
        _ => Err(Failed(format!("the kernel tests fail on {failed} kernel(s)"))),
    }
}

fn select(names: &[String]) -> Result<Vec<&'static Kernel>, Failed> {
    let known = || KERNELS.iter().map(|kernel| kernel.name).collect::<Vec<_>>();
    if let Some(unknown) = names.iter().find(|name| !known().contains(&name.as_str())) {
        return Err(Failed(format!(
            "no kernel `{unknown}`; there are: {}",
            known().join(", ")
        )));
    }
    let named = |kernel: &&Kernel| names.is_empty() || names.iter().any(|name| name == kernel.name);
    Ok(KERNELS.iter().filter(named).collect())
}

/// Where one kernel is kept; removing it fetches the kernel anew.
fn directory(kernel: &Kernel) -> PathBuf {
    target().join("kernels").join(kernel.name)
}

/// Programs of this machine that the matrix needs.
struct Tools {
    qemu: PathBuf,
    /// Statically linked: the guest's shell and all that is small.
    busybox: PathBuf,
    ip: PathBuf,
}

pub const PACKAGES: [&str; 4] = ["qemu-system-x86", "busybox-static", "iproute2", "xz-utils"];

fn tools() -> Result<Tools, Failed> {
    if env::consts::ARCH != "x86_64" {
        return Err(Failed(format!(
            "the kernels are Debian's for x86_64, and this is {}; run on such a machine",
            env::consts::ARCH
        )));
    }
    if let Some(tools) = find_tools() {
        return Ok(tools);
    }
    setup::packages(&PACKAGES, "")?;
    find_tools().ok_or_else(|| {
        Failed(format!(
            "still missing after the installation: one of {}",
            PACKAGES.join(", ")
        ))
    })
}

/// Whether the programs that the matrix needs are there.
pub fn has_tools() -> bool {
    env::consts::ARCH != "x86_64" || find_tools().is_some()
}

fn find_tools() -> Option<Tools> {
    process::on_path("xz")?;
    let busybox = process::on_path("busybox")?;
    // The plain package links to a C library that the guest may not have.
    process::output(Command::new("ldd").arg(&busybox))
        .is_none()
        .then_some(())?;
    Some(Tools {
        qemu: process::on_path("qemu-system-x86_64")?,
        busybox,
        ip: process::on_path("ip")?,
    })
}

/// The programs that run inside, as cargo built them; their libraries come from this machine.
struct Tests {
    kernel: PathBuf,
    /// The tests were compiled with this path, so that is where it lies in the guest.
    probe: PathBuf,
}

fn build_tests() -> Result<Tests, Failed> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args([
        "test",
        "--quiet",
        "--package",
        "tv-tests",
        "--test",
        "kernel",
        "--no-run",
        "--message-format=json",
    ]);
    let messages = process::output(&mut cargo);
    let messages = messages.ok_or_else(|| Failed(format!("{} failed", process::line(&cargo))))?;
    let executable = |name: &str| {
        let line = messages.lines().find(|line| {
            line.contains(&format!("\"name\":\"{name}\"")) && line.contains("\"executable\":\"")
        });
        line.and_then(executable_in)
            .filter(|path| path.exists())
            .ok_or_else(|| Failed(format!("{} names no executable {name}", process::line(&cargo))))
    };
    Ok(Tests {
        kernel: executable("kernel")?,
        probe: executable("tv-probe")?,
    })
}

/// The value in one of cargo's messages. Paths with quotes or backslashes in them are not found, which is told.
fn executable_in(message: &str) -> Option<PathBuf> {
    let (_, after) = message.split_once("\"executable\":\"")?;
    let (path, _) = after.split_once('"')?;
    Some(path.into())
}

/// Reads a file whose name an error then tells.
fn read(path: &Path) -> Result<Vec<u8>, Failed> {
    fs::read(path).map_err(failed(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_selected_by_name() {
        let names = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
            select(&wanted).map(|found| found.iter().map(|kernel| kernel.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap().len(), KERNELS.len());
        assert_eq!(names(&["newest", "6.1"]).unwrap(), ["6.1", "newest"]);
        let Failed(text) = names(&["6.1", "2.4"]).unwrap_err();
        assert!(text.contains("`2.4`") && text.contains("6.12"), "{text}");
    }

    #[test]
    fn cargo_says_where_the_tests_are() {
        let message = r#"{"target":{"name":"kernel"},"executable":"/a b/kernel-1","fresh":true}"#;
        assert_eq!(executable_in(message), Some("/a b/kernel-1".into()));
        assert_eq!(executable_in(r#"{"executable":null}"#), None);
    }
}

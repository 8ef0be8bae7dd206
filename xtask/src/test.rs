//! `cargo xtask test`: host, flow, kernel, e2e and trust tests, in this order, and the kernel tests once more
//! on an older kernel.

use std::process::Command;
use std::time::Instant;

use crate::{Failed, Outcome, build, cluster, kernels, process, root, setup, target};

/// A layer's name, what it is, and which tests of the workspace belong to it.
type Layer = (&'static str, &'static str, &'static [&'static str]);

const LAYERS: &[Layer] = &[
    (
        "host",
        "pure and single-crate tests, tidy",
        &["--workspace", "--lib", "--bins"],
    ),
    (
        "fakes",
        "what the layers below lean on",
        &["-p", "tv-tests", "--test", "fakes"],
    ),
    (
        "deploy",
        "chart, manifests, unit; Helm and Kubernetes' schemas come from PyPI",
        &["-p", "tv-tests", "--test", "deploy"],
    ),
    (
        CLUSTER,
        "chart, roles, webhook and watches on a real API server, which is made when this layer is named",
        &["-p", "tv-tests", "--test", "cluster"],
    ),
    (
        "flow",
        "the data path in process, over loopback",
        &["-p", "tv-tests", "--test", "flow"],
    ),
    (
        "kernel",
        "the programs on this kernel; needs root",
        &["-p", "tv-tests", "--test", "kernel"],
    ),
    (
        "e2e",
        "the binary with real clients; needs root",
        &["-p", "tv-tests", "--test", "e2e"],
    ),
    (
        "trust",
        "the CA in the stores of real systems, and every runtime; needs root",
        &["-p", "tv-tests", "--test", "trust"],
    ),
];

/// The layer that needs a server which takes minutes to build: it runs when it is named, or the server is there.
const CLUSTER: &str = "cluster";
/// The layer that is no cargo test of this machine, and goes last.
const OTHER_KERNELS: (&str, &str) = ("kernels", "the kernel tests on Linux 6.1, in qemu");
const KERNELS: &str = "--kernels";

/// Runs all layers, or those that are named; with `--kernels`, the kernel layer on other kernels, all or those that
/// are named.
pub fn run(arguments: &[String]) -> Outcome {
    let mut parts = arguments.splitn(2, |argument| argument == KERNELS);
    let (named, versions) = (parts.next().unwrap_or_default(), parts.next());
    if versions.is_none() || !named.is_empty() {
        layers(named)?;
    }
    match versions {
        Some(versions) => {
            build::run(&[])?;
            kernels::run(versions)
        }
        None => Ok(()),
    }
}

fn layers(arguments: &[String]) -> Outcome {
    let known: Vec<&str> = LAYERS
        .iter()
        .map(|(name, ..)| *name)
        .chain([OTHER_KERNELS.0])
        .collect();
    if let Some(unknown) = arguments.iter().find(|layer| !known.contains(&layer.as_str())) {
        return Err(Failed(format!(
            "`{unknown}` is no layer; there are: {}",
            known.join(", ")
        )));
    }
    // The kernel half first: the agent embeds it, and the layers from `kernel` on load it.
    build::run(&[])?;
    let mut times = Vec::new();
    let named = |name: &str| arguments.iter().any(|wanted| wanted == name);
    let wanted = |name: &str| named(name) || arguments.is_empty() && (name != CLUSTER || cluster::is_there());
    if named(CLUSTER) {
        cluster::run(&[])?;
    }
    // Other people's programs. What cannot be had is named by the tests, which fail where CI is true.
    if LAYERS[1..].iter().any(|(name, ..)| wanted(name))
        && let Err(Failed(reason)) = setup::clients()
    {
        eprintln!("{reason}");
    }
    for (name, what, tests) in LAYERS.iter().filter(|(name, ..)| wanted(name)) {
        eprintln!("\n== {name}: {what}");
        let began = Instant::now();
        process::run(&mut cargo_test(tests))?;
        times.push(format!("{name} {:.0} s", began.elapsed().as_secs_f64()));
    }
    let (name, what) = OTHER_KERNELS;
    if wanted(name) {
        eprintln!("\n== {name}: {what}");
        let began = Instant::now();
        kernels::smoke()?;
        times.push(format!("{name} {:.0} s", began.elapsed().as_secs_f64()));
    }
    eprintln!("\nall passed: {}", times.join(", "));
    Ok(())
}

fn cargo_test(tests: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).arg("test").arg("--quiet").args(tests);
    command.env("TV_AGENT", target().join("debug/tv-agent"));
    command
}

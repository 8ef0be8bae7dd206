//! `cargo xtask test`: host tests, flow tests, kernel tests and e2e tests, in this order.

use std::process::Command;
use std::time::Instant;

use crate::{Failed, Outcome, build, kernels, oidc, process, root, target};

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
];

const KERNELS: &str = "--kernels";

/// Runs all layers, or those that are named; with `--kernels`, the kernel layer on other kernels, all or those that
/// are named. (`cargo xtask ci` runs both.)
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
    if let Some(unknown) = arguments
        .iter()
        .find(|a| LAYERS.iter().all(|(name, ..)| name != a))
    {
        let known: Vec<&str> = LAYERS.iter().map(|(name, ..)| *name).collect();
        return Err(Failed(format!(
            "`{unknown}` is no layer; there are: {}",
            known.join(", ")
        )));
    }
    // The kernel half first: the agent embeds it, and the layers from `kernel` on load it.
    build::run(&[])?;
    let mut times = Vec::new();
    for (name, what, tests) in LAYERS {
        if !arguments.is_empty() && !arguments.iter().any(|wanted| wanted == name) {
            continue;
        }
        eprintln!("\n== {name}: {what}");
        if *name == "flow" {
            oidc::install()?;
        }
        let began = Instant::now();
        process::run(&mut cargo_test(tests))?;
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

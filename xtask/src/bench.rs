//! `cargo xtask bench NAME`: measurements, optimised, on this machine. Each prints its table.

use std::env;
use std::process::Command;

use crate::{Failed, Outcome, build, process, root, setup};

/// A measurement's name, the program of tests/src/bin that makes it, and the programs it needs with their packages.
struct Bench {
    name: &'static str,
    program: &'static str,
    needs: &'static [(&'static str, &'static str)],
}

const BENCHES: &[Bench] = &[Bench {
    name: "hooks",
    program: "bench-hooks",
    needs: &[("nft", "nftables"), ("ip", "iproute2")],
}];

/// Builds and runs one; what follows its name is handed on.
pub fn run(arguments: &[String]) -> Outcome {
    let name = arguments.first().map(String::as_str).unwrap_or_default();
    let Some(bench) = BENCHES.iter().find(|bench| bench.name == name) else {
        let known: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
        return Err(Failed(format!(
            "`{name}` is no measurement; there are: {}",
            known.join(", ")
        )));
    };
    let missing = missing(bench.needs, &|program| process::on_path(program).is_some());
    if !missing.is_empty() {
        setup::packages(&missing, "")?;
    }
    build::kernel_half()?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root())
        .args(["run", "--quiet", "--release", "--package", "tv-tests", "--bin"])
        .args([bench.program, "--"])
        .args(&arguments[1..]);
    process::run(&mut cargo)
}

/// Packages whose programs are not there.
fn missing(needs: &[(&str, &'static str)], there: &dyn Fn(&str) -> bool) -> Vec<&'static str> {
    let absent = needs.iter().filter(|(program, _)| !there(program));
    absent.map(|(_, package)| *package).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_by_its_package() {
        let needs = BENCHES[0].needs;
        assert_eq!(missing(needs, &|_| true), Vec::<&str>::new());
        assert_eq!(missing(needs, &|program| program == "ip"), ["nftables"]);
        let Failed(text) = run(&["nothing".to_owned()]).unwrap_err();
        assert!(text.contains("`nothing`") && text.contains("hooks"), "{text}");
    }
}

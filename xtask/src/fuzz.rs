//! `cargo xtask fuzz [SECONDS] [TARGET…]`: each parser of what others send, with libFuzzer, for so long (30 s unless
//! said). What it finds lies in fuzz/artifacts, what it learned in fuzz/corpus.

use std::fs;
use std::process::Command;

use crate::{Failed, Outcome, process, recipe, root, target};

/// The last one seen to work.
const VERSION: &str = "0.13.2";
const SECONDS: u32 = 30;

pub fn run(arguments: &[String]) -> Outcome {
    let (seconds, asked) = parse(arguments);
    let known = targets()?;
    if let Some(unknown) = asked.iter().find(|name| !known.contains(name)) {
        let known = known.join(", ");
        return Err(Failed(format!(
            "`{unknown}` is no fuzz target; there are: {known}"
        )));
    }
    let chosen = if asked.is_empty() { known } else { asked };
    let tools = recipe::tools(&target());
    let program = tools.join("bin/cargo-fuzz");
    if !program.is_file() {
        eprintln!("missing: cargo-fuzz {VERSION}; building it takes a minute");
        let mut install = Command::new("cargo");
        install.args([
            "install",
            "cargo-fuzz",
            "--version",
            VERSION,
            "--locked",
            "--root",
        ]);
        process::run(process::clear_cargo(&mut install).arg(&tools).current_dir(root()))?;
    }
    for name in chosen {
        eprintln!("== fuzz: {name}, {seconds} s");
        let mut fuzz = Command::new(&program);
        process::clear_cargo(&mut fuzz)
            .current_dir(root())
            // The instrumentation's flags are unstable by name only; a stable compiler has them.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["run", "--fuzz-dir", "fuzz", "--sanitizer", "none", "--target-dir"])
            .arg(target().join("fuzz"))
            .args([&name, "--", "-rss_limit_mb=2048", "-timeout=10"])
            .arg(format!("-max_total_time={seconds}"));
        process::run(&mut fuzz)?;
    }
    Ok(())
}

fn parse(arguments: &[String]) -> (u32, Vec<String>) {
    match arguments.split_first() {
        Some((first, rest)) => match first.parse() {
            Ok(seconds) => (seconds, rest.to_vec()),
            Err(_) => (SECONDS, arguments.to_vec()),
        },
        None => (SECONDS, Vec::new()),
    }
}

fn targets() -> Result<Vec<String>, Failed> {
    let directory = root().join("fuzz/targets");
    let files =
        fs::read_dir(&directory).map_err(|error| Failed(format!("{}: {error}", directory.display())))?;
    let stems = files
        .flatten()
        .filter_map(|file| Some(file.path().file_stem()?.to_str()?.to_owned()));
    let mut names: Vec<String> = stems.collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_in_the_manifest() {
        let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
        let names = targets().unwrap();
        assert!(names.len() > 1);
        for name in names {
            assert!(
                manifest.contains(&format!("path = \"targets/{name}.rs\"")),
                "{name}"
            );
        }
    }

    #[test]
    fn the_time_may_be_left_out() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(parse(&[]), (SECONDS, vec![]));
        assert_eq!(parse(&words("5 tokens")), (5, words("tokens")));
        assert_eq!(
            parse(&words("tokens answers")),
            (SECONDS, words("tokens answers"))
        );
        assert!(run(&words("1 nothing")).is_err());
    }
}

//! `cargo xtask sim [--nodes N] [--subjects N] [--limit N] [--minutes N] [--seed N]`: a fleet under one vault's rate
//! limit, as a table.
#![expect(clippy::print_stdout, reason = "a table is what it is for")]

use std::process::ExitCode;
use std::time::Duration;

use tv_tests::sim::{Plan, table};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match plan(&arguments) {
        Ok(plan) => {
            println!("{}", table(&plan));
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!(
                "sim: {problem}; allowed: --nodes, --subjects, --limit (calls a minute), --minutes (of a phase), --seed, each with a number above 0"
            );
            ExitCode::from(2)
        }
    }
}

fn plan(arguments: &[String]) -> Result<Plan, String> {
    let mut plan = Plan::default();
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let number = rest.next().and_then(|text| text.parse::<u32>().ok());
        let number = number.filter(|number| *number > 0);
        let number = number.ok_or_else(|| format!("{name} has no number that can be used"))?;
        match name.as_str() {
            "--nodes" => plan.nodes = number as usize,
            "--subjects" => plan.subjects = number as usize,
            "--limit" => plan.limit = number as usize,
            "--minutes" => plan.phase = Duration::from_secs(60) * number,
            "--seed" => plan.seed = number.into(),
            _ => return Err(format!("{name} is not known")),
        }
    }
    Ok(plan)
}

//! Tasks of the project.

mod demo;

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    let task = std::env::args().nth(1);
    let error = match task.as_deref() {
        Some("demo") => match demo::run() {
            Ok(never) => match never {},
            Err(error) => error,
        },
        _ => {
            eprintln!("usage: cargo xtask demo");
            return ExitCode::from(2);
        }
    };
    eprintln!("{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        eprintln!("  because: {cause}");
        source = cause.source();
    }
    ExitCode::FAILURE
}

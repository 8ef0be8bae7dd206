//! `cargo xtask demo`: the whole path once, told as a story; see `tv_tests::demo`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tv_tests::demo::run()
}

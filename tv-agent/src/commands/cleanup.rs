//! `tv-agent cleanup`: what agents that are gone have left.

use std::path::Path;

use super::{PIN_ROOT, RUN_DIR, chain, print};
use crate::cli::{OutputArgs, exit};
use crate::redirect;

pub fn run(args: OutputArgs) -> u8 {
    match redirect::cleanup(Path::new(PIN_ROOT), Path::new(RUN_DIR)) {
        Ok(removed) => {
            print(args.output, &removed, || {
                if removed.is_empty() {
                    return "nothing was left behind".to_owned();
                }
                removed.iter().map(|one| format!("removed {one}\n")).collect()
            });
            exit::OK
        }
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
    }
}

//! `tv-agent trust …`: what workloads trust.

mod env;
mod install;

use crate::cli::TrustCommand;

pub async fn run(command: &TrustCommand) -> u8 {
    match command {
        TrustCommand::Install(args) => install::install(args),
        TrustCommand::Uninstall(args) => install::uninstall(args),
        TrustCommand::Env(args) => env::run(args),
    }
}

//! `tv-agent trust`: the CA in what workloads read.

mod env;

use crate::cli::TrustCommand;

pub async fn run(command: &TrustCommand) -> u8 {
    match command {
        TrustCommand::Env(args) => env::run(args),
    }
}

//! `tv-agent trust`: who trusts our CA.

use crate::cli::TrustCommand;

mod list;
mod verify;

pub async fn run(command: &TrustCommand) -> u8 {
    match command {
        TrustCommand::List(args) => list::run(args).await,
        TrustCommand::Verify(args) => verify::run(args).await,
    }
}

//! `tv-agent trust …`: what workloads trust.

mod env;
mod install;
mod list;
mod verify;

use std::path::{Path, PathBuf};

use crate::ca;
use crate::cli::TrustCommand;
use crate::trust::{self, Anchors};

/// The CA's directory does not say what is to be trusted.
#[derive(Debug, thiserror::Error)]
enum NoAnchors {
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error("the roots in {} cannot be installed", .path.display())]
    Certificate { path: PathBuf, source: trust::Error },
}

/// By the certificates alone: no key has to lie there.
fn anchors(dir: &Path) -> Result<Anchors, NoAnchors> {
    let pem = ca::anchors(dir)?;
    Anchors::from_pem(&pem).map_err(|source| NoAnchors::Certificate {
        path: dir.to_owned(),
        source,
    })
}

pub async fn run(command: &TrustCommand) -> u8 {
    match command {
        TrustCommand::Install(args) => install::install(args),
        TrustCommand::Uninstall(args) => install::uninstall(args),
        TrustCommand::Env(args) => env::run(args),
        TrustCommand::List(args) => list::run(args).await,
        TrustCommand::Verify(args) => verify::run(args).await,
    }
}

//! `tv-agent trust install` and `trust uninstall`: the stores of a root file system, by its path.

use std::path::{Path, PathBuf};

use super::super::{chain, print};
use super::{NoAnchors, anchors};
use crate::cli::{TrustInstallArgs, exit};
use crate::trust::{self, Extra, Installed, Removed, Root, Unreached};

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Anchors(#[from] NoAnchors),
    #[error(transparent)]
    Trust(#[from] trust::Error),
}

pub(super) fn install(args: &TrustInstallArgs) -> u8 {
    let installed = anchors(&args.ca_dir).map_err(Error::from).and_then(|anchors| {
        let root = Root::open(&args.root)?;
        Ok(trust::install(&root, &anchors, &Extra::default())?)
    });
    match installed {
        Ok(installed) => {
            print(args.output.output, &installed, || told(&args.root, &installed));
            exit::OK
        }
        Err(error) => failed(&error),
    }
}

pub(super) fn uninstall(args: &TrustInstallArgs) -> u8 {
    let removed = Root::open(&args.root).and_then(|root| trust::uninstall(&root));
    match removed {
        Ok(removed) => {
            print(args.output.output, &removed, || taken(&args.root, &removed));
            if removed.left.is_empty() {
                exit::OK
            } else {
                exit::FAILED
            }
        }
        Err(error) => failed(&error.into()),
    }
}

fn failed(error: &Error) -> u8 {
    tracing::error!("{}", chain(error));
    exit::FAILED
}

fn told(root: &Path, installed: &Installed) -> String {
    let kind = installed.distribution.unwrap_or("no known distribution");
    let mut text = format!("{} ({kind})\n", root.display());
    if installed.changed.is_empty() {
        text += "everything was in place\n";
    }
    lines(&mut text, "changed", &installed.changed);
    unreached(&mut text, "not reached", &installed.unreached);
    text
}

fn taken(root: &Path, removed: &Removed) -> String {
    let mut text = format!("{}\n", root.display());
    if *removed == Removed::default() {
        text += "nothing was installed\n";
    }
    lines(&mut text, "as it was", &removed.restored);
    lines(
        &mut text,
        "changed by others since, ours taken out",
        &removed.taken_out,
    );
    unreached(&mut text, "LEFT", &removed.left);
    text
}

fn lines(text: &mut String, what: &str, paths: &[PathBuf]) {
    for path in paths {
        *text += &format!("{what}: {}\n", path.display());
    }
}

fn unreached(text: &mut String, what: &str, stores: &[Unreached]) {
    for Unreached { path, why } in stores {
        *text += &format!("{what}: {}: {why}\n", path.display());
    }
}

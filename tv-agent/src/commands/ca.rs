//! `tv-agent ca init`, `ca show` and `ca rotate`.

use std::path::PathBuf;

use super::{chain, guard_memory, load, print};
use crate::ca::{self, Facts, Initialised, Outcome, Shown, Source, Step};
use crate::cli::{CaArgs, CaCommand, ImportArgs, exit};
use crate::config::{self, Config};

mod rotate;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Ca(#[from] ca::Error),
    #[error(transparent)]
    Socket(#[from] crate::control::Error),
    #[error(
        "the step from {from} to {to} is refused: {}; mend it, or take the step all the same with --force",
        objections.join("; ")
    )]
    Refused {
        from: Step,
        to: Step,
        objections: Vec<String>,
    },
}

pub async fn run(command: &CaCommand) -> u8 {
    guard_memory();
    let done = match command {
        CaCommand::Init(args) => init(&args.ca, &args.import),
        CaCommand::Show(args) => show(args),
        CaCommand::Rotate(args) => rotate::rotate(args).await,
    };
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            if matches!(error, Error::Config(_)) {
                exit::USAGE
            } else {
                exit::FAILED
            }
        }
    }
}

fn init(args: &CaArgs, import: &ImportArgs) -> Result<(), Error> {
    let config = config_of(args)?;
    let dir = directory(args, config.as_ref());
    let subtrees = config.map_or_else(config::builtin_subtrees, |c| c.subtrees());
    let made = match source(import)? {
        Some(source) => ca::import(&dir, &subtrees, &source)?,
        None => ca::init(&dir, &subtrees)?,
    };
    print(args.output.output, &made, || told(&made));
    Ok(())
}

fn show(args: &CaArgs) -> Result<(), Error> {
    let shown = ca::show(&directory(args, config_of(args)?.as_ref()))?;
    print(args.output.output, &shown, || drawn(&shown));
    Ok(())
}

fn directory(args: &CaArgs, config: Option<&Config>) -> PathBuf {
    let configured = config.map(|config| config.ca_dir.clone());
    args.dir
        .clone()
        .or(configured)
        .unwrap_or_else(config::default_ca_dir)
}

fn source(args: &ImportArgs) -> Result<Option<Source>, ca::Error> {
    match (&args.from, &args.root_cert, &args.root_key) {
        (Some(dir), ..) => Source::directory(dir).map(Some),
        (None, Some(certificate), Some(key)) => Source::files(certificate, key).map(Some),
        _ => Ok(None),
    }
}

/// The file's configuration; without one the built-in hosts, whether or not the credentials are set.
fn config_of(args: &CaArgs) -> Result<Option<Config>, config::Error> {
    args.config.as_deref().map(|file| load(Some(file))).transpose()
}

fn told(made: &Initialised) -> String {
    let line = |what: &str, outcome: &Outcome| match outcome {
        Outcome::Kept => format!("{what}: kept\n"),
        Outcome::Made { reason } => format!("{what}: made ({reason})\n"),
    };
    let mut text = format!("CA in {}\n", made.dir.display());
    text += &line("root", &made.root);
    text += &line("intermediate", &made.intermediate);
    made.advice
        .iter()
        .for_each(|advice| text += &format!("next: {advice}\n"));
    text
}

fn drawn(shown: &Shown) -> String {
    let mut text = format!("CA in {}\n", shown.dir.display());
    text += &certificate("root", &shown.root);
    shown
        .issuing
        .iter()
        .for_each(|facts| text += &certificate("issuing", facts));
    text += &certificate("intermediate", &shown.intermediate);
    for (what, facts) in [("next root", &shown.next_root), ("old root", &shown.old_root)] {
        text += &facts
            .as_ref()
            .map(|facts| certificate(what, facts))
            .unwrap_or_default();
    }
    if let Some(rotation) = &shown.rotation {
        text += &format!(
            "rotation: {}, since {}\n",
            rotation.step,
            rotate::time(rotation.since)
        );
    }
    if let Some(key) = &shown.issuer_key {
        text += &format!("intermediates are issued with {}\n", key.display());
    } else if shown.root_key_on_node {
        text += "the root's key lies on this node, where it need not be: move it away\n";
    }
    if let Some(problem) = &shown.problem {
        text += &format!("PROBLEM: {problem}\n");
    }
    text
}

fn certificate(what: &str, facts: &Facts) -> String {
    let may = if facts.permitted.is_empty() {
        "anything".to_owned()
    } else {
        facts.permitted.join(", ")
    };
    format!(
        "{what}: {}\n  serial {}\n  sha256 {}\n  valid {} to {}\n  may sign for {may}\n",
        facts.subject, facts.serial, facts.sha256, facts.not_before, facts.not_after
    )
}

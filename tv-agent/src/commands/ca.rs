//! `tv-agent ca init` and `ca show`.

use super::{chain, load, print};
use crate::ca::{self, Initialised, Outcome, Shown};
use crate::cli::{CaArgs, CaCommand, exit};
use crate::config::{self, Config};

pub fn run(command: &CaCommand) -> u8 {
    let (CaCommand::Init(args) | CaCommand::Show(args)) = command;
    let config = match config_of(args) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            return exit::USAGE;
        }
    };
    let configured = config.as_ref().map(|c| c.ca_dir.clone());
    let dir = args
        .dir
        .clone()
        .or(configured)
        .unwrap_or_else(config::default_ca_dir);
    let done = match command {
        CaCommand::Init(_) => {
            let subtrees = config.map_or_else(config::builtin_subtrees, |c| c.subtrees());
            ca::init(&dir, &subtrees).map(|made| print(args.output.output, &made, || told(&made)))
        }
        CaCommand::Show(_) => ca::show(&dir).map(|shown| print(args.output.output, &shown, || drawn(&shown))),
    };
    match done {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{}", chain(&error));
            exit::FAILED
        }
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
    for (what, facts) in [("root", &shown.root), ("intermediate", &shown.intermediate)] {
        let may = if facts.permitted.is_empty() {
            "anything".to_owned()
        } else {
            facts.permitted.join(", ")
        };
        text += &format!(
            "{what}: {}\n  serial {}\n  sha256 {}\n  valid {} to {}\n  may sign for {may}\n",
            facts.subject, facts.serial, facts.sha256, facts.not_before, facts.not_after
        );
    }
    if shown.root_key_on_node {
        text += "the root's key lies on this node, where it need not be: move it away\n";
    }
    if let Some(problem) = &shown.problem {
        text += &format!("PROBLEM: {problem}\n");
    }
    text
}

//! The program: arguments, logging, and one command.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::EnvFilter;
use tv_agent::cli::{Cli, Command, exit};
use tv_agent::commands;
use tv_agent::enter::{EnterSpec, enter};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for, all else is a wrong command line.
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            drop(error.print());
            return code.into();
        }
    };
    if let Command::Enter(args) = &cli.command {
        // Before any thread: a mount namespace is left and entered alone.
        let error = match EnterSpec::read(&args.spec) {
            Ok(spec) => enter(&spec, &args.command),
            Err(error) => error,
        };
        eprintln!("tv-agent: exec: {}", commands::chain(&error));
        return error.exit_code().into();
    }
    log(&cli);
    if matches!(cli.command, Command::Run(_))
        && let Err(error) = commands::run::enter_cgroup_namespace()
    {
        tracing::warn!(%error, "cannot enter the host's cgroup namespace; names of processes stay unknown");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return exit::FAILED.into();
        }
    };
    runtime.block_on(run(cli.command)).into()
}

async fn run(command: Command) -> u8 {
    match command {
        Command::Run(args) => commands::run::run(&args).await,
        Command::Exec(args) => commands::exec::run(&args).await,
        Command::Check(args) => commands::check::run(&args).await,
        Command::Explain(args) => commands::explain::run(&args).await,
        Command::Status(args) => commands::control::status(&args).await,
        Command::Flows(args) => commands::control::flows(&args).await,
        Command::Cache(command) => commands::control::cache(&command).await,
        Command::Keys(command) => commands::keys::run(&command).await,
        Command::Ca(command) => commands::ca::run(&command),
        Command::Cleanup(args) => commands::cleanup::run(args),
        Command::Version(args) => commands::version::run(args),
        Command::Enter(_) => unreachable!("handled before the runtime"),
    }
}

/// To standard error. The daemon tells what it does; other commands only what goes wrong.
fn log(cli: &Cli) {
    let default = if matches!(cli.command, Command::Run(_)) {
        "info"
    } else {
        "warn"
    };
    let filter = cli.log.as_deref().unwrap_or(default);
    let (filter, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new(default), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Colours are for people; a log file or a pipe gets none.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr);
    if cli.log_json {
        builder.json().init();
    } else if matches!(cli.command, Command::Run(_)) {
        builder.init();
    } else {
        builder.without_time().with_target(false).init();
    }
    if let Some(error) = wrong {
        tracing::warn!(%error, "--log is not understood; logging at {default}");
    }
}

//! The program: arguments, logging, and one command.

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::process::ExitCode;

use clap::Parser as _;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, reload};
use tv_agent::cli::{Cli, Command, exit};
use tv_agent::commands;
use tv_agent::control::LogFilter;
use tv_agent::data_path::{self, Begun};
use tv_agent::enter::{EnterSpec, enter};
use tv_agent::trust::live;

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
    if let Command::TrustMount = &cli.command {
        // As above; standard input is the agent's end.
        return match live::serve(std::io::stdin().as_fd()) {
            Ok(()) => exit::OK.into(),
            Err(error) => {
                eprintln!("tv-agent: the helper that enters mount namespaces: {error}");
                exit::FAILED.into()
            }
        };
    }
    if let Command::ConfinedProbe(args) = &cli.command {
        // As above: a process is confined while it has one thread.
        return match commands::confined_probe::run(args) {
            Ok(()) => exit::OK.into(),
            Err(error) => {
                eprintln!("tv-agent: {}", commands::chain(&error));
                exit::FAILED.into()
            }
        };
    }
    // Before a data path cannot see its cgroup's share of the processors any more.
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let begun = match &cli.command {
        // As above: it gives up its privileges, which threads have each.
        Command::DataPath => match data_path::enter() {
            Ok(begun) => Some(begun),
            Err(error) => {
                eprintln!("tv-agent: {}", commands::chain(&error));
                return exit::FAILED.into();
            }
        },
        _ => None,
    };
    let options = log_options(&cli);
    let filter = log(&cli);
    if matches!(cli.command, Command::Run(_))
        && let Err(error) = commands::run::enter_cgroup_namespace()
    {
        tracing::warn!(%error, "cannot enter the host's cgroup namespace; names of processes stay unknown");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return exit::FAILED.into();
        }
    };
    let code = match begun {
        Some(begun) => runtime.block_on(serve(begun, filter)),
        None => runtime.block_on(run(cli.command, filter, &options)),
    };
    // Nothing that is still under way keeps anybody waiting.
    runtime.shutdown_background();
    code.into()
}

async fn serve(begun: Begun, filter: LogFilter) -> u8 {
    match data_path::run(begun, filter).await {
        Ok(()) => exit::OK,
        Err(error) => {
            tracing::error!("{}", commands::chain(&error));
            exit::FAILED
        }
    }
}

async fn run(command: Command, filter: LogFilter, options: &[String]) -> u8 {
    match command {
        Command::Run(args) => commands::run::run(&args, filter, options).await,
        Command::Exec(args) => commands::exec::run(&args).await,
        Command::Check(args) => commands::check::run(&args).await,
        Command::Explain(args) => commands::explain::run(&args).await,
        Command::Status(args) => commands::control::status(&args).await,
        Command::Flows(args) => commands::control::flows(&args).await,
        Command::Log(args) => commands::control::log(&args).await,
        Command::Cache(command) => commands::control::cache(&command).await,
        Command::Keys(command) => commands::keys::run(&command).await,
        Command::Ca(command) => commands::ca::run(&command).await,
        Command::Trust(command) => commands::trust::run(&command).await,
        Command::Cleanup(args) => commands::cleanup::run(&args),
        Command::BugReport(args) => commands::bug_report::run(&args).await,
        Command::Webhook(args) => commands::webhook::run(&args).await,
        Command::Version(args) => commands::version::run(args),
        Command::Enter(_) | Command::TrustMount | Command::DataPath | Command::ConfinedProbe(_) => {
            unreachable!("handled before the runtime")
        }
    }
}

/// What was said of the log, to be said again.
fn log_options(cli: &Cli) -> Vec<String> {
    let filter = cli
        .log
        .iter()
        .flat_map(|filter| ["--log".to_owned(), filter.clone()]);
    let json = cli.log_json.then(|| "--log-json".to_owned());
    filter.chain(json).collect()
}

/// To standard error. The daemon tells what it does; other commands only what goes wrong.
fn log(cli: &Cli) -> LogFilter {
    let daemon = matches!(
        cli.command,
        Command::Run(_) | Command::DataPath | Command::Webhook(_)
    );
    let default = if daemon { "info" } else { "warn" };
    let filter = cli.log.as_deref().unwrap_or(default);
    let (filter, wrong) = match EnvFilter::try_new(filter) {
        Ok(parsed) => (parsed, None),
        Err(error) => (EnvFilter::new(default), Some(error)),
    };
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        // Colours are for people; a log file or a pipe gets none.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr);
    let lines = if cli.log_json {
        lines.json().boxed()
    } else if daemon {
        lines.boxed()
    } else {
        lines.without_time().with_target(false).boxed()
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    if let Some(error) = wrong {
        tracing::warn!(%error, "--log is not understood; logging at {default}");
    }
    changeable(handle)
}

fn changeable<S: 'static>(handle: reload::Handle<EnvFilter, S>) -> LogFilter {
    LogFilter::new(move |wanted| {
        if let Some(wanted) = wanted {
            let filter = EnvFilter::try_new(wanted).map_err(|error| error.to_string())?;
            handle.reload(filter).map_err(|error| error.to_string())?;
        }
        handle
            .with_current(ToString::to_string)
            .map_err(|error| error.to_string())
    })
}

//! The command line: what can be asked, and with which exit code it ends.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{DEFAULT_SOCKET, DEFAULT_TRUST_DIR};
use crate::confine;

mod trust;

pub use trust::*;

/// Exit codes, the same for all commands; `exec` otherwise ends with its command's own.
pub mod exit {
    pub const OK: u8 = 0;
    /// Something is wrong that the message names.
    pub const FAILED: u8 = 1;
    /// The command line or the configuration is wrong.
    pub const USAGE: u8 = 2;
    /// `exec` could not start: the command was not run.
    pub const NOT_RUN: u8 = 125;
}

#[derive(Parser)]
#[command(
    name = "tv-agent",
    version,
    about = "Swaps a workload's Auth0 token for the provider's own, on the way out, without the workload knowing",
    after_help = "Exit codes: 0 done; 1 failed, as the message says; 2 wrong command line or configuration; \
                  125 exec could not start. `exec` otherwise ends with its command's own code."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log as JSON lines instead of text.
    #[arg(long, global = true)]
    pub log_json: bool,
    /// What to log: a level (error, warn, info, debug) or a filter such as tv_agent=debug.
    #[arg(long, global = true, env = "TV_AGENT_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// The daemon: intercepts the enrolled cgroups until it is stopped.
    Run(RunArgs),
    /// Runs one command, intercepted; ends with its exit code.
    Exec(ExecArgs),
    /// Tells whether this machine, the configuration and the vault are ready, and how to mend what is not.
    Check(CheckArgs),
    /// Tells what happens to connections to a host, and why.
    Explain(ExplainArgs),
    /// What the running daemon intercepts.
    Status(ControlArgs),
    /// The last connections and requests: who, where to, which route, what happened.
    Flows(FlowsArgs),
    /// What the running daemon logs: shows it, or changes it until the daemon ends.
    Log(LogArgs),
    /// The running daemon's token cache.
    #[command(subcommand)]
    Cache(CacheCommand),
    /// The keys that tokens of our own are signed with.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// The certificate authority that workloads trust.
    #[command(subcommand)]
    Ca(CaCommand),
    /// Trust of workloads in our CA.
    #[command(subcommand)]
    Trust(TrustCommand),
    /// Removes what agents that are gone have left in the kernel.
    Cleanup(CleanupArgs),
    /// Writes what helps to find a fault into one archive, without secrets.
    BugReport(BugReportArgs),
    /// The admission webhook of a cluster: puts trust in the CA into pods as they are created.
    Webhook(WebhookArgs),
    /// Version of the agent and digest of its kernel half.
    Version(OutputArgs),
    /// Enters mount namespaces for the agent.
    #[command(name = "__trust-mount", hide = true)]
    TrustMount,
    /// Confines itself as the data path does, and tells what it can still do.
    #[command(name = "__confined-probe", hide = true)]
    ConfinedProbe(ProbeArgs),
    /// Serves connections for `run`.
    #[command(name = "__data-path", hide = true)]
    DataPath,
    /// The step between `exec` and its command.
    #[command(name = "__enter", hide = true)]
    Enter(EnterArgs),
}

#[derive(Args)]
pub struct ProbeArgs {
    /// User and group to become.
    #[arg(long, value_name = "UID", default_value_t = confine::DEFAULT_UID)]
    pub user: u32,
    /// A file that is opened first, and read confined.
    #[arg(long, value_name = "FILE")]
    pub handed: Option<PathBuf>,
    /// Names to resolve.
    #[arg(long, value_name = "HOST")]
    pub name: Vec<String>,
    /// Files and directories to try to open.
    #[arg(long, value_name = "PATH")]
    pub unreadable: Vec<PathBuf>,
    /// Stay until standard input ends.
    #[arg(long)]
    pub hold: bool,
}

#[derive(Args)]
pub struct RunArgs {
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Take the place of the running daemon, if there is one: its sockets are handed over, no connection is refused.
    #[arg(long)]
    pub take_over: bool,
    /// Having handed over to another, stay until told to stop: for supervisors that start again whatever ends.
    #[arg(long)]
    pub linger: bool,
}

#[derive(Args)]
pub struct ExecArgs {
    /// Without it AUTH0_DOMAIN, AUTH0_CLIENT_ID and AUTH0_CLIENT_SECRET, and the built-in hosts.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The command and its arguments, after `--`.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CMD"
    )]
    pub command: Vec<OsString>,
}

#[derive(Args)]
pub struct CheckArgs {
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub struct ExplainArgs {
    pub host: String,
    /// The caller's cgroup, a path below the cgroup2 mount.
    #[arg(long, value_name = "CGROUP")]
    pub workload: Option<String>,
    /// The caller's user id.
    #[arg(long, value_name = "UID")]
    pub uid: Option<u32>,
    #[command(flatten)]
    pub pod: PodArgs,
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The facts of the caller's pod; without them intercept.pod_facts is asked.
#[derive(Args, Default)]
pub struct PodArgs {
    #[arg(long, value_name = "NAMESPACE", requires = "pod_name")]
    pub pod_namespace: Option<String>,
    #[arg(long, value_name = "NAME", requires = "pod_namespace")]
    pub pod_name: Option<String>,
    #[arg(
        long,
        value_name = "NAME",
        requires = "pod_namespace",
        default_value = "default"
    )]
    pub pod_service_account: String,
    /// May be given several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "pod_namespace", value_parser = label)]
    pub pod_label: Vec<(String, String)>,
    /// May be given several times.
    #[arg(long, value_name = "KEY=VALUE", requires = "pod_namespace", value_parser = label)]
    pub pod_annotation: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("is not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[derive(Args)]
pub struct ControlArgs {
    /// The daemon's admin socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub struct FlowsArgs {
    /// Go on with what comes, until interrupted.
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Args)]
pub struct LogArgs {
    /// A level (error, warn, info, debug) or a filter such as tv_agent=debug.
    pub filter: Option<String>,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Subcommand)]
pub enum CacheCommand {
    /// Entries, without anything secret.
    List(ControlArgs),
    /// Drops tokens and remembered failures: all, or those that have every part that is given.
    Flush(FlushArgs),
}

#[derive(Args)]
pub struct FlushArgs {
    #[arg(long, value_name = "NAME")]
    pub route: Option<String>,
    #[arg(long, value_name = "NAME")]
    pub vault: Option<String>,
    /// The beginning of a subject's hash, eight digits or more, as `cache list` shows it.
    #[arg(long, value_name = "HASH", value_parser = subject_hash)]
    pub subject: Option<String>,
    #[command(flatten)]
    pub control: ControlArgs,
}

/// Short beginnings would mean strangers too.
fn subject_hash(text: &str) -> Result<String, String> {
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex && (8..=16).contains(&text.len()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("8 to 16 hexadecimal digits, as `cache list` shows them".to_owned())
    }
}

#[derive(Subcommand)]
pub enum KeysCommand {
    /// Keys of all sets, without their private parts.
    List(KeysArgs),
    /// Makes a new current key; the one before stays valid, the one before that is forgotten.
    Rotate(RotateArgs),
}

#[derive(Args)]
pub struct KeysArgs {
    /// Whose key sets are meant when no daemon runs; their files are read then.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Args)]
pub struct RotateArgs {
    /// The key set's name in the configuration.
    pub name: String,
    #[command(flatten)]
    pub keys: KeysArgs,
}

#[derive(Subcommand)]
pub enum CaCommand {
    /// Makes a root and this node's intermediate, or renews the intermediate; does nothing when all is well.
    Init(CaInitArgs),
    /// Shows the certificates, what they may sign for, until when, and how far a rotation has come.
    Show(CaArgs),
    /// Goes one step further in replacing the root: published, trusted, issuing, retiring, removed.
    Rotate(CaRotateArgs),
}

#[derive(Args)]
pub struct CaInitArgs {
    #[command(flatten)]
    pub import: ImportArgs,
    #[command(flatten)]
    pub ca: CaArgs,
}

#[derive(Args)]
pub struct CaRotateArgs {
    /// Make the step although workloads would break, or although no daemon tells.
    #[arg(long)]
    pub force: bool,
    /// The admin socket of the daemon that knows the workloads [default: admin.socket of the configuration, else
    /// /run/tv-agent/admin.sock].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub import: ImportArgs,
    #[command(flatten)]
    pub ca: CaArgs,
}

/// A CA that exists. Its key stays where it is.
#[derive(Args)]
pub struct ImportArgs {
    /// Directory with tls.crt, tls.key and perhaps ca.crt, as a mounted Kubernetes secret or cert-manager has them.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["root_cert", "root_key"])]
    pub from: Option<PathBuf>,
    /// PEM file with a root's certificate, or with a chain that ends with it.
    #[arg(long, value_name = "FILE", requires = "root_key")]
    pub root_cert: Option<PathBuf>,
    /// PEM file with the key of its first certificate.
    #[arg(long, value_name = "FILE", requires = "root_cert")]
    pub root_key: Option<PathBuf>,
}

#[derive(Args)]
pub struct CaArgs {
    /// Directory of the CA [default: ca.dir of the configuration, else /var/lib/tv-agent/ca].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The hosts of its routes are what the CA may sign for.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub struct CleanupArgs {
    /// trust.dir of the configuration, where the copies of workloads' stores lie.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_TRUST_DIR)]
    pub trust_dir: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub struct BugReportArgs {
    /// The archive to write; it must not exist.
    #[arg(long, value_name = "FILE", default_value = "tv-agent-bug-report.tar.gz")]
    pub out: PathBuf,
    /// The daemon's configuration.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The daemon's admin socket.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
}

#[derive(Args)]
pub struct WebhookArgs {
    /// Its own file, not the agent's (docs/webhook.md).
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Args)]
pub struct EnterArgs {
    #[arg(long)]
    pub spec: PathBuf,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

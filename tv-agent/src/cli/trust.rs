//! `tv-agent trust …`: what can be asked.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ControlArgs, OutputArgs};
use crate::config::default_ca_dir;

#[derive(Subcommand)]
pub enum TrustCommand {
    /// Puts the CA's roots into every certificate store of a root file system, and records how to take them out.
    Install(TrustInstallArgs),
    /// Takes out what `trust install` has put in; what others changed since stays.
    Uninstall(TrustInstallArgs),
    /// The environment of a process that is to trust the CA: what runtimes with roots of their own read.
    Env(TrustEnvArgs),
    /// What the running daemon believes of each enrolled process, and what to do.
    List(ControlArgs),
    /// Completes a TLS handshake with each store of workloads, as their runtimes read it; exit code 1 if one fails.
    Verify(TrustVerifyArgs),
}

#[derive(Args)]
pub struct TrustVerifyArgs {
    /// Directory of the CA [default: /var/lib/tv-agent/ca].
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// A process to ask for its stores; may be given several times. Without it, all that the daemon knows.
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
    #[command(flatten)]
    pub control: ControlArgs,
}

#[derive(Args)]
pub struct TrustInstallArgs {
    /// Directory of the CA, of which root.pem is enough; `uninstall` goes by its record instead.
    #[arg(long, value_name = "DIR", default_value_os_t = default_ca_dir())]
    pub ca_dir: PathBuf,
    /// The root file system: this machine's own, or an unpacked one, in which nothing is run.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Args)]
pub struct TrustEnvArgs {
    /// The process's root file system.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Public roots and the CA, as the process names the file, for variables that replace a runtime's roots
    /// [default: the system's bundle below the root].
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    pub bundle: Option<PathBuf>,
    /// The CA alone, as the process names the file, for variables that add to a runtime's roots [default: the bundle].
    #[arg(long, value_name = "FILE", conflicts_with = "into")]
    pub ca_file: Option<PathBuf>,
    /// Write copies of the bundle and of what this environment's variables name into this new directory, the CA added.
    #[arg(long, value_name = "DIR")]
    pub into: Option<PathBuf>,
    /// Directory of the CA. Without --into: the bundle is looked through for it.
    #[arg(long, value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Lines for a shell: eval "$(tv-agent trust env --export)".
    #[arg(long, conflicts_with = "output")]
    pub export: bool,
    #[command(flatten)]
    pub output: OutputArgs,
}

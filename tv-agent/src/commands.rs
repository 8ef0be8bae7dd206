//! What each command of the command line does. The only modules that print.

use std::path::{Path, PathBuf};

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::addr::HostName;
use crate::cli::Output;
use crate::config::{self, Config};
use crate::netns;
use crate::policy::HostPattern;
use crate::redirect::{
    self, AgentDown, Capture, DEFAULT_PIN_ROOT as PIN_ROOT, DEFAULT_RUN_DIR as RUN_DIR, Handles,
    KernelPolicy, Listeners, Redirect, RoutedName,
};

pub mod bug_report;
pub mod ca;
pub mod check;
pub mod cleanup;
pub mod confined_probe;
pub mod control;
pub mod exec;
pub mod explain;
pub mod keys;
pub mod run;
pub mod trust;
pub mod version;
pub mod webhook;

/// Loopback, but an address that nothing else listens on.
const LISTEN_V4: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 34, 67, 1);

/// The configuration of `file`, or of the environment when there is none.
fn load(file: Option<&Path>) -> Result<Config, config::Error> {
    let env = |name: &str| std::env::var(name).ok();
    match file {
        Some(file) => Config::load(file, &env),
        None => Config::from_env(&env),
    }
}

/// What the kernel half is told of a configuration.
fn kernel_policy(
    intercept: &config::Intercept,
    listeners: Listeners,
    agent_cgroup: Option<u64>,
) -> KernelPolicy {
    KernelPolicy {
        ports: intercept.ports.clone(),
        bypass: intercept.bypass.clone(),
        capture: match &intercept.capture {
            config::Capture::All => Capture::All,
            config::Capture::Dns { hosts, unsure_for } => Capture::Dns {
                names: hosts.iter().filter_map(routed_name).collect(),
                unsure_for: *unsure_for,
            },
            config::Capture::Cidr(nets) => Capture::Cidr(nets.clone()),
        },
        block_quic: intercept.quic == config::Quic::Block,
        on_agent_down: match intercept.on_agent_down {
            config::OnAgentDown::Closed => AgentDown::Closed,
            config::OnAgentDown::Open => AgentDown::Open,
        },
        agent_cgroup,
        listeners,
        v6_routable: netns::routes_v6(),
    }
}

/// None for what is no name, which no pattern is.
fn routed_name(host: &HostPattern) -> Option<RoutedName> {
    Some(RoutedName {
        name: HostName::parse(host.subtree())?,
        below: host.exact().is_none(),
    })
}

/// Tells the kernel half that the agent lives; the deadline that it sets has to be moved every second.
fn beat(kernel: &Handles) {
    let told = kernel
        .heartbeat()
        .and_then(|()| kernel.set_v6_routable(netns::routes_v6()));
    if let Err(error) = told {
        tracing::error!(
            "the kernel half cannot be told that the agent lives: {}",
            chain(&error)
        );
    }
}

/// Without it there is nothing to attach to.
#[derive(Debug, thiserror::Error)]
#[error("there is no cgroup v2 mount; mount one, or start the agent where it sees the host's")]
pub struct NoCgroup2(#[source] std::io::Error);

/// Why the kernel half is not there.
#[derive(Debug, thiserror::Error)]
pub enum KernelHalf {
    #[error("root is needed ({missing}); {remedy}")]
    Privileges {
        missing: String,
        remedy: String,
        source: Box<redirect::Error>,
    },
    #[error("this machine lacks {missing}; {remedy}")]
    Machine {
        missing: String,
        remedy: String,
        source: Box<redirect::Error>,
    },
    #[error(transparent)]
    Redirect(#[from] redirect::Error),
}

/// Loads it. When that fails and preflight finds something missing, that is named: privileges first, for without them
/// nothing else can be asked for.
fn kernel_half(instance: &str) -> Result<Redirect, KernelHalf> {
    explained(Redirect::load(Path::new(PIN_ROOT), Path::new(RUN_DIR), instance))
}

fn explained(loaded: Result<Redirect, redirect::Error>) -> Result<Redirect, KernelHalf> {
    loaded.map_err(|source| {
        if matches!(
            source,
            redirect::Error::InstanceLive { .. } | redirect::Error::NoObject
        ) {
            return KernelHalf::Redirect(source);
        }
        let mut wanting = redirect::probe();
        wanting.retain(|finding| !finding.ok);
        wanting.sort_by_key(|finding| finding.name != "capabilities");
        match wanting.into_iter().next() {
            Some(finding) if finding.name == "capabilities" => KernelHalf::Privileges {
                missing: finding.detail,
                remedy: finding.remedy.unwrap_or_default(),
                source: source.into(),
            },
            Some(finding) => KernelHalf::Machine {
                missing: format!("{} ({})", finding.name, finding.detail),
                remedy: finding.remedy.unwrap_or_default(),
                source: source.into(),
            },
            None => KernelHalf::Redirect(source),
        }
    })
}

/// The limits on open files, soft and hard.
type OpenFiles = (u64, u64);

/// Raises the soft limit on open files to the hard one, since each connection takes two, and gives what it was.
fn raise_open_files() -> OpenFiles {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((0, 0));
    if soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::warn!(%error, soft, hard, "cannot raise the limit on open files");
    }
    (soft, hard)
}

/// The limits on core dumps, soft and hard.
type CoreDumps = (u64, u64);

/// Keeps this process's memory, with its keys and tokens, out of core dumps and from debuggers without
/// CAP_SYS_PTRACE, and gives the limit that was. An execve undoes the first (PR_SET_DUMPABLE, prctl(2)); the limit is
/// inherited, so whoever starts somebody else's program has to restore it.
fn guard_memory() -> CoreDumps {
    let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap_or((0, 0));
    // The hard one stays, or it could not be restored without CAP_SYS_RESOURCE.
    let guarded = prctl::set_dumpable(false).and_then(|()| setrlimit(Resource::RLIMIT_CORE, 0, hard));
    if let Err(error) = guarded {
        tracing::warn!(%error, "cannot keep keys out of core dumps");
    }
    (soft, hard)
}

fn cgroup2_mount() -> Result<PathBuf, NoCgroup2> {
    crate::redirect::cgroup2_mount().map_err(NoCgroup2)
}

/// Directory of the cgroup that this process is in, below the cgroup2 mount.
fn own_cgroup(mount: &Path) -> std::io::Result<PathBuf> {
    let text = std::fs::read_to_string("/proc/self/cgroup")?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .unwrap_or("/");
    Ok(mount.join(path.trim_start_matches('/')))
}

/// [::1] in this namespace, if it has one.
fn listen_v6(port: u16) -> Option<std::net::SocketAddr> {
    let address = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
    let probe = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 0));
    std::net::TcpListener::bind(probe).is_ok().then_some(address)
}

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors repeat their source.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[expect(clippy::print_stdout, reason = "this is how commands answer")]
fn print(output: Output, value: &impl serde::Serialize, text: impl FnOnce() -> String) {
    match output {
        Output::Json => println!(
            "{}",
            serde_json::to_string_pretty(value).expect("plain data serialises")
        ),
        Output::Text => println!("{}", text().trim_end()),
    }
}

#[expect(clippy::print_stdout, reason = "this is how commands answer")]
fn print_line(line: &str) {
    println!("{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_out_of_dumps_and_the_limit_can_be_restored() {
        let before = getrlimit(Resource::RLIMIT_CORE).unwrap();
        assert_eq!(guard_memory(), before);
        assert!(!prctl::get_dumpable().unwrap());
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
        assert_eq!((soft, hard), (0, before.1));
        setrlimit(Resource::RLIMIT_CORE, before.0, before.1).unwrap();
        prctl::set_dumpable(true).unwrap();
    }
}

//! The last step before the command of `tv-agent exec`: joins its cgroup, mounts the trust copies in a mount
//! namespace of its own, sets the environment and becomes the command.
//!
//! It runs as a fresh process (`tv-agent __enter --spec FILE -- CMD…`) and must be called before any thread or
//! runtime is started: a mount namespace is left by the calling thread alone (unshare(2)).

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use serde::{Deserialize, Serialize};

use crate::trust::{Mount, Trust};

/// The hidden command that calls [`enter`].
pub const COMMAND: &str = "__enter";

/// What the parent decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnterSpec {
    /// The cgroup v2 directory to join.
    pub cgroup: PathBuf,
    /// Mounted read-only in this order.
    pub mounts: Vec<Mount>,
    /// Set on top of the inherited environment.
    pub env: Vec<(OsString, OsString)>,
    /// Soft and hard limit on open files as the caller of `exec` has them; the agent raised its own.
    pub open_files: (u64, u64),
    /// The same for core dumps; the agent makes none.
    pub core_dumps: (u64, u64),
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no command to run was given; write it after `--`")]
    NoCommand,
    #[error("cannot read what to do from {}", .path.display())]
    Spec { path: PathBuf, source: io::Error },
    #[error("cannot join the cgroup {}", .path.display())]
    Cgroup { path: PathBuf, source: io::Error },
    #[error("cannot make a mount namespace (CAP_SYS_ADMIN is needed)")]
    Namespace { source: io::Error },
    #[error("cannot keep the command's mounts from spreading to the rest of the system")]
    Propagation { source: io::Error },
    #[error("cannot set the limit on open files back to {soft}")]
    OpenFiles { soft: u64, source: io::Error },
    #[error("cannot set the limit on core dumps back to {soft}")]
    CoreDumps { soft: u64, source: io::Error },
    #[error("cannot mount {} over {}", .source_path.display(), .target.display())]
    Mount {
        source_path: PathBuf,
        target: PathBuf,
        source: io::Error,
    },
    #[error("{}: command not found", .program.display())]
    NotFound { program: PathBuf },
    #[error("{}: cannot be run", .program.display())]
    NotExecutable { program: PathBuf, source: io::Error },
}

impl Error {
    /// What to exit with, as shells and env(1) do: 127 not found, 126 found but not run, 125 our own failure.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } => 126,
            Self::NoCommand
            | Self::Spec { .. }
            | Self::Cgroup { .. }
            | Self::Namespace { .. }
            | Self::Propagation { .. }
            | Self::OpenFiles { .. }
            | Self::CoreDumps { .. }
            | Self::Mount { .. } => 125,
        }
    }
}

impl EnterSpec {
    pub fn new(cgroup: PathBuf, trust: Trust, open_files: (u64, u64), core_dumps: (u64, u64)) -> Self {
        Self {
            cgroup,
            mounts: trust.mounts,
            env: trust.env,
            open_files,
            core_dumps,
        }
    }

    /// # Errors
    /// [`Error::Spec`] when the file cannot be read or is not what [`EnterSpec::write`] wrote.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Spec {
            path: path.to_owned(),
            source,
        };
        let bytes = fs::read(path).map_err(failed)?;
        serde_json::from_slice(&bytes).map_err(|e| failed(e.into()))
    }

    /// Writes a new file that only its owner can read: environments hold secrets.
    ///
    /// # Errors
    /// Those of writing a file; also when it exists.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(&serde_json::to_vec(self)?)
    }
}

/// The parent's half: `self_exe __enter --spec spec_path -- argv…`, with everything inherited.
pub fn command(self_exe: &Path, spec_path: &Path, argv: &[OsString]) -> Command {
    let mut command = Command::new(self_exe);
    command
        .arg(COMMAND)
        .arg("--spec")
        .arg(spec_path)
        .arg("--")
        .args(argv);
    command
}

/// Becomes `argv`; returns only when it cannot. Nothing is run unless every step before it succeeded.
///
/// Signal dispositions stay as they were, save SIGPIPE, which Rust's start-up ignored and which is set back to
/// its default; no signal is blocked.
pub fn enter(spec: &EnterSpec, argv: &[OsString]) -> Error {
    let Some((program, args)) = argv.split_first() else {
        return Error::NoCommand;
    };
    let prepared = join_cgroup(&spec.cgroup)
        .and_then(|()| mount_all(&spec.mounts))
        .and_then(|()| limit_open_files(spec.open_files))
        .and_then(|()| limit_core_dumps(spec.core_dumps));
    if let Err(error) = prepared {
        return error;
    }
    let envs = spec.env.iter().map(|(name, value)| (name, value));
    let source = Command::new(program).args(args).envs(envs).exec();
    not_run(program, source)
}

fn join_cgroup(cgroup: &Path) -> Result<(), Error> {
    let failed = |source| Error::Cgroup {
        path: cgroup.to_owned(),
        source,
    };
    // 0 is the writer itself, whatever its number in this pid namespace. Not created: a path that is no cgroup
    // must fail.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(cgroup.join("cgroup.procs"))
        .map_err(failed)?;
    file.write_all(b"0").map_err(failed)
}

fn mount_all(mounts: &[Mount]) -> Result<(), Error> {
    const NONE: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).map_err(|e| Error::Namespace { source: e.into() })?;
    // Slave: mounts that the system makes later still arrive, ours do not leave.
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)
        .map_err(|e| Error::Propagation { source: e.into() })?;
    for Mount { source, target } in mounts {
        let read_only = MsFlags::MS_BIND
            | MsFlags::MS_REMOUNT
            | MsFlags::MS_RDONLY
            | MsFlags::MS_NOSUID
            | MsFlags::MS_NODEV
            | MsFlags::MS_NOEXEC;
        mount(Some(source), target, NONE, MsFlags::MS_BIND, NONE)
            // A bind mount takes no other flags until it is remounted (mount(2)).
            .and_then(|()| mount(NONE, target, NONE, read_only, NONE))
            .map_err(|errno| Error::Mount {
                source_path: source.clone(),
                target: target.clone(),
                source: errno.into(),
            })?;
    }
    Ok(())
}

fn limit_open_files((soft, hard): (u64, u64)) -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).map_err(|errno| Error::OpenFiles {
        soft,
        source: errno.into(),
    })
}

fn limit_core_dumps((soft, hard): (u64, u64)) -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_CORE, soft, hard).map_err(|errno| Error::CoreDumps {
        soft,
        source: errno.into(),
    })
}

fn not_run(program: &OsStr, source: io::Error) -> Error {
    let program = PathBuf::from(program);
    if source.kind() == io::ErrorKind::NotFound {
        Error::NotFound { program }
    } else {
        Error::NotExecutable { program, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt as _;

    fn argv(words: &[&str]) -> Vec<OsString> {
        words.iter().map(Into::into).collect()
    }

    #[test]
    fn a_spec_survives_its_file_whatever_bytes_it_holds() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("spec.json");
        let spec = EnterSpec {
            cgroup: "/sys/fs/cgroup/x".into(),
            mounts: vec![Mount {
                source: "/run/a".into(),
                target: "/etc/ssl/certs".into(),
            }],
            env: vec![("NAME".into(), OsString::from_vec(b"caf\xe9 =\n".to_vec()))],
            open_files: (1024, 524_288),
            core_dumps: (0, u64::MAX),
        };
        spec.write(&path).unwrap();
        assert_eq!(EnterSpec::read(&path).unwrap(), spec);
        assert!(spec.write(&path).is_err(), "an old spec is not overwritten");
        fs::write(&path, "{}").unwrap();
        assert!(matches!(EnterSpec::read(&path), Err(Error::Spec { .. })));
        let missing = EnterSpec::read(&temp.path().join("none")).unwrap_err();
        assert_eq!(missing.exit_code(), 125);
    }

    #[test]
    fn nothing_runs_when_the_cgroup_cannot_be_joined() {
        let temp = tempfile::tempdir().unwrap();
        let spec = EnterSpec {
            cgroup: temp.path().join("no-cgroup"),
            mounts: Vec::new(),
            env: Vec::new(),
            open_files: (1024, 1024),
            core_dumps: (0, 0),
        };
        // Were the command run, this test would end here with its exit code.
        let error = enter(&spec, &argv(&["false"]));
        assert!(matches!(error, Error::Cgroup { .. }), "{error}");
        assert_eq!(error.exit_code(), 125);
        assert!(!temp.path().join("no-cgroup").exists());
        assert!(matches!(enter(&spec, &[]), Error::NoCommand));
    }

    #[test]
    fn exit_codes_are_those_of_shells() {
        let run = |kind: io::ErrorKind| not_run(OsStr::new("gh"), kind.into());
        assert_eq!(run(io::ErrorKind::NotFound).exit_code(), 127);
        assert_eq!(run(io::ErrorKind::PermissionDenied).exit_code(), 126);
        assert_eq!(run(io::ErrorKind::NotFound).to_string(), "gh: command not found");
    }

    #[test]
    fn the_parent_passes_the_command_after_a_double_dash() {
        let command = command(
            Path::new("/proc/self/exe"),
            Path::new("/run/spec.json"),
            &argv(&["gh", "--version", "-o"]),
        );
        let args: Vec<_> = command.get_args().collect();
        assert_eq!(
            args,
            [
                "__enter",
                "--spec",
                "/run/spec.json",
                "--",
                "gh",
                "--version",
                "-o"
            ]
        );
    }
}

//! The agent's half of the helper: starts it when it is needed, again when it has died, and asks.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;

use super::Error;
use super::mountinfo::Ours;
use super::wire::{Reply, Request, receive, send};
use crate::limits;
use crate::sys;

/// The hidden command that calls [`super::serve`].
pub const COMMAND: &str = "__trust-mount";

/// One mount namespace and a root in it, open. Keeps both alive: hold it for a moment only.
pub(super) struct Entrance {
    pub(super) namespace: OwnedFd,
    pub(super) root: OwnedFd,
}

pub(super) struct Hand {
    program: PathBuf,
    running: Option<(Child, OwnedFd)>,
}

impl Hand {
    /// `program` is this one, as a path to start.
    pub(super) fn new(program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            running: None,
        }
    }

    /// Calls `errand` with the root as it is without our mounts.
    pub(super) fn look<T>(
        &mut self,
        at: &Entrance,
        ours: &Ours,
        errand: impl FnOnce(&OwnedFd) -> T,
    ) -> Result<T, Error> {
        let request = Request::Look { ours: ours.clone() };
        let (reply, mut along) = self.ask(&request, &[at.namespace.as_fd(), at.root.as_fd()])?;
        let (Reply::Looked, Some(root)) = (reply, along.pop()) else {
            return Err(self.astray());
        };
        let done = errand(&root);
        drop(root);
        self.ask(&Request::LetGo, &[])?;
        Ok(done)
    }

    /// Mounts what lies at `source`, over `target` in the namespace; the mount's number.
    pub(super) fn mount(
        &mut self,
        at: &Entrance,
        source: &Path,
        target: &Path,
        ours: &Ours,
    ) -> Result<u64, Error> {
        let tree = copy_of(source).map_err(|error| Error::Mount {
            path: source.to_owned(),
            source: error,
        })?;
        let request = Request::Mount {
            target: target.to_owned(),
            ours: ours.clone(),
        };
        match self.ask(&request, &[at.namespace.as_fd(), at.root.as_fd(), tree.as_fd()])? {
            (Reply::Mounted(id), _) => Ok(id),
            _ => Err(self.astray()),
        }
    }

    /// Takes ours away, save those of `keep`; how many went, and how many are left.
    pub(super) fn unmount(
        &mut self,
        namespace: BorrowedFd<'_>,
        ours: &Ours,
        keep: Option<&Ours>,
    ) -> Result<(usize, usize), Error> {
        let request = Request::Unmount {
            ours: ours.clone(),
            keep: keep.cloned(),
        };
        match self.ask(&request, &[namespace])? {
            (Reply::Unmounted { gone, left }, _) => Ok((gone, left)),
            _ => Err(self.astray()),
        }
    }

    fn ask(
        &mut self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        if self.running.is_none() {
            self.running = Some(start(&self.program).map_err(Error::Start)?);
        }
        let socket = &self.running.as_ref().ok_or(Error::Gone)?.1;
        let asked = send(socket.as_fd(), request, descriptors).and_then(|()| receive(socket.as_fd()));
        match asked {
            Ok(Some((Reply::Failed { doing, errno }, _))) => Err(Error::Refused {
                doing,
                source: io::Error::from_raw_os_error(errno),
            }),
            Ok(Some(answer)) => Ok(answer),
            // Killed, or stuck in a file system that does not answer.
            Ok(None) | Err(_) => Err(self.astray()),
        }
    }

    fn astray(&mut self) -> Error {
        self.end();
        Error::Gone
    }

    fn end(&mut self) {
        if let Some((mut child, socket)) = self.running.take() {
            drop(socket);
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        self.end();
    }
}

fn start(program: &Path) -> io::Result<(Child, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let limit = TimeVal::new(
        i64::try_from(limits::TRUST_HELPER_TIME.as_secs()).unwrap_or(i64::MAX),
        0,
    );
    setsockopt(&ours, sockopt::ReceiveTimeout, &limit)?;
    let child = Command::new(program)
        .arg(COMMAND)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    Ok((child, ours))
}

/// A mount of what lies at `source`, for reading only, that nobody sees yet.
fn copy_of(source: &Path) -> io::Result<OwnedFd> {
    let file = std::fs::OpenOptions::new().read(true).open(source)?;
    let tree = sys::clone_mount(file.as_fd(), false)?;
    sys::make_private(
        tree.as_fd(),
        false,
        libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC,
    )?;
    Ok(tree)
}

impl Entrance {
    /// The mount namespace and the root that `process` has now.
    pub(super) fn of(process: i32) -> io::Result<Self> {
        use nix::fcntl::{OFlag, open};
        let path = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            root: open(
                &*format!("/proc/{process}/root"),
                path,
                nix::sys::stat::Mode::empty(),
            )?,
            namespace: std::fs::File::open(format!("/proc/{process}/ns/mnt"))?.into(),
        })
    }

    /// As a path to open it by.
    pub(super) fn path_of(root: &OwnedFd) -> PathBuf {
        format!("/proc/self/fd/{}", root.as_raw_fd()).into()
    }
}

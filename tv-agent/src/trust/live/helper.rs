//! The helper's own half: a process of one thread that enters mount namespaces, for no thread of the agent may.
//!
//! It trusts the agent and nobody else. Paths inside a workload's root are opened by openat2 without following a
//! symlink, and a mount is taken away by its descriptor, whatever has become of its path.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat, openat2, readlinkat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, fchdir, mkdir, pivot_root};

use super::mountinfo::{Mounted, Ours, parse};
use super::wire::{Reply, Request, receive, send};
use crate::limits;
use crate::sys::{self, Attach};

/// Where a copy of a tree hangs in the helper's own namespace.
const DESK: &str = "/desk";
/// Layers of ours at one place, and rounds over all of them, before it gives up.
const ROUNDS: usize = 4096;

/// Answers until the agent ends. Call it before any thread is started.
///
/// # Errors
/// When the socket fails, or no namespace of its own can be had.
pub fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let helper = Helper::start()?;
    while let Some((request, descriptors)) = receive(socket)? {
        let answer = helper.answer(&request, &descriptors);
        let (reply, descriptor) = answer.unwrap_or_else(|failed| (failed.reply(), None));
        let along: Vec<BorrowedFd<'_>> = descriptor.iter().map(|fd| fd.as_fd()).collect();
        send(socket, &reply, &along)?;
    }
    Ok(())
}

struct Helper {
    /// Its own directory in /proc: a workload's root may have none.
    proc: OwnedFd,
    /// Its own mount namespace, with nothing in it.
    home: OwnedFd,
}

struct Failed {
    doing: String,
    errno: Errno,
}

type Answer<T> = Result<T, Failed>;

trait Doing<T> {
    fn doing(self, what: impl Into<String>) -> Answer<T>;
}

impl<T> Doing<T> for nix::Result<T> {
    fn doing(self, what: impl Into<String>) -> Answer<T> {
        let doing = || what.into();
        self.map_err(|errno| Failed {
            doing: doing(),
            errno,
        })
    }
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: impl Into<String>) -> Answer<T> {
        self.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
            .doing(what)
    }
}

impl Failed {
    fn reply(self) -> Reply {
        Reply::Failed {
            doing: self.doing,
            errno: self.errno as i32,
        }
    }
}

impl Helper {
    fn start() -> io::Result<Self> {
        const NONE: Option<&str> = None;
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let proc = open("/proc/self", directory, Mode::empty())?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_SLAVE, NONE)?;
        // Nothing of the machine may stay mounted on our account. The root of an initramfs cannot be left.
        mount(
            Some("tmpfs"),
            "/proc",
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=64k"),
        )?;
        mkdir("/proc/desk", Mode::S_IRWXU)?;
        chdir("/proc")?;
        match pivot_root(".", ".") {
            Ok(()) => umount2(".", MntFlags::MNT_DETACH)?,
            Err(Errno::EINVAL) => nix::unistd::chroot(".")?,
            Err(errno) => return Err(errno.into()),
        }
        chdir("/")?;
        let home = openat(&proc, "ns/mnt", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        Ok(Self { proc, home })
    }

    fn answer(&self, request: &Request, descriptors: &[OwnedFd]) -> Answer<(Reply, Option<OwnedFd>)> {
        match (request, descriptors) {
            (Request::Look { ours }, [namespace, root]) => {
                let root = self.look(namespace, root.as_fd(), ours)?;
                Ok((Reply::Looked, Some(root)))
            }
            (Request::LetGo, []) => {
                self.clear_desk();
                Ok((Reply::LetGo, None))
            }
            (Request::Mount { target, ours }, [namespace, root, tree]) => {
                let mounted = self.inside(namespace, || self.mount(root.as_fd(), target, tree.as_fd(), ours));
                Ok((Reply::Mounted(mounted?), None))
            }
            (Request::Unmount { ours, keep }, [namespace]) => {
                let goes =
                    |mount: &Mounted| ours.is(mount) && !keep.as_ref().is_some_and(|keep| keep.is(mount));
                let (gone, left) = self.inside(namespace, || self.unmount_all(Path::new("/"), &goes))?;
                Ok((Reply::Unmounted { gone, left }, None))
            }
            _ => Err(Errno::EPROTO).doing("understand the request"),
        }
    }

    fn look(&self, namespace: &OwnedFd, root: BorrowedFd<'_>, ours: &Ours) -> Answer<OwnedFd> {
        self.clear_desk();
        let tree = self.inside(namespace, || {
            let tree = sys::clone_mount(root, true).doing("copy the tree of mounts")?;
            // Else what is taken from the copy is taken from the workload too.
            sys::make_private(tree.as_fd(), true, 0).doing("set the copy of the tree apart")?;
            Ok(tree)
        })?;
        let desk = find(None, Path::new(DESK)).doing("open the desk")?;
        sys::attach(tree.as_fd(), desk.as_fd(), Attach::Over).doing("lay out the copy of the tree")?;
        self.unmount_all(Path::new(DESK), &|mount| ours.is(mount))?;
        open(
            DESK,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .doing("open the copy of the tree")
    }

    fn clear_desk(&self) {
        // EINVAL: nothing is there.
        while umount2(DESK, MntFlags::MNT_DETACH).is_ok() {}
    }

    /// Does `errand` in the namespace and comes back.
    fn inside<T>(&self, namespace: &OwnedFd, errand: impl FnOnce() -> Answer<T>) -> Answer<T> {
        setns(namespace, CloneFlags::CLONE_NEWNS).doing("enter the mount namespace")?;
        let done = errand();
        if setns(&self.home, CloneFlags::CLONE_NEWNS).is_err() {
            // Whoever stays there keeps the namespace alive; the agent starts another helper.
            std::process::exit(1);
        }
        done
    }

    fn mount(&self, root: BorrowedFd<'_>, target: &Path, tree: BorrowedFd<'_>, ours: &Ours) -> Answer<u64> {
        let at = find(Some(root), target).doing(format!("open {}", target.display()))?;
        let mounts = self.mounts()?;
        let id = self.mount_id(at.as_fd())?;
        let below = mounts.iter().find(|mount| mount.id == id);
        let below = below.ok_or(Errno::EXDEV).doing("find the mount of the target")?;
        let over = || format!("mount over {}", target.display());
        let shown = readlinkat(&self.proc, &*format!("fd/{}", at.as_raw_fd())).doing("ask for a path")?;
        if ours.is(below) && shown != below.point.as_os_str() {
            return Err(Errno::EBUSY).doing(format!("find what {} covers", below.point.display()));
        }
        if ours.is(below) {
            // An older copy: the new one comes beneath it, and then it goes, so that there is always one to be read.
            let parent = mounts.iter().find(|mount| mount.id == below.parent);
            self.unshared(parent, || {
                match sys::attach(tree, at.as_fd(), Attach::Beneath) {
                    Ok(()) => self.let_go(at.as_fd()).doing("take away the older copy"),
                    // Before Linux 6.5: the older one stays below, and goes with the new one.
                    Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                        sys::attach(tree, at.as_fd(), Attach::Over).doing(over())
                    }
                    Err(error) => Err(error).doing(over()),
                }
            })?;
        } else {
            self.unshared(Some(below), || {
                sys::attach(tree, at.as_fd(), Attach::Over).doing(over())
            })?;
        }
        let at = find(Some(root), target).doing(format!("open {} again", target.display()))?;
        self.mount_id(at.as_fd())
    }

    /// Takes away what `goes` of all below `top`, uppermost first; how many went, and how many are left.
    fn unmount_all(&self, top: &Path, goes: &dyn Fn(&Mounted) -> bool) -> Answer<(usize, usize)> {
        let mut gone = 0;
        for _ in 0..ROUNDS {
            let mounts = self.mounts()?;
            let all: Vec<&Mounted> = mounts
                .iter()
                .filter(|mount| mount.point.starts_with(top) && goes(mount))
                .collect();
            let before = gone;
            for mount in all.iter().rev() {
                let seen = find(None, &mount.point).ok();
                let uppermost = seen.filter(|fd| self.mount_id(fd.as_fd()).is_ok_and(|id| id == mount.id));
                let Some(fd) = uppermost else { continue };
                let parent = mounts.iter().find(|parent| parent.id == mount.parent);
                let went = self.unshared(parent, || self.let_go(fd.as_fd()).doing("unmount"));
                gone += usize::from(went.is_ok());
            }
            if all.is_empty() || gone == before {
                return Ok((gone, all.len()));
            }
        }
        Err(Errno::EBUSY).doing("take away all mounts")
    }

    /// Does `errand` while nothing that happens on `mount` spreads to its peers.
    fn unshared<T>(&self, mount: Option<&Mounted>, errand: impl FnOnce() -> Answer<T>) -> Answer<T> {
        let Some(mount) = mount.filter(|mount| mount.shared) else {
            return errand();
        };
        let what = |what| format!("{what} {}, which is shared", mount.point.display());
        let root = find(None, &mount.point).doing(what("open"))?;
        if self.mount_id(root.as_fd())? != mount.id {
            return Err(Errno::EBUSY).doing(what("find"));
        }
        // A peer that remembers the group meanwhile.
        let peer = sys::clone_mount(root.as_fd(), false).doing(what("copy"))?;
        sys::make_private(root.as_fd(), false, 0).doing(what("set apart"))?;
        let done = errand();
        sys::attach(peer.as_fd(), root.as_fd(), Attach::Group).doing(what("share again"))?;
        done
    }

    /// Unmounts exactly the mount that `fd` lies in, and what is mounted on it.
    fn let_go(&self, fd: BorrowedFd<'_>) -> nix::Result<()> {
        fchdir(&self.proc)?;
        let gone = umount2(&*format!("fd/{}", fd.as_raw_fd()), MntFlags::MNT_DETACH);
        chdir("/")?;
        gone
    }

    fn mounts(&self) -> Answer<Vec<Mounted>> {
        let read = self.read("mountinfo", limits::MOUNTINFO_BYTES);
        read.map(|text| parse(&text)).doing("read the list of mounts")
    }

    /// From /proc/self/fdinfo, as statx(2) would say it.
    fn mount_id(&self, fd: BorrowedFd<'_>) -> Answer<u64> {
        let text = self.read(&format!("fdinfo/{}", fd.as_raw_fd()), limits::MOUNTINFO_BYTES);
        let text = text.doing("ask for a mount's number")?;
        super::mount_id(&text)
            .ok_or(Errno::EIO)
            .doing("find a mount's number")
    }

    fn read(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let file = openat(
            &self.proc,
            name,
            OFlag::O_RDONLY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let mut text = Vec::new();
        File::from(file).take(most).read_to_end(&mut text)?;
        Ok(text)
    }
}

/// Opens `path`, inside `root` if one is given, and follows no symlink.
fn find(root: Option<BorrowedFd<'_>>, path: &Path) -> nix::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_NO_SYMLINKS;
    if root.is_some() {
        resolve |= ResolveFlag::RESOLVE_IN_ROOT;
    }
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(resolve);
    match root {
        Some(root) => openat2(root, path, how),
        None => openat2(nix::fcntl::AT_FDCWD, path, how),
    }
}

//! Every `unsafe` block of the agent: one function each, with its SAFETY comment and a test.
#![expect(unsafe_code, reason = "the one place for it")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::addr::NetnsCookie;

mod privileges;

pub use privileges::{drop_bounding_set, drop_capabilities, landlock_abi, lock_securebits, takes_filters};

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, Linux 5.14); not in libc for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that `socket` was made in (Linux 5.14).
///
/// The kernel half puts the same number into its keys, so it tells apart the same 4-tuple in two namespaces.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: `cookie` and `len` live across the call, and the kernel writes at most `len` bytes to `cookie`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(NetnsCookie(cookie))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The number of the mount namespace behind `namespace`, an nsfs file (`NS_GET_MNTNS_ID`, Linux 6.11).
///
/// # Errors
/// When the kernel is older, or it is no mount namespace.
pub fn mount_namespace_number(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    let mut number = 0u64;
    // SAFETY: the kernel writes 64 bits to `number`, which lives across the call.
    let rc = unsafe { libc::ioctl(namespace.as_raw_fd(), libc::NS_GET_MNTNS_ID, &raw mut number) };
    if rc == 0 {
        Ok(number)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Detaches the BPF link that is pinned at `path`, at once (`BPF_LINK_DETACH`, Linux 5.9).
///
/// Removing the pin detaches too, but only after an RCU grace period: for some milliseconds the program would
/// still run. The pin itself stays. aya 0.14 gives neither this call nor the link's descriptor.
///
/// # Errors
/// When nothing is pinned there, it is no link, or the kernel is too old.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    const BPF_LINK_DETACH: libc::c_int = 34;
    let link = pinned_object(path)?;
    let detach: RawFd = link.as_raw_fd();
    // SAFETY: the call reads one 32-bit descriptor, which lives across it.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_DETACH,
            &raw const detach,
            size_of_val(&detach),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Puts `program` in the place of the one that the link pinned at `path` runs (`BPF_LINK_UPDATE`, Linux 5.7):
/// every connect() meets the old or the new one. aya 0.14 has no such call for programs of cgroups.
///
/// # Errors
/// ENOENT: nothing is pinned there. ENOLINK: the link was detached, by somebody or with its cgroup. EINVAL: it is
/// no link, or one of another type of program.
pub fn update_pinned_link(path: &Path, program: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_LINK_UPDATE: libc::c_int = 29;
    /// The members of `union bpf_attr` that BPF_LINK_UPDATE reads.
    #[repr(C)]
    struct LinkUpdate {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let link = pinned_object(path)?;
    let update = LinkUpdate {
        link_fd: link.as_raw_fd().cast_unsigned(),
        new_prog_fd: program.as_raw_fd().cast_unsigned(),
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: `update` lives across the call and is as long as is said; both descriptors are open meanwhile.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_LINK_UPDATE,
            &raw const update,
            size_of_val(&update),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What is pinned at `path` (`BPF_OBJ_GET`).
fn pinned_object(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    /// The members of `union bpf_attr` that BPF_OBJ_GET reads.
    #[repr(C)]
    struct ObjGet {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let get = ObjGet {
        pathname: pathname.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    // SAFETY: `get` lives across the call and is as long as is said; `pathname` is a C string that outlives it.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET, &raw const get, size_of_val(&get)) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives one message of a sequenced-packet socket, with the descriptors that came along (SCM_RIGHTS).
///
/// # Errors
/// EMSGSIZE or ENOBUFS when either was more than there is room for; what recvmsg(2) says.
pub fn receive_with_descriptors(socket: BorrowedFd<'_>, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; most];
    let mut parts = [io::IoSliceMut::new(&mut bytes)];
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut descriptors = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel just made these descriptors for us, and nobody else knows them.
            let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
            descriptors.extend(received.into_iter().map(own));
        }
    }
    let cut = message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let length = message.bytes;
    if cut {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    bytes.truncate(length);
    Ok((bytes, descriptors))
}

/// Whether the kernel takes a program of this type for this hook (`enum bpf_prog_type`, `enum bpf_attach_type`):
/// loads `return 1` and lets go of it. aya 0.14 asks for types only.
///
/// # Errors
/// EINVAL: it knows no such type or hook. EPERM: we may not ask.
pub fn takes_program(program_type: u32, hook: u32) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    /// `r0 = 1; exit`.
    static INSTRUCTIONS: [u64; 2] = [
        u64::from_ne_bytes([0xb7, 0, 0, 0, 1, 0, 0, 0]),
        u64::from_ne_bytes([0x95, 0, 0, 0, 0, 0, 0, 0]),
    ];
    /// The members of `union bpf_attr` that BPF_PROG_LOAD reads, up to the hook.
    #[repr(C)]
    #[derive(Default)]
    struct ProgLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    let load = ProgLoad {
        prog_type: program_type,
        insn_cnt: 2,
        insns: INSTRUCTIONS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: hook,
        ..ProgLoad::default()
    };
    // SAFETY: `load` lives across the call and is as long as is said; what it points to is static.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of_val(&load)) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// A detached copy of the mount that `at` lies in, beginning at `at`; with `all`, of those below it too
/// (open_tree(2), Linux 5.2). It is taken apart when the descriptor is closed, unless it was attached.
///
/// # Errors
/// EINVAL: the mount is not one of the caller's mount namespace. EPERM: CAP_SYS_ADMIN is missing there.
pub fn clone_mount(at: BorrowedFd<'_>, all: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    if all {
        flags |= libc::AT_RECURSIVE.cast_unsigned();
    }
    // SAFETY: the path is a C string that lives for ever; the call writes no memory of ours.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, at.as_raw_fd(), c"".as_ptr(), flags) };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes the mount whose root `at` is private (mount_setattr(2), Linux 5.12); with `all`, those below it too.
/// `attributes` (`MOUNT_ATTR_*`) are set besides.
///
/// # Errors
/// EINVAL: `at` is no root of a mount, or its mount is in another mount namespace.
pub fn make_private(at: BorrowedFd<'_>, all: bool, attributes: u64) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if all {
        flags |= libc::AT_RECURSIVE;
    }
    let attributes = libc::mount_attr {
        attr_set: attributes,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    // SAFETY: the path is a C string; `attributes` lives across the call and is as long as is said.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Where [`attach`] puts a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Over,
    /// Below the mount whose root is the target, to be seen when that goes (Linux 6.5).
    Beneath,
    /// Nowhere: the target's mount becomes a peer of the other (Linux 5.15).
    Group,
}

/// move_mount(2), Linux 5.2: `tree`, of [`clone_mount`], to `target`, which may lie in the namespace that the calling
/// thread has entered meanwhile.
///
/// # Errors
/// EINVAL: a directory over a file or the reverse, a target outside the caller's mount namespace, or a kernel that
/// does not know the way. EPERM: CAP_SYS_ADMIN is missing there.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>, way: Attach) -> io::Result<()> {
    /// include/uapi/linux/mount.h; libc has it for some targets only.
    const MOVE_MOUNT_BENEATH: libc::c_uint = 0x200;
    let way = match way {
        Attach::Over => 0,
        Attach::Beneath => MOVE_MOUNT_BENEATH,
        Attach::Group => libc::MOVE_MOUNT_SET_GROUP,
    };
    let flags = libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_EMPTY_PATH | way;
    // SAFETY: both paths are C strings that live for ever; the call writes no memory of ours.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            flags,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_mount_namespace_has_one_number_and_other_namespaces_none() {
        let open = |name: &str| std::fs::File::open(format!("/proc/self/ns/{name}")).unwrap();
        let number = mount_namespace_number(open("mnt").as_fd());
        // Before Linux 6.11 there is none.
        let Ok(number) = number else { return };
        assert_ne!(number, 0);
        assert_eq!(mount_namespace_number(open("mnt").as_fd()).unwrap(), number);
        mount_namespace_number(open("net").as_fd()).unwrap_err();
    }

    #[test]
    fn two_sockets_of_one_namespace_have_one_cookie() {
        let a = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let b = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let cookie = netns_cookie(a.as_fd()).unwrap();
        assert_ne!(cookie.0, 0);
        assert_eq!(cookie, netns_cookie(b.as_fd()).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(netns_cookie(file.as_fd()).is_err());
    }

    /// That they do detach and update is shown by the kernel tests.
    #[test]
    fn what_is_no_pinned_link_is_an_error() {
        let file = std::fs::File::open("/dev/null").unwrap();
        for path in ["/nonexistent", "/dev/null", "nul\0inside"] {
            assert!(detach_pinned_link(Path::new(path)).is_err(), "{path:?}");
            assert!(
                update_pinned_link(Path::new(path), file.as_fd()).is_err(),
                "{path:?}"
            );
        }
    }

    #[test]
    fn descriptors_come_along_with_a_message_up_to_a_limit() {
        use nix::sys::socket::{AddressFamily, ControlMessage, SockFlag, SockType, sendmsg, socketpair};
        let flags = SockFlag::SOCK_CLOEXEC;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let send = |text: &[u8], count: usize| {
            let descriptors = vec![file.as_raw_fd(); count];
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let parts = [io::IoSlice::new(text)];
            sendmsg::<()>(a.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        };
        send(b"two", 2);
        let (text, descriptors) = receive_with_descriptors(b.as_fd(), 16).unwrap();
        assert_eq!((&text[..], descriptors.len()), (&b"two"[..], 2));
        for (text, count) in [(&[0; 17][..], 1), (&b"many"[..], 9)] {
            send(text, count);
            let error = receive_with_descriptors(b.as_fd(), 16).unwrap_err();
            let code = error.raw_os_error();
            assert!(matches!(code, Some(libc::EMSGSIZE | libc::ENOBUFS)), "{error}");
        }
        drop(a);
        assert!(receive_with_descriptors(b.as_fd(), 16).unwrap().0.is_empty());
    }

    /// Root or not: a hook that no kernel has is never taken. That real ones are is shown by the kernel tests.
    #[test]
    fn a_hook_that_does_not_exist_is_not_taken() {
        const SOCK_ADDR: u32 = 18;
        assert!(takes_program(SOCK_ADDR, 0xffff).is_err());
        assert!(takes_program(u32::MAX, 0).is_err());
    }

    /// Root or not: what is no mount is neither copied, changed nor attached. That mounts are is shown by the e2e tests.
    #[test]
    fn what_is_no_mount_is_an_error() {
        let (one, other) = std::io::pipe().unwrap();
        assert!(clone_mount(one.as_fd(), false).is_err());
        assert!(make_private(one.as_fd(), true, 0).is_err());
        for way in [Attach::Over, Attach::Beneath, Attach::Group] {
            assert!(attach(one.as_fd(), other.as_fd(), way).is_err());
        }
    }
}

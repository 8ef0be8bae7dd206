//! Every `unsafe` block of the agent: one function each, with its SAFETY comment and a test.
#![expect(unsafe_code, reason = "the one place for it")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crate::addr::NetnsCookie;

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

/// Detaches the BPF link that is pinned at `path`, at once (`BPF_LINK_DETACH`, Linux 5.9).
///
/// Removing the pin detaches too, but only after an RCU grace period: for some milliseconds the program would
/// still run. The pin itself stays. aya 0.14 gives neither this call nor the link's descriptor.
///
/// # Errors
/// When nothing is pinned there, it is no link, or the kernel is too old.
pub fn detach_pinned_link(path: &Path) -> io::Result<()> {
    const BPF_OBJ_GET: libc::c_int = 7;
    const BPF_LINK_DETACH: libc::c_int = 34;
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
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

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

    /// That it does detach is shown by the kernel tests.
    #[test]
    fn what_is_no_pinned_link_is_an_error() {
        for path in ["/nonexistent", "/dev/null", "nul\0inside"] {
            assert!(detach_pinned_link(Path::new(path)).is_err(), "{path:?}");
        }
    }

    /// Root or not: a hook that no kernel has is never taken. That real ones are is shown by the kernel tests.
    #[test]
    fn a_hook_that_does_not_exist_is_not_taken() {
        const SOCK_ADDR: u32 = 18;
        assert!(takes_program(SOCK_ADDR, 0xffff).is_err());
        assert!(takes_program(u32::MAX, 0).is_err());
    }
}

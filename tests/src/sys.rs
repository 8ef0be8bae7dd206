//! The harness's only `unsafe`.
#![expect(unsafe_code, reason = "the one place for it")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};

use nix::libc;

/// Takes a connected TCP socket back to unconnected: connect() with AF_UNSPEC, see connect(2).
///
/// # Errors
/// What connect() says.
pub fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    let address = libc::sockaddr {
        sa_family: libc::sa_family_t::try_from(libc::AF_UNSPEC).expect("0 fits"),
        sa_data: [0; 14],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("16 fits");
    // SAFETY: `address` lives across the call, and `length` is its size.
    let rc = unsafe { libc::connect(socket.as_raw_fd(), &raw const address, length) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A duplicate of another process's descriptor (pidfd_getfd, Linux 5.6; needs ptrace rights over it).
///
/// # Errors
/// When there is no such process or descriptor.
pub fn descriptor_of(pid: u32, fd: RawFd) -> io::Result<OwnedFd> {
    let own = |rc: libc::c_long| {
        let fd = RawFd::try_from(rc).ok().filter(|fd| *fd >= 0);
        let fd = fd.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    // SAFETY: both calls take integers only and return a new descriptor or -1.
    let process = own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// Lets a listener accept data in the SYN (RFC 7413), for up to `queue` handshakes at once.
///
/// # Errors
/// What setsockopt() says.
pub fn accept_fast_open(listener: BorrowedFd<'_>, queue: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&queue)).expect("4 fits");
    // SAFETY: `queue` lives across the call, and `length` is its size.
    let rc = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const queue).cast(),
            length,
        )
    };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

const BPF_CGROUP_INET4_CONNECT: u32 = 10;

/// Loads a cgroup/connect4 program (`BPF_PROG_LOAD`).
///
/// # Errors
/// When the verifier refuses it.
pub fn load_connect4(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    /// The first members of that part of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        program_type: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log: [u32; 2],
        log_buffer: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        interface: u32,
        expected_attach_type: u32,
    }
    let load = Load {
        program_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET4_CONNECT,
        ..Load::default()
    };
    // SAFETY: `load` and what it points to live across the call, and are as long as is said.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of_val(&load)) };
    let fd = RawFd::try_from(rc).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to the connect4 hook of a cgroup with these flags (`BPF_PROG_ATTACH`).
///
/// # Errors
/// When the kernel refuses.
pub fn attach_connect4(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    const BPF_PROG_ATTACH: libc::c_int = 8;
    hook(
        BPF_PROG_ATTACH,
        cgroup,
        program.as_raw_fd().cast_unsigned(),
        flags,
    )
}

/// Detaches from it what was attached without a name (`BPF_PROG_DETACH`).
///
/// # Errors
/// When the kernel refuses.
pub fn detach_connect4(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_PROG_DETACH: libc::c_int = 9;
    hook(BPF_PROG_DETACH, cgroup, 0, 0)
}

fn hook(command: libc::c_int, cgroup: BorrowedFd<'_>, program: u32, flags: u32) -> io::Result<()> {
    let attr: [u32; 4] = [
        cgroup.as_raw_fd().cast_unsigned(),
        program,
        BPF_CGROUP_INET4_CONNECT,
        flags,
    ];
    // SAFETY: the call reads these four words, which live across it.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of_val(&attr)) };
    if rc == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

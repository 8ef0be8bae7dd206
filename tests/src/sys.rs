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

/// The kernel measures what BPF programs cost for as long as the result lives (BPF_ENABLE_STATS, Linux 5.8).
///
/// # Errors
/// What bpf() says.
pub fn bpf_statistics() -> io::Result<OwnedFd> {
    const BPF_ENABLE_STATS: libc::c_long = 32;
    /// `BPF_STATS_RUN_TIME`.
    const RUN_TIME: u32 = 0;
    // SAFETY: the call reads one 32-bit number, which lives across it.
    let fd = unsafe {
        let kind = RUN_TIME;
        libc::syscall(
            libc::SYS_bpf,
            BPF_ENABLE_STATS,
            &raw const kind,
            size_of_val(&kind),
        )
    };
    let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

//! The harness's only `unsafe`.
#![expect(unsafe_code, reason = "the one place for it")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

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

/// Has the process that `command` starts be killed when the thread that starts it ends (PR_SET_PDEATHSIG, prctl(2)).
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    let parent = Pid::this();
    let ask = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // It may have ended before the kernel was asked.
        match getppid() == parent {
            true => Ok(()),
            false => Err(io::Error::from(io::ErrorKind::BrokenPipe)),
        }
    };
    // SAFETY: between fork and exec it makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(ask) }
}

/// A duplicate of another process's descriptor (pidfd_getfd, Linux 5.6; needs ptrace rights over it).
///
/// # Errors
/// When there is no such process or descriptor.
pub fn descriptor_of(pid: u32, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: both calls take integers only and return a new descriptor or -1.
    let process = own_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: as above.
    own_descriptor(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// What BPF_MAP_CREATE is told of a map's layout.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct MapLayout {
    /// `enum bpf_map_type` (include/uapi/linux/bpf.h).
    pub kind: u32,
    pub key: u32,
    pub value: u32,
    pub entries: u32,
    pub flags: u32,
}

/// Makes a map and pins it at `path`.
///
/// # Errors
/// What bpf() says.
pub fn pin_map(layout: MapLayout, path: &Path) -> io::Result<()> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_OBJ_PIN: libc::c_int = 6;
    // SAFETY: the call reads the layout, which lives across it.
    let map = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_CREATE,
            &raw const layout,
            size_of_val(&layout),
        )
    };
    let map = own_descriptor(map)?;
    bpf_object(BPF_OBJ_PIN, path, map.as_raw_fd()).map(drop)
}

/// What is pinned at `path`.
///
/// # Errors
/// What bpf() says.
pub fn pinned(path: &Path) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: libc::c_int = 7;
    own_descriptor(bpf_object(BPF_OBJ_GET, path, 0)?)
}

fn bpf_object(command: libc::c_int, path: &Path, fd: RawFd) -> io::Result<libc::c_long> {
    /// The members of `union bpf_attr` that BPF_OBJ_PIN and BPF_OBJ_GET read.
    #[repr(C)]
    struct Object {
        pathname: u64,
        bpf_fd: RawFd,
        file_flags: u32,
    }
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let object = Object {
        pathname: pathname.as_ptr() as u64,
        bpf_fd: fd,
        file_flags: 0,
    };
    // SAFETY: `object` and the path that it points to live across the call.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const object, size_of_val(&object)) };
    if rc < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(rc)
    }
}

/// All BPF links of the machine, opened.
pub fn bpf_links() -> Vec<OwnedFd> {
    const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
    const BPF_LINK_GET_NEXT_ID: libc::c_int = 31;
    let mut links = Vec::new();
    // start_id or link_id, next_id, open_flags
    let mut ids = [0u32; 3];
    loop {
        // SAFETY: the call reads and writes the three words, which live across it.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_LINK_GET_NEXT_ID,
                &raw mut ids,
                size_of_val(&ids),
            )
        };
        if rc != 0 {
            return links;
        }
        ids = [ids[1], 0, 0];
        // SAFETY: the call reads the three words, which live across it.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_LINK_GET_FD_BY_ID,
                &raw const ids,
                size_of_val(&ids),
            )
        };
        // One that ended meanwhile is not there.
        links.extend(own_descriptor(fd));
    }
}

/// How many entries a hash map has whose keys take `key` bytes.
pub fn map_entries(map: BorrowedFd<'_>, key: usize) -> usize {
    const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
    /// The members of `union bpf_attr` that BPF_MAP_GET_NEXT_KEY reads.
    #[repr(C)]
    struct NextKey {
        map_fd: u32,
        padding: u32,
        key: u64,
        next_key: u64,
    }
    let (mut at, mut next) = (vec![0u8; key], vec![0u8; key]);
    let mut count = 0;
    loop {
        let call = NextKey {
            map_fd: map.as_raw_fd().cast_unsigned(),
            padding: 0,
            // No key: the first.
            key: if count == 0 { 0 } else { at.as_ptr() as u64 },
            next_key: next.as_mut_ptr() as u64,
        };
        // SAFETY: `call` and both buffers live across the call and are as long as the map's keys.
        let rc = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_MAP_GET_NEXT_KEY,
                &raw const call,
                size_of_val(&call),
            )
        };
        if rc != 0 {
            return count;
        }
        count += 1;
        std::mem::swap(&mut at, &mut next);
    }
}

/// The value of one line of a descriptor's proc_pid_fdinfo(5), such as `map_id`, `link_id` or `cgroup_id`.
pub fn fd_fact(fd: BorrowedFd<'_>, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd())).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.trim().parse().ok()
}

fn own_descriptor(rc: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(rc).ok().filter(|fd| *fd >= 0);
    let fd = fd.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
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

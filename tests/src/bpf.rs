//! Programs that other tools would attach to the connect hook, in raw instructions: they need no compiler, so that they
//! can be loaded on any kernel.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::sys;

/// What the program does with each connect() over IPv4.
#[derive(Clone, Copy, Debug)]
pub enum Neighbour {
    Allows,
    Refuses,
    /// Sends all of them there.
    Rewrites(SocketAddrV4),
    /// Sends those to one address there.
    RewritesOnly(Ipv4Addr, SocketAddrV4),
}

/// How it wants to be attached (`BPF_F_ALLOW_*`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// Nobody else here or below.
    Exclusive = 0,
    /// Somebody else below, instead.
    Override = 1,
    /// Others here and below, as well.
    Multi = 2,
}

/// # Errors
/// When the kernel does not take it.
pub fn load(neighbour: &Neighbour) -> io::Result<OwnedFd> {
    sys::load_connect4(&instructions(neighbour))
}

/// Attaches `program` to the directory of a cgroup, until that is removed.
///
/// # Errors
/// When the kernel refuses.
pub fn attach(program: &OwnedFd, cgroup: &Path, mode: Mode) -> io::Result<()> {
    let cgroup = File::open(cgroup)?;
    sys::attach_connect4(cgroup.as_fd(), program.as_fd(), mode as u32)
}

/// Detaches whatever is attached alone, as tools do that take the hook for theirs.
///
/// # Errors
/// When there is nothing that could be detached so.
pub fn detach_any(cgroup: BorrowedFd<'_>) -> io::Result<()> {
    sys::detach_connect4(cgroup)
}

/// `struct bpf_insn`: code, destination and source register, offset, immediate.
fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
    u64::from(code)
        | u64::from(registers) << 8
        | u64::from(offset.cast_unsigned()) << 16
        | u64::from(immediate) << 32
}

fn instructions(neighbour: &Neighbour) -> Vec<u64> {
    /// Of `user_ip4` and `user_port` in `struct bpf_sock_addr`.
    const IP4: i16 = 4;
    const PORT: i16 = 24;
    let result = |value| vec![instruction(0xb7, 0, 0, value), instruction(0x95, 0, 0, 0)];
    // r2 = value; *(u32 *)(r1 + offset) = r2
    let store = |offset, value| [instruction(0xb4, 2, 0, value), instruction(0x63, 0x21, offset, 0)];
    let rewrite = |to: &SocketAddrV4| {
        let ip = u32::from_ne_bytes(to.ip().octets());
        let port = u32::from(to.port().to_be());
        [store(IP4, ip), store(PORT, port)].concat()
    };
    match neighbour {
        Neighbour::Allows => result(1),
        Neighbour::Refuses => result(0),
        Neighbour::Rewrites(to) => [rewrite(to), result(1)].concat(),
        Neighbour::RewritesOnly(only, to) => {
            let rewriting = rewrite(to);
            let skip = i16::try_from(rewriting.len()).expect("a few");
            // r3 = *(u32 *)(r1 + IP4); r2 = only; if r3 != r2 skip
            let compare = [
                instruction(0x61, 0x13, IP4, 0),
                instruction(0xb4, 2, 0, u32::from_ne_bytes(only.octets())),
                instruction(0x5d, 0x23, skip, 0),
            ];
            [&compare[..], &rewriting, &result(1)].concat()
        }
    }
}

//! The connections of a network namespace, TCP and connected UDP, by sock_diag(7).
//!
//! A small reader of its own: what is asked for (a filter by port inside the kernel, the cgroup of each socket) the
//! crates for netlink do not speak, and the rest of the format is two fixed structures.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

// include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_CGROUP_ID: u16 = 21;
const INET_DIAG_BC_D_GE: u8 = 4;
const INET_DIAG_BC_D_LE: u8 = 5;
/// What a connected UDP socket is, too.
const TCP_ESTABLISHED: u32 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `nlmsghdr`, `inet_diag_req_v2` and `inet_diag_msg`.
const HEADER: usize = 16;
const REQUEST: usize = 56;
const ANSWER: usize = 72;

/// The kernel sends a dump in pieces of at most 32 KiB.
const PIECE: usize = 32 * 1024;
/// The kernel answers from memory; one that does not is not waited for.
const PATIENCE_S: i64 = 5;

/// IANA protocol numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Protocol {
    Tcp = 6,
    Udp = 17,
}

/// One connection, seen from the end that connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub protocol: Protocol,
    /// v4-mapped addresses are given as IPv4.
    pub local: SocketAddr,
    pub peer: SocketAddr,
    /// Of the socket's file, as in `/proc/PID/fd`; 0 when no process has it open.
    pub inode: u32,
    /// Not given out again while the machine runs.
    pub cookie: u64,
    pub uid: u32,
    /// Id of the cgroup that the socket was made in (Linux 5.8, CONFIG_SOCK_CGROUP_DATA).
    pub cgroup: Option<u64>,
}

/// What one question brought.
#[derive(Debug, Default)]
pub struct Answer {
    pub connections: Vec<Connection>,
    /// There were more than asked for.
    pub truncated: bool,
}

/// A socket for questions about the calling thread's network namespace, whichever thread asks them.
///
/// # Errors
/// When the kernel has no sock_diag (CONFIG_INET_DIAG).
pub fn open() -> io::Result<OwnedFd> {
    let asker = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )?;
    setsockopt(&asker, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE_S))?;
    Ok(asker)
}

/// Connections, IPv4 and IPv6, whose peer's port is in `ports`; at most `most`. Ask again only if it was no more.
///
/// # Errors
/// What the kernel says; `NotFound` when it has no module for the protocol (CONFIG_INET_TCP_DIAG, CONFIG_INET_UDP_DIAG).
pub fn established(
    asker: &OwnedFd,
    protocol: Protocol,
    ports: &RangeInclusive<u16>,
    most: usize,
) -> io::Result<Answer> {
    let mut answer = Answer::default();
    let mut piece = vec![0; PIECE];
    for family in [AF_INET, AF_INET6] {
        send(
            asker.as_raw_fd(),
            &question(family, protocol, ports),
            MsgFlags::empty(),
        )?;
        let mut done = false;
        while !done {
            let length = recv(asker.as_raw_fd(), &mut piece, MsgFlags::empty())?;
            for message in messages(&piece[..length], protocol) {
                match message {
                    Message::Connection(_) if answer.connections.len() == most => {
                        // What the kernel has left to say goes with the socket.
                        answer.truncated = true;
                        return Ok(answer);
                    }
                    Message::Connection(connection) => answer.connections.push(connection),
                    Message::Done => done = true,
                    Message::Failed(code) => return Err(io::Error::from_raw_os_error(code)),
                }
            }
            done |= length == 0;
        }
    }
    Ok(answer)
}

/// Asks for every connection of `family`, filtered in the kernel.
fn question(family: u8, protocol: Protocol, ports: &RangeInclusive<u16>) -> Vec<u8> {
    // Two conditions of two words each. `yes` is the way to the next one; `no` leads past the end, which rejects.
    let filter = [
        (INET_DIAG_BC_D_GE, 20u16, ports.start()),
        (INET_DIAG_BC_D_LE, 12, ports.end()),
    ];
    let length = HEADER + REQUEST + 4 + 8 * filter.len();
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(u32::try_from(length).expect("92 fits").to_ne_bytes());
    bytes.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    // Sequence and port: one question at a time, and the kernel fills in the other.
    bytes.extend([0; 8]);
    bytes.extend([family, protocol as u8, 0, 0]);
    bytes.extend((1u32 << TCP_ESTABLISHED).to_ne_bytes());
    // No particular connection.
    bytes.extend([0; 48]);
    bytes.extend(
        u16::try_from(4 + 8 * filter.len())
            .expect("20 fits")
            .to_ne_bytes(),
    );
    bytes.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
    for (code, no, port) in filter {
        bytes.extend([code, 8]);
        bytes.extend(no.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(port.to_ne_bytes());
    }
    bytes
}

#[derive(Debug, PartialEq, Eq)]
enum Message {
    Connection(Connection),
    Done,
    /// An error number.
    Failed(i32),
}

/// The messages of one datagram; what is cut off or of another kind is passed over.
fn messages(mut bytes: &[u8], protocol: Protocol) -> Vec<Message> {
    let mut found = Vec::new();
    while let (Some(length), Some(kind)) = (u32_at(bytes, 0), u16_at(bytes, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else {
            break;
        };
        match kind {
            NLMSG_DONE => found.push(Message::Done),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).map_or(0, |code| code.cast_signed().saturating_neg());
                found.push(Message::Failed(code));
            }
            SOCK_DIAG_BY_FAMILY => found.extend(connection(body, protocol).map(Message::Connection)),
            _ => {}
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// `inet_diag_msg`: family, state, timer and retransmissions; the socket's id (two ports, two addresses, interface,
/// cookie); expiry, two queues, user, inode. Attributes follow.
fn connection(body: &[u8], protocol: Protocol) -> Option<Connection> {
    let family = *body.first()?;
    let address = |at: usize| {
        let octets: [u8; 16] = body.get(at..at + 16)?.try_into().ok()?;
        match family {
            AF_INET => Some(IpAddr::from(Ipv4Addr::from(
                <[u8; 4]>::try_from(&octets[..4]).ok()?,
            ))),
            AF_INET6 => Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical()),
            _ => None,
        }
    };
    let port = |at: usize| Some(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?));
    let (low, high) = (u32_at(body, 44)?, u32_at(body, 48)?);
    Some(Connection {
        protocol,
        local: SocketAddr::new(address(8)?, port(4)?),
        peer: SocketAddr::new(address(24)?, port(6)?),
        cookie: u64::from(high) << 32 | u64::from(low),
        uid: u32_at(body, 64)?,
        inode: u32_at(body, 68)?,
        cgroup: cgroup(body.get(ANSWER..)?),
    })
}

fn cgroup(mut attributes: &[u8]) -> Option<u64> {
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let length = usize::from(length);
        let value = attributes.get(4..length)?;
        if kind == INET_DIAG_CGROUP_ID {
            return Some(u64::from_ne_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests;

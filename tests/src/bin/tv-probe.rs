//! A workload for the tests: makes the sockets that its standard input asks for, and tells what came of it.
//!
//! One command a line, one answer a line: `ok …` or `errno N`.
//! - `tcp ADDRESS [option…]` → `ok ID PEER LOCAL`; options: `mapped` (IPv6 socket), `bind=ADDRESS`,
//!   `device=NAME`, `mark=NUMBER`, `mptcp`, `nonblocking`, `brief` (closed at once), `reset` (the same, by a reset),
//!   `fastopen=connect|sendto` (sends `early` with the SYN)
//! - `socket` (IPv4) → `ok ID FD`; `connect ID ADDRESS` → `ok ID PEER LOCAL`
//! - `again ID ADDRESS` disconnects (AF_UNSPEC) and connects elsewhere
//! - `flood ADDRESS COUNT [bind=ADDRESS]`: as many connects, one after the other, each closed by a reset, for at most
//!   ten seconds; bound, from consecutive ports on → `ok CONNECTED FAILED`
//! - `udp-connect ADDRESS [mapped]`, `udp-send ADDRESS [mapped]` → `ok -`
//! - `ask SERVER QUERY [mapped] [unconnected] [tcp=ADDRESS]` (hexadecimal) → `ok ANSWER`; sends a datagram, waits for one,
//!   and with `tcp` connects at once, in the same breath as a resolver's caller would: `ok ANSWER ID PEER LOCAL`
//! - `uid N` → `ok -`

use std::io::{self, BufRead as _, Write as _};
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, sendto, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// A connect() that nobody answers ends after this, with EINPROGRESS.
const PATIENCE: Duration = Duration::from_secs(3);
/// A flood ends after this.
const FLOOD: Duration = Duration::from_secs(10);
const MSG_FASTOPEN: i32 = 0x2000_0000;

fn main() -> io::Result<()> {
    let mut sockets = Vec::new();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        match obey(&line?, &mut sockets) {
            Ok(answer) => writeln!(output, "ok {answer}")?,
            Err(error) => writeln!(output, "errno {}", error.raw_os_error().unwrap_or(0))?,
        }
        output.flush()?;
    }
    Ok(())
}

fn obey(line: &str, sockets: &mut Vec<Socket>) -> io::Result<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (&command, arguments) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    match command {
        "tcp" => {
            let socket = tcp(address(argument(0)), &arguments[1..])?;
            sockets.push(socket);
            let answer = describe(sockets.len() - 1, sockets);
            if arguments.contains(&"reset") {
                sockets[sockets.len() - 1].set_linger(Some(Duration::ZERO))?;
            }
            if arguments.contains(&"brief") || arguments.contains(&"reset") {
                sockets.pop();
            }
            answer
        }
        "socket" => {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            let fd = socket.as_raw_fd();
            sockets.push(socket);
            Ok(format!("{} {fd}", sockets.len() - 1))
        }
        "connect" => {
            let id: usize = argument(0).parse().expect("an id");
            sockets[id].connect(&SockAddr::from(address(argument(1))))?;
            describe(id, sockets)
        }
        "again" => {
            let id: usize = argument(0).parse().expect("an id");
            tv_tests::sys::disconnect(sockets[id].as_fd())?;
            sockets[id].connect(&SockAddr::from(address(argument(1))))?;
            describe(id, sockets)
        }
        "flood" => {
            let count = argument(1).parse().expect("a count");
            flood(address(argument(0)), count, arguments.get(2).copied())
        }
        "udp-connect" => {
            let (socket, to) = udp(address(argument(0)), &arguments[1..])?;
            socket.connect(&to.into())?;
            Ok("-".into())
        }
        "udp-send" => {
            let (socket, to) = udp(address(argument(0)), &arguments[1..])?;
            socket.send_to(b"x", &to.into())?;
            Ok("-".into())
        }
        "ask" => ask(arguments, sockets),
        "uid" => {
            let uid = argument(0).parse().expect("a user id");
            nix::unistd::setuid(nix::unistd::Uid::from_raw(uid))?;
            Ok("-".into())
        }
        _ => panic!("unknown command {line:?}"),
    }
}

fn tcp(to: SocketAddr, options: &[&str]) -> io::Result<Socket> {
    let option = |name: &str| {
        let mut values = options.iter().filter_map(|option| option.strip_prefix(name));
        values.next()
    };
    let to = if option("mapped").is_some() {
        mapped(to)
    } else {
        to
    };
    let protocol = option("mptcp").map(|_| Protocol::MPTCP);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, protocol)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    if let Some(mark) = option("mark=") {
        socket.set_mark(mark.parse().expect("a number"))?;
    }
    if let Some(device) = option("device=") {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(local) = option("bind=") {
        socket.set_reuse_address(true)?;
        socket.bind(&address(local).into())?;
    }
    match option("fastopen=") {
        Some("connect") => {
            setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
            socket.connect(&to.into())?;
            socket.send(b"early")?;
        }
        Some(_) => {
            let flags = MsgFlags::from_bits_retain(MSG_FASTOPEN);
            sendto(socket.as_raw_fd(), b"early", &SockaddrStorage::from(to), flags)?;
        }
        None if option("nonblocking").is_some() => {
            socket.set_nonblocking(true)?;
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {
                    socket.set_nonblocking(false)?;
                    socket.connect_timeout(&to.into(), PATIENCE)?;
                }
                other => other?,
            }
        }
        None => socket.connect(&to.into())?,
    }
    Ok(socket)
}

fn flood(to: SocketAddr, count: u16, option: Option<&str>) -> io::Result<String> {
    let until = Instant::now() + FLOOD;
    let from = option
        .and_then(|option| option.strip_prefix("bind="))
        .map(address);
    let (mut connected, mut failed) = (0u32, 0u32);
    for number in 0..count {
        if Instant::now() >= until {
            break;
        }
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        // A full listen queue makes the kernel try again after one second, then two, then four.
        socket.set_write_timeout(Some(FLOOD))?;
        socket.set_linger(Some(Duration::ZERO))?;
        if let Some(mut from) = from {
            from.set_port(from.port() + number);
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
        }
        match socket.connect(&to.into()) {
            Ok(()) => connected += 1,
            Err(_) => failed += 1,
        }
    }
    Ok(format!("{connected} {failed}"))
}

fn udp(to: SocketAddr, options: &[&str]) -> io::Result<(Socket, SocketAddr)> {
    let to = if options.contains(&"mapped") {
        mapped(to)
    } else {
        to
    };
    Ok((Socket::new(Domain::for_address(to), Type::DGRAM, None)?, to))
}

/// One question by UDP, and what the answer is good for at once.
fn ask(arguments: &[&str], sockets: &mut Vec<Socket>) -> io::Result<String> {
    let (socket, to) = udp(address(arguments[0]), &arguments[2..])?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let query = bytes(arguments[1]);
    if arguments.contains(&"unconnected") {
        socket.send_to(&query, &to.into())?;
    } else {
        socket.connect(&to.into())?;
        socket.send(&query)?;
    }
    let socket = std::net::UdpSocket::from(socket);
    let mut answer = vec![0; 65_536];
    let length = socket.recv(&mut answer)?;
    let hex: String = answer[..length]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    match arguments.iter().find_map(|option| option.strip_prefix("tcp=")) {
        Some(to) => {
            sockets.push(tcp(address(to), &[])?);
            Ok(format!("{hex} {}", describe(sockets.len() - 1, sockets)?))
        }
        None => Ok(hex),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let pair = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(pair).collect()
}

fn describe(id: usize, sockets: &[Socket]) -> io::Result<String> {
    let shown = |address: SockAddr| address.as_socket().ok_or(io::ErrorKind::InvalidData);
    let peer = shown(sockets[id].peer_addr()?)?;
    let local = shown(sockets[id].local_addr()?)?;
    Ok(format!("{id} {peer} {local}"))
}

fn mapped(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(v4) => SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0).into(),
        SocketAddr::V6(_) => to,
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?} is no socket address"))
}

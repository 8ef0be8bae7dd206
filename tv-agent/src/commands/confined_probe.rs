//! `tv-agent __confined-probe`: confines itself as the data path does, then tries what it has to be able to do and what it
//! must not, and says what came of each. For tests, and for whoever doubts a machine.

use std::fs::{self, File};
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::{TcpListener, ToSocketAddrs as _, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{SpliceFFlags, splice};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::kill;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use nix::unistd::{Uid, getppid, setgroups, setuid};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};

use super::print;
use crate::cli::{Output, ProbeArgs};
use crate::confine::{self, Confined, Confinement, User};
use crate::sys;
use crate::upstream::roots;

#[derive(Serialize)]
struct Report {
    landlock: bool,
    missing: Vec<&'static str>,
    needed: Vec<Tried>,
    forbidden: Vec<Tried>,
}

#[derive(Serialize)]
struct Tried {
    what: String,
    /// `done`, or why not.
    result: String,
}

/// Why nothing was tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open {}", path.display())]
    Handed { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Confine(#[from] confine::Error),
}

/// Call before there is a second thread.
///
/// # Errors
/// When it cannot be confined.
pub fn run(args: &ProbeArgs) -> Result<(), Error> {
    // As the data path gets files: by descriptors that were opened by somebody else.
    let open = |path: &PathBuf| {
        File::open(path).map_err(|source| Error::Handed {
            path: path.clone(),
            source,
        })
    };
    let handed = args.handed.as_ref().map(open).transpose()?;
    let confinement = Confinement {
        user: User {
            uid: args.user,
            gid: args.user,
        },
        read: confine::default_trees(),
    };
    let Confined { landlock, missing } = confine::enter(&confinement)?;
    let report = Report {
        landlock,
        missing,
        needed: needed(args, handed),
        forbidden: forbidden(args),
    };
    // With threads beside this one, as the data path has.
    let threads = tokio::runtime::Runtime::new();
    print(Output::Json, &report, String::new);
    if args.hold && threads.is_ok() {
        // Until the other end is closed.
        let _ = io::stdin().read_to_end(&mut Vec::new());
    }
    Ok(())
}

fn tried<T>(what: impl Into<String>, result: io::Result<T>) -> Tried {
    Tried {
        what: what.into(),
        result: match result {
            Ok(_) => "done".to_owned(),
            Err(error) => match error.raw_os_error() {
                Some(number) => nix::Error::from_raw(number).to_string(),
                None => error.to_string(),
            },
        },
    }
}

/// A static binary takes them so.
fn random() -> io::Result<()> {
    File::open("/dev/random")?;
    File::open("/dev/urandom")?.read_exact(&mut [0; 32])
}

fn needed(args: &ProbeArgs, handed: Option<File>) -> Vec<Tried> {
    let mut all = vec![
        tried(
            "threads",
            std::thread::Builder::new().spawn(|| {}).map(|t| t.join().is_ok()),
        ),
        tried("a runtime with timers and blocking tasks", runtime()),
        tried("TCP: listen, connect, accept", tcp()),
        tried("UDP", udp()),
        tried(
            "the system's roots",
            roots::compose(&[], &[]).map_err(io::Error::other),
        ),
        tried(
            "random numbers",
            aws_lc_rs::rand::fill(&mut [0; 32]).map_err(io::Error::other),
        ),
        tried("random numbers of the kernel's", random()),
        tried("splice", spliced()),
        tried("a descriptor from another process", descriptor()),
        tried("a backtrace", backtrace()),
    ];
    if let Some(mut file) = handed {
        all.push(tried(
            "a file that was handed over",
            file.read_to_end(&mut Vec::new()),
        ));
    }
    for name in &args.name {
        let looked = (name.as_str(), 0).to_socket_addrs();
        let found = looked.and_then(|mut all| all.next().ok_or_else(|| io::ErrorKind::NotFound.into()));
        all.push(tried(format!("the address of {name}"), found));
    }
    all
}

fn forbidden(args: &ProbeArgs) -> Vec<Tried> {
    let parent = getppid();
    let socket = |domain, kind, protocol: i32| Socket::new(domain, kind, Some(Protocol::from(protocol)));
    let raw = Type::from(libc::SOCK_RAW);
    let mut all = vec![
        tried("/proc/1/environ", File::open("/proc/1/environ")),
        tried("/proc/1", fs::read_dir("/proc/1")),
        tried("the parent's memory", File::open(format!("/proc/{parent}/mem"))),
        tried(
            "a new file in /tmp",
            File::create(format!("/tmp/tv-agent-probe-{parent}")),
        ),
        tried(
            "a new directory in /tmp",
            fs::create_dir(format!("/tmp/tv-agent-probe-{parent}.d")),
        ),
        tried(
            "a file in /dev/shm",
            File::create(format!("/dev/shm/tv-agent-probe-{parent}")),
        ),
        tried(
            "/dev/null, to write",
            File::options().write(true).open("/dev/null"),
        ),
        tried(
            "a file in memory",
            memfd_create(c"probe", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from),
        ),
        tried(
            "a signal to the parent",
            kill(parent, None).map_err(io::Error::from),
        ),
        tried("user 0", setuid(Uid::from_raw(0)).map_err(io::Error::from)),
        tried("groups", setgroups(&[]).map_err(io::Error::from)),
        tried(
            "to be dumpable",
            prctl::set_dumpable(true).map_err(io::Error::from),
        ),
        tried(
            "core dumps",
            setrlimit(Resource::RLIMIT_CORE, 1, 1).map_err(io::Error::from),
        ),
        tried("a unix socket", socket(Domain::UNIX, Type::STREAM, 0)),
        tried(
            "a pair of datagram sockets",
            Socket::pair(Domain::UNIX, Type::DGRAM, None),
        ),
        tried("a netlink socket", socket(Domain::from(libc::AF_NETLINK), raw, 0)),
        tried("a packet socket", socket(Domain::PACKET, raw, 0)),
        tried("a raw socket", socket(Domain::IPV4, raw, libc::IPPROTO_TCP)),
        tried(
            "an ICMP socket",
            socket(Domain::IPV4, Type::DGRAM, libc::IPPROTO_ICMP),
        ),
    ];
    for path in &args.unreadable {
        all.push(tried(path.display().to_string(), read(path)));
    }
    all
}

fn read(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        fs::read_dir(path).map(drop)
    } else {
        File::open(path).map(drop)
    }
}

fn runtime() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        tokio::task::spawn_blocking(|| {}).await?;
        let mut lookup = tokio::net::lookup_host(("localhost", 0)).await?;
        lookup
            .next()
            .map(drop)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    })
}

fn tcp() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    client.set_tcp_nodelay(true)?;
    client.set_keepalive(true)?;
    client.connect(&listener.local_addr()?.into())?;
    let (mut server, _) = listener.accept()?;
    client.write_all(b"x")?;
    server.read_exact(&mut [0])
}

fn udp() -> io::Result<()> {
    let [one, other] = [
        UdpSocket::bind(("127.0.0.1", 0))?,
        UdpSocket::bind(("127.0.0.1", 0))?,
    ];
    one.connect(other.local_addr()?)?;
    one.send(b"x")?;
    other.recv_from(&mut [0]).map(drop)
}

fn spliced() -> io::Result<()> {
    let (from, mut source) = io::pipe()?;
    let (mut sink, to) = io::pipe()?;
    source.write_all(b"x")?;
    splice(&from, None, &to, None, 1, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    sink.read_exact(&mut [0])
}

fn descriptor() -> io::Result<()> {
    let (one, other) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let (pipe, _) = io::pipe()?;
    let descriptors = [pipe.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(
        one.as_raw_fd(),
        &[IoSlice::new(b"x")],
        &rights,
        MsgFlags::empty(),
        None,
    )?;
    match sys::receive_with_descriptors(other.as_fd(), 1)?.1.len() {
        1 => Ok(()),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

/// With a backtrace, which looks for debug information.
fn backtrace() -> io::Result<()> {
    let caught = std::panic::catch_unwind(|| std::backtrace::Backtrace::force_capture().to_string().len());
    caught.map(drop).map_err(|_| io::ErrorKind::Other.into())
}

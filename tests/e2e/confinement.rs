//! What a taken-over data path cannot do: tried by a process that is confined as it is, and by system calls that are put
//! into such a process from outside, as a flaw in a parser would.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{self, c_long};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tv_tests::puppet::{Arg, Outcome, Puppet};
use tv_tests::world::{self, World};

use crate::absence::assert_served;
use crate::support::{alice, bearer, curl, user_url, wait_for};

use Arg::{Bytes, Number};

const LIMIT: Duration = Duration::from_secs(20);
const USER: &str = "64943";

fn agent() -> PathBuf {
    world::agent_binary().unwrap()
}

/// A process that has confined itself, told what came of its own tries, and waits. Dropped, it ends.
struct Probe {
    child: Child,
    /// It stays for as long as this is open.
    hold: Option<ChildStdin>,
    report: Value,
}

impl Probe {
    fn start(more: &[&str]) -> Self {
        let mut command = Command::new(agent());
        command.arg("__confined-probe").args(more).arg("--hold");
        Self::of(&mut command)
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let hold = child.stdin.take();
        let mut text = String::new();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The closing brace of the whole stands alone.
        while let Some(line) = lines.next().transpose().unwrap() {
            text += &line;
            if line == "}" {
                break;
            }
        }
        let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        Self { child, hold, report }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    fn tried(&self, kind: &str) -> Vec<(String, String)> {
        let tried = self.report[kind].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        tried
            .iter()
            .map(|one| (text(&one["what"]), text(&one["result"])))
            .collect()
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        drop(self.hold.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Files that a data path must not read, and that everybody may reach as far as modes go.
struct Files {
    _dir: tempfile::TempDir,
    /// Of root, mode 0600.
    roots: PathBuf,
    /// A CA's directory, and the key in it.
    ca: PathBuf,
    key: PathBuf,
    /// Readable for everybody.
    everybodys: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        let file = |name: &str, bits| {
            let path = dir.path().join(name);
            fs::write(&path, "secret").unwrap();
            mode(&path, bits);
            path
        };
        let ca = dir.path().join("ca");
        fs::create_dir(&ca).unwrap();
        let files = Self {
            roots: file("roots", 0o600),
            key: file("ca/intermediate.key", 0o600),
            everybodys: file("everybodys", 0o644),
            ca,
            _dir: dir,
        };
        mode(&files.ca, 0o700);
        files
    }

    fn all(&self) -> [&Path; 4] {
        [&self.roots, &self.ca, &self.key, &self.everybodys]
    }
}

#[test]
fn it_can_do_what_it_has_to_and_nothing_else() {
    let files = Files::new();
    let mut arguments = vec!["--handed", files.roots.to_str().unwrap(), "--name", "localhost"];
    for path in files.all() {
        arguments.extend(["--unreadable", path.to_str().unwrap()]);
    }
    let probe = Probe::start(&arguments);
    let needed = probe.tried("needed");
    assert_eq!(needed.len(), 12, "{needed:?}");
    for (what, result) in needed {
        assert_eq!(result, "done", "{what}");
    }
    let forbidden = probe.tried("forbidden");
    assert_eq!(forbidden.len(), 19 + files.all().len(), "{forbidden:?}");
    for (what, result) in forbidden {
        let refused = result.starts_with("EPERM") || result.starts_with("EACCES");
        assert!(refused, "{what}: {result}");
    }
    assert_confined(probe.pid());
    let status = status(probe.pid());
    let threads = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    assert_ne!(threads.unwrap().trim(), "1", "as a data path has");
}

/// Each call and what has to come of it, tried on the probe; the same is tried on a data path.
#[test]
fn system_calls_that_are_put_into_it_are_refused() {
    let (probe, files) = (Probe::start(&[]), Files::new());
    let mut puppet = Puppet::seize(probe.pid()).unwrap();
    assert_eq!(
        puppet.call(libc::SYS_getuid, &[]).unwrap(),
        Outcome::Returned(USER.parse().unwrap()),
        "what is tried is tried for real"
    );
    assert_refused(&mut puppet, &files.all());
    drop(puppet);
    // It went on where it was.
    assert!(fs::read_link(format!("/proc/{}/exe", probe.pid())).is_ok());
}

#[test]
fn steps_of_an_attack_end_it() {
    for (what, call, arguments) in deadly() {
        let probe = Probe::start(&[]);
        let mut puppet = Puppet::seize(probe.pid()).unwrap();
        let outcome = puppet.call(call, &arguments).unwrap();
        assert_eq!(outcome, Outcome::Killed(Signal::SIGSYS), "{what}");
    }
}

#[test]
fn it_ends_with_the_process_that_started_it() {
    let mut shell = Command::new("sh");
    // Of a command in the background the shell closes standard input.
    let script = r#"exec 3<&0; "$0" __confined-probe --hold <&3 & wait"#;
    shell.args(["-c", script]).arg(agent());
    let probe = Probe::of(&mut shell);
    let children = || children_of(probe.pid(), "__confined-probe");
    let [confined] = children()[..] else {
        panic!("{:?}", children());
    };
    kill(probe.pid(), Signal::SIGKILL).unwrap();
    wait_for("the confined process ends", LIMIT, || {
        let status = fs::read_to_string(format!("/proc/{confined}/stat")).unwrap_or_default();
        status.is_empty() || status.contains(") Z ")
    });
}

#[test]
fn it_does_not_begin_where_it_cannot_stop_being_root() {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-setuid,-setgid", "--inh-caps=-all"])
        .arg(agent())
        .arg("__confined-probe");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("CAP_SETUID"), "{said}");
    assert!(output.stdout.is_empty());
}

/// Containers may lack CAP_SETPCAP.
#[test]
fn without_the_right_to_drop_the_bounding_set_it_says_so_and_is_confined() {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-setpcap", "--inh-caps=-all"])
        .arg(agent())
        .args(["__confined-probe", "--hold"]);
    let probe = Probe::of(&mut command);
    let missing = probe.report["missing"].to_string();
    assert!(
        missing.contains("bounding set") && missing.contains("securebits"),
        "{missing}"
    );
    let status = status(probe.pid());
    assert!(
        set(&status, "CapBnd:") != 0 && set(&status, "CapEff:") == 0,
        "{status}"
    );
    for (what, result) in probe.tried("needed") {
        assert_eq!(result, "done", "{what}");
    }
}

/// The real one, while it serves: the same, and an end that leaves nobody a way past.
#[test]
fn a_daemons_data_path_is_confined_like_that() {
    World::run(|world| {
        let user = alice(world);
        let mut daemon = world.daemon("confined", world.config()).unwrap();
        assert_served(world, &daemon, &user);
        let [data_path] = children_of(daemon.pid(), "__data-path")[..] else {
            panic!("one data path");
        };
        assert_confined(data_path);
        let (root, files) = (world.agent_root(), Files::new());
        let ca = root.parent().unwrap();
        let mut unreadable = files.all().to_vec();
        unreadable.extend([ca, daemon.config_file()]);
        let mut puppet = Puppet::seize(data_path).unwrap();
        assert_refused(&mut puppet, &unreadable);
        drop(puppet);
        assert_served(world, &daemon, &user);
        let (what, call, arguments) = &deadly()[0];
        let outcome = Puppet::seize(data_path).unwrap().call(*call, arguments).unwrap();
        assert_eq!(outcome, Outcome::Killed(Signal::SIGSYS), "{what}");
        wait_for("the warden ends too", LIMIT, || daemon.ended().is_some());
        let authorization = bearer(&user);
        let asked = daemon
            .run(&curl(&["--header", &authorization, &user_url()]))
            .unwrap();
        assert_eq!(asked.code(), 7, "connect() is refused: {}", asked.stderr);
    });
}

/// What /proc says of a data path: nobody, with nothing, under filters, of no use to a debugger of its own user.
fn assert_confined(pid: Pid) {
    let status = status(pid);
    let line = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    for name in ["Uid:", "Gid:"] {
        assert_eq!(line(name), [USER; 4].join(" "), "{name}");
    }
    assert_eq!(line("Groups:"), "");
    for name in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(set(&status, name), 0, "{name}");
    }
    assert_eq!((line("NoNewPrivs:"), line("Seccomp:")), ("1".into(), "2".into()));
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let words: Vec<&str> = core.split_whitespace().collect();
    assert_eq!(words[4..6], ["0", "0"], "{core}");
    // What is not dumpable belongs to root in /proc (proc_pid(5)).
    assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
}

fn status(pid: Pid) -> String {
    fs::read_to_string(format!("/proc/{pid}/status")).unwrap()
}

fn set(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

/// The children of `parent` whose command line has this word: `__data-path`, or the probe's.
fn children_of(parent: Pid, word: &str) -> Vec<Pid> {
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let status = read("status");
        let ours = status.lines().any(|line| *line == format!("PPid:\t{parent}"));
        if ours && read("cmdline").split('\0').any(|argument| argument == word) {
            children.push(Pid::from_raw(pid));
        }
    }
    children
}

/// That each of these fails in the process, and leaves it alive. `unreadable`: what it may not open.
fn assert_refused(puppet: &mut Puppet, unreadable: &[&Path]) {
    let refused = |puppet: &mut Puppet, what: &str, call, arguments: &[Arg<'_>], allowed: &[Errno]| {
        let outcome = puppet.call(call, arguments).unwrap();
        let fine = matches!(outcome, Outcome::Failed(errno) if allowed.contains(&errno));
        assert!(fine, "{what}: {outcome:?}");
    };
    let fixed: Vec<String> = [
        "/proc/1/environ",
        "/proc/1/root",
        "/proc/self/mem",
        "/sys/fs/bpf",
        "/dev/mem",
        "/root",
    ]
    .map(str::to_owned)
    .to_vec();
    let named = unreadable.iter().map(|path| path.display().to_string());
    for path in fixed
        .into_iter()
        .chain(named)
        .filter(|path| Path::new(path).exists())
    {
        let name = [path.as_bytes(), &[0]].concat();
        let open = [Number(-100), Bytes(&name), Number(0), Number(0)];
        refused(puppet, &path, libc::SYS_openat, &open, &[Errno::EACCES]);
    }
    for (what, call, arguments) in refused_calls() {
        let allowed = match call {
            // So that glibc takes clone(2).
            libc::SYS_clone3 => Errno::ENOSYS,
            _ => Errno::EPERM,
        };
        refused(puppet, what, call, &arguments, &[allowed]);
    }
    sockets_of_others(puppet);
}

type Try = (&'static str, c_long, Vec<Arg<'static>>);

fn numbers(numbers: &[i64]) -> Vec<Arg<'static>> {
    numbers.iter().map(|number| Number(*number)).collect()
}

/// What fails with EPERM (clone3: ENOSYS).
fn refused_calls() -> Vec<Try> {
    let me = i64::from(std::process::id());
    let file = b"/tmp/tv-agent-confinement\0";
    let writing = i64::from(libc::O_CREAT | libc::O_WRONLY);
    let executable = i64::from(libc::PROT_READ | libc::PROT_EXEC);
    let everything = i64::from(libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC);
    let anonymous = i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    let socket = |family: i32, kind: i32, protocol: i32| numbers(&[family, kind, protocol].map(i64::from));
    let thread = i64::from(libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM);
    vec![
        (
            "a new file",
            libc::SYS_openat,
            vec![Number(-100), Bytes(file), Number(writing), Number(0o600)],
        ),
        (
            "a new file by open",
            libc::SYS_open,
            vec![Bytes(file), Number(writing), Number(0o600)],
        ),
        (
            "/dev/null to write",
            libc::SYS_openat,
            vec![Number(-100), Bytes(b"/dev/null\0"), Number(1), Number(0)],
        ),
        (
            "openat2",
            libc::SYS_openat2,
            vec![Number(-100), Bytes(file), Bytes(&[0; 24]), Number(24)],
        ),
        (
            "a directory",
            libc::SYS_mkdirat,
            vec![Number(-100), Bytes(file), Number(0o700)],
        ),
        (
            "a removal",
            libc::SYS_unlinkat,
            vec![Number(-100), Bytes(b"/etc/hosts\0"), Number(0)],
        ),
        (
            "another mode",
            libc::SYS_fchmodat,
            vec![Number(-100), Bytes(b"/etc/hosts\0"), Number(0o777)],
        ),
        (
            "another owner",
            libc::SYS_fchownat,
            vec![
                Number(-100),
                Bytes(b"/etc/hosts\0"),
                Number(0),
                Number(0),
                Number(0),
            ],
        ),
        (
            "a file in memory",
            libc::SYS_memfd_create,
            vec![Bytes(b"x\0"), Number(0)],
        ),
        (
            "memory to write code to",
            libc::SYS_mmap,
            numbers(&[0, 4096, everything, anonymous, -1, 0]),
        ),
        (
            "memory of code",
            libc::SYS_mmap,
            numbers(&[0, 4096, executable, anonymous, -1, 0]),
        ),
        (
            "data to run",
            libc::SYS_mprotect,
            numbers(&[0x10000, 4096, executable]),
        ),
        ("a signal to another process", libc::SYS_kill, numbers(&[me, 0])),
        ("a signal to init", libc::SYS_kill, numbers(&[1, 9])),
        ("a signal to all", libc::SYS_kill, numbers(&[-1, 0])),
        ("a signal to a thread", libc::SYS_tgkill, numbers(&[me, me, 0])),
        (
            "a signal to a thread by tkill",
            libc::SYS_tkill,
            numbers(&[me, 0]),
        ),
        ("a queued signal", libc::SYS_rt_sigqueueinfo, numbers(&[me, 0, 0])),
        (
            "a descriptor of a process",
            libc::SYS_pidfd_open,
            numbers(&[me, 0]),
        ),
        ("user 0", libc::SYS_setuid, numbers(&[0])),
        ("users 0", libc::SYS_setresuid, numbers(&[0, 0, 0])),
        ("group 0", libc::SYS_setgid, numbers(&[0])),
        ("groups", libc::SYS_setgroups, numbers(&[0, 0])),
        (
            "capabilities",
            libc::SYS_capset,
            vec![Bytes(&[0; 8]), Bytes(&[0xff; 24])],
        ),
        (
            "to be dumpable",
            libc::SYS_prctl,
            numbers(&[i64::from(libc::PR_SET_DUMPABLE), 1]),
        ),
        (
            "to outlive the parent",
            libc::SYS_prctl,
            numbers(&[i64::from(libc::PR_SET_PDEATHSIG), 0]),
        ),
        ("another filter", libc::SYS_seccomp, numbers(&[1, 0, 0])),
        (
            "core dumps",
            libc::SYS_prlimit64,
            vec![Number(0), Number(4), Bytes(&[0xff; 16]), Bytes(&[0; 16])],
        ),
        (
            "core dumps by setrlimit",
            libc::SYS_setrlimit,
            vec![Number(4), Bytes(&[0xff; 16])],
        ),
        (
            "a unix socket",
            libc::SYS_socket,
            socket(libc::AF_UNIX, libc::SOCK_STREAM, 0),
        ),
        (
            "a unix datagram socket",
            libc::SYS_socket,
            socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0),
        ),
        ("a pair of datagram sockets", libc::SYS_socketpair, {
            let mut pair = socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0);
            pair.push(Bytes(&[0; 8]));
            pair
        }),
        (
            "a netlink socket",
            libc::SYS_socket,
            socket(libc::AF_NETLINK, libc::SOCK_RAW, 0),
        ),
        (
            "a netlink socket of datagrams",
            libc::SYS_socket,
            socket(libc::AF_NETLINK, libc::SOCK_DGRAM, 0),
        ),
        (
            "a packet socket",
            libc::SYS_socket,
            socket(libc::AF_PACKET, libc::SOCK_RAW, 0x300),
        ),
        (
            "a raw socket",
            libc::SYS_socket,
            socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP),
        ),
        (
            "an ICMP socket",
            libc::SYS_socket,
            socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        ),
        (
            "a socket of virtual machines",
            libc::SYS_socket,
            socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0),
        ),
        (
            "the kernel's cryptography",
            libc::SYS_socket,
            socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
        ),
        (
            "a ULP's options",
            libc::SYS_setsockopt,
            numbers(&[0, 282, 1, 0, 0]),
        ),
        (
            "a terminal's input",
            libc::SYS_ioctl,
            vec![Number(0), Number(0x5412), Bytes(b"x")],
        ),
        ("a signal by descriptor", libc::SYS_fcntl, numbers(&[0, 10, 9])),
        ("clone3", libc::SYS_clone3, vec![Bytes(&[0; 64]), Number(64)]),
        (
            "a thread in a user namespace",
            libc::SYS_clone,
            numbers(&[thread | i64::from(libc::CLONE_NEWUSER), 0, 0, 0, 0]),
        ),
        ("an inotify instance", libc::SYS_inotify_init1, numbers(&[0])),
        ("a message queue", libc::SYS_msgget, numbers(&[0, 0o1600])),
        ("shared memory", libc::SYS_shmget, numbers(&[0, 4096, 0o1600])),
        (
            "other processors",
            libc::SYS_sched_setaffinity,
            vec![Number(0), Number(8), Bytes(&[1; 8])],
        ),
        ("another priority", libc::SYS_setpriority, numbers(&[0, 0, 19])),
        (
            "limits of another process",
            libc::SYS_prlimit64,
            vec![Number(me), Number(7), Bytes(&[0xff; 16]), Number(0)],
        ),
    ]
}

/// To where another process listens on a unix socket, there is no way: a pair is connected already.
fn sockets_of_others(puppet: &mut Puppet) {
    let dir = tempfile::tempdir().unwrap();
    let everybodys = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    let path = dir.path().join("socket");
    let named = UnixListener::bind(&path).unwrap();
    everybodys(dir.path());
    everybodys(&path);
    let word = format!("tv-agent-confinement-{}", puppet.pid());
    let unnamed = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&word).unwrap()).unwrap();
    let family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap().to_ne_bytes();
    let addresses = [
        (named, [&family, path.as_os_str().as_bytes(), &[0]].concat()),
        (unnamed, [&family, &[0][..], word.as_bytes()].concat()),
    ];
    let pair = [Number(1), Number(1), Number(0), Bytes(&[0; 8])];
    assert_eq!(
        puppet.call(libc::SYS_socketpair, &pair).unwrap(),
        Outcome::Returned(0)
    );
    let descriptors = puppet.written(3, 8).unwrap();
    let number = |at: usize| i64::from(i32::from_ne_bytes(descriptors[at..at + 4].try_into().unwrap()));
    for (listener, address) in addresses {
        let length = i64::try_from(address.len()).unwrap();
        let connect = [Number(number(0)), Bytes(&address), Number(length)];
        let outcome = puppet.call(libc::SYS_connect, &connect).unwrap();
        // Landlock is asked first, where it knows such sockets.
        let refused = [Errno::EISCONN, Errno::EPERM, Errno::EACCES].map(Outcome::Failed);
        assert!(refused.contains(&outcome), "{outcome:?}");
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    for descriptor in [number(0), number(4)] {
        let closed = puppet.call(libc::SYS_close, &[Number(descriptor)]).unwrap();
        assert_eq!(closed, Outcome::Returned(0));
    }
}

/// What ends the process.
fn deadly() -> Vec<Try> {
    let me = i64::from(std::process::id());
    let program = b"/bin/true\0";
    let mut all = vec![
        (
            "execve",
            libc::SYS_execve,
            vec![Bytes(program), Number(0), Number(0)],
        ),
        (
            "execveat",
            libc::SYS_execveat,
            vec![Number(-100), Bytes(program), Number(0), Number(0), Number(0)],
        ),
        (
            "fork by clone",
            libc::SYS_clone,
            numbers(&[i64::from(libc::SIGCHLD), 0, 0, 0, 0]),
        ),
        ("ptrace", libc::SYS_ptrace, numbers(&[0x4206, me, 0, 0])),
        (
            "mount",
            libc::SYS_mount,
            vec![
                Bytes(b"none\0"),
                Bytes(b"/tmp\0"),
                Bytes(b"tmpfs\0"),
                Number(0),
                Number(0),
            ],
        ),
        (
            "unshare",
            libc::SYS_unshare,
            numbers(&[i64::from(libc::CLONE_NEWUSER)]),
        ),
        ("bpf", libc::SYS_bpf, vec![Number(0), Bytes(&[0; 72]), Number(72)]),
        (
            "io_uring",
            libc::SYS_io_uring_setup,
            vec![Number(1), Bytes(&[0; 120])],
        ),
        ("keyctl", libc::SYS_keyctl, numbers(&[0, -4, 0])),
        ("chroot", libc::SYS_chroot, vec![Bytes(b"/\0")]),
        (
            "a file's handle",
            libc::SYS_open_by_handle_at,
            vec![Number(-100), Bytes(&[0; 16]), Number(0)],
        ),
    ];
    let plain: [(&'static str, c_long); 19] = [
        ("fork", libc::SYS_fork),
        ("vfork", libc::SYS_vfork),
        ("setns", libc::SYS_setns),
        ("process_vm_readv", libc::SYS_process_vm_readv),
        ("process_vm_writev", libc::SYS_process_vm_writev),
        ("pidfd_getfd", libc::SYS_pidfd_getfd),
        ("umount2", libc::SYS_umount2),
        ("open_tree", libc::SYS_open_tree),
        ("move_mount", libc::SYS_move_mount),
        ("fsopen", libc::SYS_fsopen),
        ("pivot_root", libc::SYS_pivot_root),
        ("name_to_handle_at", libc::SYS_name_to_handle_at),
        ("perf_event_open", libc::SYS_perf_event_open),
        ("userfaultfd", libc::SYS_userfaultfd),
        ("personality", libc::SYS_personality),
        ("init_module", libc::SYS_init_module),
        ("kexec_load", libc::SYS_kexec_load),
        ("reboot", libc::SYS_reboot),
        ("swapon", libc::SYS_swapon),
    ];
    all.extend(plain.map(|(what, call)| (what, call, Vec::new())));
    all
}

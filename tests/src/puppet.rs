//! A living process that is made to make system calls of ours: what a flaw in it would let an attacker do, played by
//! ptrace(2) on the real process. x86-64 only, as are the tests that use it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::libc::{c_long, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// The machine code of a system call.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// Below what the stopped function may use without moving the stack pointer.
const RED_ZONE: u64 = 128;
/// Stops that have nothing to do with our step, such as signals.
const STOPS: usize = 16;

/// One thread of a process, stopped. Dropped, it goes on where it was.
pub struct Puppet {
    pid: Pid,
    memory: File,
    stopped: user_regs_struct,
    syscall: u64,
    /// Where each argument of the last call lies, if it is memory.
    placed: Vec<u64>,
    alive: bool,
}

/// An argument of a system call.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    Number(i64),
    /// The address of these bytes, which lie on the stack meanwhile.
    Bytes(&'a [u8]),
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Returned(i64),
    Failed(Errno),
    /// It ended the process, by this signal.
    Killed(Signal),
}

impl Puppet {
    /// Stops the first thread of `pid`. The thread that calls this has to be the one that uses it.
    ///
    /// # Errors
    /// What ptrace says.
    pub fn seize(pid: Pid) -> io::Result<Self> {
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        ptrace::seize(pid, ptrace::Options::empty())?;
        ptrace::interrupt(pid)?;
        match waitpid(pid, Some(WaitPidFlag::__WALL))? {
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..) => {}
            other => return Err(io::Error::other(format!("{other:?}"))),
        }
        let stopped = ptrace::getregs(pid)?;
        let syscall = syscall_of(pid, &memory, stopped.rip)?;
        Ok(Self {
            pid,
            memory,
            stopped,
            syscall,
            placed: Vec::new(),
            alive: true,
        })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Makes the process do it. The call must not block.
    ///
    /// # Errors
    /// What ptrace says; when the process is gone.
    pub fn call(&mut self, number: c_long, arguments: &[Arg<'_>]) -> io::Result<Outcome> {
        let mut top = self.stopped.rsp - RED_ZONE;
        self.placed.clear();
        for argument in arguments {
            let value = match argument {
                Arg::Number(number) => number.cast_unsigned(),
                Arg::Bytes(bytes) => {
                    top = (top - bytes.len() as u64) & !15;
                    self.memory.write_all_at(bytes, top)?;
                    top
                }
            };
            self.placed.push(value);
        }
        let argument = |index: usize| self.placed.get(index).copied().unwrap_or(0);
        let registers = user_regs_struct {
            rip: self.syscall,
            rax: number.cast_unsigned(),
            // Or the kernel would take the stopped call for one to be made again.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.stopped
        };
        ptrace::setregs(self.pid, registers)?;
        let mut signal = None;
        for _ in 0..STOPS {
            ptrace::step(self.pid, signal)?;
            match waitpid(self.pid, Some(WaitPidFlag::__WALL))? {
                WaitStatus::Stopped(_, Signal::SIGTRAP) => return self.outcome(),
                WaitStatus::Stopped(_, other) => signal = Some(other),
                WaitStatus::Signaled(_, signal, core) => {
                    self.alive = false;
                    if core {
                        return Err(io::Error::other("it left a core dump"));
                    }
                    return Ok(Outcome::Killed(signal));
                }
                other => return Err(io::Error::other(format!("{other:?}"))),
            }
        }
        Err(io::Error::other("it does not come to the call"))
    }

    /// The first `length` bytes of the memory that was the last call's argument number `argument`.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn written(&self, argument: usize, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.memory.read_exact_at(&mut bytes, self.placed[argument])?;
        Ok(bytes)
    }

    fn outcome(&self) -> io::Result<Outcome> {
        let returned = ptrace::getregs(self.pid)?.rax.cast_signed();
        Ok(match i32::try_from(-returned) {
            Ok(number) if (1..4096).contains(&number) => Outcome::Failed(Errno::from_raw(number)),
            _ => Outcome::Returned(returned),
        })
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        if self.alive {
            let _ = ptrace::setregs(self.pid, self.stopped);
            let _ = ptrace::detach(self.pid, None);
        }
    }
}

/// Where the process has a system call's instruction: just before where it stopped, if that was in a call, or in what the
/// kernel maps into each process.
fn syscall_of(pid: Pid, memory: &File, stopped: u64) -> io::Result<u64> {
    let mut code = [0; 2];
    let before = stopped - SYSCALL.len() as u64;
    if memory.read_exact_at(&mut code, before).is_ok() && code == SYSCALL {
        return Ok(before);
    }
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let vdso = maps.lines().find(|line| line.ends_with("[vdso]"));
    let range = vdso.and_then(|line| line.split(' ').next()?.split_once('-'));
    let (from, to) = range.ok_or(io::ErrorKind::NotFound)?;
    let number = |hex| u64::from_str_radix(hex, 16).map_err(io::Error::other);
    let (from, to) = (number(from)?, number(to)?);
    let mut code = vec![0; usize::try_from(to - from).map_err(io::Error::other)?];
    memory.read_exact_at(&mut code, from)?;
    let at = code.windows(2).position(|bytes| bytes == SYSCALL);
    at.map(|at| from + at as u64)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

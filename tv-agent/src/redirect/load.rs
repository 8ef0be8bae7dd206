//! Loads the object and attaches its programs to cgroups.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramType, SockOps};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use tv_ebpf::abi;

use super::cgroup::cgroup_id;
use super::maps::{Handles, Tables};
use super::pins::{InstanceLock, Pins};
use super::probe::tells_netns_cookies;
use super::{Capture, Error, KernelPolicy, names};

#[cfg(tv_object)]
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tv-ebpf.o"));

/// Lines of the verifier's log that an error shows; the reason stands at its end.
const VERIFIER_LINES: usize = 6;

/// The BPF object in this binary, if it was built with one.
pub fn object() -> Option<&'static [u8]> {
    #[cfg(tv_object)]
    return Some(OBJECT);
    #[cfg(not(tv_object))]
    None
}

/// The object's SHA-256, hexadecimal.
pub fn object_sha256() -> Option<&'static str> {
    option_env!("TV_OBJECT_SHA256")
}

/// The kernel half of one running instance.
///
/// Dropping it leaves the pinned links in place: a workload whose agent is gone is refused, not bypassed.
/// [`Redirect::release`] takes everything away.
pub struct Redirect {
    ebpf: Ebpf,
    handles: Handles,
    pins: Pins,
    attached: Vec<Attached>,
    lock: InstanceLock,
}

struct Attached {
    directory: PathBuf,
    cgroup_id: u64,
}

impl Redirect {
    /// Loads the programs for `instance`. Nothing is captured before [`apply`](Self::apply),
    /// [`attach`](Self::attach) and the first [`heartbeat`](Self::heartbeat).
    ///
    /// `pin_root` is where links are pinned ([`DEFAULT_PIN_ROOT`](super::DEFAULT_PIN_ROOT)); bpffs is mounted at
    /// /sys/fs/bpf when it is not there yet. `run_dir` holds the lock files
    /// ([`DEFAULT_RUN_DIR`](super::DEFAULT_RUN_DIR)).
    ///
    /// # Errors
    /// When the instance already runs, the object is missing, or the kernel refuses something.
    pub fn load(pin_root: &Path, run_dir: &Path, instance: &str) -> Result<Self, Error> {
        let object = object().ok_or(Error::NoObject)?;
        let lock = InstanceLock::acquire(run_dir, instance)?;
        let mut ebpf = load_object(object)?;
        for name in abi::PROGRAMS {
            let loaded = match ebpf.program_mut(name) {
                Some(Program::CgroupSockAddr(program)) => program.load(),
                Some(Program::SockOps(program)) => program.load(),
                _ => return Err(Error::Incomplete(name)),
            };
            loaded.map_err(|error| refused(name, error))?;
        }
        // After the verifier, so that this refusal also says that the programs themselves would do.
        if let Err(lacking) = tells_netns_cookies() {
            lock.remove()?;
            return Err(lacking);
        }
        let handles = Handles::new(Tables::take(&mut ebpf)?);
        let pins = Pins::create(pin_root, instance)?;
        Ok(Self {
            ebpf,
            handles,
            pins,
            attached: Vec::new(),
            lock,
        })
    }

    /// Puts the policy in force, also while programs are attached; what the last one had and this one has not
    /// is removed.
    ///
    /// # Errors
    /// When the policy cannot be expressed, or a map refuses an entry.
    pub fn apply(&mut self, policy: &KernelPolicy) -> Result<(), Error> {
        if matches!(policy.capture, Capture::Dns { .. }) {
            names::load(&mut self.ebpf)?;
        }
        self.handles.apply(policy, !self.attached.is_empty())?;
        self.follow_capture()
    }

    /// Attaches the program that reads DNS answers where it is needed, and takes it away where it is not.
    fn follow_capture(&mut self) -> Result<(), Error> {
        for Attached { directory, cgroup_id } in &self.attached {
            if !self.handles.names().reads_dns() {
                self.pins.remove_program(*cgroup_id, abi::INGRESS)?;
            } else if !self.pins.has_program(*cgroup_id, abi::INGRESS) {
                // One that was removed has nobody in it; what is made in its place is attached to anew.
                let Ok(opened) = File::open(directory) else {
                    continue;
                };
                let mut staged = self.pins.stage(*cgroup_id)?;
                let link = names::attach(&mut self.ebpf, &opened);
                staged.pin(
                    abi::INGRESS,
                    link.map_err(|source| not_attached(abi::INGRESS, directory, source))?,
                )?;
                staged.commit()?;
            }
        }
        Ok(())
    }

    /// Captures the connections of every process in `cgroup` and below. Doing it twice changes nothing.
    ///
    /// Pins that a dead instance of this name left for the cgroup are replaced one by one after the new links
    /// are in place, so that no connect() slips through.
    ///
    /// # Errors
    /// When no policy was applied, the directory is no cgroup v2 directory, or the kernel refuses. Nothing new
    /// stays attached then.
    pub fn attach(&mut self, cgroup: &Path) -> Result<(), Error> {
        if !self.handles.has_policy() {
            return Err(Error::NoPolicy);
        }
        let directory = File::open(cgroup).map_err(|error| Error::path("opening", cgroup, error))?;
        let magic = statfs(cgroup).map_err(|error| Error::path("looking at", cgroup, error))?;
        if magic.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(Error::NotCgroup2(cgroup.to_owned()));
        }
        let id = cgroup_id(cgroup).map_err(|error| Error::path("looking at", cgroup, error))?;
        if self.attached.iter().any(|attached| attached.cgroup_id == id) {
            return Ok(());
        }
        // What connect depends on goes first, connect last: it must not redirect before the rest can follow.
        let mut staged = self.pins.stage(id)?;
        let reads_dns = self.handles.names().reads_dns();
        let ingress = reads_dns.then_some(abi::INGRESS);
        // Looked at before connect is attached, and again for those who came meanwhile.
        self.handles.names().enrolled(cgroup)?;
        for name in abi::PROGRAMS.into_iter().chain(ingress).rev() {
            let link = attach_program(&mut self.ebpf, name, &directory)
                .map_err(|source| not_attached(name, cgroup, source))?;
            staged.pin(name, link)?;
        }
        staged.commit()?;
        self.handles.names().enrolled(cgroup)?;
        if !reads_dns {
            self.pins.remove_program(id, abi::INGRESS)?;
        }
        // A directory that was removed and made again has another id; the old one's pins are of no more use.
        if let Some(index) = self.attached.iter().position(|old| old.directory == cgroup) {
            let old = self.attached.swap_remove(index);
            self.pins.remove(old.cgroup_id)?;
        }
        self.attached.push(Attached {
            directory: cgroup.to_owned(),
            cgroup_id: id,
        });
        Ok(())
    }

    /// Stops capturing in `cgroup`; a directory that is not attached is none of ours, and left alone.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self, cgroup: &Path) -> Result<(), Error> {
        if let Some(index) = self.attached.iter().position(|old| old.directory == cgroup) {
            self.pins.remove(self.attached[index].cgroup_id)?;
            self.attached.swap_remove(index);
        }
        Ok(())
    }

    /// The cgroup directories whose connections are captured.
    pub fn attached(&self) -> Vec<PathBuf> {
        self.attached
            .iter()
            .map(|attached| attached.directory.clone())
            .collect()
    }

    /// Removes the pins that dead instances of this name left for cgroups which this one does not attach to.
    ///
    /// Call it once everything is attached: until then the old programs refuse connections there.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_stale(&self) -> Result<Vec<PathBuf>, Error> {
        let live: Vec<u64> = self.attached.iter().map(|attached| attached.cgroup_id).collect();
        self.pins.remove_others(&live)
    }

    /// Says that the agent is alive; good for five seconds. Call it every second.
    ///
    /// # Errors
    /// When the map refuses, which no working kernel does.
    pub fn heartbeat(&self) -> Result<(), Error> {
        self.handles.heartbeat()
    }

    /// Tells whether native IPv6 can leave the namespace now.
    ///
    /// # Errors
    /// As [`heartbeat`](Self::heartbeat).
    pub fn set_v6_routable(&self, routable: bool) -> Result<(), Error> {
        self.handles.set_v6_routable(routable)
    }

    /// What the data path needs; cheap to clone.
    pub fn handles(&self) -> Handles {
        self.handles.clone()
    }

    /// The programs' own log, when events of target `tv_agent::kernel` are enabled at DEBUG level. Once.
    pub fn kernel_log(&mut self) -> Option<KernelLog> {
        if !log_enabled() {
            return None;
        }
        let logger = aya_log::EbpfLogger::init(&mut self.ebpf).ok()?;
        Some(KernelLog { logger })
    }

    /// Detaches everything, removes all pins of this instance and its lock file.
    ///
    /// # Errors
    /// When a pin or the lock file cannot be removed; `tv-agent cleanup` can try again.
    pub fn release(self) -> Result<(), Error> {
        self.pins.remove_others(&[])?;
        self.pins.remove_directory()?;
        self.lock.remove()
    }
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redirect")
            .field("pins", &self.pins)
            .field("attached", &self.attached())
            .finish_non_exhaustive()
    }
}

/// Forwards what the programs say to the `log` facade, which tracing-subscriber listens to.
pub struct KernelLog {
    logger: aya_log::EbpfLogger<&'static dyn log::Log>,
}

impl KernelLog {
    /// Looks for new lines four times a second, until it is dropped.
    pub async fn run(mut self) {
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tick.tick().await;
            self.logger.flush();
        }
    }
}

fn log_enabled() -> bool {
    tracing::enabled!(target: "tv_agent::kernel", tracing::Level::DEBUG)
}

fn load_object(object: &[u8]) -> Result<Ebpf, Error> {
    let set_retval = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    let set_retval = u8::from(matches!(set_retval, Ok(true)));
    // Frozen read-only data: the verifier knows both values and drops the branches that they rule out, so that
    // logging costs nothing while it is off.
    let log_level = if log_enabled() { LOG_DEBUG } else { LOG_OFF };
    EbpfLoader::new()
        .override_global(abi::HAS_SET_RETVAL, &set_retval, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true)
        .load(object)
        .map_err(|error| Error::Object(Box::new(error)))
}

/// `aya_log_common::Level` as numbers: 0 is below the most urgent one.
const LOG_OFF: u8 = 0;
const LOG_DEBUG: u8 = 4;

fn attach_program(ebpf: &mut Ebpf, name: &str, cgroup: &File) -> Result<FdLink, ProgramError> {
    // Single is flags 0, the only value that BPF_LINK_CREATE takes for cgroups; links behave as multi anyway.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    // Below Linux 5.7 a cgroup attachment has no fd, so it cannot be pinned.
    let no_fd = |_: LinkError| ProgramError::NotAttached;
    if name == abi::INGRESS {
        return names::attach(ebpf, cgroup);
    }
    let program = ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)?;
    if let Program::SockOps(_) = program {
        let program: &mut SockOps = program.try_into()?;
        let id = program.attach(cgroup.as_fd(), MODE)?;
        program.take_link(id)?.try_into().map_err(no_fd)
    } else {
        let program: &mut CgroupSockAddr = program.try_into()?;
        let id = program.attach(cgroup.as_fd(), MODE)?;
        program.take_link(id)?.try_into().map_err(no_fd)
    }
}

fn not_attached(program: &'static str, cgroup: &Path, source: ProgramError) -> Error {
    Error::Attach {
        program,
        cgroup: cgroup.to_owned(),
        source: Box::new(source),
    }
}

pub(super) fn refused(program: &'static str, error: ProgramError) -> Error {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => Error::Verifier {
            program,
            log: last_lines(&verifier_log.to_string()),
            source: io_error,
        },
        other => Error::Program {
            program,
            source: Box::new(other),
        },
    }
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(VERIFIER_LINES)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_log_is_cut_to_its_end() {
        let log: String = (0..1000).map(|n| format!("{n}: (bf) r0 = r1\n\n")).collect();
        let shown = last_lines(&log);
        assert!(shown.ends_with("999: (bf) r0 = r1"), "{shown}");
        assert_eq!(shown.split(" | ").count(), VERIFIER_LINES);
        assert_eq!(last_lines(""), "");
    }

    #[test]
    fn the_hash_goes_with_the_object() {
        assert_eq!(object().is_some(), object_sha256().is_some());
        if let (Some(object), Some(hash)) = (object(), object_sha256()) {
            use sha2::Digest as _;
            let digest = sha2::Sha256::digest(object);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, hash);
            assert_eq!(&object[..4], b"\x7fELF");
        }
    }
}

//! The kernel half of one instance: its policy, the cgroups that it is attached to, what is pinned.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use tv_ebpf::abi;

use super::kernel_log::KernelLog;
use super::layout;
use super::lock::InstanceLock;
use super::maps::{self, Handles, Tables};
use super::pins::Pins;
use super::probe::tells_netns_cookies;
use super::{Capture, Error, KernelPolicy, names, object};

mod usage;

pub use usage::{Usage, count_usage};

/// The kernel half of one running instance.
///
/// Dropping it leaves the pinned links in place: a workload whose agent is gone is refused, not bypassed.
/// [`Redirect::release`] takes everything away.
pub struct Redirect {
    ebpf: Ebpf,
    handles: Handles,
    // Before the lock: what it takes away is still ours then.
    pins: Unlinked,
    attached: Vec<Attached>,
    /// None once a successor holds it alone.
    lock: Option<InstanceLock>,
}

struct Attached {
    directory: PathBuf,
    cgroup_id: u64,
}

impl Redirect {
    /// Loads the programs for `instance`. Nothing is captured before [`apply`](Self::apply),
    /// [`attach`](Self::attach) and the first [`heartbeat`](Self::heartbeat).
    ///
    /// `pin_root` is where maps, programs and links are pinned ([`DEFAULT_PIN_ROOT`](super::DEFAULT_PIN_ROOT));
    /// bpffs is mounted at /sys/fs/bpf when it is not there yet. `run_dir` holds the lock files
    /// ([`DEFAULT_RUN_DIR`](super::DEFAULT_RUN_DIR)). Maps that a dead agent of this name left are used again.
    ///
    /// # Errors
    /// When the instance already runs, the object is missing, a pinned map has another layout, or the kernel refuses
    /// something.
    pub fn load(pin_root: &Path, run_dir: &Path, instance: &str) -> Result<Self, Error> {
        Self::load_object(
            object::object().ok_or(Error::NoObject)?,
            pin_root,
            run_dir,
            instance,
        )
    }

    /// As [`load`](Self::load), with an object (ELF, aligned to 8 bytes) that is not this binary's own.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_object(
        object: &[u8],
        pin_root: &Path,
        run_dir: &Path,
        instance: &str,
    ) -> Result<Self, Error> {
        let lock = InstanceLock::acquire(run_dir, instance)?;
        // Before anything is pinned, and after the verifier: this refusal also says that the programs would do.
        if let Err(lacking) = tells_netns_cookies() {
            object::load_programs(&mut object::load(object, None)?)?;
            lock.remove()?;
            return Err(lacking);
        }
        let redirect = Self::on(object, pin_root, instance, lock, true)?;
        redirect.handles.forget_all()?;
        Ok(redirect)
    }

    /// As [`load`](Self::load), beside a live agent that has handed its lock over, and with its maps.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn take_over(pin_root: &Path, instance: &str, lock: InstanceLock) -> Result<Self, Error> {
        let object = object::object().ok_or(Error::NoObject)?;
        Self::on(object, pin_root, instance, lock, false)
    }

    fn on(
        object: &[u8],
        pin_root: &Path,
        instance: &str,
        lock: InstanceLock,
        fresh: bool,
    ) -> Result<Self, Error> {
        let unlinked = Unlinked {
            pins: Pins::create(pin_root, instance)?,
            fresh,
        };
        layout::check(object, &unlinked.pins)?;
        let mut ebpf = object::load(object, Some(&unlinked.pins))?;
        object::load_programs(&mut ebpf)?;
        Ok(Self {
            handles: Handles::new(Tables::take(&mut ebpf)?),
            ebpf,
            pins: unlinked,
            attached: Vec::new(),
            lock: Some(lock),
        })
    }

    /// Leaves everything to a successor that has taken it over, the lock too: should it die while this process still
    /// drains, the next one must be able to start.
    pub fn leave(&mut self) {
        self.pins.fresh = false;
        self.lock = None;
    }

    /// The lock, for a successor; None after [`leave`](Self::leave).
    pub fn lock(&self) -> Option<&InstanceLock> {
        self.lock.as_ref()
    }

    /// Whether the kernel half can express a policy. Nothing is put in force.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    pub fn check(&self, policy: &KernelPolicy) -> Result<(), Error> {
        maps::check(policy)
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
        self.handles.apply(policy)?;
        for index in 0..self.attached.len() {
            let Attached { directory, cgroup_id } = &self.attached[index];
            // One that was removed has nobody in it; what is made in its place is attached to anew.
            if let Ok(opened) = File::open(directory) {
                let (directory, cgroup_id) = (directory.clone(), *cgroup_id);
                self.follow_capture(cgroup_id, &directory, &opened)?;
            }
        }
        Ok(())
    }

    /// Attaches the program that reads DNS answers where it is needed, and takes it away where it is not. Before the
    /// first policy, what a predecessor attached stays.
    fn follow_capture(&mut self, cgroup_id: u64, cgroup: &Path, opened: &File) -> Result<(), Error> {
        let (names, pins) = (self.handles.names(), &self.pins.pins);
        match names.reads_dns() {
            None => Ok(()),
            Some(false) => pins.remove_program(cgroup_id, abi::INGRESS),
            Some(true) => {
                let failed = |source| object::not_attached(abi::INGRESS, cgroup, source);
                let program = self.ebpf.program(abi::INGRESS);
                let program = program.ok_or(Error::Incomplete(abi::INGRESS))?;
                if pins.update(cgroup_id, abi::INGRESS, program.fd().map_err(failed)?.as_fd()) {
                    return Ok(());
                }
                // Looked at before, and again for those who came meanwhile.
                names.enrolled(cgroup)?;
                let mut staged = pins.stage(cgroup_id)?;
                staged.pin(
                    abi::INGRESS,
                    names::attach(&mut self.ebpf, opened).map_err(failed)?,
                )?;
                staged.commit()?;
                self.handles.names().enrolled(cgroup)
            }
        }
    }

    /// Captures the connections of every process in `cgroup` and below, and gives the cgroup's id. Doing it twice
    /// changes nothing.
    ///
    /// Where links of this instance are pinned for the cgroup, their programs are replaced in place, one by one, so
    /// that no connect() slips through; a link that is attached no more is replaced by a new one.
    ///
    /// # Errors
    /// When no policy was ever applied, the directory is no cgroup v2 directory, or the kernel refuses. No new link
    /// stays attached then.
    pub fn attach(&mut self, cgroup: &Path) -> Result<u64, Error> {
        if !self.handles.has_policy() {
            return Err(Error::NoPolicy);
        }
        let directory = File::open(cgroup).map_err(|error| Error::path("opening", cgroup, error))?;
        let magic = fstatfs(&directory).map_err(|error| Error::path("looking at", cgroup, error))?;
        if magic.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(Error::NotCgroup2(cgroup.to_owned()));
        }
        // Of the open directory: the path may lead to another one by now.
        let id = directory.metadata().map(|metadata| metadata.ino());
        let id = id.map_err(|error| Error::path("looking at", cgroup, error))?;
        if self.attached.iter().any(|attached| attached.cgroup_id == id) {
            return Ok(id);
        }
        // What connect depends on goes first, connect last: it must not redirect before the rest can follow.
        self.follow_capture(id, cgroup, &directory)?;
        let pins = &self.pins.pins;
        let mut staged = pins.stage(id)?;
        for name in abi::PROGRAMS.into_iter().rev() {
            let failed = |source| object::not_attached(name, cgroup, source);
            let program = self.ebpf.program(name).ok_or(Error::Incomplete(name))?;
            if pins.update(id, name, program.fd().map_err(failed)?.as_fd()) {
                continue;
            }
            let link = object::attach(&mut self.ebpf, name, &directory).map_err(failed)?;
            staged.pin(name, link)?;
        }
        staged.commit()?;
        if self.attached.is_empty() {
            self.pin_programs()?;
        }
        // A directory that was removed and made again has another id; the old one's pins are of no more use.
        if let Some(index) = self.attached.iter().position(|old| old.directory == cgroup) {
            let old = self.attached.swap_remove(index);
            self.pins.pins.remove(old.cgroup_id)?;
        }
        self.attached.push(Attached {
            directory: cgroup.to_owned(),
            cgroup_id: id,
        });
        Ok(id)
    }

    fn pin_programs(&mut self) -> Result<(), Error> {
        for name in abi::PROGRAMS {
            let program = self.ebpf.program_mut(name).ok_or(Error::Incomplete(name))?;
            self.pins.pins.replace(name, |path| program.pin(path))?;
        }
        Ok(())
    }

    /// Stops capturing in `cgroup`; a directory that is not attached is none of ours, and left alone.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn detach(&mut self, cgroup: &Path) -> Result<(), Error> {
        if let Some(index) = self.attached.iter().position(|old| old.directory == cgroup) {
            self.pins.pins.remove(self.attached[index].cgroup_id)?;
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

    /// Ids of the cgroups for which links of this instance are pinned, a predecessor's included.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn pinned(&self) -> Result<HashSet<u64>, Error> {
        self.pins.pins.cgroups()
    }

    /// Removes the pins that predecessors of this name left for cgroups which this one does not attach to, and all
    /// those of other versions of the ABI.
    ///
    /// Call it once everything is attached: until then the old programs refuse connections there.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn retire_stale(&self) -> Result<Vec<PathBuf>, Error> {
        let live: Vec<u64> = self.attached.iter().map(|attached| attached.cgroup_id).collect();
        self.pins.pins.remove_others(&live)
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
        KernelLog::of(&mut self.ebpf)
    }

    /// Detaches everything, removes all pins of this instance and its lock file.
    ///
    /// # Errors
    /// When a pin or the lock file cannot be removed; `tv-agent cleanup` can try again.
    pub fn release(self) -> Result<(), Error> {
        self.pins.pins.remove_all()?;
        self.lock.map_or(Ok(()), InstanceLock::remove)
    }
}

/// Takes the pinned maps away again when nothing was attached that depends on them.
struct Unlinked {
    pins: Pins,
    /// False while another agent depends on them.
    fresh: bool,
}

impl Drop for Unlinked {
    fn drop(&mut self) {
        if self.fresh {
            // Best effort: cleanup finds what stays.
            let _ = self.pins.remove_unless_linked();
        }
    }
}

impl std::fmt::Debug for Redirect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redirect")
            .field("pins", &self.pins.pins)
            .field("attached", &self.attached())
            .finish_non_exhaustive()
    }
}

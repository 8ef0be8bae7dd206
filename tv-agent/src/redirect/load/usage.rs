//! What the programs cost, by the kernel's own account.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use aya::programs::ProgramError;
use aya::sys::{Stats, enable_stats};

use super::{Error, Redirect};

/// How often a program has run since it was loaded, and for how long, as far as the kernel counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    pub program: String,
    pub runs: u64,
    pub time: Duration,
}

/// Lets the kernel count what every BPF program of the machine costs, until the descriptor is closed
/// (BPF_ENABLE_STATS, Linux 5.8). Counting takes each run two readings of the clock, which are not in its time.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or on an older kernel.
pub fn count_usage() -> io::Result<OwnedFd> {
    enable_stats(Stats::RunTime).map_err(|error| error.io_error)
}

impl Redirect {
    /// The account of each program that is loaded, by name.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn usage(&self) -> Result<Vec<Usage>, Error> {
        let mut programs: Vec<Usage> = Vec::new();
        for (name, program) in self.ebpf.programs() {
            let info = match program.info() {
                // The one for `capture: dns`, which another policy needs not.
                Err(ProgramError::NotLoaded) => continue,
                told => told.map_err(|error| Error::Object(Box::new(error.into())))?,
            };
            programs.push(Usage {
                program: name.to_owned(),
                runs: info.run_count(),
                time: info.run_time(),
            });
        }
        programs.sort_by(|a, b| a.program.cmp(&b.program));
        Ok(programs)
    }
}

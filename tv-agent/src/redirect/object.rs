//! The BPF object: embedded, loaded, its programs attached one by one.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use aya::programs::links::{FdLink, LinkError};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, ProgramError, ProgramType, SockOps};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use tv_ebpf::abi;

use super::Error;
use super::kernel_log;
use super::pins::Pins;
use super::probe::shows_mptcp_origins;

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

/// Loads maps and programs; with `pins`, maps that are pinned there are used, and others pinned.
pub(super) fn load(object: &[u8], pins: Option<&Pins>) -> Result<Ebpf, Error> {
    let set_retval = is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval);
    let set_retval = u8::from(matches!(set_retval, Ok(true)));
    // Frozen read-only data: the verifier knows both values and drops the branches that they rule out, so that
    // logging costs nothing while it is off.
    let log_level = kernel_log::level();
    let mptcp = u8::from(shows_mptcp_origins());
    let mut loader = EbpfLoader::new();
    loader
        .override_global(abi::HAS_SET_RETVAL, &set_retval, true)
        .override_global(abi::HAS_MPTCP, &mptcp, true)
        .override_global("AYA_LOG_LEVEL", &log_level, true);
    if let Some(pins) = pins {
        for name in abi::MAPS {
            loader.map_pin_path(name, pins.named(name));
        }
    }
    loader
        .load(object)
        .map_err(|error| Error::Object(Box::new(error)))
}

pub(super) fn load_programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    for name in abi::PROGRAMS {
        let loaded = match ebpf.program_mut(name) {
            Some(Program::CgroupSockAddr(program)) => program.load(),
            Some(Program::SockOps(program)) => program.load(),
            _ => return Err(Error::Incomplete(name)),
        };
        loaded.map_err(|error| refused(name, error))?;
    }
    Ok(())
}

pub(super) fn attach(ebpf: &mut Ebpf, name: &str, cgroup: &File) -> Result<FdLink, ProgramError> {
    // Single is flags 0, the only value that BPF_LINK_CREATE takes for cgroups; links behave as multi anyway.
    const MODE: CgroupAttachMode = CgroupAttachMode::Single;
    // Below Linux 5.7 a cgroup attachment has no fd, so it cannot be pinned.
    let no_fd = |_: LinkError| ProgramError::NotAttached;
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

pub(super) fn not_attached(program: &'static str, cgroup: &Path, source: ProgramError) -> Error {
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
            assert_eq!(crate::encode::hex(&digest), hash);
            assert_eq!(&object[..4], b"\x7fELF");
        }
    }
}

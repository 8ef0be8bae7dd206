//! One boot: an initramfs with the tests, qemu on it, and what the guest wrote to its serial line.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::debian::Image;
use super::initramfs::Archive;
use super::{Failed, Outcome, Tests, Tools, failed, process, read};

/// Seconds that the tests may take, and the whole machine.
const TESTS_LIMIT: u32 = 240;
const BOOT_LIMIT: u32 = TESTS_LIMIT + 60;
/// Boots of one kernel until it is taken for broken.
const BOOTS: u32 = 3;
/// What the last line begins with.
const MARKER: &str = "guest: tests ended with ";

/// What the guest said.
pub struct Report(String);

/// Boots `image`, runs the tests inside whose names contain `filter`, and keeps the guest's output in `log`.
pub fn run(image: &Image, tests: &Tests, filter: &str, tools: &Tools, log: &Path) -> Result<Report, Failed> {
    let archive = Scratch(log.with_file_name("initramfs.cpio"));
    pack(image, tests, filter, tools, &archive.0)?;
    // Ends with us, however we end, and after a while in any case; in the foreground, so that ^C reaches it.
    let mut qemu = Command::new("setpriv");
    qemu.args([
        "--pdeathsig",
        "TERM",
        "timeout",
        "--foreground",
        "--kill-after=5",
        &BOOT_LIMIT.to_string(),
    ])
    .arg(&tools.qemu)
    // q35: microvm has hung at boot.
    .args([
        "-accel",
        "tcg,thread=multi",
        "-M",
        "q35",
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "1024",
    ])
    .args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"])
    .args(["-append", "console=ttyS0 panic=-1 quiet loglevel=3"])
    .arg("-kernel")
    .arg(&image.vmlinuz)
    .arg("-initrd")
    .arg(&archive.0)
    .stdin(Stdio::null());
    let output = qemu.output().map_err(failed("setpriv"))?;
    let mut said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        // 124 is the time limit.
        said.push_str(&format!(
            "\n{} ended with {}\n",
            process::line(&qemu),
            output.status
        ));
    }
    fs::write(log, &said).map_err(failed(log))?;
    Ok(Report(said))
}

fn pack(image: &Image, tests: &Tests, filter: &str, tools: &Tools, to: &Path) -> Outcome {
    let mut archive = Archive::default();
    for directory in ["dev", "etc", "proc", "run", "sys", "tmp"] {
        archive.directory(directory);
    }
    archive.program("bin/busybox", &tools.busybox)?;
    archive.program("sbin/ip", &tools.ip)?;
    archive.program("tests/kernel", &tests.kernel)?;
    archive.program(&tests.probe.display().to_string(), &tests.probe)?;
    for module in &image.modules {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.file(&format!("modules/{name}"), 0o644, read(module)?);
    }
    archive.file("init", 0o755, init(filter).into_bytes());
    fs::write(to, archive.bytes()).map_err(failed(to))
}

/// The first process. CI=true makes a test that cannot run a failure, not a skip; TV_EMULATED=1 leaves out what takes
/// minutes here.
fn init(filter: &str) -> String {
    format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/sbin:/bin CI=true TV_EMULATED=1\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sysfs /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t cgroup2 cgroup /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         ip link set lo up\n\
         for module in /modules/*.ko; do insmod $module; done\n\
         echo \"guest: Linux $(uname -r)\"\n\
         timeout -s KILL {TESTS_LIMIT} /tests/kernel --color never {filter}\n\
         echo \"{MARKER}$?\"\n\
         poweroff -f\n"
    )
}

/// A file that is gone with the value.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Was never written, if packing failed.
        let _ = fs::remove_file(&self.0);
    }
}

impl Report {
    /// Only the marker tells: a guest that hung or panicked has none.
    pub fn passed(&self) -> bool {
        self.ended() == Some("0") && self.counts().is_some_and(|(passed, _)| passed > 0)
    }

    /// Whether to boot once more: the guest said nothing about its tests' end, so they did not fail, and it was not
    /// tried too often yet. A machine that emulates while it is busy with other work loses one now and then.
    pub fn again(&self, boots: u32) -> bool {
        boots < BOOTS && self.ended().is_none() && self.counts().is_none() && !self.0.contains("FAILED")
    }

    fn ended(&self) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(MARKER))
    }

    pub fn last_lines(&self, most: usize) -> String {
        let lines: Vec<&str> = self.0.lines().collect();
        lines[lines.len().saturating_sub(most)..].join("\n")
    }

    /// `test result: ok. 36 passed; 0 failed; …`
    fn counts(&self) -> Option<(u32, u32)> {
        let line = self
            .0
            .lines()
            .find_map(|line| line.strip_prefix("test result: "))?;
        let number = |what: &str| {
            let (before, _) = line.split_once(what)?;
            before.trim_end().rsplit(' ').next()?.parse().ok()
        };
        Some((number("passed")?, number("failed")?))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.counts() {
            Some((passed, failed)) => write!(f, "{passed:>3} passed, {failed:>2} failed"),
            None => f.write_str("did not get to the end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_marker_and_a_count_make_a_pass() {
        let result = "test result: ok. 36 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let whole = Report(format!("guest: Linux 6.1\n{result}{MARKER}0\n"));
        assert!(whole.passed());
        assert_eq!(whole.to_string(), " 36 passed,  0 failed");
        for said in [
            String::new(),
            result.to_owned(),
            format!("{MARKER}0\n"),
            format!("{result}{MARKER}101\n"),
            format!("{}{MARKER}0\n", result.replace("36", "0")),
        ] {
            assert!(!Report(said.clone()).passed(), "{said:?}");
        }
        let failing = "test result: FAILED. 35 passed; 1 failed; 0 ignored\n";
        assert_eq!(Report(failing.into()).to_string(), " 35 passed,  1 failed");
        assert_eq!(
            Report("Kernel panic".into()).to_string(),
            "did not get to the end"
        );
    }

    #[test]
    fn only_a_guest_without_a_result_is_booted_again() {
        let again = |said: &str, boots| Report(said.to_owned()).again(boots);
        let lost = "guest: Linux 6.1\ntest udp::a_captured_port_is_refused ... ok\n";
        assert!(again("", 1) && again(lost, 1) && again(lost, BOOTS - 1));
        assert!(!again(lost, BOOTS));
        for result in [
            format!("{lost}{MARKER}0\n"),
            format!("{lost}{MARKER}101\n"),
            // The tests hung, and were killed.
            format!("{lost}{MARKER}137\n"),
            format!("{lost}test udp::other ... FAILED\n"),
            format!("{lost}test result: FAILED. 35 passed; 1 failed; 0 ignored\n"),
        ] {
            assert!(!again(&result, 1), "{result}");
        }
    }

    #[test]
    fn the_end_is_shown() {
        let report = Report("1\n2\n3\n".into());
        assert_eq!(
            (report.last_lines(2), report.last_lines(9)),
            ("2\n3".into(), "1\n2\n3".into())
        );
    }
}

//! A Debian kernel, fetched by apt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Kernel, NEWEST, failed, read};
use crate::apt::{Apt, Index};
use crate::{Failed, Outcome, process};

/// Depends on the newest kernel of its suite. The cloud flavour has what a virtual machine needs, and is small.
const META: &str = "linux-image-cloud-amd64";
/// Since 7.x the image and the modules are packages of their own.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// Loaded in the guest; neither depends on another one.
const MODULES: [&str; 1] = ["veth"];

/// A kernel on this machine's disk.
#[derive(Debug)]
pub struct Image {
    pub release: String,
    pub vmlinuz: PathBuf,
    pub modules: Vec<PathBuf>,
}

/// What lies in `directory`, else the newest one of the first suite that has the kernel.
pub fn fetch(kernel: &Kernel, directory: &Path) -> Result<Image, Failed> {
    if let Some(image) = kept(directory) {
        return Ok(image);
    }
    let staging = directory.with_extension("new");
    let mut reasons = Vec::new();
    for (archive, suite) in kernel.sources {
        empty(&staging)?;
        let fetched = Apt::new(&staging.join("apt"), archive, suite, &[Index::Packages])
            .and_then(|apt| unpack(kernel, &apt, &staging));
        match fetched.and_then(|()| replace(&staging, directory)) {
            Ok(()) => return kept(directory).ok_or_else(|| Failed(format!("{} is not whole", kernel.name))),
            Err(Failed(reason)) => reasons.push(format!("{suite}: {reason}")),
        }
    }
    // What failed is not kept; the next try begins anew.
    let _ = fs::remove_dir_all(&staging);
    Err(Failed(format!(
        "no kernel {} to be had: {}",
        kernel.name,
        reasons.join("; ")
    )))
}

fn kept(directory: &Path) -> Option<Image> {
    let release = fs::read_to_string(directory.join("release")).ok()?;
    let modules = MODULES.map(|name| directory.join(name).with_extension("ko"));
    Some(Image {
        release,
        vmlinuz: directory.join("vmlinuz"),
        modules: modules.into(),
    })
}

/// Leaves release, vmlinuz and modules in `staging`, and nothing else.
fn unpack(kernel: &Kernel, apt: &Apt, staging: &Path) -> Outcome {
    let packages = packages_in(&apt.output(&["depends", "--important", "--recurse", META])?);
    let release = packages
        .iter()
        .find_map(|name| release_in(name))
        .ok_or_else(|| Failed(format!("{META} depends on no kernel")))?;
    if kernel.name != NEWEST && !release.starts_with(&format!("{}.", kernel.name)) {
        return Err(Failed(format!("{META} is {release} there")));
    }
    eprintln!("{}: fetching {release}", kernel.name);
    apt.download(&packages)?;
    let tree = apt.directory.join("tree");
    for entry in fs::read_dir(&apt.directory).map_err(failed(&apt.directory))? {
        let file = entry.map_err(failed(&apt.directory))?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            process::run(Command::new("dpkg-deb").arg("--extract").arg(file).arg(&tree))?;
        }
    }
    let vmlinuz = find(&tree, &|name| name.starts_with("vmlinuz"))
        .ok_or_else(|| Failed(format!("no vmlinuz in {}", packages.join(", "))))?;
    fs::copy(vmlinuz, staging.join("vmlinuz")).map_err(failed(staging))?;
    for module in MODULES {
        let file = find(&tree, &|name| name.starts_with(&format!("{module}.ko")))
            .ok_or_else(|| Failed(format!("no module {module} in {}", packages.join(", "))))?;
        fs::write(staging.join(module).with_extension("ko"), decompressed(&file)?)
            .map_err(failed(staging))?;
    }
    fs::remove_dir_all(&apt.directory).map_err(failed(&apt.directory))?;
    fs::write(staging.join("release"), release).map_err(failed(staging))
}

/// The packages that hold the kernel, of all that the meta package draws in.
fn packages_in(depends: &str) -> Vec<String> {
    depends
        .lines()
        .filter(|line| *line != META && PARTS.iter().any(|part| line.starts_with(part)))
        .map(str::to_owned)
        .collect()
}

/// `linux-image-6.1.0-56-cloud-amd64` → `6.1.0-56-cloud-amd64`.
fn release_in(package: &str) -> Option<&str> {
    package.strip_prefix("linux-image-")
}

fn decompressed(module: &Path) -> Result<Vec<u8>, Failed> {
    let tool = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return read(module),
    };
    let mut command = Command::new(tool);
    let output = command.arg("-dc").arg(module).output().map_err(failed(tool))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(Failed(format!("{} failed", process::line(&command))))
}

fn find(directory: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            find(&path, wanted)
        } else {
            wanted(&entry.file_name().to_string_lossy()).then_some(path)
        }
    })
}

fn empty(directory: &Path) -> Outcome {
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed(directory))?;
    }
    fs::create_dir_all(directory).map_err(failed(directory))
}

fn replace(staging: &Path, directory: &Path) -> Outcome {
    if directory.exists() {
        fs::remove_dir_all(directory).map_err(failed(directory))?;
    }
    fs::rename(staging, directory).map_err(failed(directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_leads_to_the_kernels_parts() {
        let split = "linux-image-cloud-amd64\n  Depends: linux-base-cloud-amd64\n\
                     linux-base-cloud-amd64\nlinux-image-7.2.13+deb14-cloud-amd64\nlinux-base\n\
                     linux-binary-7.2.13+deb14-cloud-amd64\nlinux-modules-7.2.13+deb14-cloud-amd64\n<kmod>\n";
        let packages = packages_in(split);
        assert_eq!(packages.len(), 3, "{packages:?}");
        let release = packages.iter().find_map(|name| release_in(name));
        assert_eq!(release, Some("7.2.13+deb14-cloud-amd64"));
        assert!(packages_in("linux-image-cloud-amd64\n").is_empty());
    }

    #[test]
    fn a_half_fetched_kernel_is_none() {
        let directory = std::env::temp_dir().join(format!("tv-kernel-kept-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("vmlinuz"), "").unwrap();
        assert!(kept(&directory).is_none(), "the release is written last");
        fs::write(directory.join("release"), "6.1.0").unwrap();
        assert_eq!(kept(&directory).unwrap().release, "6.1.0");
        fs::remove_dir_all(&directory).unwrap();
    }
}

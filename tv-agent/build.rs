//! Embeds the kernel half, if `cargo xtask build` has put it into the target directory.
//!
//! Without it the crate builds all the same, on stable and without any BPF tool; `redirect::object()` is None.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

use sha2::{Digest as _, Sha256};

fn main() -> io::Result<()> {
    println!("cargo:rustc-check-cfg=cfg(tv_object)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let directory = target_directory(&out).join("bpf");
    // The directory is watched, not the file: a watched file that is absent would rerun this on every build.
    fs::create_dir_all(&directory)?;
    println!("cargo:rerun-if-changed={}", directory.display());
    println!("cargo:rerun-if-changed=build.rs");
    match fs::read(directory.join("tv-ebpf.o")) {
        Ok(object) => {
            fs::write(out.join("tv-ebpf.o"), &object)?;
            let digest = Sha256::digest(&object);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("cargo:rustc-cfg=tv_object");
            println!("cargo:rustc-env=TV_OBJECT_SHA256={hex}");
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// OUT_DIR is target/[triple/]profile/build/package-hash/out; cargo tags a target directory that it makes, and a triple's.
fn target_directory(out: &Path) -> &Path {
    let ancestors = || out.ancestors().skip(4).take(2);
    let tagged = || ancestors().filter(|ancestor| ancestor.join("CACHEDIR.TAG").exists());
    ancestors()
        .find(|ancestor| ancestor.join("bpf/tv-ebpf.o").exists())
        .or_else(|| tagged().last())
        .or_else(|| ancestors().next())
        .expect("OUT_DIR has ancestors")
}

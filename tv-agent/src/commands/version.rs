//! `tv-agent version`.

use serde::Serialize;

use super::print;
use crate::cli::{OutputArgs, exit};
use crate::redirect;

#[derive(Serialize)]
pub(super) struct Version {
    version: &'static str,
    /// SHA-256 of the embedded BPF object.
    bpf_sha256: Option<&'static str>,
}

pub(super) fn version() -> Version {
    Version {
        version: env!("CARGO_PKG_VERSION"),
        bpf_sha256: redirect::object_sha256(),
    }
}

pub fn run(args: OutputArgs) -> u8 {
    let version = version();
    print(args.output, &version, || {
        let bpf = version.bpf_sha256.map_or_else(
            || "none embedded; build with `cargo xtask build`".to_owned(),
            |digest| format!("sha256 {digest}"),
        );
        format!("tv-agent {}\nkernel half: {bpf}", version.version)
    });
    exit::OK
}

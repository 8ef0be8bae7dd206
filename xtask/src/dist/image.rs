//! The OCI image, written by hand: one layer with the binary and the few files that it needs, no shell, no daemon to
//! build it with. Sorted entries, fixed times and one compressor make it the same from the same binary.
//!
//! OCI image specification 1.1: image-layout.md, manifest.md, config.md. The archive is a tar of the layout, which
//! `podman load`, `skopeo copy oci-archive:` and `ctr images import` take.

use std::fs;
use std::io;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Release, failed, hex};
use crate::Outcome;

/// Under which name the archive is loaded.
pub const NAME: &str = "ghcr.io/tv-agent/tv-agent";

/// As in tv-agent/Cargo.toml.
const DESCRIPTION: &str =
    "Transparent egress interceptor that swaps a workload's Auth0 token for the provider's own token";

/// Who runs in it unless told otherwise; the DaemonSet says otherwise.
const USER: u32 = 65532;
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\ntv-agent:x:65532:65532:tv-agent:/:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ntv-agent:x:65532:\n";
/// What a static C library can do by itself; anything else it would load from the distribution.
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files dns\n";

/// Writes the archive beside the binary.
pub fn write(release: &Release, binary: &Path) -> Outcome {
    let bytes = fs::read(binary).map_err(failed(binary))?;
    let facts = Facts {
        version: &release.version,
        revision: &release.revision,
        architecture: release.triple.oci,
        epoch: release.epoch,
    };
    let file = release.file(".oci.tar");
    let archive = archive(&facts, &bytes).map_err(failed(&file))?;
    fs::write(&file, archive).map_err(failed(&file))?;
    eprintln!("image: {NAME}:{} in {}", release.version, file.display());
    Ok(())
}

/// What an image says of itself.
struct Facts<'a> {
    version: &'a str,
    revision: &'a str,
    architecture: &'a str,
    /// Seconds since 1970.
    epoch: u64,
}

impl Facts<'_> {
    fn created(&self) -> io::Result<String> {
        let seconds = i64::try_from(self.epoch).map_err(io::Error::other)?;
        let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(io::Error::other)?;
        at.format(&Rfc3339).map_err(io::Error::other)
    }

    fn labels(&self) -> io::Result<Value> {
        Ok(json!({
            "org.opencontainers.image.title": "tv-agent",
            "org.opencontainers.image.description": DESCRIPTION,
            "org.opencontainers.image.source": env!("CARGO_PKG_REPOSITORY"),
            "org.opencontainers.image.licenses": env!("CARGO_PKG_LICENSE"),
            "org.opencontainers.image.version": self.version,
            "org.opencontainers.image.revision": self.revision,
            "org.opencontainers.image.created": self.created()?,
        }))
    }
}

/// A file or directory of the image, by its path without the first slash.
struct Entry<'a> {
    path: &'a str,
    mode: u32,
    /// None for a directory.
    bytes: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    fn directory(path: &'a str) -> Self {
        Self {
            path,
            mode: 0o755,
            bytes: None,
        }
    }

    fn file(path: &'a str, mode: u32, bytes: &'a [u8]) -> Self {
        Self {
            path,
            mode,
            bytes: Some(bytes),
        }
    }
}

/// The whole archive.
fn archive(facts: &Facts<'_>, binary: &[u8]) -> io::Result<Vec<u8>> {
    let roots = roots();
    let layer = tar(
        facts.epoch,
        &[
            Entry::directory("etc"),
            Entry::file("etc/group", 0o644, GROUP.as_bytes()),
            Entry::file("etc/nsswitch.conf", 0o644, NSSWITCH.as_bytes()),
            Entry::file("etc/passwd", 0o644, PASSWD.as_bytes()),
            Entry::directory("etc/ssl"),
            Entry::directory("etc/ssl/certs"),
            Entry::file("etc/ssl/certs/ca-certificates.crt", 0o644, roots.as_bytes()),
            Entry::directory("etc/tv-agent"),
            Entry::file("tv-agent", 0o755, binary),
        ],
    )?;
    let mut packed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    io::Write::write_all(&mut packed, &layer)?;
    let packed = packed.finish()?;
    let created = facts.created()?;
    let config = json!({
        "architecture": facts.architecture,
        "os": "linux",
        "created": created,
        "config": {
            "User": format!("{USER}:{USER}"),
            "Entrypoint": ["/tv-agent"],
            "Env": ["SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt"],
            "WorkingDir": "/",
            "Labels": facts.labels()?,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": created, "created_by": "cargo xtask dist" }],
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &packed)],
        "annotations": facts.labels()?,
    })
    .to_string()
    .into_bytes();
    let mut listed = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    let reference = format!("{NAME}:{}", facts.version);
    listed["platform"] = json!({ "architecture": facts.architecture, "os": "linux" });
    // podman and skopeo read the first, containerd the second.
    listed["annotations"] = json!({
        "org.opencontainers.image.ref.name": reference,
        "io.containerd.image.name": reference,
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [listed],
    })
    .to_string();
    let mut blobs = [config, manifest, packed].map(|bytes| (format!("blobs/sha256/{}", sum(&bytes)), bytes));
    blobs.sort();
    let mut entries = vec![Entry::directory("blobs"), Entry::directory("blobs/sha256")];
    entries.extend(blobs.iter().map(|(path, bytes)| Entry::file(path, 0o644, bytes)));
    entries.push(Entry::file("index.json", 0o644, index.as_bytes()));
    entries.push(Entry::file(
        "oci-layout",
        0o644,
        br#"{"imageLayoutVersion":"1.0.0"}"#,
    ));
    tar(facts.epoch, &entries)
}

fn tar(epoch: u64, entries: &[Entry<'_>]) -> io::Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for entry in entries {
        let mut header = Header::new_ustar();
        header.set_mode(entry.mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(epoch);
        let bytes = entry.bytes.unwrap_or_default();
        header.set_size(bytes.len() as u64);
        match entry.bytes {
            Some(_) => header.set_entry_type(EntryType::Regular),
            None => header.set_entry_type(EntryType::Directory),
        }
        let slash = if entry.bytes.is_none() { "/" } else { "" };
        builder.append_data(&mut header, format!("{}{slash}", entry.path), bytes)?;
    }
    builder.into_inner()
}

/// Mozilla's roots as of Cargo.lock, not those of the machine that builds: the image is the same everywhere.
fn roots() -> String {
    let mut pem = String::new();
    for certificate in webpki_root_certs::TLS_SERVER_ROOT_CERTS {
        pem += "-----BEGIN CERTIFICATE-----\n";
        let text = BASE64_STANDARD.encode(certificate);
        for line in text.as_bytes().chunks(64) {
            pem.extend(line.iter().copied().map(char::from));
            pem.push('\n');
        }
        pem += "-----END CERTIFICATE-----\n";
    }
    pem
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sum(bytes))
}

fn sum(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests;

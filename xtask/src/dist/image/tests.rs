//! The image is what the specification says, and the same each time.

use std::collections::BTreeMap;
use std::io::Read as _;

use super::*;

const FACTS: Facts<'_> = Facts {
    version: "1.2.3",
    revision: "0123456789abcdef",
    architecture: "amd64",
    epoch: 1_700_000_000,
};
const BINARY: &[u8] = b"\x7fELF and so on";

struct File {
    mode: u32,
    mtime: u64,
    owner: (u64, u64),
    bytes: Vec<u8>,
}

/// By path, and the paths in their order.
fn unpack(archive: &[u8]) -> (BTreeMap<String, File>, Vec<String>) {
    let (mut files, mut order) = (BTreeMap::new(), Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        let header = entry.header();
        let file = File {
            mode: header.mode().unwrap(),
            mtime: header.mtime().unwrap(),
            owner: (header.uid().unwrap(), header.gid().unwrap()),
            bytes,
        };
        order.push(path.clone());
        files.insert(path, file);
    }
    (files, order)
}

fn json_at(files: &BTreeMap<String, File>, path: &str) -> Value {
    serde_json::from_slice(&files[path].bytes).unwrap()
}

/// The blob that a descriptor names, which must fit it.
fn blob<'a>(files: &'a BTreeMap<String, File>, descriptor: &Value) -> &'a [u8] {
    let digest = descriptor["digest"].as_str().unwrap();
    let path = format!("blobs/{}", digest.replace(':', "/"));
    let bytes = &files[&path].bytes;
    assert_eq!(super::digest(bytes), digest);
    assert_eq!(descriptor["size"], bytes.len());
    bytes
}

#[test]
fn two_images_of_one_binary_are_the_same_bytes() {
    let first = archive(&FACTS, BINARY).unwrap();
    assert_eq!(first, archive(&FACTS, BINARY).unwrap());
    assert_ne!(first, archive(&FACTS, b"another").unwrap());
    let later = Facts {
        epoch: FACTS.epoch + 1,
        ..FACTS
    };
    assert_ne!(first, archive(&later, BINARY).unwrap());
}

#[test]
fn each_descriptor_leads_to_its_blob() {
    let (files, order) = unpack(&archive(&FACTS, BINARY).unwrap());
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(order, sorted);
    assert!(files.values().all(|file| file.mtime == FACTS.epoch));
    assert_eq!(json_at(&files, "oci-layout")["imageLayoutVersion"], "1.0.0");
    let listed = &json_at(&files, "index.json")["manifests"][0];
    assert_eq!(
        listed["annotations"]["org.opencontainers.image.ref.name"],
        "ghcr.io/tv-agent/tv-agent:1.2.3"
    );
    let manifest: Value = serde_json::from_slice(blob(&files, listed)).unwrap();
    let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/tv-agent"]));
    assert_eq!(config["config"]["User"], "65532:65532");
    assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    assert_eq!(
        config["config"]["Labels"]["org.opencontainers.image.revision"],
        FACTS.revision
    );
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(blob(&files, &manifest["layers"][0]))
        .read_to_end(&mut layer)
        .unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
    assert_eq!(manifest["layers"].as_array().unwrap().len(), 1);
}

#[test]
fn the_layer_holds_the_binary_and_nothing_that_could_be_run_besides() {
    let (files, _) = unpack(&archive(&FACTS, BINARY).unwrap());
    let packed = files
        .values()
        .find(|file| file.bytes.starts_with(&[0x1f, 0x8b]))
        .unwrap();
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(&packed.bytes[..])
        .read_to_end(&mut layer)
        .unwrap();
    let (files, order) = unpack(&layer);
    let mut sorted = order.clone();
    sorted.sort();
    assert_eq!(order, sorted);
    assert_eq!(files["tv-agent"].bytes, BINARY);
    let programs = files
        .iter()
        .filter(|(path, file)| !path.ends_with('/') && file.mode & 0o111 != 0);
    assert_eq!(programs.map(|(path, _)| path).collect::<Vec<_>>(), ["tv-agent"]);
    for file in files.values() {
        assert_eq!(
            (file.owner, file.mtime, file.mode & 0o022),
            ((0, 0), FACTS.epoch, 0)
        );
    }
    let passwd = String::from_utf8(files["etc/passwd"].bytes.clone()).unwrap();
    assert!(passwd.contains(&format!("tv-agent:x:{USER}:{USER}:")), "{passwd}");
    let pem = String::from_utf8(files["etc/ssl/certs/ca-certificates.crt"].bytes.clone()).unwrap();
    assert_eq!(
        pem.matches("BEGIN CERTIFICATE").count(),
        webpki_root_certs::TLS_SERVER_ROOT_CERTS.len()
    );
}

#[test]
fn it_says_of_itself_what_the_agents_manifest_says() {
    let manifest = fs::read_to_string(crate::root().join("tv-agent/Cargo.toml")).unwrap();
    assert!(manifest.contains(&format!("description = \"{DESCRIPTION}\"")));
}

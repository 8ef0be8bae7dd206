//! Key stores made by hand (JKS) and by OpenSSL (PKCS #12). That Java takes the results is shown by the trust tests.

use std::process::Command;

use sha1::{Digest as _, Sha1};

use super::*;
use crate::limits;

fn anchors(count: usize) -> Anchors {
    let root = |n: usize| {
        let names = [format!("k{n}.example.com")];
        let authority = crate::ca::Authority::ephemeral(&names).unwrap();
        authority.root_pem().to_owned()
    };
    Anchors::from_pem(&(0..count).map(root).collect::<String>()).unwrap()
}

/// A JKS store of version 2 with a private key and trusted certificates; the key's bytes are no key.
fn jks(password: &str, magic: u32, certificates: &[&[u8]]) -> Vec<u8> {
    let text = |text: &str| [&(text.len() as u16).to_be_bytes()[..], text.as_bytes()].concat();
    let counted = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat();
    let mut out = [magic, 2, certificates.len() as u32 + 1]
        .map(u32::to_be_bytes)
        .concat();
    out.extend([&1u32.to_be_bytes()[..], &text("schlüssel"), &7u64.to_be_bytes()].concat());
    out.extend(
        [
            counted(b"sealed"),
            1u32.to_be_bytes().to_vec(),
            text("X.509"),
            counted(b"chain"),
        ]
        .concat(),
    );
    for (n, der) in certificates.iter().enumerate() {
        out.extend(
            [
                &2u32.to_be_bytes()[..],
                &text(&format!("root {n}")),
                &9u64.to_be_bytes(),
            ]
            .concat(),
        );
        out.extend([text("X.509"), counted(der)].concat());
    }
    sealed(password, out)
}

fn sealed(password: &str, mut body: Vec<u8>) -> Vec<u8> {
    let utf16: Vec<u8> = password.encode_utf16().flat_map(u16::to_be_bytes).collect();
    body.extend(Sha1::digest([&utf16[..], b"Mighty Aphrodite", &body].concat()));
    body
}

/// A PKCS #12 store with one certificate, as `openssl pkcs12` makes it.
fn p12(args: &[&str]) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let (pem, out) = (temp.path().join("in.pem"), temp.path().join("out.p12"));
    std::fs::write(&pem, anchors(1).pem()).unwrap();
    let mut command = Command::new("openssl");
    command.args(["pkcs12", "-export", "-nokeys", "-in"]).arg(&pem);
    command
        .arg("-out")
        .arg(&out)
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin");
    let made = command.output().expect("openssl is needed by these tests");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    std::fs::read(out).unwrap()
}

#[test]
fn every_entry_of_a_jks_store_keeps_its_bytes() {
    let anchors = anchors(2);
    for (password, magic) in [
        ("changeit", 0xfeed_feed_u32),
        ("", 0xfeed_feed),
        ("changeit", 0xcece_cece),
    ] {
        let store = jks(password, magic, &[b"one", b"two"]);
        let merged = merge(&store, &anchors).unwrap();
        assert_eq!(merged[..8], store[..8]);
        assert_eq!(merged[8..12], 5u32.to_be_bytes());
        let body = store.len() - 20;
        assert_eq!(merged[12..body], store[12..body]);
        assert_eq!(
            merged,
            sealed(password, merged[..merged.len() - 20].to_owned()),
            "the digest is right"
        );
        assert_eq!(merge(&merged, &anchors).unwrap(), merged);
        assert_eq!(remove(&merged, &anchors).unwrap(), store);
    }
}

#[test]
fn a_root_under_another_name_counts_and_is_taken_out() {
    let anchors = anchors(1);
    let der = anchors.iter().next().unwrap().der();
    let store = jks("changeit", 0xfeed_feed, &[b"one", der, b"two"]);
    assert_eq!(merge(&store, &anchors).unwrap(), store);
    let without = remove(&store, &anchors).unwrap();
    assert_eq!(without.len(), store.len() - 4 - 8 - 8 - 7 - 4 - der.len());
}

#[test]
fn a_pkcs12_store_keeps_its_parts_and_its_code_is_right() {
    let anchors = anchors(2);
    for args in [
        &["-passout", "pass:changeit"][..],
        &["-passout", "pass:changeit", "-macalg", "sha1"],
        &["-passout", "pass:changeit", "-macalg", "sha384"],
        &["-passout", "pass:changeit", "-macalg", "sha512"],
        &["-passout", "pass:"],
        &["-passout", "pass:", "-nomac", "-certpbe", "NONE"],
    ] {
        let store = p12(args);
        let merged = merge(&store, &anchors).unwrap();
        assert!(merged.len() > store.len(), "{args:?}");
        assert_eq!(merge(&merged, &anchors).unwrap(), merged, "{args:?}");
        assert_eq!(remove(&merged, &anchors).unwrap(), store, "{args:?}");
        // OpenSSL checks the code and finds all three.
        if !args.contains(&"-nomac") {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &merged).unwrap();
            let mut command = Command::new("openssl");
            command.args(["pkcs12", "-nokeys", "-in"]).arg(file.path());
            command
                .args(["-passin", args[1]])
                .env_clear()
                .env("PATH", "/usr/bin:/bin");
            let out = command.output().unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            assert!(
                out.status.success() && text.matches("BEGIN CERTIFICATE").count() == 3,
                "{args:?}: {text}"
            );
        }
    }
}

#[test]
fn what_cannot_be_added_to_is_told() {
    let anchors = anchors(1);
    let good = jks("changeit", 0xfeed_feed, &[b"one"]);
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    let mut many = good[..8].to_owned();
    many.extend(u32::MAX.to_be_bytes());
    let secret = [
        &0xcece_cece_u32.to_be_bytes()[..],
        &2u32.to_be_bytes(),
        &1u32.to_be_bytes(),
        &3u32.to_be_bytes(),
    ];
    let secret = sealed("changeit", [&secret.concat()[..], &[0; 10]].concat());
    let p12 = p12(&["-passout", "pass:changeit"]);
    for (what, store, expected) in [
        ("nothing", Vec::new(), Unusable::Form),
        ("text", b"-----BEGIN".to_vec(), Unusable::Form),
        (
            "another password",
            jks("secret", 0xfeed_feed, &[]),
            Unusable::Password,
        ),
        ("flipped", flipped, Unusable::Password),
        ("cut off", good[..good.len() - 1].to_owned(), Unusable::Damaged),
        ("header only", good[..12].to_owned(), Unusable::Damaged),
        (
            "more entries than bytes",
            sealed("changeit", many),
            Unusable::Damaged,
        ),
        ("a secret key", secret, Unusable::Entry),
        (
            "PKCS12, another password",
            self::p12(&["-passout", "pass:other1"]),
            Unusable::Password,
        ),
        (
            "PKCS12, cut off",
            p12[..p12.len() - 1].to_owned(),
            Unusable::Damaged,
        ),
    ] {
        assert_eq!(merge(&store, &anchors).unwrap_err(), expected, "{what}");
        assert_eq!(remove(&store, &anchors).unwrap_err(), expected, "{what}");
    }
}

#[test]
fn a_password_that_is_hashed_for_hours_is_not_tried() {
    // The count of rounds is the last number of the store.
    let mut store = p12(&["-passout", "pass:changeit", "-iter", "100000"]);
    let at = store.len() - 3;
    assert_eq!(store[at - 2..], [2, 3, 0x01, 0x86, 0xa0]);
    store[at] = 0x7f;
    let error = merge(&store, &anchors(1)).unwrap_err();
    assert!(
        matches!(error, Unusable::Rounds(rounds) if rounds > limits::TRUST_KEYSTORE_ROUNDS),
        "{error}"
    );
}

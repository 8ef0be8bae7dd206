//! The CA against OpenSSL and rustls, its files in every broken state, and the leaf cache.

mod import;
mod leaf_keys;
mod rotation;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tempfile::TempDir;
use time::{Duration, OffsetDateTime};

use super::init::{init_at, renew_at};
use super::leaves::MayMint;
use super::mint::KeyKind;
use super::profile::CaKey;
use super::*;
use crate::addr::HostName;
use crate::encode::certificate_pem;
use crate::limits;
use crate::metrics::Metrics;

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn any() -> MayMint {
    Arc::new(|_| true)
}

fn leaves(permitted: &[&str]) -> (Leaves, Metrics) {
    let metrics = Metrics::new();
    let authority = Arc::new(Authority::ephemeral(&names(permitted)).unwrap());
    (Leaves::new(authority, any(), metrics.clone()).unwrap(), metrics)
}

/// A CA directory with all files, root key included.
fn ca_dir(permitted: &[&str]) -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ca");
    init(&dir, &names(permitted)).unwrap();
    (temp, dir)
}

fn openssl(args: &[&str]) -> (bool, String) {
    let out = Command::new("openssl")
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .output()
        .expect("openssl is needed by these tests");
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// `openssl verify -x509_strict` as a TLS client would see it.
fn openssl_verify(authority: &Authority, leaf: &CertificateDer<'_>, name: &str) -> (bool, String) {
    let temp = tempfile::tempdir().unwrap();
    let put = |file: &str, pem: &str| {
        let path = temp.path().join(file);
        fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let root = put("root.pem", authority.root_pem());
    let chain: String = authority.chain().iter().map(certificate_pem).collect();
    let intermediate = put("intermediate.pem", &chain);
    let leaf = put("leaf.pem", &certificate_pem(leaf));
    openssl(&[
        "verify",
        "-x509_strict",
        "-check_ss_sig",
        "-purpose",
        "sslserver",
        "-verify_hostname",
        name,
        "-CAfile",
        &root,
        "-no-CApath",
        "-untrusted",
        &intermediate,
        &leaf,
    ])
}

fn rustls_verify(authority: &Authority, leaf: &CertificateDer<'_>, name: &str) -> Result<(), rustls::Error> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.root_der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap()
        .verify_server_cert(
            leaf,
            authority.chain(),
            &ServerName::try_from(name.to_owned()).unwrap(),
            &[],
            UnixTime::now(),
        )
        .map(drop)
}

#[test]
fn strict_clients_accept_what_the_constraints_permit() {
    let authority = Arc::new(Authority::ephemeral(&names(&["googleapis.com", "api.github.com"])).unwrap());
    let leaves = Leaves::new(authority.clone(), any(), Metrics::new()).unwrap();
    for name in ["api.github.com", "www.googleapis.com", "a_b.googleapis.com"] {
        let leaf = &leaves.get(&host(name)).unwrap().cert[0];
        let (ok, text) = openssl_verify(&authority, leaf, name);
        assert!(ok, "{name}: {text}");
        rustls_verify(&authority, leaf, name).unwrap();
    }
}

#[test]
fn clients_reject_names_outside_the_constraints() {
    let authority = Authority::ephemeral(&names(&["googleapis.com", "api.github.com"])).unwrap();
    let key = CaKey::generate().unwrap();
    for name in ["evil.example", "github.com", "evilgoogleapis.com"] {
        assert!(!authority.permits(&host(name)));
        // Signed all the same, as whoever stole the key could.
        let leaf = authority
            .mint()
            .sign(&host(name), &key, now(), now() + Duration::hours(1))
            .unwrap();
        let (ok, text) = openssl_verify(&authority, &leaf, name);
        assert!(
            !ok && text.contains("permitted subtree violation"),
            "{name}: {text}"
        );
        let error = format!("{:?}", rustls_verify(&authority, &leaf, name).unwrap_err());
        assert!(error.contains("NameConstraintViolation"), "{name}: {error}");
    }
}

#[test]
fn the_profile_is_the_strict_one() {
    let (leaves, _) = leaves(&["example.com"]);
    let chain = leaves.get(&host("a.example.com")).unwrap().cert.clone();
    assert_eq!(chain.len(), 2, "leaf and intermediate, not the root");
    let text = |der: &CertificateDer<'_>| {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("c.pem");
        fs::write(&path, certificate_pem(der)).unwrap();
        openssl(&["x509", "-noout", "-text", "-in", path.to_str().unwrap()]).1
    };
    let (leaf, intermediate) = (text(&chain[0]), text(&chain[1]));
    for expected in [
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical\n                DNS:a.example.com\n",
        "X509v3 Basic Constraints: critical\n                CA:FALSE",
        "X509v3 Key Usage: critical\n                Digital Signature\n",
        "X509v3 Extended Key Usage: \n                TLS Web Server Authentication\n",
        "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier",
        "ASN1 OID: prime256v1",
    ] {
        assert!(leaf.contains(expected), "{expected:?} not in\n{leaf}");
    }
    for expected in [
        "X509v3 Basic Constraints: critical\n                CA:TRUE, pathlen:0",
        "X509v3 Key Usage: critical\n                Certificate Sign, CRL Sign\n",
        "X509v3 Name Constraints: critical\n                Permitted:\n                  DNS:example.com\n",
        "IP:0.0.0.0/0.0.0.0",
        "X509v3 Authority Key Identifier",
        "X509v3 Subject Key Identifier",
    ] {
        assert!(
            intermediate.contains(expected),
            "{expected:?} not in\n{intermediate}"
        );
    }
    let (_, parsed) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let life = parsed.validity().not_after.to_datetime() - parsed.validity().not_before.to_datetime();
    assert_eq!(life, Duration::hours(96));
    assert_eq!(parsed.raw_serial().len(), 16);
    let other = leaves.get(&host("b.example.com")).unwrap();
    let (_, other) = x509_parser::parse_x509_certificate(&other.cert[0]).unwrap();
    assert_ne!(
        parsed.raw_serial(),
        other.raw_serial(),
        "NSS refuses issuer+serial twice"
    );
}

#[test]
fn keys_are_not_printed() {
    let (leaves, _) = leaves(&["example.com"]);
    let text = format!("{leaves:?}");
    assert!(
        text.contains("example.com") && !text.to_lowercase().contains("key"),
        "{text}"
    );
}

#[test]
fn a_leaf_is_minted_once_however_many_ask() {
    let (leaves, metrics) = leaves(&["example.com"]);
    let barrier = std::sync::Barrier::new(32);
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| {
                barrier.wait();
                leaves.get(&host("storm.example.com")).unwrap()
            });
        }
    });
    assert_eq!(metrics.leaves.get(), 1);
}

#[test]
fn leaves_are_bounded() {
    let (leaves, metrics) = leaves(&["example.com"]);
    for n in 0..limits::LEAVES + 500 {
        leaves.get(&host(&format!("h{n}.example.com"))).unwrap();
    }
    assert_eq!(metrics.leaves.get(), limits::LEAVES + 500);
    assert!(leaves.len() <= limits::LEAVES, "{}", leaves.len());
}

#[test]
fn leaves_are_renewed_by_the_wall_clock_and_end_with_the_authority() {
    let (leaves, metrics) = leaves(&["example.com"]);
    let name = host("example.com");
    let first = leaves.get_at(&name, KeyKind::P256, now()).unwrap();
    let same = leaves
        .get_at(&name, KeyKind::P256, now() + Duration::hours(23))
        .unwrap();
    assert!(Arc::ptr_eq(&first, &same));
    let next = leaves
        .get_at(&name, KeyKind::P256, now() + Duration::hours(25))
        .unwrap();
    assert!(!Arc::ptr_eq(&first, &next));
    assert_eq!(metrics.leaves.get(), 2);
    let late = leaves
        .get_at(&name, KeyKind::P256, now() + Duration::days(364))
        .unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&late.cert[0]).unwrap();
    assert!(parsed.validity().not_after.to_datetime() <= now() + Duration::days(365));
    assert!(matches!(
        leaves.get_at(&name, KeyKind::P256, now() + Duration::days(366)),
        Err(Error::AuthorityExpired { .. })
    ));
}

/// Workloads have the machine's clock: a leaf from what is now the future would not be valid to them.
#[test]
fn a_clock_that_is_set_back_renews_leaves() {
    let (leaves, metrics) = leaves(&["example.com"]);
    let name = host("example.com");
    let first = leaves.get_at(&name, KeyKind::P256, now()).unwrap();
    // Covered by the backdating.
    let same = leaves
        .get_at(&name, KeyKind::P256, now() - Duration::hours(23))
        .unwrap();
    assert!(Arc::ptr_eq(&first, &same));
    let earlier = now() - Duration::days(3);
    let leaf = leaves.get_at(&name, KeyKind::P256, earlier).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf.cert[0]).unwrap();
    assert!(parsed.validity().not_before.to_datetime() <= earlier);
    assert!(earlier < parsed.validity().not_after.to_datetime());
    assert_eq!(metrics.leaves.get(), 2);
}

#[test]
fn no_leaf_without_a_route_or_outside_the_constraints() {
    let routed = Arc::new(AtomicBool::new(true));
    let authority = Arc::new(Authority::ephemeral(&names(&["example.com"])).unwrap());
    let metrics = Metrics::new();
    let asked = routed.clone();
    let leaves = Leaves::new(
        authority,
        Arc::new(move |host| asked.load(Ordering::SeqCst) && host.as_str() != "b.example.com"),
        metrics.clone(),
    )
    .unwrap();
    assert!(matches!(
        leaves.get(&host("b.example.com")),
        Err(Error::Refused { .. })
    ));
    assert!(matches!(
        leaves.get(&host("example.org")),
        Err(Error::NotPermitted { .. })
    ));
    assert_eq!(metrics.leaves.get(), 0);
    leaves.get(&host("a.example.com")).unwrap();
    // A reload took the route away: what was minted is not served either.
    routed.store(false, Ordering::SeqCst);
    assert!(matches!(
        leaves.get(&host("a.example.com")),
        Err(Error::Refused { .. })
    ));
}

#[test]
fn the_resolver_serves_by_sni() {
    let (leaves, _) = leaves(&["example.com"]);
    let root = leaves_root(&leaves);
    let server = Arc::new(
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(leaves)),
    );
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root).unwrap();
    let client = Arc::new(
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    );
    let handshake = |name: &str| {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut c = rustls::ClientConnection::new(client.clone(), name).unwrap();
        let mut s = rustls::ServerConnection::new(server.clone()).unwrap();
        for _ in 0..4 {
            let mut bytes = Vec::new();
            while c.wants_write() {
                c.write_tls(&mut bytes).unwrap();
            }
            s.read_tls(&mut bytes.as_slice()).unwrap();
            s.process_new_packets()?;
            let mut bytes = Vec::new();
            while s.wants_write() {
                s.write_tls(&mut bytes).unwrap();
            }
            c.read_tls(&mut bytes.as_slice()).unwrap();
            c.process_new_packets()?;
        }
        assert!(!c.is_handshaking() && !s.is_handshaking());
        Ok::<_, rustls::Error>(())
    };
    handshake("www.example.com").unwrap();
    handshake("example.org").unwrap_err();
    handshake("192.0.2.1").unwrap_err(); // no SNI
}

#[test]
fn init_is_idempotent_and_load_takes_it() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let before = snapshot(&dir);
    let again = init(&dir, &names(&["example.com"])).unwrap();
    assert_eq!(again.root, Outcome::Kept);
    assert_eq!(again.intermediate, Outcome::Kept);
    assert!(again.advice[0].contains("root-key.pem"), "{:?}", again.advice);
    assert_eq!(before, snapshot(&dir));
    let authority = Authority::load(&dir).unwrap();
    assert_eq!(authority.permitted(), ["example.com"]);
    assert_eq!(
        authority.root_pem(),
        fs::read_to_string(dir.join("root.pem")).unwrap()
    );
    for (file, mode) in [
        ("", 0o700),
        ("root", 0o700),
        ("root/root-key.pem", 0o600),
        ("intermediate-key.pem", 0o600),
        ("root.pem", 0o644),
        ("intermediate.pem", 0o644),
    ] {
        let found = fs::metadata(dir.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file}");
    }
    let left: Vec<_> = walk(&dir).into_iter().filter(|p| p.ends_with(".tmp")).collect();
    assert!(left.is_empty());
}

#[test]
fn two_inits_at_once_leave_one_good_ca() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ca");
    let made: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| init(&dir, &names(&["example.com"])).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|t| usize::from(t.join().unwrap().root != Outcome::Kept))
            .sum()
    });
    assert_eq!(made, 1);
    Authority::load(&dir).unwrap();
}

#[test]
fn a_new_route_issues_the_intermediate_anew_under_the_same_root() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let root = fs::read(dir.join("root.pem")).unwrap();
    let next = init(&dir, &names(&["example.com", "example.org"])).unwrap();
    assert!(
        matches!(&next.intermediate, Outcome::Made { reason } if reason.contains("does not permit example.org")),
        "{next:?}"
    );
    assert_eq!(root, fs::read(dir.join("root.pem")).unwrap());
    assert_eq!(
        Authority::load(&dir).unwrap().permitted(),
        ["example.com", "example.org"]
    );
    // Fewer hosts: narrowed, since the key is there.
    let fewer = init(&dir, &names(&["example.org"])).unwrap();
    assert_ne!(fewer.intermediate, Outcome::Kept);
}

#[test]
fn without_the_root_key_a_good_intermediate_stays_and_a_needed_one_is_refused() {
    let (temp, dir) = ca_dir(&["example.com", "example.org"]);
    fs::rename(dir.join("root"), temp.path().join("safe")).unwrap();
    let kept = init(&dir, &names(&["example.com", "example.org"])).unwrap();
    assert_eq!((kept.intermediate, kept.advice), (Outcome::Kept, vec![]));
    // Narrower would be better, and renewal is due: both are advice only.
    let kept = init(&dir, &names(&["example.com"])).unwrap();
    assert_eq!((kept.intermediate, kept.advice.len()), (Outcome::Kept, 1));
    let permitted = names(&["example.com", "example.org"]);
    let kept = init_at(&dir, &permitted, now() + Duration::days(25)).unwrap();
    assert!(kept.advice[0].contains("expires at"), "{:?}", kept.advice);
    for error in [
        init(&dir, &names(&["example.net"])).unwrap_err(),
        init_at(&dir, &permitted, now() + Duration::days(31)).unwrap_err(),
    ] {
        assert!(
            matches!(&error, Error::RootKeyNeeded { path, .. } if path.ends_with("root/root-key.pem")),
            "{error}"
        );
    }
    // The key comes back for the time of the call.
    fs::rename(temp.path().join("safe"), dir.join("root")).unwrap();
    let made = init(&dir, &names(&["example.net"])).unwrap();
    assert_ne!(made.intermediate, Outcome::Kept);
}

#[test]
fn renewal_comes_before_the_end_and_a_worn_out_root_is_told() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let permitted = names(&["example.com"]);
    let before = snapshot(&dir);
    init_at(&dir, &permitted, now() + Duration::days(19)).unwrap();
    assert_eq!(before, snapshot(&dir));
    let renewed = init_at(&dir, &permitted, now() + Duration::days(21)).unwrap();
    assert!(matches!(renewed.intermediate, Outcome::Made { .. }));
    // The daemon renews as well, and says in time that the root ends.
    let later = now() + Duration::days(45);
    let by_itself = renew_at(&dir, &permitted, later).unwrap();
    assert!(matches!(by_itself.intermediate, Outcome::Made { .. }) && by_itself.advice.is_empty());
    assert_eq!(
        renew_at(&dir, &permitted, later).unwrap().intermediate,
        Outcome::Kept
    );
    let told = renew_at(&dir, &permitted, now() + Duration::days(5 * 365 - 80)).unwrap();
    assert!(told.advice[0].contains("tv-agent ca rotate"), "{:?}", told.advice);
    assert!(matches!(
        init_at(&dir, &permitted, now() + Duration::days(5 * 365 - 5)),
        Err(Error::RootWornOut { .. })
    ));
    assert!(matches!(
        init_at(&dir, &permitted, now() + Duration::days(6 * 365)),
        Err(Error::RootWornOut { path, .. }) if path.ends_with("root.pem")
    ));
}

#[test]
fn init_goes_on_after_a_crash_and_does_not_replace_a_root_that_is_only_missing() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let permitted = names(&["example.com"]);
    // Killed between key and certificate of the intermediate.
    fs::remove_file(dir.join("intermediate.pem")).unwrap();
    fs::write(dir.join("intermediate.tmp"), "half").unwrap();
    assert_ne!(init(&dir, &permitted).unwrap().intermediate, Outcome::Kept);
    // Killed after the root's key.
    let key = fs::read(dir.join("root/root-key.pem")).unwrap();
    fs::remove_file(dir.join("root.pem")).unwrap();
    assert!(matches!(init(&dir, &permitted), Err(Error::RootMissing { .. })));
    fs::remove_file(dir.join("intermediate.pem")).unwrap();
    init(&dir, &permitted).unwrap();
    assert_eq!(key, fs::read(dir.join("root/root-key.pem")).unwrap());
    Authority::load(&dir).unwrap();
}

/// Each way in which the files can be bad gives an error of its own.
#[test]
fn bad_files_are_told_apart() {
    type Break = fn(&Path);
    type Check = fn(&Error) -> bool;
    let cases: [(&str, Break, Check); 12] = [
        (
            "no directory",
            |d| fs::remove_dir_all(d).unwrap(),
            |e| matches!(e, Error::Missing { .. }),
        ),
        (
            "no key",
            |d| fs::remove_file(d.join("intermediate-key.pem")).unwrap(),
            |e| matches!(e, Error::Io { action: "read", .. }),
        ),
        (
            "garbage certificate",
            |d| fs::write(d.join("intermediate.pem"), b"\xff\x00 nothing").unwrap(),
            |e| matches!(e, Error::NotAChain { .. }),
        ),
        (
            "PEM around garbage",
            |d| {
                let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                fs::write(d.join("root.pem"), pem).unwrap();
            },
            |e| matches!(e, Error::NotACertificate { path } if path.ends_with("root.pem")),
        ),
        (
            "two certificates",
            |d| {
                let pem = fs::read_to_string(d.join("root.pem")).unwrap();
                fs::write(d.join("root.pem"), pem.repeat(2)).unwrap();
            },
            |e| matches!(e, Error::NotACertificate { .. }),
        ),
        (
            "huge file",
            |d| fs::write(d.join("root.pem"), vec![b'\n'; 70_000]).unwrap(),
            |e| matches!(e, Error::Io { source, .. } if source.to_string().contains("64 KiB")),
        ),
        (
            "garbage key",
            |d| fs::write(d.join("intermediate-key.pem"), "no key").unwrap(),
            |e| matches!(e, Error::NotAKey { .. }),
        ),
        (
            "readable key",
            |d| {
                let open = fs::Permissions::from_mode(0o640);
                fs::set_permissions(d.join("intermediate-key.pem"), open).unwrap();
            },
            |e| matches!(e, Error::KeyMode { mode: 0o640, .. }),
        ),
        (
            "another key",
            |d| {
                let key = CaKey::generate().unwrap().to_pem();
                fs::write(d.join("intermediate-key.pem"), key.as_bytes()).unwrap();
            },
            |e| matches!(e, Error::KeyMismatch { .. }),
        ),
        (
            "leaf instead of the intermediate",
            |d| {
                let authority = Authority::load(d).unwrap();
                let key = CaKey::generate().unwrap();
                let leaf =
                    authority
                        .mint()
                        .sign(&host("example.com"), &key, now(), now() + Duration::hours(1));
                fs::write(d.join("intermediate.pem"), certificate_pem(&leaf.unwrap())).unwrap();
            },
            |e| matches!(e, Error::NotACa { .. }),
        ),
        (
            "root instead of the intermediate",
            |d| {
                fs::copy(d.join("root.pem"), d.join("intermediate.pem")).unwrap();
            },
            |e| matches!(e, Error::PathLength { .. }),
        ),
        (
            "another root",
            |d| {
                let other = Authority::ephemeral(&names(&["example.com"])).unwrap();
                fs::write(d.join("root.pem"), other.root_pem()).unwrap();
            },
            |e| matches!(e, Error::NotIssuedByRoot { .. }),
        ),
    ];
    for (what, break_it, check) in cases {
        let (_temp, dir) = ca_dir(&["example.com"]);
        break_it(&dir);
        let error = Authority::load(&dir).unwrap_err();
        assert!(check(&error), "{what}: {error:?}");
    }
    let (_temp, dir) = ca_dir(&["example.com"]);
    let at = |at| Authority::load_at(&dir, at).unwrap_err();
    assert!(
        matches!(at(now() + Duration::days(31)), Error::Expired { path, .. } if path.ends_with("intermediate.pem"))
    );
    assert!(matches!(at(now() - Duration::days(3)), Error::NotYetValid { .. }));
}

#[test]
fn a_root_of_the_same_name_but_another_key_is_found_out() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let issuer = |der: &CertificateDer<'_>| {
        rcgen::Issuer::from_ca_cert_der(&der.clone().into_owned(), CaKey::generate().unwrap()).unwrap()
    };
    let authority = Authority::load(&dir).unwrap();
    // Same subject as the real root, another key: signs an intermediate that names the real root.
    let forged = issuer(authority.root_der());
    let trees = super::subtree::Subtrees::parse(&names(&["example.com"])).unwrap();
    let (der, key) =
        super::authority::new_intermediate(now(), now() + Duration::days(1), &trees, &forged).unwrap();
    fs::write(dir.join("intermediate.pem"), certificate_pem(&der)).unwrap();
    fs::write(dir.join("intermediate-key.pem"), key.to_pem().as_bytes()).unwrap();
    let error = Authority::load(&dir).unwrap_err();
    assert!(matches!(error, Error::NotIssuedByRoot { .. }), "{error:?}");
    // Without constraints it is refused before anything else is looked at.
    let none = super::subtree::Subtrees::default();
    let (der, _) =
        super::authority::new_intermediate(now(), now() + Duration::days(1), &none, &forged).unwrap();
    fs::write(dir.join("intermediate.pem"), certificate_pem(&der)).unwrap();
    assert!(matches!(Authority::load(&dir), Err(Error::Unconstrained { .. })));
}

#[test]
fn a_directory_open_to_others_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let error = init(temp.path(), &names(&["example.com"])).unwrap_err();
    assert!(
        matches!(error, Error::DirectoryMode { mode: 0o777, .. }),
        "{error}"
    );
}

#[test]
fn show_tells_what_openssl_tells() {
    let (_temp, dir) = ca_dir(&["example.com"]);
    let shown = show(&dir).unwrap();
    assert!(shown.root_key_on_node && shown.problem.is_none(), "{shown:?}");
    assert_eq!(shown.intermediate.issuer, shown.root.subject);
    assert_eq!(shown.intermediate.permitted, ["example.com"]);
    let path = dir.join("intermediate.pem");
    let args = [
        "x509",
        "-noout",
        "-serial",
        "-fingerprint",
        "-sha256",
        "-in",
        path.to_str().unwrap(),
    ];
    let text = openssl(&args).1.replace(':', "").to_lowercase();
    assert!(
        text.contains(&format!("serial={}\n", shown.intermediate.serial)),
        "{text}"
    );
    assert!(text.contains(&shown.intermediate.sha256), "{text}");
    fs::remove_dir_all(dir.join("root")).unwrap();
    fs::set_permissions(
        dir.join("intermediate-key.pem"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let shown = show(&dir).unwrap();
    assert!(!shown.root_key_on_node);
    assert!(shown.problem.unwrap().contains("chmod 0600"));
    let json = serde_json::to_value(show(&dir).unwrap()).unwrap();
    assert_eq!(json["intermediate"]["permitted"][0], "example.com");
    assert!(matches!(
        show(Path::new("/nonexistent/ca")),
        Err(Error::Missing { .. })
    ));
}

fn leaves_root(leaves: &Leaves) -> CertificateDer<'static> {
    leaves.authority().root_der().clone()
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(walk(&path));
        }
        all.push(path);
    }
    all.sort();
    all
}

fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    walk(dir)
        .into_iter()
        .filter(|p| p.is_file())
        .map(|p| (p.clone(), fs::read(p).unwrap()))
        .collect()
}

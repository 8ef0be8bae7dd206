//! Stores of several distributions in fake roots, and OpenSSL's opinion on the copies.

use std::collections::HashMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};
use tempfile::TempDir;

use super::*;
use crate::ca::Authority;

/// A root file system with a working directory beside it.
struct Fake {
    temp: TempDir,
    ca: Authority,
    env: HashMap<&'static str, OsString>,
}

impl Fake {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("root")).unwrap();
        Self {
            temp,
            ca: Authority::ephemeral(&["example.com".into()]).unwrap(),
            env: HashMap::new(),
        }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.temp.path().join("root").join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn link(&self, target: &str, path: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn prepare(&self) -> Result<Trust, Error> {
        let out = self.temp.path().join("out");
        let get = |name: &str| self.env.get(name).cloned();
        prepare(&out, &self.anchors(), &get, &self.root(), &Extra::default())
    }

    fn anchors(&self) -> Anchors {
        Anchors::from_pem(self.ca.root_pem()).unwrap()
    }

    fn root(&self) -> Root {
        Root::open(&self.temp.path().join("root")).unwrap()
    }

    /// Asserts that `file` holds `own` and the CA, and can be read but not written by all.
    fn assert_merged(&self, file: impl AsRef<Path>, own: &str) {
        let file = file.as_ref();
        let text = fs::read_to_string(file).unwrap();
        assert!(
            text.contains(own.trim()),
            "{} lost its own certificates",
            file.display()
        );
        assert_eq!(
            text.matches(self.ca.root_pem().trim()).count(),
            1,
            "{}",
            file.display()
        );
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o444);
        assert!(!text.contains("----------BEGIN"), "two PEM blocks run together");
    }

    /// What OpenSSL looks up for the CA in a directory.
    fn assert_hashed(&self, dir: &Path, number: u32) {
        let hash = openssl_hash(self.ca.root_pem());
        let text = fs::read_to_string(dir.join(format!("{hash}.{number}"))).unwrap();
        assert_eq!(text.trim(), self.ca.root_pem().trim());
    }
}

fn value<'a>(trust: &'a Trust, name: &str) -> &'a Path {
    let mut values = trust.env.iter().filter(|(n, _)| n == name);
    let value = values.next().unwrap_or_else(|| panic!("{name} is not set"));
    assert!(values.next().is_none(), "{name} is set twice");
    Path::new(&value.1)
}

fn target<'a>(trust: &'a Trust, target: &str) -> &'a Path {
    let mount = trust.mounts.iter().find(|m| m.target == Path::new(target));
    &mount
        .unwrap_or_else(|| panic!("{target} is not among {:?}", trust.mounts))
        .source
}

fn certificate(dn: DistinguishedName) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = dn;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

fn named(name: &str) -> String {
    let mut dn = DistinguishedName::new();
    dn.push(DnType::CommonName, name);
    certificate(dn)
}

fn openssl(args: &[&str]) -> (bool, String) {
    let mut command = Command::new("openssl");
    command.args(args).env_clear().env("PATH", "/usr/bin:/bin");
    let out = command.output().expect("openssl is needed by these tests");
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8_lossy(&text).into_owned())
}

fn openssl_hash(pem: &str) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), pem).unwrap();
    let (ok, text) = openssl(&["x509", "-noout", "-hash", "-in", file.path().to_str().unwrap()]);
    assert!(ok, "{text}");
    text.trim().to_owned()
}

fn hash_of(pem: &str) -> Result<String, Error> {
    let anchors = Anchors::from_pem(pem)?;
    Ok(anchors.iter().next().unwrap().subject_hash().to_owned())
}

#[test]
fn the_hash_is_that_of_openssl() {
    let dn = |values: &[(DnType, DnValue)]| {
        let mut dn = DistinguishedName::new();
        for (kind, value) in values {
            dn.push(kind.clone(), value.clone());
        }
        dn
    };
    let utf8 = |text: &str| DnValue::Utf8String(text.into());
    let printable = |text: &str| DnValue::PrintableString(PrintableString::try_from(text).unwrap());
    let ia5 = |text: &str| DnValue::Ia5String(Ia5String::try_from(text).unwrap());
    for dn in [
        dn(&[(DnType::CommonName, utf8("tv-agent root 0123abcd"))]),
        dn(&[(DnType::CommonName, utf8("  Mixed   CASE \t and Spaces  "))]),
        dn(&[(DnType::CommonName, utf8("Prüfstelle ÄÖÜ 証明書"))]),
        dn(&[
            (DnType::CountryName, printable("DE")),
            (DnType::OrganizationName, printable("Example  Corp.")),
            (DnType::CommonName, ia5("Example Root CA")),
        ]),
        // Longer than 127 and than 255 bytes: other forms of the DER length.
        dn(&[(DnType::CommonName, utf8(&"a b".repeat(50)))]),
        dn(&[(DnType::OrganizationName, utf8(&"X".repeat(300)))]),
    ] {
        let pem = certificate(dn.clone());
        assert_eq!(hash_of(&pem).unwrap(), openssl_hash(&pem), "{dn:?}");
    }
    let authority = Authority::ephemeral(&["example.com".into()]).unwrap();
    let pem = authority.root_pem();
    assert_eq!(hash_of(pem).unwrap(), openssl_hash(pem));
    let nameless = certificate(DistinguishedName::new());
    let leaf = {
        let params = CertificateParams::new(["example.com".to_owned()]).unwrap();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
    };
    for unusable in ["no PEM", "", &nameless, &leaf, &format!("{pem}{leaf}")] {
        assert!(matches!(hash_of(unusable), Err(Error::Ca)), "{unusable:?}");
    }
}

#[test]
fn debian_gets_its_directory_with_bundle_links_and_hash() {
    let fake = Fake::new();
    let own = named("Own");
    fake.put("usr/share/ca-certificates/own.crt", &own);
    fake.link("/usr/share/ca-certificates/own.crt", "etc/ssl/certs/Own.pem");
    fake.link("Own.pem", "etc/ssl/certs/01234567.0");
    fake.link("/nowhere", "etc/ssl/certs/dangling.pem");
    fake.put("etc/ssl/certs/ca-certificates.crt", own.trim_end());
    fake.put("etc/ssl/certs/java/cacerts", "JKS");
    let trust = fake.prepare().unwrap();
    assert_eq!(
        trust.mounts.len(),
        1,
        "the bundle lies in the directory: {:?}",
        trust.mounts
    );
    let dir = target(&trust, "/etc/ssl/certs");
    fake.assert_merged(dir.join("ca-certificates.crt"), &own);
    fake.assert_hashed(dir, 0);
    assert_eq!(fs::read_to_string(dir.join("Own.pem")).unwrap(), own);
    assert_eq!(
        fs::read_link(dir.join("01234567.0")).unwrap(),
        Path::new("Own.pem")
    );
    assert_eq!(fs::read(dir.join("java/cacerts")).unwrap(), b"JKS");
    assert!(dir.join("dangling.pem").symlink_metadata().is_err());
    for name in [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "PIP_CERT",
        "GIT_SSL_CAINFO",
        "CARGO_HTTP_CAINFO",
    ] {
        fake.assert_merged(value(&trust, name), &own);
    }
    for name in ["NODE_EXTRA_CA_CERTS", "DENO_CERT"] {
        assert_eq!(
            fs::read_to_string(value(&trust, name)).unwrap(),
            fake.ca.root_pem()
        );
    }
    assert!(!trust.env.iter().any(|(name, _)| name == "SSL_CERT_DIR"));
    assert_eq!(trust.env.len(), 13);
}

#[test]
fn rhel_gets_its_directory_and_the_file_that_its_links_lead_to() {
    let fake = Fake::new();
    let own = named("Own");
    fake.put("etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", &own);
    fake.link(
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "etc/pki/tls/certs/ca-bundle.crt",
    );
    fake.link("../pki/tls/certs", "etc/ssl/certs");
    fake.link("certs/ca-bundle.crt", "etc/pki/tls/cert.pem");
    let trust = fake.prepare().unwrap();
    assert_eq!(trust.mounts.len(), 2, "{:?}", trust.mounts);
    assert!(trust.mounts[0].source.is_dir(), "directories first");
    fake.assert_merged(target(&trust, "/etc/pki/tls/certs").join("ca-bundle.crt"), &own);
    fake.assert_merged(
        target(&trust, "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),
        &own,
    );
}

#[test]
fn alpine_and_suse_get_their_files() {
    let fake = Fake::new();
    let own = named("Own");
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.link("certs/ca-certificates.crt", "etc/ssl/cert.pem");
    let trust = fake.prepare().unwrap();
    assert_eq!(
        trust.mounts.len(),
        1,
        "cert.pem leads into the directory: {:?}",
        trust.mounts
    );

    let fake = Fake::new();
    fake.put("var/lib/ca-certificates/ca-bundle.pem", &own);
    fake.link("/var/lib/ca-certificates/ca-bundle.pem", "etc/ssl/ca-bundle.pem");
    fake.put(
        "var/lib/ca-certificates/pem/own.pem",
        own.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
    );
    fake.link("/var/lib/ca-certificates/pem", "etc/ssl/certs");
    let trust = fake.prepare().unwrap();
    fake.assert_merged(target(&trust, "/var/lib/ca-certificates/ca-bundle.pem"), &own);
    fake.assert_hashed(target(&trust, "/var/lib/ca-certificates/pem"), 0);
}

#[test]
fn a_directory_without_bundle_makes_one_and_a_taken_hash_is_passed_over() {
    let fake = Fake::new();
    let own = named("Own");
    let hash = openssl_hash(fake.ca.root_pem());
    fake.put("etc/ssl/certs/own.pem", own.trim_end());
    fake.link("own.pem", &format!("etc/ssl/certs/{hash}.0"));
    // A link that leads nowhere is not copied, so its number is free; the taken one is not.
    let trust = fake.prepare().unwrap();
    let dir = target(&trust, "/etc/ssl/certs");
    fake.assert_hashed(dir, 1);
    fake.assert_merged(value(&trust, "SSL_CERT_FILE"), &own);
}

#[test]
fn openssl_trusts_the_copies_of_this_system_and_still_what_it_trusted() {
    if !Path::new("/etc/ssl/certs/ca-certificates.crt").exists() {
        eprintln!("skipped: this system has no /etc/ssl/certs/ca-certificates.crt");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let ca = Authority::ephemeral(&["example.com".into()]).unwrap();
    let trust = prepare(
        &temp.path().join("trust"),
        &Anchors::from_pem(ca.root_pem()).unwrap(),
        &|_| None,
        &Root::open(Path::new("/")).unwrap(),
        &Extra::default(),
    )
    .unwrap();
    let dir = target(&trust, "/etc/ssl/certs").to_str().unwrap().to_owned();
    let bundle = value(&trust, "SSL_CERT_FILE").to_str().unwrap().to_owned();
    let root = temp.path().join("root.pem");
    fs::write(&root, ca.root_pem()).unwrap();
    let hashed = |dir: &str| {
        let mut all: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        all.retain(|p| p.extension().is_some_and(|e| e == "0"));
        all
    };
    let own = hashed("/etc/ssl/certs").into_iter().next().unwrap();
    for certificate in [root.to_str().unwrap(), own.to_str().unwrap()] {
        for store in [
            ["-no-CAfile", "-CApath", &dir],
            ["-no-CApath", "-CAfile", &bundle],
        ] {
            let args = [&["verify", "-no_check_time"], &store[..], &[certificate]].concat();
            let (ok, text) = openssl(&args);
            assert!(ok, "{args:?}: {text}");
        }
    }
    assert_eq!(hashed(&dir).len(), hashed("/etc/ssl/certs").len() + 1);
}

#[test]
fn what_the_caller_has_set_is_merged_and_runtimes_that_fall_back_follow() {
    let mut fake = Fake::new();
    let (own, corporate, node) = (named("Own"), named("Corporate"), named("Node"));
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.put("opt/corporate.pem", &corporate);
    fake.put("opt/node.pem", &node);
    fake.put("opt/dir/a.pem", &corporate);
    fake.env.insert("SSL_CERT_FILE", "/opt/corporate.pem".into());
    fake.env.insert("PIP_CERT", "".into());
    fake.env
        .insert("GIT_SSL_CAINFO", "/etc/ssl/certs/ca-certificates.crt".into());
    fake.env.insert("NODE_EXTRA_CA_CERTS", "/opt/node.pem".into());
    fake.env
        .insert("SSL_CERT_DIR", "/opt/dir:/missing:/etc/ssl/certs".into());
    fake.env.insert("AWS_CA_BUNDLE", "/opt/dir".into());
    let trust = fake.prepare().unwrap();
    for name in [
        "SSL_CERT_FILE",
        "CURL_CA_BUNDLE",
        "NIX_SSL_CERT_FILE",
        "CARGO_HTTP_CAINFO",
    ] {
        fake.assert_merged(value(&trust, name), &corporate);
        assert!(
            !fs::read_to_string(value(&trust, name))
                .unwrap()
                .contains(own.trim()),
            "{name} was widened"
        );
    }
    // Not these: they do not read SSL_CERT_FILE, and would lose the public roots.
    for name in [
        "GIT_SSL_CAINFO",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "REQUESTS_CA_BUNDLE",
        "PIP_CERT",
    ] {
        fake.assert_merged(value(&trust, name), &own);
    }
    fake.assert_merged(value(&trust, "NODE_EXTRA_CA_CERTS"), &node);
    let dirs: Vec<_> = std::env::split_paths(value(&trust, "SSL_CERT_DIR")).collect();
    assert_eq!(dirs.len(), 2, "{dirs:?}");
    for dir in dirs
        .iter()
        .map(PathBuf::as_path)
        .chain([value(&trust, "AWS_CA_BUNDLE")])
    {
        fake.assert_hashed(dir, 0);
    }
    assert_eq!(fs::read_to_string(dirs[0].join("a.pem")).unwrap(), corporate);
    assert_eq!(
        fs::read_to_string(fake.path("opt/corporate.pem")).unwrap(),
        corporate,
        "the original is left"
    );
}

#[test]
fn python_clients_follow_the_variables_that_they_fall_back_to() {
    let mut fake = Fake::new();
    let (own, corporate) = (named("Own"), named("Corporate"));
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.put("opt/corporate.pem", &corporate);
    fake.env.insert("CURL_CA_BUNDLE", "/opt/corporate.pem".into());
    let trust = fake.prepare().unwrap();
    for name in ["CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT"] {
        fake.assert_merged(value(&trust, name), &corporate);
    }
    for name in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        fake.assert_merged(value(&trust, name), &own);
    }
}

#[test]
fn a_system_without_store_takes_what_ssl_cert_file_names_or_the_public_roots() {
    let mut fake = Fake::new();
    fs::create_dir_all(fake.path("etc/ssl/certs")).unwrap();
    let trust = fake.prepare().unwrap();
    let text = fs::read_to_string(value(&trust, "SSL_CERT_FILE")).unwrap();
    assert!(text.matches("BEGIN CERTIFICATE").count() > 100 && text.contains(fake.ca.root_pem().trim()));
    let mounted = target(&trust, "/etc/ssl/certs").join("ca-certificates.crt");
    assert_eq!(fs::read_to_string(mounted).unwrap(), text);
    fs::remove_dir_all(fake.temp.path().join("out")).unwrap();
    let own = named("Own");
    fake.put("opt/own.pem", &own);
    fake.env.insert("SSL_CERT_FILE", "/opt/own.pem".into());
    fake.env.insert("SSL_CERT_DIR", "/missing".into());
    let trust = fake.prepare().unwrap();
    fake.assert_merged(value(&trust, "SSL_CERT_FILE"), &own);
    fake.assert_merged(value(&trust, "GIT_SSL_CAINFO"), &own);
    fake.assert_hashed(value(&trust, "SSL_CERT_DIR"), 0);
}

#[test]
fn bad_stores_are_told() {
    type Break = fn(&mut Fake);
    type Check = fn(&Error) -> bool;
    let cases: [(&str, Break, Check); 8] = [
        (
            "empty bundle",
            |f| f.put("etc/ssl/cert.pem", "# nothing\n"),
            |e| matches!(e, Error::Empty { path } if path == Path::new("/etc/ssl/cert.pem")),
        ),
        (
            "huge bundle",
            |f| {
                f.put("etc/ssl/cert.pem", "");
                let file = fs::File::options()
                    .write(true)
                    .open(f.path("etc/ssl/cert.pem"))
                    .unwrap();
                file.set_len(limits::TRUST_FILE_BYTES + 1).unwrap();
            },
            |e| matches!(e, Error::TooLarge { .. }),
        ),
        (
            "too much in all",
            |f| {
                for n in 0..=limits::TRUST_BYTES / limits::TRUST_FILE_BYTES {
                    let name = format!("etc/ssl/certs/{n}");
                    f.put(&name, "");
                    let file = fs::File::options().write(true).open(f.path(&name)).unwrap();
                    file.set_len(limits::TRUST_FILE_BYTES).unwrap();
                }
            },
            |e| matches!(e, Error::TooMuch { .. }),
        ),
        (
            "directory for a bundle",
            |f| fs::create_dir_all(f.path("etc/ssl/cert.pem")).unwrap(),
            |e| matches!(e, Error::Kind { .. }),
        ),
        (
            "too many entries",
            |f| {
                for n in 0..limits::TRUST_ENTRIES {
                    f.link("ca-certificates.crt", &format!("etc/ssl/certs/{n}"));
                }
            },
            |e| matches!(e, Error::TooManyEntries { path } if path == Path::new("/etc/ssl/certs")),
        ),
        (
            "variable that names nothing",
            |f| drop(f.env.insert("PIP_CERT", "/missing.pem".into())),
            |e| matches!(e, Error::Variable { name: "PIP_CERT", source } if matches!(**source, Error::Read { .. })),
        ),
        (
            "variable that names an empty file",
            |f| {
                f.put("opt/empty.pem", "");
                f.env.insert("DENO_CERT", "/opt/empty.pem".into());
            },
            |e| matches!(e, Error::Variable { name: "DENO_CERT", source } if matches!(**source, Error::Empty { .. })),
        ),
        (
            "variable that names a pipe",
            |f| {
                nix::unistd::mkfifo(&f.path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
                f.env.insert("SSL_CERT_FILE", "/pipe".into());
            },
            |e| matches!(e, Error::Variable { source, .. } if matches!(**source, Error::Kind { .. })),
        ),
    ];
    for (what, break_it, check) in cases {
        let mut fake = Fake::new();
        fake.put("etc/ssl/certs/ca-certificates.crt", named("Own"));
        break_it(&mut fake);
        let error = fake.prepare().unwrap_err();
        assert!(check(&error), "{what}: {error:?}");
    }
    let fake = Fake::new();
    fs::create_dir(fake.temp.path().join("out")).unwrap();
    let error = fake.prepare().unwrap_err();
    assert!(
        matches!(error, Error::Write { .. }),
        "a used directory: {error:?}"
    );
}

#[test]
fn copies_stay_inside_the_root_and_private_files_private() {
    let fake = Fake::new();
    let own = named("Own");
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.put("etc/ssl/certs/server.key", "key");
    let private = fs::Permissions::from_mode(0o640);
    fs::set_permissions(fake.path("etc/ssl/certs/server.key"), private).unwrap();
    // Both would lead out of the root if they were followed as usual.
    let outside = fake.temp.path().join("outside");
    fs::write(&outside, "outside").unwrap();
    fake.link(outside.to_str().unwrap(), "etc/ssl/certs/absolute.pem");
    fake.link("../../../../outside", "etc/ssl/certs/relative.pem");
    fake.link("/etc/ssl", "etc/ssl/certs/loop");
    nix::unistd::mkfifo(&fake.path("etc/ssl/certs/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let trust = fake.prepare().unwrap();
    let dir = target(&trust, "/etc/ssl/certs");
    let mode = fs::metadata(dir.join("server.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o440);
    for left_out in ["absolute.pem", "relative.pem", "pipe"] {
        assert!(dir.join(left_out).symlink_metadata().is_err(), "{left_out}");
    }
    assert_eq!(fs::read_link(dir.join("loop")).unwrap(), Path::new("/etc/ssl"));
    assert_eq!(fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o755);
}

/// A bundle may have a private key beside its certificates, and a key store does: what only some may read stays so,
/// wherever it is copied.
#[test]
fn a_store_that_not_everybody_may_read_has_a_copy_that_not_everybody_may_read() {
    let mut fake = Fake::new();
    let own = named("Own");
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.put("srv/combined.pem", &own);
    fake.put("srv/hashed/one.pem", &own);
    let only =
        |path: &str, mode| fs::set_permissions(fake.path(path), fs::Permissions::from_mode(mode)).unwrap();
    only("srv/combined.pem", 0o600);
    only("srv/hashed", 0o700);
    fake.env.insert("SSL_CERT_FILE", "/srv/combined.pem".into());
    fake.env.insert("SSL_CERT_DIR", "/srv/hashed".into());
    let trust = fake.prepare().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(value(&trust, "SSL_CERT_FILE")), 0o400);
    assert_eq!(mode(value(&trust, "SSL_CERT_DIR")), 0o700);
    // The system's own is for all.
    assert_eq!(
        mode(value(&trust, "CARGO_HTTP_CAINFO")),
        0o400,
        "it follows SSL_CERT_FILE"
    );
    assert_eq!(mode(target(&trust, "/etc/ssl/certs")), 0o755);
}

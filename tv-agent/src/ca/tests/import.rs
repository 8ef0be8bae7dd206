//! Foreign CAs: which are taken, and that a bad one changes nothing.

use std::os::unix::fs::symlink;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    NameConstraints, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    SignatureAlgorithm,
};

use super::super::init::{import_at, init_at};
use super::*;

/// A CA certificate with its key, as other tools make them.
struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pem: String,
}

/// What can be different about a CA.
type Change = fn(&mut CertificateParams);

const PLAIN: Change = |_| {};

fn params(name: &str, change: Change) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Acme");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now() - Duration::days(2);
    params.not_after = now() + Duration::days(1000);
    change(&mut params);
    params
}

fn root_of(algorithm: &'static SignatureAlgorithm, change: Change) -> Ca {
    let key = KeyPair::generate_for(algorithm).unwrap();
    let params = params("Acme Root", change);
    let pem = params.self_signed(&key).unwrap().pem();
    Ca { params, key, pem }
}

fn root() -> Ca {
    root_of(&PKCS_ECDSA_P256_SHA256, PLAIN)
}

impl Ca {
    fn issue(&self, change: Change) -> Ca {
        let key = KeyPair::generate().unwrap();
        let params = params("Acme Issuing", change);
        let issuer = Issuer::from_params(&self.params, &self.key);
        let pem = params.signed_by(&key, &issuer).unwrap().pem();
        Ca { params, key, pem }
    }
}

/// A directory as Kubernetes mounts a secret: the names are links into a directory that is swapped.
fn secret_at(dir: &Path, certificates: &str, key: &str, root: Option<&str>) -> Source {
    let (data, link) = (dir.join("..2026_01"), dir.join("..data"));
    fs::create_dir_all(&data).unwrap();
    symlink("..2026_01", &link).unwrap();
    for (name, text) in [
        ("tls.crt", Some(certificates)),
        ("tls.key", Some(key)),
        ("ca.crt", root),
    ] {
        let Some(text) = text else { continue };
        let path = data.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
    }
    Source::directory(dir).unwrap()
}

struct Case {
    temp: TempDir,
    dir: PathBuf,
    source: Source,
}

fn case(certificates: &str, key: &KeyPair, root: Option<&str>) -> Case {
    let temp = tempfile::tempdir().unwrap();
    let source = secret_at(
        &temp.path().join("secret"),
        certificates,
        &key.serialize_pem(),
        root,
    );
    let dir = temp.path().join("ca");
    Case { temp, dir, source }
}

impl Case {
    fn import(&self, permitted: &[&str]) -> Result<Initialised, Error> {
        import(&self.dir, &names(permitted), &self.source)
    }

    /// Imports, and proves that OpenSSL takes a leaf.
    fn works(&self) -> Authority {
        self.import(&["example.com"]).unwrap();
        let authority = Arc::new(Authority::load(&self.dir).unwrap());
        let leaves = Leaves::new(authority.clone(), any(), Metrics::new()).unwrap();
        let chain = leaves.get(&host("a.example.com")).unwrap().cert.clone();
        assert_eq!(chain[1..], *authority.chain());
        let (ok, text) = openssl_verify(&authority, &chain[0], "a.example.com");
        assert!(ok, "{text}");
        drop(leaves);
        Arc::into_inner(authority).unwrap()
    }
}

#[test]
fn a_self_signed_root_issues_and_its_key_stays_where_it_is() {
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256] {
        let ca = root_of(algorithm, PLAIN);
        let case = case(&ca.pem, &ca.key, None);
        let authority = case.works();
        assert_eq!(authority.chain().len(), 1);
        assert_eq!(authority.permitted(), ["example.com"]);
        let left = walk(&case.dir);
        let secret = ca.key.serialize_pem();
        assert!(
            left.iter()
                .filter(|p| p.is_file())
                .all(|p| fs::read_to_string(p).unwrap() != secret)
        );
        assert!(!case.dir.join("root").exists());
        let shown = show(&case.dir).unwrap();
        assert_eq!(shown.issuer_key.as_deref(), Some(&*case.source.key));
        assert!(!shown.root_key_on_node && shown.problem.is_none(), "{shown:?}");
        // A new route is no matter, as long as the key is there.
        renew(&case.dir, &names(&["example.com", "example.org"])).unwrap();
        assert_eq!(
            Authority::load(&case.dir).unwrap().permitted(),
            ["example.com", "example.org"]
        );
        fs::remove_file(&case.source.key).unwrap();
        let error = renew(&case.dir, &names(&["example.net"])).unwrap_err();
        assert!(
            matches!(&error, Error::RootKeyNeeded { path, .. } if *path == case.source.key),
            "{error}"
        );
    }
}

#[test]
fn pem_files_do_as_well() {
    let ca = root();
    let temp = tempfile::tempdir().unwrap();
    let (certificate, key) = (temp.path().join("root.crt"), temp.path().join("root.key"));
    fs::write(&certificate, &ca.pem).unwrap();
    fs::write(&key, ca.key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let dir = temp.path().join("ca");
    import(
        &dir,
        &names(&["example.com"]),
        &Source::files(&certificate, &key).unwrap(),
    )
    .unwrap();
    assert_eq!(
        Authority::load(&dir).unwrap().root_pem().trim(),
        ca.pem.replace("\r\n", "\n").trim()
    );
}

/// cert-manager's layout: the issuing CA (and those above it) in tls.crt, the root in ca.crt.
#[test]
fn a_ca_below_the_root_issues_and_is_sent_along() {
    let top = root();
    let issuing = top.issue(PLAIN);
    let case_ = case(&issuing.pem, &issuing.key, Some(&top.pem));
    let authority = case_.works();
    assert_eq!(authority.chain().len(), 2);
    let shown = show(&case_.dir).unwrap();
    assert_eq!(
        (shown.issuing.len(), &*shown.issuing[0].subject),
        (1, "O=Acme, CN=Acme Issuing")
    );
    // The root at the end of the chain, twice told, or two steps below.
    let chain = format!("{}{}", issuing.pem, top.pem);
    assert_eq!(case(&chain, &issuing.key, None).works().chain().len(), 2);
    assert_eq!(
        case(&chain, &issuing.key, Some(&top.pem)).works().chain().len(),
        2
    );
    let lower = issuing.issue(|p| {
        p.distinguished_name.push(DnType::CommonName, "Lower");
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    });
    let chain = format!("{}{}", lower.pem, issuing.pem);
    assert_eq!(case(&chain, &lower.key, Some(&top.pem)).works().chain().len(), 3);
}

fn constrained(params: &mut CertificateParams) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
        excluded_subtrees: Vec::new(),
    });
}

#[test]
fn a_constrained_ca_that_signs_leaves_only_is_the_intermediate_itself() {
    let top = root();
    let issuing = top.issue(constrained);
    let case = case(&issuing.pem, &issuing.key, Some(&top.pem));
    let authority = case.works();
    assert_eq!(authority.chain().len(), 1);
    let before = snapshot(&case.dir);
    renew(&case.dir, &names(&["example.com"])).unwrap();
    // Narrower routes make no difference: it is what it is.
    renew(&case.dir, &names(&["a.example.com"])).unwrap();
    assert_eq!(before, snapshot(&case.dir));
    // Its issuer renewed it when it was due: taken up.
    fn lasting(p: &mut CertificateParams, days: i64) {
        constrained(p);
        p.not_after = now() + Duration::days(days);
    }
    let ending = top.issue(|p| lasting(p, 5));
    let case = case_of(&ending, &top);
    case.import(&["example.com"]).unwrap();
    let kept = renew(&case.dir, &names(&["example.com"])).unwrap();
    assert!(kept.advice[0].contains("renew it"), "{:?}", kept.advice);
    let renewed = top.issue(|p| lasting(p, 50));
    replace(&case, &renewed, &top);
    let made = renew(&case.dir, &names(&["example.com"])).unwrap();
    assert!(matches!(made.intermediate, Outcome::Made { .. }), "{made:?}");
    assert!(Authority::load(&case.dir).unwrap().not_after() > now() + Duration::days(49));
}

fn case_of(ca: &Ca, root: &Ca) -> Case {
    case(&ca.pem, &ca.key, Some(&root.pem))
}

/// As the kubelet does it when a secret has changed.
fn replace(case: &Case, ca: &Ca, root: &Ca) {
    let secret = case.temp.path().join("secret");
    fs::remove_dir_all(secret.join("..2026_01")).unwrap();
    for name in ["..data", "tls.crt", "tls.key", "ca.crt"] {
        fs::remove_file(secret.join(name)).unwrap();
    }
    secret_at(&secret, &ca.pem, &ca.key.serialize_pem(), Some(&root.pem));
}

/// A CA that cert-manager renewed under the same root: the next intermediate comes from it.
#[test]
fn a_renewed_issuing_ca_is_taken_up_and_a_worn_one_is_told() {
    let top = root();
    let short: Change = |p| p.not_after = now() + Duration::days(5);
    let issuing = top.issue(short);
    let case = case(&issuing.pem, &issuing.key, Some(&top.pem));
    case.import(&["example.com"]).unwrap();
    let before = snapshot(&case.dir);
    let kept = renew(&case.dir, &names(&["example.com"])).unwrap();
    assert_eq!(kept.intermediate, Outcome::Kept);
    assert!(kept.advice[0].contains("renew it"), "{:?}", kept.advice);
    assert_eq!(before, snapshot(&case.dir), "not issued again and again");
    let renewed = top.issue(PLAIN);
    replace(&case, &renewed, &top);
    let made = renew(&case.dir, &names(&["example.com"])).unwrap();
    assert!(matches!(made.intermediate, Outcome::Made { .. }), "{made:?}");
    let authority = Authority::load(&case.dir).unwrap();
    assert!(authority.not_after() > now() + Duration::days(29));
    // Another root in the same place is no renewal.
    let other = root();
    replace(&case, &other, &other);
    let error = renew(&case.dir, &names(&["example.com", "example.org"])).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    assert_eq!(
        Authority::load(&case.dir).unwrap().root_pem(),
        authority.root_pem()
    );
}

/// Each bad source has an error of its own, and leaves no CA behind, nor changes one.
#[test]
fn bad_sources_change_nothing() {
    let (top, other) = (root(), root());
    let issuing = top.issue(PLAIN);
    let bad = |what: &str, case: &Case, check: fn(&Error) -> bool| {
        let error = case.import(&["example.com"]).unwrap_err();
        assert!(check(&error), "{what}: {error:?}");
        assert!(!case.dir.exists(), "{what}");
        assert!(error.to_string().len() > 20, "{what}: {error}");
        // Beside a CA that is there already, too.
        init(&case.dir, &names(&["example.com"])).unwrap();
        let before = snapshot(&case.dir);
        case.import(&["example.com"]).unwrap_err();
        assert_eq!(before, snapshot(&case.dir), "{what}");
    };
    let changed = |change: Change| {
        let ca = root_of(&PKCS_ECDSA_P256_SHA256, change);
        case(&ca.pem, &ca.key, None)
    };
    let below = |change: Change| {
        let ca = top.issue(change);
        case(&ca.pem, &ca.key, Some(&top.pem))
    };
    bad("wrong key", &case(&top.pem, &other.key, None), |e| {
        matches!(e, Error::KeyMismatch { .. })
    });
    bad(
        "expired",
        &changed(|p| p.not_after = now() - Duration::days(1)),
        |e| matches!(e, Error::Expired { .. }),
    );
    bad(
        "not yet valid",
        &changed(|p| p.not_before = now() + Duration::days(1)),
        |e| matches!(e, Error::NotYetValid { .. }),
    );
    bad(
        "worn out",
        &changed(|p| p.not_after = now() + Duration::days(5)),
        |e| matches!(e, Error::RootWornOut { .. }),
    );
    bad("no CA", &changed(|p| p.is_ca = IsCa::ExplicitNoCa), |e| {
        matches!(e, Error::NotACa { .. })
    });
    bad(
        "no keyCertSign",
        &changed(|p| p.key_usages = vec![KeyUsagePurpose::CrlSign]),
        |e| matches!(e, Error::NotACa { .. }),
    );
    bad(
        "a root that may not issue CAs",
        &changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        |e| matches!(e, Error::CannotIssue { .. }),
    );
    bad(
        "leaves only and unbound",
        &below(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        |e| matches!(e, Error::CannotIssue { .. }),
    );
    bad(
        "constraints exclude a route",
        &changed(|p| {
            p.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
                excluded_subtrees: Vec::new(),
            });
        }),
        |e| matches!(e, Error::Excludes { subtree, .. } if subtree == "example.com"),
    );
    bad(
        "excluded below the root",
        &below(|p| {
            p.name_constraints = Some(NameConstraints {
                permitted_subtrees: Vec::new(),
                excluded_subtrees: vec![GeneralSubtree::DnsName("example.com".into())],
            });
        }),
        |e| matches!(e, Error::Excludes { .. }),
    );
    let tight = root_of(&PKCS_ECDSA_P256_SHA256, |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1))
    });
    let lower = tight.issue(PLAIN);
    bad(
        "the root allows one CA only",
        &case(&lower.pem, &lower.key, Some(&tight.pem)),
        |e| matches!(e, Error::TooDeep { .. }),
    );
    bad("no root", &case(&issuing.pem, &issuing.key, None), |e| {
        matches!(e, Error::NoRoot { .. })
    });
    bad(
        "a root that is none",
        &case(&issuing.pem, &issuing.key, Some(&issuing.pem)),
        |e| matches!(e, Error::NotSelfSigned { .. }),
    );
    bad(
        "another root of the same name",
        &case(&issuing.pem, &issuing.key, Some(&other.pem)),
        |e| matches!(e, Error::Unusable { .. }),
    );
    let stranger = root_of(&PKCS_ECDSA_P256_SHA256, |p| {
        p.distinguished_name.push(DnType::CommonName, "Stranger")
    });
    bad(
        "two certificates that have nothing to do with each other",
        &case(&format!("{}{}", top.pem, stranger.pem), &top.key, None),
        |e| matches!(e, Error::BrokenChain { .. }),
    );
    bad(
        "two roots",
        &case(&issuing.pem, &issuing.key, Some(&top.pem.repeat(2))),
        |e| matches!(e, Error::NotACertificate { .. }),
    );
    bad(
        "a chain without end",
        &case(&top.pem.repeat(limits::CA_CHAIN + 1), &top.key, None),
        |e| matches!(e, Error::NotAChain { .. }),
    );
    let odd = root_of(&PKCS_ED25519, PLAIN);
    bad("Ed25519", &case(&odd.pem, &odd.key, None), |e| {
        matches!(e, Error::KeyKind { .. })
    });
}

#[test]
fn bad_key_files_change_nothing() {
    let ca = root();
    let pem = ca.key.serialize_pem();
    let with_key = |text: &str, mode: u32| {
        let case = case(&ca.pem, &ca.key, None);
        let path = case.temp.path().join("secret/..data/tls.key");
        fs::remove_file(&path).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = case.import(&["example.com"]).unwrap_err();
        assert!(!case.dir.exists(), "{error}");
        error
    };
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.pem");
    fs::write(&plain, &pem).unwrap();
    let plain = plain.to_str().unwrap();
    let (ok, pkcs8) = openssl(&[
        "pkcs8",
        "-topk8",
        "-v2",
        "aes-256-cbc",
        "-passout",
        "pass:x",
        "-in",
        plain,
    ]);
    assert!(ok && pkcs8.contains("ENCRYPTED"), "{pkcs8}");
    let (ok, old) = openssl(&["ec", "-aes128", "-passout", "pass:x", "-in", plain]);
    let old = &old[old.find("-----BEGIN").unwrap()..];
    assert!(ok && old.contains("ENCRYPTED"), "{old}");
    assert!(matches!(with_key(&pkcs8, 0o400), Error::KeyEncrypted { .. }));
    assert!(matches!(with_key(old, 0o400), Error::KeyEncrypted { .. }));
    assert!(matches!(with_key("", 0o400), Error::NotAKey { .. }));
    assert!(matches!(with_key(&ca.pem, 0o400), Error::NotAKey { .. }));
    assert!(matches!(
        with_key(&pem, 0o444),
        Error::KeyMode { mode: 0o444, .. }
    ));
    let huge = with_key(&"\n".repeat(70_000), 0o400);
    assert!(
        matches!(&huge, Error::Io { source, .. } if source.to_string().contains("64 KiB")),
        "{huge}"
    );
    let temp = tempfile::tempdir().unwrap();
    let missing = Source::directory(&temp.path().join("none")).unwrap();
    let error = import(&temp.path().join("ca"), &names(&["example.com"]), &missing).unwrap_err();
    assert!(
        matches!(&error, Error::Io { path, .. } if path.ends_with("none/tls.crt")),
        "{error}"
    );
    // OpenSSL's own old form without a password is fine.
    let (_, sec1) = openssl(&["ec", "-in", plain]);
    let sec1 = &sec1[sec1.find("-----BEGIN").unwrap()..];
    let case = case(&ca.pem, &ca.key, None);
    let path = case.temp.path().join("secret/..data/tls.key");
    fs::remove_file(&path).unwrap();
    fs::write(&path, sec1).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    case.import(&["example.com"]).unwrap();
}

#[test]
fn short_rsa_keys_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (key, certificate) = (temp.path().join("tls.key"), temp.path().join("tls.crt"));
    let (ok, text) = openssl(&[
        "req",
        "-x509",
        "-newkey",
        "rsa:1024",
        "-nodes",
        "-subj",
        "/CN=Short",
        "-days",
        "100",
        "-addext",
        "keyUsage=critical,keyCertSign",
        "-keyout",
        key.to_str().unwrap(),
        "-out",
        certificate.to_str().unwrap(),
    ]);
    assert!(ok, "{text}");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let source = Source::directory(temp.path()).unwrap();
    let error = import(&temp.path().join("ca"), &names(&["example.com"]), &source).unwrap_err();
    assert!(
        matches!(&error, Error::KeyKind { kind, .. } if kind == "RSA of 1024 bits"),
        "{error}"
    );
}

#[test]
fn the_same_root_may_come_again_and_another_one_by_rotation_only() {
    let (ca, other) = (root(), root());
    let case_ = case(&ca.pem, &ca.key, None);
    case_.import(&["example.com"]).unwrap();
    let again = case_.import(&["example.com", "example.org"]).unwrap();
    assert_eq!(again.root, Outcome::Kept);
    let stranger = secret_at(
        &case_.temp.path().join("other"),
        &other.pem,
        &other.key.serialize_pem(),
        None,
    );
    let before = snapshot(&case_.dir);
    let error = import(&case_.dir, &names(&["example.com"]), &stranger).unwrap_err();
    assert!(matches!(error, Error::OtherRoot { .. }), "{error}");
    assert_eq!(before, snapshot(&case_.dir));
    // Killed before the root was written: `init` goes on with the import, not with a root of its own.
    fs::remove_file(case_.dir.join("root.pem")).unwrap();
    fs::remove_file(case_.dir.join("intermediate.pem")).unwrap();
    init_at(&case_.dir, &names(&["example.com"]), now()).unwrap();
    assert_eq!(
        fs::read_to_string(case_.dir.join("root.pem")).unwrap().trim(),
        ca.pem.replace("\r\n", "\n").trim()
    );
    let late = now() + Duration::days(999);
    let error = import_at(&case_.dir, &names(&["example.com"]), &case_.source, late).unwrap_err();
    assert!(matches!(error, Error::RootWornOut { .. }), "{error}");
}

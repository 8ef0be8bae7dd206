//! Copies of what a root holds, of what processes are known to use, and for a root that holds nothing.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

fn anchors() -> Anchors {
    let authority = crate::ca::Authority::ephemeral(&["example.com".to_owned()]).unwrap();
    Anchors::from_pem(authority.root_pem()).unwrap()
}

struct Fake(tempfile::TempDir, Anchors);

impl Fake {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("root")).unwrap();
        Self(temp, anchors())
    }

    fn put(&self, path: &str, bytes: &str) {
        let path = self.0.path().join("root").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn root(&self) -> Root {
        Root::open(&self.0.path().join("root")).unwrap()
    }

    fn copies(&self, extra: &Extra) -> Copies {
        copies(&self.0.path().join("out"), &self.1, &self.root(), extra).unwrap()
    }
}

fn source<'a>(copies: &'a Copies, target: &str) -> &'a Path {
    let mount = copies
        .mounts
        .iter()
        .find(|mount| mount.target == Path::new(target));
    &mount.unwrap_or_else(|| panic!("{target}: {copies:?}")).source
}

#[test]
fn one_store_that_cannot_be_read_does_not_spoil_the_others() {
    let fake = Fake::new();
    let own = anchors().pem();
    fake.put("etc/ssl/certs/ca-certificates.crt", &own);
    fake.put("etc/ssl/cert.pem", "# empty");
    fake.put("app/strange/place/cacert.pem", &own);
    fake.put("opt/jdk/lib/security/cacerts", "no key store");
    let extra = Extra {
        certifi: vec!["/app/strange/place/cacert.pem".into()],
        keystores: vec!["/app/gone/cacerts".into()],
    };
    let copies = fake.copies(&extra);
    let kinds = [StoreKind::Bundle, StoreKind::Directory, StoreKind::Certifi];
    assert_eq!(copies.kinds, BTreeSet::from(kinds));
    let merged = fs::read_to_string(source(&copies, "/app/strange/place/cacert.pem")).unwrap();
    assert!(merged.starts_with(&own) && merged.contains(&fake.1.pem()));
    assert!(
        source(&copies, "/etc/ssl/certs")
            .join("ca-certificates.crt")
            .is_file()
    );
    let unreached: Vec<_> = copies.unreached.iter().map(|one| one.path.as_path()).collect();
    assert_eq!(
        unreached,
        [
            Path::new("/etc/ssl/cert.pem"),
            Path::new("/opt/jdk/lib/security/cacerts")
        ]
    );
    assert_eq!(fs::read_to_string(&copies.ca_only).unwrap(), fake.1.pem());
    // What was copied is known again, until it changes.
    let same = |copies: &Copies| {
        let root = fake.root();
        copies
            .watched
            .iter()
            .all(|(path, digest)| root.digest(path).unwrap().as_ref() == Some(digest))
    };
    assert!(copies.watched.len() == 3 && same(&copies));
    fake.put("app/strange/place/cacert.pem", &anchors().pem());
    assert!(!same(&copies));
}

#[test]
fn a_root_without_any_store_gets_the_public_roots_where_a_mount_can_get() {
    for (there, target) in [
        ("etc/ssl/certs", Some("/etc/ssl/certs")),
        ("etc/ssl", Some("/etc/ssl")),
        ("etc", None),
    ] {
        let fake = Fake::new();
        fs::create_dir_all(fake.0.path().join("root").join(there)).unwrap();
        let copies = fake.copies(&Extra::default());
        let bundle = fs::read_to_string(copies.bundle.as_ref().unwrap()).unwrap();
        assert!(bundle.matches("BEGIN CERTIFICATE").count() > 100 && bundle.contains(&fake.1.pem()));
        match target {
            Some(target) => {
                let below = Path::new("/etc/ssl/certs").strip_prefix(target).unwrap();
                let mounted = source(&copies, target).join(below).join("ca-certificates.crt");
                assert_eq!(fs::read_to_string(mounted).unwrap(), bundle);
                assert!(copies.unreached.is_empty());
            }
            None => {
                assert!(copies.mounts.is_empty() && copies.kinds.is_empty());
                assert_eq!(copies.unreached.len(), 1);
            }
        }
    }
}

#[test]
fn the_root_of_a_process_is_a_root_like_any_other() {
    let root = Root::of_process(std::process::id()).unwrap();
    let found = root.find(Path::new("/proc/../etc")).unwrap().unwrap();
    assert_eq!(found.path, Path::new("/etc"));
    assert!(
        root.find(Path::new("/proc/self/root/etc")).unwrap().is_none(),
        "no magic link is followed"
    );
    let fake = Fake::new();
    fake.put("inside", "inside");
    symlink("../../../../inside", fake.0.path().join("root/link")).unwrap();
    let found = fake.root().find(Path::new("/link")).unwrap().unwrap();
    assert_eq!(
        (found.path.as_path(), &found.read().unwrap()[..]),
        (Path::new("/inside"), &b"inside"[..])
    );
    assert!(Root::of_process(u32::MAX).is_err());
}

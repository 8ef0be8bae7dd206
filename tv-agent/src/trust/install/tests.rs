//! Installing into fake roots of five distributions, being ended at every step, and being disturbed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};

use tempfile::TempDir;

use super::*;
use crate::ca::Authority;
use crate::limits;
use crate::trust::{Removed, uninstall};

/// Contents, mode, owner and time of everything below.
type Tree = BTreeMap<PathBuf, (String, u32, u32, i64, i64)>;

struct Fake(TempDir);

impl Fake {
    fn new() -> Self {
        // In memory where that can be: everything is synced, at each step.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() {
            memory.into()
        } else {
            std::env::temp_dir()
        };
        Self(tempfile::tempdir_in(directory).unwrap())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
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

    fn directory(&self, path: &str) {
        fs::create_dir_all(self.path(path)).unwrap();
    }

    fn text(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    fn root(&self) -> Root {
        Root::open(self.0.path()).unwrap()
    }

    fn install(&self, anchors: &Anchors) -> Result<Installed, Error> {
        install(&self.root(), anchors, &Extra::default())
    }

    fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        walk(self.0.path(), &mut tree);
        tree
    }

    fn debian() -> Self {
        let fake = Self::new();
        fake.directory("var/lib/tv-agent");
        fake.put("etc/ssl/certs/ca-certificates.crt", pem("Own"));
        fake.put("usr/share/ca-certificates/own.crt", pem("Own"));
        fake.link("/usr/share/ca-certificates/own.crt", "etc/ssl/certs/own.pem");
        fake.link("own.pem", "etc/ssl/certs/01234567.0");
        fake.directory("usr/local/share/ca-certificates");
        fake.link("/etc/ssl/certs/ca-certificates.crt", "usr/lib/ssl/cert.pem");
        fake.put(
            "usr/lib/python3.11/site-packages/certifi/cacert.pem",
            pem("Certifi"),
        );
        fake.put("opt/jdk/lib/security/cacerts", jks());
        fake.put("etc/ssl/certs/java/cacerts", jks());
        let secret = fs::Permissions::from_mode(0o640);
        fs::set_permissions(fake.path("opt/jdk/lib/security/cacerts"), secret).unwrap();
        fake
    }
}

fn walk(path: &Path, tree: &mut Tree) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let what = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else if metadata.is_file() {
            crate::trust::root::digest_of(&fs::read(&path).unwrap())
        } else {
            walk(&path, tree);
            String::new()
        };
        // Making and removing something changes a directory's time.
        let time = if metadata.is_dir() {
            (0, 0)
        } else {
            (metadata.mtime(), metadata.mtime_nsec())
        };
        let time = if metadata.is_symlink() { (0, 0) } else { time };
        tree.insert(path, (what, metadata.mode(), metadata.uid(), time.0, time.1));
    }
}

fn anchors() -> Anchors {
    Anchors::from_pem(&pem("root")).unwrap()
}

fn pem(name: &str) -> String {
    let authority =
        Authority::ephemeral(&[format!("{}.example.com", name.to_lowercase().replace(' ', "-"))]).unwrap();
    authority.root_pem().to_owned()
}

/// Without entries.
fn jks() -> Vec<u8> {
    use sha1::{Digest as _, Sha1};
    let mut store = [0xfeed_feed_u32, 2, 0].map(u32::to_be_bytes).concat();
    let password: Vec<u8> = "changeit".encode_utf16().flat_map(u16::to_be_bytes).collect();
    store.extend(Sha1::digest(
        [&password[..], b"Mighty Aphrodite", &store].concat(),
    ));
    store
}

#[test]
fn debian_gets_what_its_own_tool_would_make_and_all_of_it_goes_again() {
    let (fake, anchors) = (Fake::debian(), anchors());
    let before = fake.tree();
    let anchor = anchors.iter().next().unwrap();
    let (name, hash) = (anchor.name(), anchor.subject_hash());
    let own = fake.text("etc/ssl/certs/ca-certificates.crt");
    let installed = fake.install(&anchors).unwrap();
    assert_eq!(installed.distribution, Some("debian"));
    assert!(installed.unreached.is_empty(), "{:?}", installed.unreached);
    let file = format!("usr/local/share/ca-certificates/{name}.crt");
    // update-ca-certificates puts the file behind what it has.
    assert_eq!(
        fake.text("etc/ssl/certs/ca-certificates.crt"),
        own + &fake.text(&file)
    );
    let link = fs::read_link(fake.path(&format!("etc/ssl/certs/{name}.pem"))).unwrap();
    assert_eq!(link, Path::new("/").join(&file));
    let hashed = fs::read_link(fake.path(&format!("etc/ssl/certs/{hash}.0"))).unwrap();
    assert_eq!(hashed, Path::new(&format!("{name}.pem")));
    assert!(
        fake.text("usr/lib/python3.11/site-packages/certifi/cacert.pem")
            .contains(anchor.pem())
    );
    for store in ["opt/jdk/lib/security/cacerts", "etc/ssl/certs/java/cacerts"] {
        let bytes = fs::read(fake.path(store)).unwrap();
        assert!(
            bytes
                .windows(anchor.der().len())
                .any(|window| window == anchor.der()),
            "{store}"
        );
    }
    let mode = fs::metadata(fake.path("opt/jdk/lib/security/cacerts"))
        .unwrap()
        .mode();
    assert_eq!(mode & 0o777, 0o640);
    // Again: nothing is to be done, until a store comes.
    assert!(fake.install(&anchors).unwrap().changed.is_empty());
    fake.put(
        "venv/lib/python3.12/site-packages/certifi/cacert.pem",
        pem("Venv"),
    );
    let added = fake.install(&anchors).unwrap().changed;
    assert_eq!(
        added,
        [Path::new("/venv/lib/python3.12/site-packages/certifi/cacert.pem")]
    );
    uninstall(&fake.root()).unwrap();
    fs::remove_dir_all(fake.path("venv")).unwrap();
    assert_eq!(fake.tree(), before);
    assert_eq!(uninstall(&fake.root()).unwrap(), Removed::default());
    assert_eq!(fake.tree(), before, "a second time nothing is touched");
}

#[test]
fn every_layout_gets_its_anchor_and_its_bundles() {
    let own = pem("Own");
    let rhel = Fake::new();
    rhel.directory("etc/pki/ca-trust/source/anchors");
    for file in ["pem/tls-ca-bundle.pem", "openssl/ca-bundle.trust.crt"] {
        rhel.put(&format!("etc/pki/ca-trust/extracted/{file}"), &own);
    }
    rhel.put("etc/pki/ca-trust/extracted/java/cacerts", jks());
    rhel.link(
        "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
        "etc/pki/tls/certs/ca-bundle.crt",
    );
    let suse = Fake::new();
    suse.directory("etc/pki/trust/anchors");
    suse.put("var/lib/ca-certificates/ca-bundle.pem", &own);
    suse.link("/var/lib/ca-certificates/ca-bundle.pem", "etc/ssl/ca-bundle.pem");
    suse.put("var/lib/ca-certificates/pem/own.pem", &own);
    suse.link("own.pem", "var/lib/ca-certificates/pem/01234567.0");
    suse.link("/var/lib/ca-certificates/pem", "etc/ssl/certs");
    let arch = Fake::new();
    arch.directory("etc/ca-certificates/trust-source/anchors");
    arch.put("etc/ca-certificates/extracted/tls-ca-bundle.pem", &own);
    arch.link(
        "../../ca-certificates/extracted/tls-ca-bundle.pem",
        "etc/ssl/certs/ca-certificates.crt",
    );
    let alpine = Fake::new();
    alpine.put("etc/alpine-release", "3.22.0\n");
    alpine.put("etc/ssl/certs/ca-certificates.crt", &own);
    alpine.link("certs/ca-certificates.crt", "etc/ssl/cert.pem");
    for (fake, name, anchors_in, stores) in [
        (
            &rhel,
            "rhel",
            "etc/pki/ca-trust/source/anchors",
            &[
                "etc/pki/tls/certs/ca-bundle.crt",
                "etc/pki/ca-trust/extracted/openssl/ca-bundle.trust.crt",
            ][..],
        ),
        (&suse, "suse", "etc/pki/trust/anchors", &["etc/ssl/ca-bundle.pem"]),
        (
            &arch,
            "arch",
            "etc/ca-certificates/trust-source/anchors",
            &["etc/ssl/certs/ca-certificates.crt"],
        ),
        (
            &alpine,
            "alpine",
            "usr/local/share/ca-certificates",
            &["etc/ssl/cert.pem"],
        ),
    ] {
        let before = fake.tree();
        let anchors = anchors();
        let installed = fake.install(&anchors).unwrap();
        assert_eq!(installed.distribution, Some(name));
        assert!(
            installed.unreached.is_empty(),
            "{name}: {:?}",
            installed.unreached
        );
        assert_eq!(fs::read_dir(fake.path(anchors_in)).unwrap().count(), 1, "{name}");
        let root = fake.root();
        for store in stores {
            let text = root.find(Path::new(store)).unwrap().unwrap().read().unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.starts_with(&own) && text.contains(&anchors.pem()),
                "{name} {store}"
            );
        }
        uninstall(&root).unwrap();
        assert_eq!(fake.tree(), before, "{name}");
    }
}

#[test]
fn a_root_without_any_store_gets_the_public_roots_and_is_empty_again() {
    let (fake, anchors) = (Fake::new(), anchors());
    fake.directory("etc");
    let before = fake.tree();
    fake.install(&anchors).unwrap();
    let text = fake.text("etc/ssl/certs/ca-certificates.crt");
    assert!(text.contains(&anchors.pem()) && text.matches("BEGIN CERTIFICATE").count() > 100);
    uninstall(&fake.root()).unwrap();
    assert_eq!(fake.tree(), before);
}

#[test]
fn being_ended_at_any_step_of_either_leaves_nothing_after_the_next_uninstall() {
    let (fake, anchors) = (Fake::debian(), anchors());
    let before = fake.tree();
    let ended_at = |wanted: usize, work: &dyn Fn(&dyn Fn())| {
        let count = std::cell::Cell::new(0);
        catch_unwind(AssertUnwindSafe(|| {
            work(&|| {
                count.set(count.get() + 1);
                // As if killed: no roll back runs.
                if count.get() == wanted {
                    std::panic::resume_unwind(Box::new(()));
                }
            });
        }))
        .is_err()
    };
    let mut steps = 0;
    while ended_at(steps + 1, &|step| {
        install_in_steps(&fake.root(), &anchors, &Extra::default(), step).unwrap();
    }) {
        uninstall(&fake.root()).unwrap();
        assert_eq!(
            fake.tree(),
            before,
            "ended at step {} of the installation",
            steps + 1
        );
        steps += 1;
    }
    assert!(steps > 15, "{steps}");
    let mut undone = 0;
    while ended_at(undone + 1, &|step| {
        undo::uninstall_in_steps(&fake.root(), step).unwrap();
    }) {
        uninstall(&fake.root()).unwrap();
        assert_eq!(fake.tree(), before, "ended at step {} of the removal", undone + 1);
        fake.install(&anchors).unwrap();
        undone += 1;
    }
    assert!(undone > 6, "{undone}");
    assert_eq!(fake.tree(), before);
}

#[test]
fn what_others_changed_meanwhile_stays_and_ours_goes() {
    let (fake, anchors) = (Fake::debian(), anchors());
    fake.install(&anchors).unwrap();
    let bundle = "etc/ssl/certs/ca-certificates.crt";
    let new = format!("{}{}", pem("New first"), fake.text(bundle)) + &pem("New last");
    fake.put(bundle, &new);
    // A package brought a new one, without ours.
    let certifi = "usr/lib/python3.11/site-packages/certifi/cacert.pem";
    fake.put(certifi, pem("Newer certifi"));
    let newer = fake.text(certifi);
    fs::remove_file(fake.path("opt/jdk/lib/security/cacerts")).unwrap();
    // Installed again, the new contents get it.
    fake.install(&anchors).unwrap();
    assert!(fake.text(certifi).starts_with(&newer) && fake.text(certifi).contains(&anchors.pem()));
    let changed = fake.text(bundle).replace("# tv-agent", "# other tool");
    fake.put(bundle, &changed);
    let removed = uninstall(&fake.root()).unwrap();
    assert_eq!(
        removed.taken_out,
        [Path::new("/etc/ssl/certs/ca-certificates.crt")]
    );
    assert_eq!(fake.text(certifi), newer);
    let left = fake.text(bundle);
    assert!(!left.contains(&anchors.pem()));
    assert_eq!(left.matches("BEGIN CERTIFICATE").count(), 3);
    assert!(!fake.path("opt/jdk/lib/security/cacerts").exists());
}

#[test]
fn other_roots_take_the_place_of_the_old_ones() {
    let (fake, old, new) = (Fake::debian(), anchors(), anchors());
    let before = fake.tree();
    fake.install(&old).unwrap();
    fake.install(&new).unwrap();
    let bundle = fake.text("etc/ssl/certs/ca-certificates.crt");
    assert!(bundle.contains(&new.pem()) && !bundle.contains(&old.pem()));
    uninstall(&fake.root()).unwrap();
    assert_eq!(fake.tree(), before);
}

#[test]
fn stores_that_are_of_no_use_are_named_and_left() {
    let anchors = anchors();
    let fake = Fake::debian();
    fake.put("etc/ssl/cert.pem", "");
    fake.link("/nowhere", "etc/ssl/ca-bundle.pem");
    fake.directory("usr/lib/python3/dist-packages/certifi/cacert.pem");
    fake.put("opt/other/lib/security/cacerts", &jks()[..20]);
    fake.put("opt/text/lib/security/cacerts", "no key store");
    let huge = fake.path("usr/lib/python3/dist-packages/botocore/cacert.pem");
    fs::create_dir_all(huge.parent().unwrap()).unwrap();
    fs::File::create(&huge)
        .unwrap()
        .set_len(limits::TRUST_FILE_BYTES + 1)
        .unwrap();
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), pem("Outside")).unwrap();
    let target = outside.path().to_str().unwrap();
    fake.link(target, "usr/lib/python3/dist-packages/httplib2/cacerts.txt");
    let (before, original) = (fake.tree(), fs::read(outside.path()).unwrap());
    let installed = fake.install(&anchors).unwrap();
    let why = |path: &str| {
        let found = installed.unreached.iter().find(|one| one.path == Path::new(path));
        found
            .unwrap_or_else(|| panic!("{path}: {:?}", installed.unreached))
            .why
            .clone()
    };
    assert!(why("/etc/ssl/cert.pem").contains("no PEM certificate"));
    assert!(why("/etc/ssl/ca-bundle.pem").contains("leads nowhere"));
    assert!(why("/usr/lib/python3/dist-packages/certifi/cacert.pem").contains("neither"));
    assert!(why("/opt/other/lib/security/cacerts").contains("cut off"));
    assert!(why("/opt/text/lib/security/cacerts").contains("neither a JKS"));
    assert!(why("/usr/lib/python3/dist-packages/botocore/cacert.pem").contains("larger than"));
    assert_eq!(
        installed.unreached.len(),
        6,
        "a link that leads out of the root leads nowhere: {:?}",
        installed.unreached
    );
    uninstall(&fake.root()).unwrap();
    assert_eq!(fake.tree(), before);
    assert_eq!(fs::read(outside.path()).unwrap(), original);
}

#[test]
fn two_at_once_and_a_package_manager_at_work_are_told() {
    let (fake, anchors) = (Fake::debian(), anchors());
    let before = fake.tree();
    let root = fake.root();
    let held = Journal::open(&root).unwrap();
    assert!(matches!(fake.install(&anchors), Err(Error::Busy { .. })));
    held.forget().unwrap();
    assert_eq!(fake.tree(), before);
    fake.put("var/lib/pacman/db.lck", "");
    assert!(matches!(fake.install(&anchors), Err(Error::Packages { .. })));
    assert!(matches!(uninstall(&fake.root()), Err(Error::Packages { .. })));
    fs::remove_dir_all(fake.path("var/lib/pacman")).unwrap();
    assert_eq!(fake.tree(), before);
}

#[test]
fn a_store_that_changes_under_our_hands_is_left_and_all_else_put_back() {
    let (fake, anchors) = (Fake::debian(), anchors());
    let bundle = fake.path("etc/ssl/certs/ca-certificates.crt");
    let other = pem("Written meanwhile");
    let before = fake.tree();
    let count = std::cell::Cell::new(0);
    let error = install_in_steps(&fake.root(), &anchors, &Extra::default(), &|| {
        count.set(count.get() + 1);
        // Between its record and its replacement.
        if count.get() == 6 {
            fs::write(&bundle, &other).unwrap();
        }
    })
    .unwrap_err();
    assert!(
        matches!(&error, Error::Changed { path } if path.ends_with("ca-certificates.crt")),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&bundle).unwrap(), other);
    let (mut after, mut before) = (fake.tree(), before);
    assert!(after.remove(&bundle).is_some() && before.remove(&bundle).is_some());
    assert_eq!(after, before);
}

#[test]
fn a_damaged_record_is_told_and_kept() {
    let (fake, anchors) = (Fake::debian(), anchors());
    fake.install(&anchors).unwrap();
    let record = fake.path("var/lib/tv-agent/trust/journal.json");
    fs::write(&record, "{").unwrap();
    assert!(matches!(uninstall(&fake.root()), Err(Error::Journal)));
    let file = fs::File::options().write(true).open(&record).unwrap();
    file.set_len(limits::TRUST_JOURNAL_BYTES + 1).unwrap();
    assert!(matches!(fake.install(&anchors), Err(Error::Journal)));
    assert!(record.exists());
}

#[test]
fn too_many_roots_are_told() {
    let many: String = (0..=limits::TRUST_ANCHORS).map(|_| pem("many")).collect();
    assert!(matches!(Anchors::from_pem(&many), Err(Error::TooManyAnchors)));
}

//! `trust install` and `trust uninstall` in a Debian system, with its own tool in between, and for real Java.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tv_tests::debian;

/// What a tree is compared by: contents or target, mode, owner, group, time of the last change of files.
type Tree = BTreeMap<PathBuf, (Vec<u8>, u32, u32, u32, i64)>;

/// Where everything lies that an installation may touch.
const STORES: [&str; 6] = ["etc", "usr/local", "usr/lib/ssl", "usr/lib/python3", "var", "opt"];

fn tree(root: &Path, below: &[&str]) -> Tree {
    let mut tree = Tree::new();
    for directory in below {
        walk(&root.join(directory), &mut tree);
    }
    tree
}

fn walk(path: &Path, tree: &mut Tree) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let mut time = 0;
        let what = if metadata.is_symlink() {
            fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if metadata.is_file() {
            time = metadata.mtime();
            Sha256::digest(fs::read(&path).unwrap()).to_vec()
        } else if metadata.is_dir() {
            walk(&path, tree);
            Vec::new()
        } else {
            Vec::new()
        };
        tree.insert(
            path,
            (what, metadata.mode(), metadata.uid(), metadata.gid(), time),
        );
    }
}

#[track_caller]
fn assert_same(now: &Tree, before: &Tree, when: &str) {
    let differs = |one: &Tree, other: &Tree| -> Vec<PathBuf> {
        one.iter()
            .filter(|(path, what)| other.get(*path) != Some(what))
            .map(|(path, _)| path.clone())
            .collect()
    };
    let (new, old) = (differs(now, before), differs(before, now));
    assert!(
        new.is_empty() && old.is_empty(),
        "{when}: now {new:?}, before {old:?}"
    );
}

struct Agent {
    binary: PathBuf,
    temp: TempDir,
}

impl Agent {
    /// None, having said why, where the tests cannot run.
    fn new() -> Option<Self> {
        let Some(binary) = std::env::var_os("TV_AGENT").map(PathBuf::from) else {
            panic!("TV_AGENT names no agent binary; run cargo xtask test trust");
        };
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "root is needed");
            eprintln!("skipped: root is needed");
            return None;
        }
        let agent = Self {
            binary,
            temp: tempfile::tempdir().unwrap(),
        };
        let ca = agent.ca();
        let made = agent
            .command(&["ca", "init", "--dir", ca.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(agent)
    }

    fn ca(&self) -> PathBuf {
        self.temp.path().join("ca")
    }

    fn root_pem(&self) -> String {
        fs::read_to_string(self.ca().join("root.pem")).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(arguments).env_clear().stdin(Stdio::null());
        command
    }

    fn trust(&self, what: &str, root: &Path) -> Command {
        let ca = self.ca();
        let (ca, root) = (ca.to_str().unwrap(), root.to_str().unwrap());
        self.command(&["trust", what, "--ca-dir", ca, "--root", root])
    }

    #[track_caller]
    fn done(&self, what: &str, root: &Path) -> String {
        text(self.trust(what, root).output().unwrap())
    }
}

#[track_caller]
fn text(output: Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// On a thread that has mounts of its own, which the kernel takes away with it.
fn with_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let own = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
            work()
        });
        own.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn chrooted(root: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("chroot");
    command
        .arg(root)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    text(command.output().unwrap())
}

#[test]
fn a_debian_system_is_what_it_was_after_a_hundred_times() {
    let Some(agent) = Agent::new() else { return };
    let root = agent.temp.path().join("root");
    debian::copy_to(&root).unwrap();
    let (all, before) = (tree(&root, &["."]), tree(&root, &STORES));
    let began = std::time::Instant::now();
    for round in 0..100 {
        let told = agent.done("install", &root);
        assert!(
            told.contains("(debian)") && !told.contains("not reached"),
            "{told}"
        );
        if round == 0 {
            let bundle = fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).unwrap();
            assert!(bundle.contains(agent.root_pem().trim()));
        }
        agent.done("uninstall", &root);
        assert_same(&tree(&root, &STORES), &before, &format!("round {round}"));
    }
    eprintln!("100 times in {:.1} s", began.elapsed().as_secs_f64());
    assert_same(&tree(&root, &["."]), &all, "the whole tree");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.to_str().unwrap()), "{mounts}");
}

#[test]
fn debians_own_tool_makes_the_same_and_is_used_where_the_root_is_our_own() {
    let Some(agent) = Agent::new() else { return };
    let root = agent.temp.path().join("root");
    debian::copy_to(&root).unwrap();
    fs::copy(&agent.binary, root.join("tv-agent")).unwrap();
    fs::create_dir(root.join("ca")).unwrap();
    fs::copy(agent.ca().join("root.pem"), root.join("ca/root.pem")).unwrap();
    with_mounts(|| {
        mount(
            Some("proc"),
            &root.join("proc"),
            Some("proc"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        let bundle = root.join("etc/ssl/certs/ca-certificates.crt");
        let without_times = || {
            let mut tree = tree(&root, &STORES);
            tree.retain(|path, _| !path.starts_with(root.join("var/cache")));
            tree.values_mut().for_each(|what| what.4 = 0);
            tree
        };
        let before = without_times();
        // By path, then Debian's own run: nothing changes, and undoing works as before.
        agent.done("install", &root);
        let installed = without_times();
        chrooted(&root, &["update-ca-certificates"]);
        assert_same(&without_times(), &installed, "after update-ca-certificates");
        chrooted(&root, &["update-ca-certificates", "--fresh"]);
        assert_same(
            &without_times(),
            &installed,
            "after update-ca-certificates --fresh",
        );
        agent.done("uninstall", &root);
        assert_same(&without_times(), &before, "after uninstall");
        // A package changes the store meanwhile.
        agent.done("install", &root);
        fs::write(root.join("etc/ca-certificates.conf"), one_less(&root)).unwrap();
        chrooted(&root, &["update-ca-certificates"]);
        agent.done("uninstall", &root);
        let without_ours = fs::read_to_string(&bundle).unwrap();
        chrooted(&root, &["update-ca-certificates", "--fresh"]);
        assert_eq!(fs::read_to_string(&bundle).unwrap(), without_ours);
        assert!(!without_ours.contains(agent.root_pem().trim()));
        // From inside, where the root is the agent's own.
        let before = without_times();
        let trust = |what| chrooted(&root, &["/tv-agent", "trust", what, "--ca-dir", "/ca"]);
        let told = trust("install");
        assert!(
            told.contains("changed: /etc/ssl/certs/ca-certificates.crt"),
            "{told}"
        );
        let pem = root.join("ca/root.pem");
        fs::copy(&pem, root.join("root.pem")).unwrap();
        let verified = chrooted(
            &root,
            &[
                "openssl",
                "verify",
                "-CApath",
                "/etc/ssl/certs",
                "-no-CAfile",
                "/root.pem",
            ],
        );
        assert!(verified.contains("OK"), "{verified}");
        assert!(trust("install").contains("everything was in place"));
        trust("uninstall");
        assert_same(&without_times(), &before, "after the uninstall from inside");
    });
}

/// Debian's list of certificates with the first one deselected.
fn one_less(root: &Path) -> String {
    let list = fs::read_to_string(root.join("etc/ca-certificates.conf")).unwrap();
    list.replacen("\nmozilla/", "\n!mozilla/", 1)
}

/// A small system: a bundle, a link to it, certifi.
fn small(root: &Path) {
    let pem: String = (0..40).map(|n| rcgen_root(&format!("Root {n}"))).collect();
    for directory in [
        "var/lib/tv-agent",
        "etc/ssl/certs",
        "usr/local/share/ca-certificates",
        "opt/venv/lib/python3.12/site-packages/certifi",
    ] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::write(root.join("etc/ssl/certs/ca-certificates.crt"), &pem).unwrap();
    fs::write(
        root.join("opt/venv/lib/python3.12/site-packages/certifi/cacert.pem"),
        &pem,
    )
    .unwrap();
    symlink("certs/ca-certificates.crt", root.join("etc/ssl/cert.pem")).unwrap();
}

fn rcgen_root(name: &str) -> String {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params
        .self_signed(&rcgen::KeyPair::generate().unwrap())
        .unwrap()
        .pem()
}

#[test]
fn killed_at_any_moment_everything_can_be_undone() {
    let Some(agent) = Agent::new() else { return };
    let root = agent.temp.path().join("root");
    small(&root);
    let before = tree(&root, &["."]);
    let mut killed = 0;
    for round in 0..60 {
        let mut child = agent
            .trust("install", &root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(500 * round));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        agent.done("uninstall", &root);
        assert_same(&tree(&root, &["."]), &before, &format!("round {round}"));
    }
    assert!(killed > 0);
    eprintln!("killed {killed} of 60");
}

#[test]
fn a_full_or_read_only_disk_leaves_everything_as_it_was() {
    let Some(agent) = Agent::new() else { return };
    let root = agent.temp.path().join("root");
    fs::create_dir(&root).unwrap();
    let mut full = 0;
    for kib in (48..160).step_by(8) {
        with_mounts(|| {
            let size = format!("size={kib}k");
            mount(
                Some("tmpfs"),
                &root,
                Some("tmpfs"),
                MsFlags::empty(),
                Some(size.as_str()),
            )
            .unwrap();
            small(&root);
            let before = tree(&root, &["."]);
            let output = agent.trust("install", &root).output().unwrap();
            if output.status.success() {
                agent.done("uninstall", &root);
            } else {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(said.contains("No space left"), "{said}");
                full += 1;
            }
            assert_same(&tree(&root, &["."]), &before, &format!("{kib} KiB"));
            let remount = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &root, None::<&str>, remount, None::<&str>).unwrap();
            let output = agent.trust("install", &root).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(1) && said.contains("trust.install: live"),
                "{said}"
            );
        });
    }
    assert!(full > 1, "the disk was never full in between");
}

#[test]
fn java_takes_every_form_of_key_store() {
    let Some(agent) = Agent::new() else { return };
    let root = agent.temp.path().join("root");
    fs::create_dir_all(root.join("etc/ssl")).unwrap();
    let own = agent.temp.path().join("own.pem");
    fs::write(&own, rcgen_root("Own")).unwrap();
    let program = agent.temp.path().join("Trusted.java");
    fs::write(&program, TRUSTED).unwrap();
    let modern = [
        "-J-Dkeystore.pkcs12.certProtectionAlgorithm=NONE",
        "-J-Dkeystore.pkcs12.macAlgorithm=NONE",
    ];
    let cases: [(&str, &[&str], &[&str]); 3] = [
        ("jks", &["-storetype", "JKS"], &["-storepass", "changeit"]),
        ("p12", &["-storetype", "PKCS12"], &["-storepass", "changeit"]),
        ("modern", &["-storetype", "PKCS12", modern[0], modern[1]], &[]),
    ];
    let mut stores = Vec::new();
    for (name, how, open) in cases {
        let store = root.join(format!("opt/{name}/lib/security/cacerts"));
        fs::create_dir_all(store.parent().unwrap()).unwrap();
        let keystore = store.to_str().unwrap();
        let make = [
            &[
                "-importcert",
                "-noprompt",
                "-alias",
                "own",
                "-file",
                own.to_str().unwrap(),
            ],
            how,
        ]
        .concat();
        keytool(keystore, &[&make[..], &["-storepass", "changeit"]].concat());
        if name != "modern" {
            let key = [
                "-genkeypair",
                "-alias",
                "private",
                "-keyalg",
                "EC",
                "-dname",
                "CN=key",
            ];
            keytool(
                keystore,
                &[&key[..], how, &["-storepass", "changeit", "-keypass", "changeit"]].concat(),
            );
        }
        stores.push((name, store, open));
    }
    let before: Vec<_> = stores
        .iter()
        .map(|(_, store, _)| fs::read(store).unwrap())
        .collect();
    let told = agent.done("install", &root);
    assert!(!told.contains("not reached"), "{told}");
    for (name, store, open) in &stores {
        let list = keytool(store.to_str().unwrap(), &[&["-list"], *open].concat());
        let entries = if *name == "modern" { 2 } else { 3 };
        assert!(list.contains(&format!("{entries} entries")), "{name}: {list}");
        assert!(
            list.contains("own,") && list.contains("tv-agent-"),
            "{name}: {list}"
        );
        // As Java's own store is opened: without a password, unless it is a JKS or its parts are encrypted.
        let mut java = Command::new("java");
        java.arg(format!("-Djavax.net.ssl.trustStore={}", store.display()));
        if *name == "p12" {
            java.arg("-Djavax.net.ssl.trustStorePassword=changeit");
        }
        java.arg(&program)
            .arg(agent.ca().join("root.pem"))
            .arg(&own)
            .env_clear()
            .env("PATH", "/usr/bin:/bin");
        assert_eq!(text(java.output().unwrap()).trim(), "trusted trusted", "{name}");
    }
    agent.done("uninstall", &root);
    for ((name, store, _), before) in stores.iter().zip(&before) {
        assert!(fs::read(store).unwrap() == *before, "{name}");
    }
    // Java has written the JKS store meanwhile: ours goes, Java's new one stays.
    agent.done("install", &root);
    let jks = stores[0].1.to_str().unwrap();
    let more = [
        "-importcert",
        "-noprompt",
        "-alias",
        "later",
        "-file",
        own.to_str().unwrap(),
        "-storepass",
        "changeit",
    ];
    keytool(jks, &more);
    let told = agent.done("uninstall", &root);
    assert!(told.contains("ours taken out: /opt/jks"), "{told}");
    let list = keytool(jks, &["-list", "-storepass", "changeit"]);
    assert!(
        list.contains("later,") && list.contains("private,") && !list.contains("tv-agent-"),
        "{list}"
    );
}

/// Says of each certificate file whether the default trust manager has it.
const TRUSTED: &str = r#"
import java.io.*; import java.security.*; import java.security.cert.*; import java.util.*; import javax.net.ssl.*;
public class Trusted {
    public static void main(String[] files) throws Exception {
        TrustManagerFactory factory = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        factory.init((KeyStore) null);
        X509TrustManager manager = (X509TrustManager) factory.getTrustManagers()[0];
        List<X509Certificate> roots = Arrays.asList(manager.getAcceptedIssuers());
        StringJoiner said = new StringJoiner(" ");
        for (String file : files)
            try (InputStream in = new FileInputStream(file)) {
                java.security.cert.Certificate one = CertificateFactory.getInstance("X.509").generateCertificate(in);
                said.add(roots.contains(one) ? "trusted" : "unknown");
            }
        System.out.println(said);
    }
}
"#;

#[track_caller]
fn keytool(keystore: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("keytool");
    command.args(arguments).args(["-keystore", keystore]).env_clear();
    command.env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    let output = command.output().expect("keytool is needed; cargo xtask setup");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

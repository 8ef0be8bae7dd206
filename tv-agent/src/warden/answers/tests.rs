//! What the data path gets, and what it does not get whatever it says.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tempfile::TempDir;

use super::super::Named;
use super::*;
use crate::addr::{NetnsCookie, OriginAddr, PeerAddr};
use crate::ca::Authority;
use crate::config::Config;
use crate::dial::Unflagged;
use crate::files;
use crate::kubernetes::Orders;
use crate::netns::Netns;
use crate::redirect::{Narrowing, OriginLookup, Recorded};
use crate::sign::Due;
use crate::trust::{self, ProcessKey};
use crate::workload::Workloads;

const HERE: NetnsCookie = NetnsCookie(7);

struct Records;

impl OriginLookup for Records {
    fn take(&self, netns: NetnsCookie, _: PeerAddr) -> io::Result<Option<Recorded>> {
        assert_eq!(netns, HERE);
        Ok(Some(Recorded {
            origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
            cgroup_id: 1,
            tgid: u32::MAX,
            uid: 2,
            connected: Duration::ZERO,
        }))
    }
}

#[derive(Default)]
struct Kept(Mutex<Vec<(IpAddr, Duration)>>);

impl Narrow for Kept {
    fn keep(&self, address: IpAddr, time: Duration) {
        self.0.lock().unwrap().push((address, time));
    }
    fn sweep(&self, _: &HashSet<IpAddr>) -> Option<Narrowing> {
        None
    }
}

struct Scene {
    dir: TempDir,
    answers: Answers,
    kept: Arc<Kept>,
    authority: Arc<Authority>,
}

impl Scene {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn ask(&self, ask: Ask) -> Answered {
        self.answers.answer(ask).unwrap()
    }

    /// Why it is refused.
    fn refused(&self, ask: Ask) -> String {
        match self.ask(ask) {
            (Answer::Failed(failure), None) => failure.why,
            (other, _) => panic!("{other:?}"),
        }
    }

    fn open(&self, path: impl AsRef<Path>) -> Ask {
        Ask::Open {
            path: self.dir.path().join(path),
        }
    }
}

fn scene() -> Scene {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    for made in ["ca", "pods", "elsewhere"] {
        fs::create_dir(dir.path().join(made)).unwrap();
    }
    for file in [
        "secret",
        "roots.pem",
        "other",
        "ca/intermediate-key.pem",
        "elsewhere/8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff.yaml",
        "pods/8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff.yaml",
        "pods/notes.yaml",
    ] {
        fs::write(dir.path().join(file), file).unwrap();
    }
    std::os::unix::fs::symlink(at("ca/intermediate-key.pem"), at("roots-link.pem")).unwrap();
    let text = format!(
        "intercept: {{ cgroups: [/x], pod_facts: {} }}\n\
         vaults: {{ main: {{ kind: token_exchange, token_endpoint: 'https://v.example/token', client_id: a, \
         client_auth: {{ method: client_secret_post, secret: {{ file: {} }} }}, extra_roots: [{}, {}, {}] }} }}\n\
         keysets: {{ ours: {{ generate: {{ algorithm: ES256 }} }} }}\n\
         keysets_dir: {}\nca: {{ dir: {} }}\n\
         routes: [{{ name: r, hosts: ['*.example.com'], vault: main }}]\n",
        at("pods"),
        at("secret"),
        at("roots.pem"),
        at("roots-link.pem"),
        at("ca/intermediate-key.pem"),
        at("keys"),
        at("ca"),
    );
    let (config, read) = files::recorded(|| Config::parse(&text, Path::new("c.yaml"), &|_| None));
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read, ["/etc/passwd".into(), dir.path().join("secret")].into());
    let authority =
        Arc::new(Authority::ephemeral(&["example.com".to_owned(), "example.net".to_owned()]).unwrap());
    let kept = Arc::new(Kept::default());
    let workloads = Arc::new(Workloads::new("/nonexistent".into(), Vec::new()));
    let answers = Answers {
        recognised: Recognised {
            origins: Arc::new(Records),
            workloads,
        },
        own: Arc::new(Unflagged),
        spaces: Spaces::default(),
        signers: Signers::new(authority.clone()),
        narrow: kept.clone(),
        sight: Here {
            roots: Arc::new(Arc::default),
        },
        naming: Naming::new(Named::of(&config, read)),
        audit: Some(AtPath(dir.path().join("audit.log"))),
        facts: Arc::new(Facts::default),
        log: LogFilter::new(|filter| Ok(filter.unwrap_or("info").to_owned())),
        pods: None,
    };
    Scene {
        dir,
        answers,
        kept,
        authority,
    }
}

#[test]
fn only_files_that_the_configuration_names_are_opened() {
    let scene = scene();
    for name in [
        "secret",
        "roots.pem",
        "pods/8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff.yaml",
    ] {
        let (answer, file) = scene.ask(scene.open(name));
        assert_eq!(answer, Answer::File, "{name}");
        let mut text = String::new();
        std::fs::File::from(file.unwrap())
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, name);
    }
    for name in [
        "other",
        "/etc/shadow",
        "./secret/../other",
        "pods/notes.yaml",
        "pods/../other",
        "elsewhere/8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff.yaml",
        "pods/./8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff.txt",
        "ca",
        "",
    ] {
        let why = scene.refused(scene.open(name));
        assert!(why.contains("does not name it"), "{name}: {why}");
    }
}

#[test]
fn nothing_is_given_out_of_the_cas_directory_whatever_names_it() {
    let scene = scene();
    for name in ["ca/intermediate-key.pem", "roots-link.pem"] {
        let why = scene.refused(scene.open(name));
        assert!(why.contains("the CA's directory"), "{name}: {why}");
    }
}

#[test]
fn what_is_prepared_is_named_until_it_is_abandoned() {
    let scene = scene();
    let text = format!(
        "intercept: {{ cgroups: [/x] }}\nupstream: {{ extra_roots: [{}] }}\n",
        scene.path("other").display()
    );
    let named = || {
        let config = Config::parse(&text, Path::new("c.yaml"), &|_| None);
        Named::of(
            &config.unwrap_or_else(|error| panic!("{error}")),
            Default::default(),
        )
    };
    let opens = |name: &str| matches!(scene.ask(scene.open(name)), (Answer::File, Some(_)));
    let naming = &scene.answers.naming;
    naming.prepare(named());
    assert!(opens("other") && opens("secret"));
    naming.abandon();
    assert!(!opens("other") && opens("secret"));
    naming.prepare(named());
    naming.install();
    assert!(opens("other") && !opens("secret"));
}

#[test]
fn namespaces_that_were_never_given_are_nobodys() {
    let scene = scene();
    let take = |netns| Ask::Take {
        netns,
        peer: PeerAddr("127.0.0.1:1".parse().unwrap()),
    };
    let socket = |netns| Ask::Socket { netns, ipv4: true };
    assert!(scene.refused(take(HERE)).contains("no such namespace"));
    assert!(scene.refused(socket(None)).contains("no such namespace"));
    let away = Netns::elsewhere(9, HERE);
    let spaces = &scene.answers.spaces;
    let (own, first, second) = (
        spaces.enter(&Netns::OWN, HERE),
        spaces.enter(&away, HERE),
        spaces.enter(&away, HERE),
    );
    let (answer, none) = scene.ask(take(HERE));
    assert!(matches!(answer, Answer::Call(Some(call)) if call.0.uid == 2) && none.is_none());
    assert!(matches!(scene.ask(socket(None)), (Answer::Socket, Some(_))));
    assert!(scene.refused(take(NetnsCookie(8))).contains("no such namespace"));
    assert!(scene.refused(socket(Some(8))).contains("no such namespace"));
    assert!(
        !scene.refused(socket(Some(9))).contains("no such namespace"),
        "closed"
    );
    drop(first);
    assert!(!scene.refused(socket(Some(9))).contains("no such namespace"));
    drop(second);
    assert!(scene.refused(socket(Some(9))).contains("no such namespace"));
    drop(own);
    assert!(scene.refused(take(HERE)).contains("no such namespace"));
}

#[test]
fn leaves_are_signed_for_hosts_of_routes_and_for_keys_of_the_right_kind() {
    let scene = scene();
    let issuer = trust::fingerprint(scene.authority.intermediate_der());
    let key = rcgen::KeyPair::generate().unwrap();
    let public_key = rcgen::PublicKeyData::subject_public_key_info(&key);
    let mint = |issuer: &str, host: &str, kind, public_key: &[u8]| Ask::Mint {
        issuer: issuer.to_owned(),
        host: host.to_owned(),
        kind,
        public_key: public_key.to_vec(),
    };
    let good = mint(&issuer, "api.example.com", KeyKind::P256, &public_key);
    let (Answer::Minted { leaf, .. }, None) = scene.ask(good.clone()) else {
        panic!("no leaf")
    };
    assert!(!leaf.is_empty());
    // The CA may sign for the second, and no route has it.
    for host in ["api.example.org", "api.example.net", "", "a b"] {
        let why = scene.refused(mint(&issuer, host, KeyKind::P256, &public_key));
        assert!(why.contains("no such host"), "{host}: {why}");
    }
    for (kind, key) in [(KeyKind::Rsa, &public_key[..]), (KeyKind::P256, b"garbage")] {
        scene.refused(mint(&issuer, "api.example.com", kind, key));
    }
    let why = scene.refused(mint("00", "api.example.com", KeyKind::P256, &public_key));
    assert!(why.contains("no such issuer"), "{why}");
    // The one before goes on for who has its chain, the one before that not.
    let another = || Arc::new(Authority::ephemeral(&["example.com".to_owned()]).unwrap());
    scene.answers.signers.adopt(another());
    assert!(matches!(scene.ask(good.clone()).0, Answer::Minted { .. }));
    scene.answers.signers.adopt(another());
    assert!(scene.refused(good).contains("no such issuer"));
}

#[test]
fn keys_are_made_for_sets_that_the_configuration_names() {
    let scene = scene();
    let key = |set: &str, due| Ask::Key {
        set: set.to_owned(),
        due,
    };
    assert_eq!(scene.ask(key("ours", Due::Unfit)).0, Answer::Done);
    let first = fs::read(scene.path("keys/ours.json")).unwrap();
    assert_eq!(scene.ask(key("ours", Due::Unfit)).0, Answer::Done);
    assert_eq!(fs::read(scene.path("keys/ours.json")).unwrap(), first);
    assert_eq!(scene.ask(key("ours", Due::Now)).0, Answer::Done);
    assert_ne!(fs::read(scene.path("keys/ours.json")).unwrap(), first);
    assert!(matches!(scene.ask(scene.open("keys/ours.json")).0, Answer::File));
    for set in ["others", "../ours", ""] {
        assert!(scene.refused(key(set, Due::Now)).contains("does not name it"));
    }
}

#[test]
fn the_audit_trail_is_opened_anew_when_it_is_another_file() {
    use std::os::unix::fs::MetadataExt as _;
    let scene = scene();
    let (Answer::File, Some(file)) = scene.ask(Ask::Audit { known: None }) else {
        panic!("no file")
    };
    let facts = std::fs::File::from(file).metadata().unwrap();
    let known = Some((facts.dev(), facts.ino()));
    assert_eq!(scene.ask(Ask::Audit { known }).0, Answer::Same);
    fs::rename(scene.path("audit.log"), scene.path("audit.old")).unwrap();
    assert_eq!(scene.ask(Ask::Audit { known }).0, Answer::File);
}

fn pods(count: usize) -> Ask {
    let uid = |number| format!("8f6a1c2e-1b2c-4d3e-9f00-{number:012x}");
    let all = (0..count).map(|number| (uid(number), crate::kubernetes::Order::default()));
    Ask::Pods {
        orders: Orders {
            pods: all.collect(),
            listed: true,
        },
        more: false,
    }
}

#[test]
fn pods_are_covered_only_where_they_are_followed() {
    let mut scene = scene();
    scene.refused(pods(1));
    let lodgings = Lodgings::default();
    scene.answers.pods = Some(lodgings.clone());
    assert_eq!(scene.ask(pods(1)).0, Answer::Done);
    assert_eq!(lodgings.orders().borrow().pods.len(), 1);
}

#[test]
fn too_much_at_once_is_a_breach() {
    let scene = scene();
    let key = ProcessKey { pid: 1, started: 1 };
    let address = |n: u32| IpAddr::from(n.to_be_bytes());
    let most = u32::try_from(limits::CONNECTIONS).unwrap();
    for (fits, ask) in [
        (
            true,
            Ask::Look {
                keys: vec![key; limits::WIRE_PROCESSES],
            },
        ),
        (
            false,
            Ask::Look {
                keys: vec![key; limits::WIRE_PROCESSES + 1],
            },
        ),
        (
            false,
            Ask::List {
                pids: vec![1; limits::TRUST_PROCESSES + 1],
            },
        ),
        (
            true,
            Ask::Sweep {
                open: (0..most).map(address).collect(),
            },
        ),
        (
            false,
            Ask::Sweep {
                open: (0..=most).map(address).collect(),
            },
        ),
        (true, pods(limits::WIRE_PODS)),
        (false, pods(limits::WIRE_PODS + 1)),
        (
            true,
            Ask::Log {
                filter: Some("x".repeat(limits::LOG_FILTER_BYTES)),
            },
        ),
        (
            false,
            Ask::Log {
                filter: Some("x".repeat(limits::LOG_FILTER_BYTES + 1)),
            },
        ),
    ] {
        assert_eq!(scene.answers.answer(ask).is_ok(), fits);
    }
    // A day is the longest that an address is kept.
    let address = address(1);
    scene.ask(Ask::Keep {
        address,
        seconds: u64::MAX,
    });
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(*scene.kept.0.lock().unwrap(), [(address, day)]);
}

/// What is said on a line, and why the data path is ended then.
fn breach(scene: Scene, is_urgent: bool, message: &[u8], with_descriptor: bool) -> Option<String> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::os::fd::AsRawFd as _;
    let (ours, theirs) = wire::pair().unwrap();
    let (other, _others) = wire::pair().unwrap();
    let (told, breaches) = std::sync::mpsc::channel();
    let end = Arc::new(move |breach: Breach| told.send(breach.to_string()).unwrap());
    let (urgent, slow) = if is_urgent { (ours, other) } else { (other, ours) };
    Arc::new(scene.answers).attend(urgent, slow, end).unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let numbers = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control = if with_descriptor { &rights[..] } else { &[] };
    let parts = [std::io::IoSlice::new(message)];
    sendmsg::<()>(theirs.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
    breaches.recv_timeout(Duration::from_secs(2)).ok()
}

#[test]
fn what_nobody_may_say_ends_the_data_path() {
    let facts = br#"{"id":1,"body":"Facts"}"#;
    let beat = br#"{"id":1,"body":"Beat"}"#;
    let large = vec![b' '; limits::WIRE_SLOW_BYTES + 1];
    for (is_urgent, message, with_descriptor, why) in [
        (true, &b"garbage"[..], false, "what nobody may ask for"),
        (false, &large, false, "what nobody may ask for"),
        (false, b"@", true, "what nobody may ask for"),
        (false, facts, true, "descriptors"),
        (true, facts, false, "on the wrong line"),
        (false, beat, false, "on the wrong line"),
    ] {
        let told = breach(scene(), is_urgent, message, with_descriptor);
        assert!(
            told.as_ref().is_some_and(|told| told.contains(why)),
            "{why}: {told:?}"
        );
    }
    assert_eq!(breach(scene(), false, facts, false), None);
}

/// Printed, for ARCHITECTURE.md; and no connection shall feel it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cost_of_asking_who_connected() {
    let scene = scene();
    let _served = scene.answers.spaces.enter(&Netns::OWN, HERE);
    let (urgent, ours) = wire::pair().unwrap();
    let (slow, _kept) = wire::pair().unwrap();
    Arc::new(scene.answers)
        .attend(urgent, slow, Arc::new(|_| {}))
        .unwrap();
    let line = wire::Line::<Ask, Answer>::start(ours, false).unwrap();
    let median = async |ask: Ask| {
        let mut all = Vec::new();
        for _ in 0..2000 {
            let began = std::time::Instant::now();
            line.ask(ask.clone(), &[], limits::WIRE_TIME).await.unwrap();
            all.push(began.elapsed());
        }
        all.sort();
        all[1000]
    };
    let take = median(Ask::Take {
        netns: HERE,
        peer: PeerAddr("127.0.0.1:1".parse().unwrap()),
    });
    let socket = Ask::Socket {
        netns: None,
        ipv4: true,
    };
    let (take, socket) = (take.await, median(socket).await);
    eprintln!("who connected: {take:?}; a socket: {socket:?} (medians of 2,000)");
    assert!(take.max(socket) < Duration::from_millis(5));
}

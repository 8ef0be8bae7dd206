//! Key sets: from a URL that behaves and from ones that do not, and in a running agent.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::RootCertStore;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tv_agent::config::Config;
use tv_agent::https;
use tv_agent::sign::keyset::Settings;
use tv_agent::sign::{KeySet, Source};
use tv_tests::fakes::pki::Pki;
use tv_tests::flow::{Setup, eventually, raw_origin, read_head, within};

const NOW: u64 = 1_700_000_000;

/// RFC 8037 appendix A.1.
const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"one"}"#;
/// RFC 7517 appendix A.2.
const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE","kid":"two"}"#;

fn ok(body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

fn set(keys: &[&str]) -> String {
    ok(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")))
}

fn causes(error: &(dyn std::error::Error + 'static)) -> String {
    https::causes(error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_url_are_read_again_and_stay_when_it_fails() {
    let pki = Pki::new("Key Root");
    let says = Arc::new(Mutex::new(String::new()));
    let answer = says.clone();
    let origin = raw_origin(&pki.leaf(&["127.0.0.1"]), &["http/1.1"], move |mut stream, _| {
        // Said, or the client would use the connection once more, and meet its end.
        let answer = answer
            .lock()
            .unwrap()
            .replacen("\r\n", "\r\nconnection: close\r\n", 1);
        async move {
            read_head(&mut stream).await;
            // The agent may have had enough.
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.shutdown().await);
        }
    })
    .await;
    let client = |pki: &Pki| {
        let mut roots = RootCertStore::empty();
        roots.add(pki.root().clone()).unwrap();
        https::client(Arc::new(roots)).unwrap()
    };
    let settings = || Settings {
        name: "far".into(),
        source: Source::Url {
            url: format!("https://{origin}/keys?secret=1").parse().unwrap(),
            refresh: Duration::from_secs(600),
            extra_roots: vec![],
        },
    };
    let open = |client| Arc::new(KeySet::open(settings(), Path::new("/nowhere"), NOW, Some(client)).unwrap());
    let keys = open(client(&pki));
    let say = |text: String| *says.lock().unwrap() = text;
    let kids = || keys.list().into_iter().map(|row| row.kid).collect::<Vec<_>>();
    let mut now = NOW;
    let mut later = |seconds: u64| {
        now += seconds;
        now
    };
    assert!(keys.signing(None).is_none(), "not before the first answer");
    let many = vec![ED; 17];
    let bad = [
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_owned(),
            "it answered 404",
        ),
        (
            format!("HTTP/1.1 302 Found\r\nlocation: https://{origin}/other\r\ncontent-length: 0\r\n\r\n"),
            "it answered 302",
        ),
        (ok("<html>"), "no JWK set"),
        (ok(r#"{"keys":[]}"#), "it has no key"),
        (ok(&"x".repeat(64 * 1024 + 1)), "larger than 65536 bytes"),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{".to_owned(),
            "https://",
        ),
        (set(&many), "more than 16 keys"),
        (set(&[ED, ED]), "two keys have the id"),
        (set(&[ED, r#"{"kty":"EC"}"#]), "key 2"),
        (String::new(), "https://"),
    ];
    for (text, part) in &bad {
        say(text.clone());
        let message = causes(&within(keys.tend(later(10))).await.unwrap_err());
        assert!(
            message.contains(part) && message.contains("keysets.far"),
            "{part:?}: {message}"
        );
        assert!(
            !message.contains("secret=1") && !message.contains("nWGxne"),
            "{message}"
        );
        // Not again at once.
        assert!(!keys.tend(later(9)).await.unwrap());
    }
    say(set(&[ED]));
    assert!(keys.tend(later(10)).await.unwrap());
    assert_eq!(kids(), ["one"]);
    say(set(&[EC, ED]));
    assert!(!keys.tend(later(599)).await.unwrap(), "not before its time");
    assert_eq!(kids(), ["one"]);
    assert!(keys.tend(later(1)).await.unwrap());
    assert_eq!(kids(), ["two", "one"]);
    for (text, _) in &bad {
        say(text.clone());
        assert!(keys.tend(later(600)).await.is_err());
        assert_eq!(kids(), ["two", "one"], "what is there stays");
    }
    // Its certificate is verified.
    let stranger = open(client(&Pki::new("Another Root")));
    let message = causes(&within(stranger.tend(NOW)).await.unwrap_err());
    assert!(message.contains("certificate"), "{message}");
    let refused = keys.rotate(now).unwrap_err().to_string();
    assert!(refused.contains("put new ones there"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_url_that_is_slow_is_given_up() {
    let pki = Pki::new("Key Root");
    let origin = raw_origin(
        &pki.leaf(&["127.0.0.1"]),
        &["http/1.1"],
        |mut stream, _| async move {
            read_head(&mut stream).await;
            drop(
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")
                    .await,
            );
            drop(stream.flush().await);
            tokio::time::sleep(Duration::from_secs(60)).await;
        },
    )
    .await;
    let mut roots = RootCertStore::empty();
    roots.add(pki.root().clone()).unwrap();
    let settings = Settings {
        name: "far".into(),
        source: Source::Url {
            url: format!("https://{origin}/").parse().unwrap(),
            refresh: Duration::from_secs(600),
            extra_roots: vec![],
        },
    };
    let client = https::client(Arc::new(roots)).unwrap();
    let keys = Arc::new(KeySet::open(settings, Path::new("/nowhere"), NOW, Some(client)).unwrap());
    assert!(within(keys.tend(NOW)).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_makes_its_keys_keeps_them_and_notices_new_ones() {
    let flow = Setup::default().start().await;
    let dir = tempfile::tempdir().unwrap();
    let config = |algorithm: &str| {
        let text = json!({
            "keysets_dir": dir.path().join("keys"),
            "keysets": { "a": { "generate": { "algorithm": algorithm } } },
            "vaults": { "sign": { "kind": "jwt_signer", "keyset": "a" } },
        });
        Config::parse(&text.to_string(), Path::new("keys.yaml"), &|_| None).unwrap_or_else(|e| panic!("{e}"))
    };
    let kid = || {
        let keysets = flow.agent.current().load().keysets.clone();
        keysets.get("a").unwrap().signing(None).unwrap().kid.clone()
    };
    flow.agent.reload(config("ES256")).unwrap();
    let first = kid();
    flow.agent.reload(config("ES256")).unwrap();
    assert_eq!(kid(), first, "a reload makes no new key");
    assert!(flow.agent.current().load().signers.contains_key("sign"));
    // Another process rotates: `tv-agent keys rotate` on the same files.
    let other = config("ES256").keysets.pop().unwrap();
    KeySet::unread(other, &dir.path().join("keys"))
        .rotate(NOW)
        .unwrap();
    assert!(eventually(|| kid() != first).await, "it goes unnoticed");
    let second = kid();
    // Files that cannot be read change nothing, neither now nor by a reload.
    let file = dir.path().join("keys/a.json");
    let good = std::fs::read(&file).unwrap();
    std::fs::write(&file, "{").unwrap();
    let error = flow.agent.reload(config("ES256")).unwrap_err();
    assert!(causes(&error).contains("a.json"), "{error}");
    assert_eq!(kid(), second);
    std::fs::write(&file, good).unwrap();
    flow.agent.reload(config("EdDSA")).unwrap();
    assert_ne!(kid(), second);
    let keysets = flow.agent.current().load().keysets.clone();
    assert_eq!(
        keysets.list()[1].kid,
        second,
        "the key of before is still published"
    );
}

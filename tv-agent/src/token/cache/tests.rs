//! The rules in numbers, and the store with short real times: moka reads its own clock, which tokio
//! cannot pause.

use rustls::RootCertStore;

use super::*;
use crate::policy::Wanted;
use crate::token::assertion::tests::worker;
use crate::token::settings::{
    ACCESS_TOKEN, Actor, ActorFrom, ClientCredentials, Preset, TOKEN_EXCHANGE, TokenExchange, TokenVault,
    VaultSubject,
};
use crate::token::tests::fake::{self, settings, subject};
use crate::token::{Client, ClientAuth, ErrorKind, Kind, Vault};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn a_refresh_is_due_in_the_last_fifth_and_once() {
    let start = Instant::now();
    let token = || Secret::new("t".into());
    let good = Good::new(
        token(),
        Life::of(None, None, secs(0), secs(100), secs(900)),
        start,
        0.0,
    );
    assert!(!good.take_refresh(start + secs(79), secs(10)));
    assert!(good.take_refresh(start + secs(80), secs(10)));
    assert!(!good.take_refresh(start + secs(80), secs(10)));
    assert!(!good.take_refresh(start + secs(89), secs(10)));
    assert!(good.take_refresh(start + secs(90), secs(10)));
    good.never_refresh();
    assert!(!good.take_refresh(start + secs(99), secs(10)));
    // The subject token's end cannot be moved by asking again.
    let bound = Good::new(
        token(),
        Life::of(None, Some(100), secs(0), secs(300), secs(900)),
        start,
        0.0,
    );
    assert_eq!(bound.ttl, secs(100));
    assert!(!bound.take_refresh(start + secs(99), secs(10)));
}

fn vault(endpoint: &str, change: impl FnOnce(&mut VaultSettings)) -> Arc<Vault> {
    let root = rcgen::generate_simple_self_signed(vec!["x".into()])
        .unwrap()
        .cert
        .der()
        .clone();
    let mut settings = fake::settings(endpoint, vec![root]);
    change(&mut settings);
    Arc::new(Vault::new(settings, Arc::new(rustls::RootCertStore::empty())).unwrap())
}

#[test]
fn every_input_that_matters_changes_the_key() {
    let base = vault("https://a.example/oauth/token", |_| {});
    let token = subject("s");
    let key = |vault: &Arc<Vault>, connection: &str, hint: Option<&str>, subject: &Arc<Secret>| {
        let wanted = Arc::new(Wanted::connection(connection));
        let grant = Grant {
            login_hint: hint,
            subject: Some(subject),
            ..Grant::new(vault, &wanted)
        };
        Key::of(&grant, false).ok().unwrap()
    };
    let keys = [
        key(&base, "github", None, &token),
        key(&base, "google", None, &token),
        key(&base, "github", Some(""), &token),
        key(&base, "github", Some("a"), &token),
        key(&base, "github", Some("b"), &token),
        key(&base, "githuba", None, &token),
        key(&base, "github", None, &subject("t")),
        key(
            &vault("https://b.example/oauth/token", |_| {}),
            "github",
            None,
            &token,
        ),
        key(
            &vault("https://a.example/oauth/token", |s| s.client_id = "other".into()),
            "github",
            None,
            &token,
        ),
        key(
            &vault("https://a.example/oauth/token", |s| {
                s.kind = Kind::TokenVault(TokenVault {
                    requested_token_type: Some("urn:x".into()),
                    ..TokenVault::default()
                });
            }),
            "github",
            None,
            &token,
        ),
    ];
    for (i, a) in keys.iter().enumerate() {
        for b in &keys[..i] {
            assert!(a.0 != b.0, "key {i}");
        }
    }
    // What does not decide the token does not split the cache.
    let same = vault("https://a.example/oauth/token", |s| {
        s.client_auth = ClientAuth::SecretPost(Secret::new("rotated".into()));
        s.name = "renamed".into();
    });
    assert!(key(&same, "github", None, &subject("s")).0 == keys[0].0);
}

#[test]
fn every_input_of_the_other_kinds_changes_the_key() {
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let exchange = vault("https://a.example/", |s| {
        s.kind = Kind::TokenExchange(TokenExchange {
            preset: Preset::Generic,
            grant_type: TOKEN_EXCHANGE.to_owned(),
            subject_token_type: Some(ACCESS_TOKEN.to_owned()),
            requested_token_type: None,
            wanted: Wanted::default(),
            extra: Vec::new(),
            actor: Some(Actor {
                from: ActorFrom::Own,
                token_type: ACCESS_TOKEN.to_owned(),
            }),
        });
    });
    let own = vault("https://a.example/", |s| {
        s.kind = Kind::ClientCredentials(ClientCredentials::default());
    });
    let worker = vault("https://a.example/", |s| {
        s.kind = Kind::TokenVault(TokenVault {
            subject: VaultSubject::Worker(worker()),
            requested_token_type: None,
        });
    });
    let wanted = |audience: &[&str], resource: &[&str], scope: Option<&str>| {
        Arc::new(Wanted {
            audience: words(audience),
            resource: words(resource),
            scope: scope.map(Into::into),
            ..Wanted::default()
        })
    };
    let (token, actor, other) = (subject("s"), subject("a"), subject("b"));
    let wants = [
        wanted(&["ab", "c"], &[], None),
        wanted(&["a", "bc"], &[], None),
        wanted(&["c", "ab"], &[], None),
        wanted(&["ab"], &["c"], None),
        wanted(&[], &["ab", "c"], None),
        wanted(&["ab", "c"], &[], Some("")),
        wanted(&["ab", "c"], &[], Some("read")),
    ];
    let mut keys = Vec::new();
    for wanted in &wants {
        for actor in [&actor, &other] {
            let grant = Grant {
                subject: Some(&token),
                actor: Some(actor),
                ..Grant::new(&exchange, wanted)
            };
            keys.push(Key::of(&grant, false).ok().unwrap());
        }
        keys.push(Key::of(&Grant::new(&own, wanted), false).ok().unwrap());
    }
    for (id, secret) in [
        ("me", "right"),
        ("me", "wrong"),
        ("meright", ""),
        ("you", "right"),
    ] {
        let client = Arc::new(Client {
            id: id.into(),
            secret: Secret::new(secret.into()),
        });
        let grant = Grant {
            client: Some(&client),
            ..Grant::new(&own, &wants[0])
        };
        keys.push(Key::of(&grant, false).ok().unwrap());
    }
    let connection = Arc::new(Wanted::connection("github"));
    for user in ["auth0|1", "auth0|2"] {
        let grant = Grant {
            user: Some(user),
            ..Grant::new(&worker, &connection)
        };
        let key = Key::of(&grant, false).ok().unwrap();
        assert!(
            key == Key::of(&grant, false).ok().unwrap(),
            "each signature differs, the key does not"
        );
        keys.push(key);
    }
    // The agent's own token has nothing to do with the caller.
    keys.push(Key::of(&Grant::new(&exchange, &wants[0]), true).ok().unwrap());
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[..i].iter().all(|b| a != b), "key {i}");
    }
}

fn good(token: &str, ttl: Duration) -> Entry {
    Entry::Good(Arc::new(Good::new(
        Secret::new(token.into()),
        Life::of(None, None, secs(0), ttl, ttl),
        Instant::now(),
        0.0,
    )))
}

fn bad(ttl: Duration) -> Entry {
    let root = rcgen::generate_simple_self_signed(vec!["x".into()]).unwrap();
    let settings = settings("https://x.example/", vec![root.cert.der().clone()]);
    let vault = Vault::new(settings, Arc::new(RootCertStore::empty())).unwrap();
    Entry::Bad(Error::new(ErrorKind::Busy, &vault, &Wanted::default()), ttl)
}

fn key(n: u64) -> Key {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&n.to_be_bytes());
    Key(key)
}

#[test]
fn entries_end_each_at_its_own_time() {
    let store = Store::new(100);
    store.insert(key(1), good("short", Duration::from_millis(80)));
    store.insert(key(2), good("long", secs(60)));
    store.insert(key(3), bad(Duration::from_millis(80)));
    // A replacement lives by its own time, not by what was left of the old one's.
    store.insert(key(4), bad(Duration::from_millis(80)));
    store.insert(key(4), good("new", secs(60)));
    assert_eq!(store.len(), 4);
    std::thread::sleep(Duration::from_millis(200));
    assert!(store.get(&key(1)).is_none());
    assert!(store.get(&key(2)).is_some());
    assert!(store.get(&key(3)).is_none());
    assert!(matches!(store.get(&key(4)), Some(Entry::Good(_))));
    // (moka frees ended entries with a timer wheel of about a second, so `len` is no witness here.)
    store.flush(&Filter::default());
    assert_eq!(store.len(), 0);
}

#[test]
fn the_table_is_bounded_and_the_least_used_go() {
    let store = Store::new(limits::TOKEN_ENTRIES);
    store.insert(key(0), good("in use", secs(60)));
    for n in 1..=limits::TOKEN_ENTRIES + 500 {
        store.insert(key(n), bad(secs(60)));
        if n % 64 == 0 {
            assert!(store.get(&key(0)).is_some(), "{n}");
        }
    }
    assert!(store.len() <= limits::TOKEN_ENTRIES, "{}", store.len());
    assert!(store.get(&key(0)).is_some());
}

#[test]
fn only_the_very_token_is_evicted() {
    let store = Store::new(10);
    let digest = |entry: &Entry| match entry {
        Entry::Good(good) => good.digest,
        Entry::Bad(..) => panic!(),
    };
    let (old, new) = (good("old", secs(60)), good("new", secs(60)));
    store.insert(key(1), new.clone());
    assert!(!store.evict(key(1), &digest(&old)));
    assert!(store.get(&key(1)).is_some());
    assert!(store.evict(key(1), &digest(&new)));
    assert!(store.get(&key(1)).is_none());
    assert!(!store.evict(key(1), &digest(&new)));
    store.insert(key(1), bad(secs(60)));
    assert!(!store.evict(key(1), &digest(&new)));
    assert!(store.get(&key(1)).is_some());
}

#[test]
fn pauses_are_bounded_never_shortened_and_forgotten() {
    let store = Store::new(10);
    let id = |n: u8| VaultId([n; 32]);
    assert_eq!(store.paused(&id(1)), None);
    store.pause(id(1), secs(86_400));
    let left = store.paused(&id(1)).unwrap();
    assert!(left <= limits::RATE_LIMIT_WAIT && left > secs(55), "{left:?}");
    store.pause(id(1), Duration::from_millis(1));
    assert!(store.paused(&id(1)).unwrap() > secs(55));
    assert_eq!(store.paused(&id(2)), None);
    store.pause(id(2), Duration::from_millis(20));
    std::thread::sleep(Duration::from_millis(40));
    assert_eq!(store.paused(&id(2)), None);
    store.pause(id(3), secs(1));
    assert_eq!(store.pauses.len(), 2);
}

//! The rules in numbers, and the store with short real times: moka reads its own clock, which tokio
//! cannot pause.

use super::*;
use crate::token::ErrorKind;
use crate::token::Vault;
use crate::token::tests::fake::{self, subject};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn ttl(expires_in: Option<u64>, subject_exp: Option<u64>) -> Option<u64> {
    let life = Life::of(
        expires_in.map(secs),
        subject_exp,
        secs(1000),
        secs(300),
        secs(86_400),
    );
    life.map(|life| life.ttl.as_secs())
}

#[test]
fn the_shortest_of_the_three_lives_counts() {
    assert_eq!(ttl(Some(3600), None), Some(3540));
    assert_eq!(ttl(None, None), Some(300));
    assert_eq!(ttl(Some(3600), Some(1100)), Some(100));
    assert_eq!(ttl(None, Some(1100)), Some(100));
    assert_eq!(ttl(Some(120), Some(1100)), Some(60));
    assert_eq!(ttl(Some(u64::MAX), None), Some(86_400));
    assert_eq!(ttl(Some(u64::MAX), Some(u64::MAX)), Some(86_400));
    // At or below the margin, or with a subject that has ended: use once.
    for none in [
        (Some(0), None),
        (Some(59), None),
        (Some(60), None),
        (Some(3600), Some(1000)),
        (None, Some(1)),
    ] {
        assert_eq!(ttl(none.0, none.1), None, "{none:?}");
    }
    assert_eq!(ttl(Some(61), None), Some(1));
    // The operator's maximum cannot exceed ours.
    assert_eq!(
        Life::of(None, None, secs(0), Duration::MAX, Duration::MAX)
            .unwrap()
            .ttl,
        limits::TOKEN_TTL_MAX
    );
    assert_eq!(Life::of(None, None, secs(0), Duration::ZERO, Duration::MAX), None);
}

#[test]
fn a_refresh_is_due_in_the_last_fifth_and_once() {
    let start = Instant::now();
    let granted = || Granted {
        token: Secret::new("t".into()),
        expires_in: None,
    };
    let good = Good::new(
        granted(),
        Life::of(None, None, secs(0), secs(100), secs(900)),
        start,
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
        granted(),
        Life::of(None, Some(100), secs(0), secs(300), secs(900)),
        start,
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
        Key::of(&Grant {
            vault,
            connection,
            login_hint: hint,
            subject,
            route: "r",
        })
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
                s.requested_token_type = Some("urn:x".into())
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
        s.client_secret = Secret::new("rotated".into());
        s.name = "renamed".into();
    });
    assert!(key(&same, "github", None, &subject("s")).0 == keys[0].0);
}

fn good(token: &str, ttl: Duration) -> Entry {
    let granted = Granted {
        token: Secret::new(token.into()),
        expires_in: None,
    };
    Entry::Good(Arc::new(Good::new(
        granted,
        Life::of(None, None, secs(0), ttl, ttl),
        Instant::now(),
    )))
}

fn bad(ttl: Duration) -> Entry {
    let text: Arc<str> = "x".into();
    Entry::Bad(Error::new(ErrorKind::Busy, &text, &text, &text), ttl)
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

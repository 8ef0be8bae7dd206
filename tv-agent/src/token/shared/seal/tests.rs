//! What opens, and what does not.

use super::*;
use crate::token::cache::Key;

fn key(byte: u8) -> SealKey {
    SealKey::new(&[byte; KEY_BYTES])
}

fn entry(byte: u8) -> Key {
    Key::from_bytes([byte; 32])
}

const LIVED: Lived = Lived {
    fetched: Duration::from_millis(1_700_000_000_123),
    expires: Duration::from_millis(1_700_003_600_123),
    is_final: true,
};

fn sealed(ring: &Ring, name: &str, token: &str) -> Vec<u8> {
    ring.seal(&entry(7), name, &Secret::new(token.into()), LIVED)
        .unwrap()
}

#[test]
fn what_one_node_seals_another_opens() {
    let (ours, theirs) = (Ring::new(vec![key(1)]), Ring::new(vec![key(1)]));
    let name = &ours.names("p:", &entry(7))[0];
    assert_eq!(name, &theirs.names("p:", &entry(7))[0]);
    let token = r#"gho_a"b\c~!"#;
    let value = sealed(&ours, name, token);
    let contents = theirs.open(&entry(7), 0, name, &value).unwrap();
    assert_eq!(contents.token.expose(), token);
    assert_eq!(contents.lived, LIVED);
    // Never twice the same, for the nonce is random.
    assert_ne!(value, sealed(&ours, name, token));
}

#[test]
fn nothing_opens_but_the_same_value_under_the_same_name_by_the_same_key() {
    let ring = Ring::new(vec![key(1), key(2)]);
    let names = ring.names("p:", &entry(7));
    let value = sealed(&ring, &names[0], "token");
    assert!(ring.open(&entry(7), 0, &names[0], &value).is_some());
    let other = &ring.names("p:", &entry(8))[0];
    assert!(
        ring.open(&entry(7), 0, other, &value).is_none(),
        "another entry's name"
    );
    // Whoever has the fleet's key and all of Redis, but not the caller's token.
    assert!(
        ring.open(&entry(8), 0, &names[0], &value).is_none(),
        "another caller"
    );
    assert!(
        ring.open(&entry(7), 1, &names[1], &value).is_none(),
        "another key's name"
    );
    assert!(
        ring.open(&entry(7), 1, &names[0], &value).is_none(),
        "another key"
    );
    assert!(
        ring.open(&entry(7), 9, &names[0], &value).is_none(),
        "no key at all"
    );
    let elsewhere = &ring.names("q:", &entry(7))[0];
    assert!(
        ring.open(&entry(7), 0, elsewhere, &value).is_none(),
        "another prefix"
    );
    for at in 0..value.len() {
        let mut changed = value.clone();
        changed[at] ^= 1;
        assert!(
            ring.open(&entry(7), 0, &names[0], &changed).is_none(),
            "byte {at}"
        );
    }
    for length in 0..value.len() {
        assert!(
            ring.open(&entry(7), 0, &names[0], &value[..length]).is_none(),
            "{length} bytes"
        );
    }
    assert!(
        ring.open(&entry(7), 0, &names[0], &[value, vec![0]].concat())
            .is_none()
    );
}

#[test]
fn a_new_key_seals_and_the_old_one_still_opens() {
    let before = Ring::new(vec![key(1)]);
    let after = Ring::new(vec![key(2), key(1)]);
    let old = &before.names("p:", &entry(7))[0];
    let value = sealed(&before, old, "token");
    let names = after.names("p:", &entry(7));
    assert_eq!((names.len(), &names[1]), (2, old));
    assert_eq!(
        after
            .open(&entry(7), 1, &names[1], &value)
            .unwrap()
            .token
            .expose(),
        "token"
    );
    assert!(
        before
            .open(&entry(7), 0, &names[0], &sealed(&after, &names[0], "token"))
            .is_none()
    );
    assert_eq!(after.ids().count(), 2);
}

#[test]
fn names_and_values_tell_nothing_of_what_is_in_them() {
    let ring = Ring::new(vec![key(1)]);
    let name = &ring.names("p:", &entry(7))[0];
    let hex: String = entry(7)
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert!(name.starts_with("p:1:") && !name.contains(&hex[..8]), "{name}");
    let value = sealed(&ring, name, "gho_canary");
    assert!(
        !value
            .windows(6)
            .any(|part| part == b"canary" || part == b"fetche")
    );
    let lengths: Vec<usize> = (1..100)
        .map(|n| sealed(&ring, name, &"x".repeat(n)).len())
        .collect();
    assert!(lengths.iter().all(|length| *length == lengths[0]), "{lengths:?}");
}

#[test]
fn a_token_at_the_limit_fits_and_a_value_beyond_it_is_neither_written_nor_read() {
    let ring = Ring::new(vec![key(1)]);
    let name = &ring.names("p:", &entry(7))[0];
    // Quotes are escaped, so this is the longest that there is.
    let longest = "\"".repeat(limits::PROVIDER_TOKEN_BYTES);
    let value = sealed(&ring, name, &longest);
    assert!(value.len() <= limits::SHARED_VALUE_BYTES);
    assert_eq!(
        ring.open(&entry(7), 0, name, &value).unwrap().token.expose(),
        longest
    );
    let beyond = Secret::new("\"".repeat(limits::SHARED_VALUE_BYTES));
    assert!(ring.seal(&entry(7), name, &beyond, LIVED).is_none());
    assert!(
        ring.open(&entry(7), 0, name, &vec![0; limits::SHARED_VALUE_BYTES + 1])
            .is_none()
    );
}

#[test]
fn what_could_not_be_sent_as_a_token_is_not_taken_for_one() {
    let ring = Ring::new(vec![key(1)]);
    let name = &ring.names("p:", &entry(7))[0];
    for text in ["", "two words", "line\r\nx: y", "ümlaut"] {
        assert!(
            ring.open(&entry(7), 0, name, &sealed(&ring, name, text))
                .is_none(),
            "{text:?}"
        );
    }
}

#[test]
fn keys_are_32_bytes_of_base64() {
    let parse = |text: &str| SealKey::parse(&Secret::new(text.into()));
    let good = STANDARD.encode([7; 32]);
    assert!(parse(&good).is_some() && parse(&format!(" {good}\n")).is_some());
    let short = STANDARD.encode([7; 31]);
    let long = STANDARD.encode([7; 33]);
    for bad in ["", "x", &short, &long, &"A".repeat(4096), &good[1..]] {
        assert!(parse(bad).is_none(), "{bad}");
    }
    assert_ne!(key(1).id(), key(2).id());
}

//! Which keys of a set are used, and which one a token means.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde_json::json;

use super::*;

fn rsa(kid: &str) -> Value {
    json!({ "kty": "RSA", "kid": kid, "n": B64.encode([0xc3; 256]), "e": "AQAB" })
}

fn ec(kid: &str, curve: &str, bytes: usize) -> Value {
    let half = B64.encode(vec![7; bytes]);
    json!({ "kty": "EC", "kid": kid, "crv": curve, "x": half, "y": half })
}

fn ed(kid: &str) -> Value {
    json!({ "kty": "OKP", "kid": kid, "crv": "Ed25519", "x": B64.encode([9; 32]) })
}

fn with(mut key: Value, name: &str, value: impl Into<Value>) -> Value {
    key[name] = value.into();
    key
}

fn set(keys: &[Value]) -> Result<KeySet, Rejected> {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes())
}

#[test]
fn keys_that_can_verify_nothing_are_left_out() {
    let useless = [
        with(rsa("a"), "use", "enc"),
        with(rsa("a"), "key_ops", json!(["encrypt"])),
        with(rsa("a"), "alg", "RSA-OAEP"),
        with(rsa("a"), "alg", "ES256"),
        with(rsa("a"), "alg", "HS256"),
        with(rsa("a"), "alg", Value::from(5)),
        with(rsa("a"), "n", B64.encode([0xc3; 128])),
        with(rsa("a"), "n", B64.encode([0xc3; 1025])),
        with(rsa("a"), "n", "!!!"),
        with(rsa("a"), "kid", Value::from(1)),
        with(rsa("a"), "e", Value::Null),
        ec("a", "P-256", 31),
        ec("a", "P-384", 32),
        ec("a", "P-521", 66),
        ec("a", "secp256k1", 32),
        with(ed("a"), "crv", "X25519"),
        with(ed("a"), "x", B64.encode([9; 31])),
        json!({ "kty": "oct", "kid": "a", "k": B64.encode("a secret that everybody can read") }),
        json!({ "kty": "new", "kid": "a" }),
        json!("a"),
        Value::Null,
    ];
    for key in useless {
        let alone = set(std::slice::from_ref(&key)).err();
        assert_eq!(alone, Some(Rejected::Unusable(NoKey::Empty)), "{key}");
        assert_eq!(set(&[key, ed("b")]).unwrap().len(), 1);
    }
}

#[test]
fn documents_that_are_no_key_set_are_refused() {
    for (text, fault) in [
        ("", Rejected::Json(json::NotJson::Syntax)),
        ("[]", Rejected::Json(json::NotJson::NotObject)),
        ("{}", Rejected::NoKeys),
        (r#"{"keys":null}"#, Rejected::NoKeys),
        (r#"{"keys":{}}"#, Rejected::NoKeys),
        (r#"{"keys":[]}"#, Rejected::Unusable(NoKey::Empty)),
        (
            r#"{"keys":[],"keys":[]}"#,
            Rejected::Json(json::NotJson::Duplicate),
        ),
    ] {
        assert_eq!(KeySet::parse(text.as_bytes()).err(), Some(fault), "{text}");
    }
    let many: Vec<Value> = (0..=limits::JWKS_KEYS).map(|n| ed(&n.to_string())).collect();
    assert_eq!(set(&many).err(), Some(Rejected::TooManyKeys));
    assert_eq!(set(&many[1..]).unwrap().len(), limits::JWKS_KEYS);
}

#[test]
fn a_token_means_one_key_or_none() {
    let set = set(&[
        with(rsa("r"), "alg", "RS256"),
        ec("e", "P-256", 32),
        ed("d"),
        ed("d"),
        // RFC 7517 §4.5: one id for keys of different types.
        rsa("mixed"),
        ec("mixed", "P-384", 48),
    ])
    .unwrap();
    let find = |algorithm, kid| set.find(algorithm, kid).map(|key| key.kind);
    let kid = |kid: &str| kid.to_owned();
    assert_eq!(find(Algorithm::RS256, Some("r")), Ok(Kind::Rsa));
    assert_eq!(find(Algorithm::ES256, Some("e")), Ok(Kind::P256));
    assert_eq!(find(Algorithm::PS512, Some("mixed")), Ok(Kind::Rsa));
    assert_eq!(find(Algorithm::ES384, Some("mixed")), Ok(Kind::P384));
    assert_eq!(find(Algorithm::ES256, None), Ok(Kind::P256));
    let wrong = |name: &str, algorithm| {
        Err(NoKey::WrongType {
            kid: kid(name),
            algorithm,
        })
    };
    assert_eq!(find(Algorithm::PS256, Some("r")), wrong("r", Algorithm::PS256));
    assert_eq!(find(Algorithm::ES384, Some("e")), wrong("e", Algorithm::ES384));
    assert_eq!(find(Algorithm::HS256, Some("r")), wrong("r", Algorithm::HS256));
    assert_eq!(
        find(Algorithm::EdDSA, Some("d")),
        Err(NoKey::Ambiguous { kid: kid("d") })
    );
    assert_eq!(
        find(Algorithm::RS256, Some("x")),
        Err(NoKey::Unknown { kid: kid("x") })
    );
    let long = "k".repeat(500);
    assert_eq!(
        find(Algorithm::RS256, Some(&long)),
        Err(NoKey::Unknown {
            kid: kid(&long[..64])
        })
    );
    let unnamed = |count, algorithm| Err(NoKey::Unnamed { count, algorithm });
    assert_eq!(find(Algorithm::RS256, None), unnamed(2, Algorithm::RS256));
    assert_eq!(find(Algorithm::HS256, None), unnamed(0, Algorithm::HS256));
}

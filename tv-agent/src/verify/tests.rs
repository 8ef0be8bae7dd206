//! Whatever comes in as a token, an answer or a document: no panic, and nothing is accepted that is not signed.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::EncodingKey;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::oidc::KeySet;

const SECRET: &str = "the secret that both sides share";

fn verifier(verify_signature: bool) -> Verifier {
    let settings = Settings {
        name: "corp".into(),
        issuer: None,
        jwks_uri: None,
        algorithms: vec![Algorithm::HS256],
        hs_secret: Some(Secret::new(SECRET.into()).hmac_key()),
        verify_signature,
        rules: Rules {
            verify_expiry: true,
            ..Rules::default()
        },
        jwks_rotate: None,
        introspection: None,
    };
    Verifier::new(settings, Arc::new(RootCertStore::empty())).unwrap()
}

fn sign(header: &str, claims: &str) -> String {
    let message = format!("{}.{}", B64.encode(header), B64.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

/// The verdict at a fixed time. No fetch is ever needed, so the future is ready at once.
fn verdict(verifier: &Verifier, token: &str) -> Result<Verified, ErrorKind> {
    let token = Secret::new(token.to_owned());
    let mut checking = std::pin::pin!(verifier.check_at(&token, 1_700_000_000));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match checking.as_mut().poll(&mut context) {
        std::task::Poll::Ready(verdict) => verdict,
        std::task::Poll::Pending => panic!("it waits for something"),
    }
}

fn good() -> String {
    sign(r#"{"alg":"HS256"}"#, r#"{"sub":"alice","exp":1800000000}"#)
}

/// Any JSON, deeper than what is accepted as well.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(20, 60, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("[a-z]{1,4}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

#[test]
fn the_shared_secret_verifies_and_another_does_not() {
    let verified = verdict(&verifier(true), &good()).unwrap();
    assert_eq!(
        (verified.identity.as_deref(), verified.expires),
        (Some("alice"), Some(1_800_000_000))
    );
    // A second look takes the signature as known, and the time as it is now.
    let known = verifier(true);
    for _ in 0..2 {
        assert!(verdict(&known, &good()).is_ok());
    }
    let late = Secret::new(good());
    let mut checking = std::pin::pin!(known.check_at(&late, 1_900_000_000));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(Err(ErrorKind::Refused(refused))) = checking.as_mut().poll(&mut context)
    else {
        panic!("an expired token was accepted")
    };
    assert_eq!(refused, claims::Refused::Expired { ago: 100_000_000 });
    let (message, _) = good()
        .rsplit_once('.')
        .map(|(m, s)| (m.to_owned(), s.to_owned()))
        .unwrap();
    let forged = format!("{message}.{}", B64.encode([0; 32]));
    assert!(matches!(
        verdict(&verifier(true), &forged),
        Err(ErrorKind::Signature)
    ));
    assert!(
        verdict(&verifier(false), &forged).is_ok(),
        "verify_signature: false"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_text_is_accepted_as_a_token(text in "\\PC{0,200}") {
        prop_assert!(verdict(&verifier(true), &text).is_err());
    }

    #[test]
    fn no_three_parts_are_accepted_unsigned(
        header in json(),
        claims in json(),
        signature in prop::collection::vec(any::<u8>(), 0..70),
    ) {
        let parts = [header.to_string().into_bytes(), claims.to_string().into_bytes(), signature];
        let token = parts.map(|part| B64.encode(part)).join(".");
        prop_assert!(verdict(&verifier(true), &token).is_err());
        let signed = sign(r#"{"alg":"HS256"}"#, &claims.to_string());
        // Claims that have no expiry in the future are refused, whatever else they are.
        prop_assert!(verdict(&verifier(true), &signed).is_err());
    }

    #[test]
    fn one_changed_byte_breaks_a_token(at in 0..good().len(), byte in 33_u8..127) {
        let token = good();
        let mut changed = token.clone().into_bytes();
        changed[at] = byte;
        let changed = String::from_utf8(changed).unwrap();
        // The last character of a part may have unused bits: those have to be zero.
        prop_assert_eq!(verdict(&verifier(true), &changed).is_ok(), changed == token);
    }

    #[test]
    fn rules_never_panic(claims in json(), leeway in any::<u64>(), now in any::<u64>()) {
        let rules = Rules {
            leeway,
            verify_expiry: true,
            verify_not_before: true,
            audiences: vec!["a".into()],
            scopes: vec![vec!["b".into()]],
            ..Rules::default()
        };
        if let Value::Object(claims) = claims {
            let _ = claims::check(&rules, &claims, now);
        }
    }

    #[test]
    fn any_bytes_are_a_key_set_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), keys in json()) {
        prop_assert!(KeySet::parse(&bytes).is_err());
        let document = json!({ "keys": [keys] }).to_string();
        prop_assert!(KeySet::parse(document.as_bytes()).is_err());
    }

    #[test]
    fn objects_are_read_as_serde_reads_them(value in json()) {
        let text = value.to_string();
        match object(text.as_bytes()) {
            Ok(members) => {
                let read: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(Value::Object(members), read);
            }
            Err(NotJson::TooDeep) => {
                let opened = text.matches(['[', '{']).count();
                prop_assert!(opened > limits::JSON_DEPTH);
            }
            Err(NotJson::NotObject) => prop_assert!(!value.is_object()),
            Err(other) => prop_assert!(false, "{:?}: {}", other, text),
        }
    }
}

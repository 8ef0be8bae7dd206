//! Keys of every algorithm, sets of every source, and tokens that somebody else's library accepts.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{DecodingKey, Validation, decode};

use super::keyset::{Generate, Settings as SetSettings};
use super::*;

const NOW: u64 = 1_700_000_000;

fn generated(name: &str, algorithm: Algorithm, rotate: Option<Duration>) -> SetSettings {
    SetSettings {
        name: name.into(),
        source: Source::Generate {
            how: Generate {
                algorithm,
                bits: 2048,
            },
            rotate,
        },
    }
}

fn open(dir: &Path, settings: SetSettings) -> KeySet {
    KeySet::open(settings, dir, NOW, None).unwrap_or_else(|error| panic!("{}", causes(&error)))
}

fn fails(dir: &Path, settings: SetSettings) -> String {
    causes(&KeySet::open(settings, dir, NOW, None).err().expect("an error"))
}

fn causes(error: &dyn std::error::Error) -> String {
    let all = std::iter::successors(Some(error), |error| error.source());
    all.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn file(path: &Path) -> SetSettings {
    SetSettings {
        name: "given".into(),
        source: Source::File {
            path: path.to_owned(),
        },
    }
}

fn signer(sets: &KeySets, name: &str, algorithm: Option<Algorithm>) -> Signer {
    let settings = Settings {
        keyset: name.into(),
        algorithm,
        edits: Edits {
            issuer: "tv-agent".into(),
            expiry_leeway: 0,
            add: Map::new(),
            set: Map::new(),
            remove: Vec::new(),
        },
        original_token_header: None,
    };
    Signer::new(settings, sets).unwrap()
}

fn claims() -> Map<String, Value> {
    let value = json!({ "iss": "https://idp/", "sub": "alice", "aud": ["a"], "deep": { "er": [1] } });
    value.as_object().unwrap().clone()
}

/// The claims of `token`, if the key that its header names in `jwks` made it. By the JOSE crate, save for P-521.
fn verified(token: &str, jwks: &Value) -> Option<Value> {
    let set: JwkSet = serde_json::from_value(jwks.clone()).unwrap();
    let part = |n: usize| BASE64.decode(token.split('.').nth(n).unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&part(0)).unwrap();
    assert_eq!(header["typ"], "JWT");
    let kid = header["kid"].as_str().unwrap();
    if header["alg"] == "ES512" {
        let keys = jwks["keys"].as_array().unwrap();
        let jwk = keys.iter().find(|jwk| jwk["kid"] == kid)?;
        let coordinate = |name: &str| BASE64.decode(jwk[name].as_str().unwrap()).unwrap();
        let point = [vec![4], coordinate("x"), coordinate("y")].concat();
        let (message, _) = token.rsplit_once('.').unwrap();
        let key = UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point);
        key.verify(message.as_bytes(), &part(2)).ok()?;
        return serde_json::from_slice(&part(1)).ok();
    }
    let header = jsonwebtoken::decode_header(token).unwrap();
    let key = DecodingKey::from_jwk(set.find(kid)?).unwrap();
    let mut validation = Validation::new(header.alg);
    validation.validate_exp = false;
    validation.validate_aud = false;
    decode(token, &key, &validation).ok().map(|data| data.claims)
}

/// Every algorithm, except that RSA keys are made once: they take a while.
const MADE: [Algorithm; 8] = [
    Algorithm::RS256,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::ES512,
    Algorithm::EdDSA,
    Algorithm::HS256,
    Algorithm::HS384,
    Algorithm::HS512,
];

#[test]
fn a_set_is_made_once_signs_and_is_published_without_its_private_part() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    for algorithm in MADE {
        let name = algorithm.label();
        let set = open(&keys, generated(name, algorithm, None));
        let kid = set.signing(None).unwrap().kid.clone();
        let sets = KeySets::new([set]);
        let signed = signer(&sets, name, Some(algorithm)).sign(&claims(), NOW).unwrap();
        assert_eq!(
            (signed.kid.as_str(), signed.expires),
            (kid.as_str(), NOW + claims::LIFE)
        );
        let jwks = sets.jwks(Some(name)).unwrap();
        let published = jwks["keys"].as_array().unwrap().len();
        if algorithm.is_symmetric() {
            assert_eq!(published, 0, "{jwks}");
            continue;
        }
        let token = signed.token.expose();
        let found = verified(token, &jwks).expect("a signature that holds");
        assert_eq!(
            (&found["iss"], &found["original_iss"]),
            (&json!("tv-agent"), &json!("https://idp/"))
        );
        assert_eq!(found["deep"], json!({ "er": [1] }));
        // A letter of the claims changed: whoever checks must notice.
        let at = token.find('.').unwrap() + 9;
        let other = if &token[at..=at] == "A" { "B" } else { "A" };
        let forged = format!("{}{other}{}", &token[..at], &token[at + 1..]);
        assert!(verified(&forged, &jwks).is_none());

        // The same key after a restart, and nothing of its private part in what is shown.
        assert_eq!(
            open(&keys, generated(name, algorithm, None))
                .signing(None)
                .unwrap()
                .kid,
            kid
        );
        let members = ["kty", "crv", "x", "y", "n", "e", "kid", "alg", "use"];
        for jwk in jwks["keys"].as_array().unwrap() {
            assert!(
                jwk.as_object()
                    .unwrap()
                    .keys()
                    .all(|name| members.contains(&name.as_str())),
                "{jwk}"
            );
        }
        let stored = std::fs::read_to_string(keys.join(format!("{name}.json"))).unwrap();
        let stored: Value = serde_json::from_str(&stored).unwrap();
        let private = stored["keys"][0]["private"].as_str().unwrap();
        assert!(!format!("{jwks} {:?} {token}", sets.list()).contains(&private[..40]));
    }
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(&keys), mode(&keys.join("RS256.json"))), (0o700, 0o600));
}

#[test]
fn every_algorithm_of_an_rsa_key_is_understood_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let set = open(dir.path(), generated("rsa", Algorithm::RS256, None));
    let path = dir.path().join("rsa.json");
    drop(set);
    for algorithm in Algorithm::ALL.into_iter().filter(|algorithm| algorithm.is_rsa()) {
        let text = std::fs::read_to_string(&path).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        document["keys"][0]["algorithm"] = algorithm.label().into();
        std::fs::write(&path, document.to_string()).unwrap();
        let sets = KeySets::new([open(dir.path(), generated("rsa", algorithm, None))]);
        let signed = signer(&sets, "rsa", None).sign(&claims(), NOW).unwrap();
        assert!(
            verified(signed.token.expose(), &sets.jwks(None).unwrap()).is_some(),
            "{algorithm}"
        );
    }
}

#[test]
fn the_same_claims_get_the_same_token_until_it_ends_or_the_key_changes() {
    let dir = tempfile::tempdir().unwrap();
    let sets = KeySets::new([open(dir.path(), generated("a", Algorithm::ES256, None))]);
    let signer = signer(&sets, "a", None);
    let mut claims = claims();
    claims.insert("exp".to_owned(), (NOW + 10).into());
    let text = |claims: &Map<String, Value>, now: u64| {
        let signed = signer.sign(claims, now);
        signed.map(|signed| signed.token.expose().to_owned())
    };
    let first = text(&claims, NOW).unwrap();
    assert_eq!(text(&claims, NOW + 9), Ok(first.clone()));
    assert_eq!(text(&claims, NOW + 10), Err(Error::Over));
    let mut other = claims.clone();
    other.insert("sub".to_owned(), "mallory".into());
    assert_ne!(text(&other, NOW), Ok(first.clone()));
    sets.get("a").unwrap().rotate(NOW + 1).unwrap();
    assert_ne!(text(&claims, NOW + 1), Ok(first));
    // Bounded: what was made first goes.
    for n in 0..2 * limits::SIGNED_TOKENS {
        claims.insert("n".to_owned(), n.into());
        signer.sign(&claims, NOW).unwrap();
    }
    signer.made.run_pending_tasks();
    assert!(signer.made.entry_count() <= limits::SIGNED_TOKENS);
}

#[test]
fn a_rotation_keeps_the_previous_key_and_a_second_one_forgets_it() {
    let dir = tempfile::tempdir().unwrap();
    let sets = KeySets::new([open(dir.path(), generated("a", Algorithm::ES256, None))]);
    let set = sets.get("a").unwrap();
    let sign = || signer(&sets, "a", None).sign(&claims(), NOW).unwrap();
    let holds = |signed: &Signed| verified(signed.token.expose(), &sets.jwks(Some("a")).unwrap()).is_some();
    let first = sign();
    set.rotate(NOW + 1).unwrap();
    let second = sign();
    assert_ne!(first.kid, second.kid);
    assert!(holds(&first) && holds(&second));
    let list = sets.list();
    let rows: Vec<_> = list
        .iter()
        .map(|row| (row.kid.as_str(), row.state.as_str(), row.created))
        .collect();
    assert_eq!(
        rows,
        [(&*second.kid, "current", NOW + 1), (&*first.kid, "previous", NOW)]
    );
    set.rotate(NOW + 2).unwrap();
    assert!(!holds(&first) && holds(&second) && holds(&sign()));
    assert!(sets.jwks(Some("b")).is_none());
}

#[tokio::test]
async fn keys_are_rotated_by_time_and_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(86_400);
    let settings = || generated("a", Algorithm::EdDSA, Some(day));
    let set = Arc::new(open(dir.path(), settings()));
    let first = set.signing(None).unwrap().kid.clone();
    assert!(!set.tend(NOW + 86_399).await.unwrap());
    assert_eq!(set.signing(None).unwrap().kid, first);
    assert!(set.tend(NOW + 86_400).await.unwrap());
    let second = set.signing(None).unwrap().kid.clone();
    assert_ne!(first, second);
    assert!(!set.tend(NOW + 86_400).await.unwrap());
    // A clock that went back makes nothing old.
    assert!(!set.tend(NOW - 86_400).await.unwrap());
    // Another process rotates the same files: it is noticed, and only one of both rotates by time.
    let other = Arc::new(open(dir.path(), settings()));
    assert_eq!(other.signing(None).unwrap().kid, second);
    other.tend(NOW + 2 * 86_400).await.unwrap();
    let third = other.signing(None).unwrap().kid.clone();
    assert!(set.tend(NOW + 2 * 86_400).await.unwrap());
    assert_eq!(set.signing(None).unwrap().kid, third);
    // And at start, when it is long ago.
    let late = KeySet::open(settings(), dir.path(), NOW + 9 * 86_400, None).unwrap();
    assert_ne!(late.signing(None).unwrap().kid, third);
    assert_eq!(late.list()[1].kid, third);
}

#[test]
fn many_at_once_make_one_key_and_lose_none() {
    let dir = tempfile::tempdir().unwrap();
    let kids: Vec<String> = std::thread::scope(|scope| {
        let each = || {
            open(dir.path(), generated("a", Algorithm::ES256, None))
                .signing(None)
                .unwrap()
                .kid
                .clone()
        };
        let all: Vec<_> = (0..8).map(|_| scope.spawn(each)).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(kids.iter().all(|kid| *kid == kids[0]), "{kids:?}");
    let set = open(dir.path(), generated("a", Algorithm::ES256, None));
    std::thread::scope(|scope| {
        for n in 0..8 {
            let set = &set;
            scope.spawn(move || set.rotate(NOW + n).unwrap());
        }
    });
    let after = open(dir.path(), generated("a", Algorithm::ES256, None));
    assert_eq!(after.list().len(), 2);
    assert!(after.list().iter().all(|row| row.kid != kids[0]), "both are new");
    // A writer that was killed leaves a temporary file, which is nobody's.
    std::fs::write(dir.path().join("a.tmp"), "half a fi").unwrap();
    after.rotate(NOW + 9).unwrap();
    assert!(!dir.path().join("a.tmp").exists());
}

#[test]
fn another_algorithm_makes_another_key_and_keeps_the_old_one_published() {
    let dir = tempfile::tempdir().unwrap();
    let old = open(dir.path(), generated("a", Algorithm::ES256, None))
        .signing(None)
        .unwrap()
        .kid
        .clone();
    let set = open(dir.path(), generated("a", Algorithm::EdDSA, None));
    let rows: Vec<_> = set
        .list()
        .into_iter()
        .map(|row| (row.algorithm, row.kid == old))
        .collect();
    assert_eq!(rows, [("EdDSA".to_owned(), false), ("ES256".to_owned(), true)]);
    assert_eq!(set.signing(Some(Algorithm::ES256)).unwrap().kid, old);
    assert!(set.signing(Some(Algorithm::HS256)).is_none());
}

#[test]
fn a_file_that_is_wrong_is_named_and_never_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.json");
    let try_with = |text: &str, mode: u32| {
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        fails(dir.path(), generated("a", Algorithm::ES256, None))
    };
    let key = |private: &str| {
        format!(r#"{{"keys":[{{"kid":"k","algorithm":"ES256","created":1,"private":"{private}"}}]}}"#)
    };
    let secret = BASE64.encode("not-a-key-but-secret-enough-0001");
    let long = "x".repeat(64 * 1024 + 1);
    let cases = [
        (key(&secret), 0o600, "key 1: its parts do not belong together"),
        (key("***secret***"), 0o600, "key 1: it is no JSON object of a key"),
        (key(&secret), 0o640, "mode 640"),
        (
            r#"{"keys":[{"secret-enough-0001":1}]}"#.to_owned(),
            0o600,
            "is no file of keys of this version (line 1)",
        ),
        ("{\"keys\":\nsecret".to_owned(), 0o600, "(line 2)"),
        (String::new(), 0o600, "is no file of keys"),
        (r#"{"keys":[],"other":1}"#.to_owned(), 0o600, "is no file of keys"),
        (long, 0o600, "is larger than 65536 bytes"),
    ];
    for (text, mode, part) in &cases {
        let message = try_with(text, *mode);
        assert!(
            message.contains(part) && message.contains("keysets.a"),
            "{part:?} is missing in: {message}"
        );
        assert!(message.contains("a.json"), "{message}");
        assert!(!message.contains("secret"), "{message}");
        assert!(!message.contains(&secret), "{message}");
    }
    // What is wrong is left as it is: no new key takes the place of one that may be restored.
    assert!(std::fs::metadata(&path).unwrap().len() > 60_000);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(fails(dir.path(), generated("a", Algorithm::ES256, None)).contains("cannot read"));
    // A directory that others may write to is none for keys.
    let open_dir = dir.path().join("open");
    std::fs::create_dir(&open_dir).unwrap();
    std::fs::set_permissions(&open_dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert!(fails(&open_dir, generated("a", Algorithm::ES256, None)).contains("chmod 700"));
}

/// Private keys that another implementation made: RFC 7517 appendix A.2, RFC 8037 appendix A.1, RFC 7515 A.1 and A.4.
const EC: &str = r#"{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","d":"870MB6gfuTJ4HtUnUvYMyJpr5eUZNP4Bk43bVdj3eAE","use":"enc","kid":"1"}"#;
const RSA: &str = r#"{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","d":"X4cTteJY_gn4FYPsXB8rdXix5vwsg1FLN5E3EaG6RJoVH-HLLKD9M7dx5oo7GURknchnrRweUkC7hT5fJLM0WbFAKNLWY2vv7B6NqXSzUvxT0_YSfqijwp3RTzlBaCxWp4doFk5N2o8Gy_nHNKroADIkJ46pRUohsXywbReAdYaMwFs9tv8d_cPVY3i07a3t8MN6TNwm0dSawm9v47UiCl3Sk5ZiG7xojPLu4sbg1U2jx4IBTNBznbJSzFHK66jT8bgkuqsk0GjskDJk19Z4qwjwbsnn4j2WBii3RL-Us2lGVkY8fkFzme1z0HbIkfz0Y6mqnOYtqc0X4jfcKoAC8Q","p":"83i-7IvMGXoMXCskv73TKr8637FiO7Z27zv8oj6pbWUQyLPQBQxtPVnwD20R-60eTDmD2ujnMt5PoqMrm8RfmNhVWDtjjMmCMjOpSXicFHj7XOuVIYQyqVWlWEh6dN36GVZYk93N8Bc9vY41xy8B9RzzOGVQzXvNEvn7O0nVbfs","q":"3dfOR9cuYq-0S-mkFLzgItgMEfFzB2q3hWehMuG0oCuqnb3vobLyumqjVZQO1dIrdwgTnCdpYzBcOfW5r370AFXjiWft_NGEiovonizhKpo9VVS78TzFgxkIdrecRezsZ-1kYd_s1qDbxtkDEgfAITAG9LUnADun4vIcb6yelxk","dp":"G4sPXkc6Ya9y8oJW9_ILj4xuppu0lzi_H7VTkS8xj5SdX3coE0oimYwxIi2emTAue0UOa5dpgFGyBJ4c8tQ2VF402XRugKDTP8akYhFo5tAA77Qe_NmtuYZc3C3m3I24G2GvR5sSDxUyAN2zq8Lfn9EUms6rY3Ob8YeiKkTiBj0","dq":"s9lAH9fggBsoFR8Oac2R_E2gw282rT2kGOAhvIllETE1efrA6huUUvMfBcMpn8lqeW6vzznYY5SSQF7pMdC_agI3nG8Ibp1BUb0JUiraRNqUfLhcQb_d9GF4Dh7e74WbRsobRonujTYN1xCaP6TO61jvWrX-L18txXw494Q_cgk","qi":"GyM_p6JrXySiz1toFgKbWV-JdI3jQ4ypu9rbMWx3rQJBfmt0FoYzgUIZEVFEcOqwemRN81zoDAaa-Bk0KWNGDjJHZDdDmFhW3AN7lI-puxk_mHZGJ11rxyR8O55XLSe3SPmRfKwZI6yU24ZxvQKFYItdldUKGzO6Ia6zTKhAVRU","alg":"RS256","kid":"2011-04-29"}"#;
const ED: &str = r#"{"kty":"OKP","crv":"Ed25519","d":"nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
const OCT: &str = r#"{"kty":"oct","kid":"h","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}"#;

#[test]
fn private_keys_of_others_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    std::fs::write(&path, format!(r#"{{"keys":[{RSA},{EC},{ED},{OCT}]}}"#)).unwrap();
    let sets = KeySets::new([open(dir.path(), file(&path))]);
    let rows: Vec<_> = sets
        .list()
        .into_iter()
        .map(|row| (row.algorithm, row.kid))
        .collect();
    // RFC 8037 appendix A.3 gives the thumbprint that stands in for the id.
    let expected = [
        ("RS256", "2011-04-29"),
        ("ES256", "1"),
        ("EdDSA", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),
        ("HS256", "h"),
    ];
    assert_eq!(rows, expected.map(|(a, b)| (a.to_owned(), b.to_owned())));
    let jwks = sets.jwks(None).unwrap();
    assert_eq!(jwks["keys"].as_array().unwrap().len(), 3);
    for algorithm in [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA] {
        let signed = signer(&sets, "given", Some(algorithm))
            .sign(&claims(), NOW)
            .unwrap();
        assert!(verified(signed.token.expose(), &jwks).is_some(), "{algorithm}");
    }
    let signed = signer(&sets, "given", Some(Algorithm::HS256))
        .sign(&claims(), NOW)
        .unwrap();
    let key: Value = serde_json::from_str(OCT).unwrap();
    let key = DecodingKey::from_secret(&BASE64.decode(key["k"].as_str().unwrap()).unwrap());
    let mut validation = Validation::new(jsonwebtoken::Algorithm::HS256);
    validation.validate_exp = false;
    validation.validate_aud = false;
    decode::<Value>(signed.token.expose(), &key, &validation).unwrap();
    // One key by itself is a set of one; the private members of all are nowhere.
    std::fs::write(&path, ED).unwrap();
    assert_eq!(open(dir.path(), file(&path)).list().len(), 1);
    let shown = format!("{jwks} {:?}", sets.list());
    for jwk in [RSA, EC, ED, OCT] {
        let jwk: Value = serde_json::from_str(jwk).unwrap();
        for name in ["d", "p", "q", "dp", "dq", "qi", "k"] {
            if let Some(secret) = jwk[name].as_str() {
                assert!(!shown.contains(secret), "{name}");
            }
        }
    }
}

#[test]
fn keys_that_cannot_sign_are_refused_each_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let change = |text: &str, edit: &dyn Fn(&mut Value)| {
        let mut jwk: Value = serde_json::from_str(text).unwrap();
        edit(&mut jwk);
        format!(r#"{{"keys":[{jwk}]}}"#)
    };
    let without =
        |text: &str, name: &str| change(text, &|jwk| drop(jwk.as_object_mut().unwrap().remove(name)));
    let with = |text: &str, name: &str, value: &str| change(text, &|jwk| jwk[name] = value.into());
    let many = format!(r#"{{"keys":[{}]}}"#, vec![ED; limits::KEYS + 1].join(","));
    let deep = format!("{{\"keys\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let cases = [
        (without(EC, "d"), "private part is missing"),
        (without(RSA, "p"), "private part is missing"),
        (without(OCT, "k"), "private part is missing"),
        (without(EC, "x"), "no JSON object of a key"),
        (with(EC, "d", "AAAA"), "do not belong together"),
        (with(EC, "x", "AAAA"), "do not belong together"),
        (with(RSA, "dp", "AQAB"), "do not belong together"),
        (with(ED, "x", "AAAA"), "do not belong together"),
        (with(EC, "d", "+/=="), "no JSON object of a key"),
        (with(OCT, "k", "c2hvcnQ"), "shorter than the algorithm needs"),
        (with(OCT, "alg", "RS256"), "do not go together"),
        (with(RSA, "alg", "HS256"), "do not go together"),
        (with(EC, "alg", "ES384"), "do not go together"),
        (with(RSA, "alg", "none"), "do not go together"),
        (with(EC, "crv", "secp256k1"), "do not go together"),
        (with(ED, "crv", "Ed448"), "do not go together"),
        (without(OCT, "kid"), "no JSON object of a key"),
        (without(EC, "kty"), "no JSON object of a key"),
        (
            change(EC, &|jwk| jwk["d"] = Value::Null),
            "private part is missing",
        ),
        (change(EC, &|jwk| jwk["x"] = 7.into()), "no JSON object of a key"),
        (format!(r#"{{"keys":[{EC},{EC}]}}"#), "two keys have the id \"1\""),
        (r#"{"keys":[]}"#.to_owned(), "it has no key"),
        (r#"{"keys":{}}"#.to_owned(), "no JSON object of a key"),
        (many, "more than 16 keys"),
        (deep, "keysets.given"),
        ("-----BEGIN PRIVATE KEY-----".to_owned(), "no JWK set"),
        (String::new(), "no JWK set"),
        (" ".repeat(64 * 1024 + 1), "is larger than"),
    ];
    for (text, part) in &cases {
        std::fs::write(&path, text).unwrap();
        let message = fails(dir.path(), file(&path));
        assert!(
            message.contains(part),
            "{part:?} is missing in: {message}\n{text:.200}"
        );
        for jwk in [RSA, EC, ED, OCT] {
            let jwk: Value = serde_json::from_str(jwk).unwrap();
            for secret in ["d", "k"].iter().filter_map(|name| jwk[name].as_str()) {
                assert!(!message.contains(secret), "{message}");
            }
        }
    }
    assert!(fails(dir.path(), file(&dir.path().join("missing"))).contains("cannot read"));
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_a_bad_one_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("jwks.json");
    let write = |text: &str, age: u64| {
        std::fs::write(&path, text).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(age))
            .unwrap();
    };
    write(ED, 30);
    let set = Arc::new(open(dir.path(), file(&path)));
    assert!(!set.tend(NOW).await.unwrap());
    write("{}", 20);
    assert!(set.tend(NOW).await.is_err());
    assert_eq!(set.list()[0].algorithm, "EdDSA");
    assert!(!set.tend(NOW).await.unwrap(), "said once");
    write(EC, 10);
    assert!(set.tend(NOW).await.unwrap());
    assert_eq!(set.list()[0].algorithm, "ES256");
    let message = causes(&set.rotate(NOW).unwrap_err());
    assert!(message.contains("put new ones there"), "{message}");
}

#[test]
fn claims_that_cannot_be_signed_are_the_callers_fault() {
    let dir = tempfile::tempdir().unwrap();
    let sets = KeySets::new([open(dir.path(), generated("a", Algorithm::ES256, None))]);
    let signer_a = signer(&sets, "a", None);
    let class = |claims: Value| {
        signer_a
            .sign(claims.as_object().unwrap(), NOW)
            .err()
            .map(|e| (e.clone(), e.class()))
    };
    let large = json!({ "x": "y".repeat(limits::PROVIDER_TOKEN_BYTES) });
    assert_eq!(class(large), Some((Error::TooLong, Class::InvalidToken)));
    assert_eq!(
        class(json!({ "exp": NOW })),
        Some((Error::Over, Class::InvalidToken))
    );
    assert_eq!(
        class(json!({ "exp": "x" })),
        Some((Error::Expiry, Class::InvalidToken))
    );
    assert_eq!(class(json!({})), None);
    let none = signer(&sets, "a", Some(Algorithm::RS256))
        .sign(&claims(), NOW)
        .err()
        .unwrap();
    assert_eq!(none.class(), Class::VaultUnavailable);
    assert!(none.to_string().contains("RS256"), "{none}");
    assert!(
        Signer::new(
            Settings {
                keyset: "b".into(),
                ..signer_a.settings().clone()
            },
            &sets
        )
        .is_err()
    );
}

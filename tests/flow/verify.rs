//! Tokens, key sets, discovery documents and introspection answers of every bad form: each refused with a reason of
//! its own. And the verify step of a request, end to end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tempfile::TempDir;
use tv_agent::class::Class;
use tv_agent::config::Config;
use tv_agent::limits;
use tv_agent::secret::Secret;
use tv_agent::upstream::roots;
use tv_agent::verify::{Error, Kind, Verified, Verifier};
use tv_tests::fakes::idp::{DISCOVERY, INTROSPECTION, Idp, JWKS, METADATA, Reply, SigningKey};
use tv_tests::fakes::pki::Pki;
use tv_tests::flow::{Flow, HOST, OPEN_HOST, PROVIDER, SUBJECT, Setup, empty};

/// An issuer with keys of its own.
struct World {
    idp: Idp,
    rsa: SigningKey,
    ec: SigningKey,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        let pki = Pki::new("Issuer Root");
        let rsa = SigningKey::new("rsa-1", Algorithm::RS256);
        let ec = SigningKey::new("ec-1", Algorithm::ES256);
        let idp = Idp::start(&pki, &[&rsa, &ec]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("root.pem"), pki.root_pem()).unwrap();
        Self { idp, rsa, ec, dir }
    }

    /// A verifier of this issuer; `more` replaces keys.
    fn verifier(&self, more: Value) -> Verifier {
        let mut verifier = json!({
            "issuer": self.idp.issuer(),
            "audiences": ["api"],
            "extra_roots": [self.dir.path().join("root.pem")],
        });
        for (name, value) in more.as_object().unwrap() {
            verifier[name] = value.clone();
        }
        let document = json!({ "verifiers": { "corp": verifier } }).to_string();
        let env = |name: &str| Some(format!("the value of the variable {name}, long enough"));
        let config =
            Config::parse(&document, Path::new("verify.yaml"), &env).unwrap_or_else(|e| panic!("{e}"));
        let (_, verifier) = config.verifiers.into_iter().next().unwrap();
        let roots = roots::compose(&verifier.extra_roots, &[]).unwrap();
        Verifier::new(verifier.settings, Arc::new(roots)).unwrap()
    }

    fn claims(&self) -> Value {
        json!({ "iss": self.idp.issuer(), "aud": "api", "sub": "alice", "exp": now() + 600 })
    }

    fn with(&self, name: &str, value: Value) -> Value {
        let mut claims = self.claims();
        claims[name] = value;
        claims
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

async fn check(verifier: &Verifier, token: impl Into<String>) -> Result<Verified, Error> {
    verifier.check(&Secret::new(token.into())).await
}

/// The class and the whole text of a refusal.
async fn refusal(verifier: &Verifier, token: impl Into<String>) -> (Class, String) {
    let error = check(verifier, token).await.expect_err("a refusal");
    (error.class(), error.to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn good_tokens_are_accepted_by_one_fetch() {
    let world = World::new();
    let keys = [
        SigningKey::new("1", Algorithm::RS256),
        SigningKey::new("2", Algorithm::PS256),
        SigningKey::new("3", Algorithm::ES256),
        SigningKey::new("4", Algorithm::ES384),
        SigningKey::new("5", Algorithm::EdDSA),
    ];
    world.idp.publish(&keys.iter().collect::<Vec<_>>());
    let verifier = world.verifier(json!({}));
    for key in &keys {
        let token = key.sign(&world.claims());
        for _ in 0..3 {
            let verified = check(&verifier, &token).await.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(
                (verified.kind, verified.identity.as_deref()),
                (Kind::Jwt, Some("alice"))
            );
            assert_eq!(verified.expires, world.claims()["exp"].as_u64());
        }
    }
    assert_eq!(
        (world.idp.calls(DISCOVERY).len(), world.idp.calls(JWKS).len()),
        (1, 1)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_token_has_its_own_reason() {
    let world = World::new();
    let twin = SigningKey::new("twin", Algorithm::ES256);
    let other = SigningKey::new("twin", Algorithm::ES256);
    world.idp.publish(&[&world.rsa, &world.ec, &twin, &other]);
    let verifier = world.verifier(json!({}));
    let (rsa, ec, claims) = (&world.rsa, &world.ec, world.claims());
    let text = claims.to_string();
    let stranger = SigningKey::new("rsa-1", Algorithm::RS256);
    let unsigned = |header: &str| format!("{}.{}.", B64.encode(header), B64.encode(&text));
    let good = rsa.sign(&claims);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let header = good.split('.').next().unwrap();
    // What a verifier that trusts `alg` would take as the HMAC key.
    let modulus = rsa.public["n"].as_str().unwrap();
    let confused = |key: &[u8]| {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("rsa-1".to_owned());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(key)).unwrap()
    };
    let mut planted = stranger.header();
    planted.jwk = Some(serde_json::from_value(stranger.public.clone()).unwrap());
    planted.jku = Some("https://evil.test/jwks".into());
    let mut nameless = ec.header();
    nameless.kid = None;
    let mut wrong_type = ec.header();
    wrong_type.kid = Some("rsa-1".into());
    let nested = format!("{{\"a\":{}1{}}}", "[".repeat(60), "]".repeat(60));
    let deepest = format!("{}1{}", "{\"a\":".repeat(1500), "}".repeat(1500));
    let cases: Vec<(String, &str)> = vec![
        (unsigned(r#"{"alg":"none"}"#), "not signed (alg none)"),
        (
            unsigned(r#"{"alg":"NoNe","kid":"rsa-1"}"#),
            "not signed (alg none)",
        ),
        (
            confused(modulus.as_bytes()),
            "algorithm \"HS256\" is not accepted",
        ),
        (
            confused(&B64.decode(modulus).unwrap()),
            "algorithm \"HS256\" is not accepted",
        ),
        (
            unsigned(r#"{"alg":"ES512"}"#),
            "algorithm \"ES512\" is not accepted",
        ),
        (unsigned(r#"{"kid":"rsa-1"}"#), "algorithm \"\" is not accepted"),
        (unsigned(r#"{"alg":null}"#), "algorithm \"\" is not accepted"),
        (unsigned(r#"{"alg":["RS256"]}"#), "algorithm \"\" is not accepted"),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":"rsa-2"}"#, &text),
            "no key with the id \"rsa-2\"",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":""}"#, &text),
            "no key with the id \"\"",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":null}"#, &text),
            "kid that is no string",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":7}"#, &text),
            "kid that is no string",
        ),
        (twin.sign(&claims), "several keys with the id \"twin\""),
        (
            ec.sign_as(&nameless, &claims),
            "names no key (kid), and the issuer has 3 for ES256",
        ),
        (
            ec.sign_as(&wrong_type, &claims),
            "\"rsa-1\" of the issuer is not for ES256",
        ),
        (
            rsa.sign_raw(r#"{"alg":"PS256","kid":"rsa-1"}"#, &text),
            "\"rsa-1\" of the issuer is not for PS256",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":"rsa-1","crit":["exp"]}"#, &text),
            "extensions (crit)",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":"rsa-1","crit":[]}"#, &text),
            "extensions (crit)",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":"rsa-1","b64":false}"#, &text),
            "extensions (crit)",
        ),
        (
            rsa.sign_raw(r#"{"alg":"RS256","kid":"rsa-1","kid":"x"}"#, &text),
            "header names a member twice",
        ),
        (rsa.sign_raw("[]", &text), "header is JSON, but no object"),
        (rsa.sign_raw("{", &text), "header is no JSON"),
        (rsa.sign_raw(&deepest, &text), "header nests deeper than"),
        (stranger.sign(&claims), "signature is wrong"),
        (stranger.sign_as(&planted, &claims), "signature is wrong"),
        (format!("{message}."), "signature is wrong"),
        (format!("{message}.AAAA"), "signature is wrong"),
        (
            format!(
                "{header}.{}.{signature}",
                B64.encode(world.with("sub", json!("eve")).to_string())
            ),
            "signature is wrong",
        ),
        (format!("{message}.!!!"), "a part of the token is no base64url"),
        (
            format!("{message}.{signature}="),
            "a part of the token is no base64url",
        ),
        (
            rsa.sign_raw(&rsa_header(), &nested),
            "claims: it nests deeper than",
        ),
        (
            rsa.sign_raw(&rsa_header(), &deepest),
            "claims: it nests deeper than",
        ),
        (
            rsa.sign_raw(&rsa_header(), r#"{"exp":1,"exp":9999999999}"#),
            "claims: it names a member twice",
        ),
        (rsa.sign_raw(&rsa_header(), "not JSON"), "claims: it is no JSON"),
        (
            rsa.sign_raw(&rsa_header(), "[1]"),
            "claims: it is JSON, but no object",
        ),
        ("opaque-token".into(), "no JWT"),
        ("..".into(), "header is no JSON"),
        ("a.b".into(), "no JWT"),
        ("%%%.%%%.%%%".into(), "no JWT"),
        (format!("{good}.x.y"), "no JWT"),
        (
            format!("{good}{}", "A".repeat(limits::SUBJECT_TOKEN_BYTES)),
            "longer than 16384 bytes",
        ),
    ];
    for (token, reason) in cases {
        let (class, text) = refusal(&verifier, &token).await;
        assert!(
            class == Class::InvalidToken && text.contains(reason),
            "{reason:?}: {text} ({class:?})"
        );
        let part = token.get(..24).unwrap_or("-");
        assert!(part == "-" || !text.contains(part), "the token is in {text}");
    }
    assert_eq!(
        world.idp.calls(JWKS).len(),
        1,
        "unknown keys make fetches no more often than the floor"
    );
    assert!(check(&verifier, good).await.is_ok());
}

fn rsa_header() -> String {
    r#"{"alg":"RS256","kid":"rsa-1"}"#.to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_claim_has_its_own_reason() {
    let world = World::new();
    let verifier = world.verifier(json!({
        "subjects": ["alice"],
        "scopes": ["read write", "admin"],
        "required_claims": [["tenant", "id"]],
    }));
    let mut base = world.with("scope", json!("admin"));
    base["tenant"] = json!({ "id": 1 });
    let token = |name: &str, value: Value| {
        let mut claims = base.clone();
        claims[name] = value;
        world.ec.sign(&claims)
    };
    assert!(check(&verifier, world.ec.sign(&base)).await.is_ok());
    for (name, value, reason) in [
        ("exp", json!(1), "expired"),
        ("exp", json!(-1), "expired"),
        ("exp", json!(now() * 1000), "no time in seconds"),
        ("exp", json!(u64::MAX), "no time in seconds"),
        ("exp", json!("9999999999"), "claim exp is no number"),
        ("exp", json!(null), "claim exp is no number"),
        ("nbf", json!(now() + 300), "valid only in"),
        ("nbf", json!(null), "claim nbf is no number"),
        ("iss", json!("https://evil.test"), "issuer is not accepted"),
        (
            "iss",
            json!(format!("{}/", world.idp.issuer())),
            "issuer is not accepted",
        ),
        ("iss", json!(null), "claim iss is no string"),
        ("aud", json!("other"), "another audience"),
        ("aud", json!(null), "claim aud is no string"),
        ("sub", json!("eve"), "subject is not accepted"),
        ("sub", json!(null), "claim sub is no string"),
        ("tenant", json!({ "id": null }), "no claim tenant.id"),
        ("scope", json!(null), "claim scope is no string"),
    ] {
        let (class, text) = refusal(&verifier, token(name, value.clone())).await;
        assert!(
            class == Class::InvalidToken && text.contains(reason),
            "{name} {value}: {text}"
        );
    }
    for scope in [json!("read"), json!(""), json!([])] {
        let (class, text) = refusal(&verifier, token("scope", scope)).await;
        assert_eq!(class, Class::InsufficientScope, "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_sets_that_are_no_use_close_the_door() {
    let world = World::new();
    let token = world.ec.sign(&world.claims());
    let many: Vec<Value> = (0..=limits::JWKS_KEYS).map(|_| world.ec.public.clone()).collect();
    let huge = json!({ "keys": [world.ec.public], "padding": "x".repeat(limits::JWKS_BYTES) });
    let slow = Reply::Slow(limits::METADATA_TIME * 3, Box::new(Reply::Status(500)));
    let good = Reply::Json(tv_tests::fakes::idp::jwks(&[&world.ec]));
    for (reply, reason) in [
        (Reply::Json(huge), "more than 262144 bytes"),
        (Reply::Json(json!({ "keys": [] })), "no key that can verify"),
        (Reply::Json(json!({ "keys": null })), "member keys is no list"),
        (Reply::Json(json!({ "keys": many })), "more than 64 keys"),
        (Reply::Json(json!([])), "JSON, but no object"),
        (Reply::Bytes("<html>".into()), "is no JSON"),
        (Reply::Bytes("".into()), "is no JSON"),
        (Reply::Status(500), "answered 500"),
        (Reply::Status(204), "answered 204"),
        (Reply::Redirect(world.idp.url("/elsewhere")), "redirects (302"),
        (slow, "did not answer in whole within 5 s"),
    ] {
        world.idp.set(JWKS, reply);
        let verifier = world.verifier(json!({}));
        let error = check(&verifier, &token).await.unwrap_err();
        assert_eq!(error.class(), Class::VerifierUnavailable);
        assert!(error.to_string().contains(reason), "{reason:?}: {error}");
        let told = error.refusal("access token");
        assert!(
            told.retry_after.is_some() && !told.description.contains("127.0.0.1"),
            "{told:?}"
        );
        // All who come within the floor are refused without another fetch.
        world.idp.set(JWKS, good.clone());
        assert!(check(&verifier, &token).await.is_err(), "{reason}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn discovery_is_believed_only_about_its_own_issuer() {
    let world = World::new();
    let token = world.ec.sign(&world.claims());
    let changed = |name: &str, value: Value| {
        let mut document = world.idp.document();
        document[name] = value;
        Reply::Json(document)
    };
    let huge = changed("padding", json!("x".repeat(limits::DISCOVERY_BYTES)));
    for (reply, reason) in [
        (
            changed("issuer", json!("https://evil.test")),
            "its issuer is \"https://evil.test\"",
        ),
        (changed("issuer", Value::Null), "issuer is no string"),
        (changed("jwks_uri", Value::Null), "jwks_uri is no string"),
        (
            changed("jwks_uri", json!("http://127.0.0.1/jwks")),
            "jwks_uri is no https address",
        ),
        (huge, "more than 65536 bytes"),
        (Reply::Redirect(world.idp.url("/elsewhere")), "redirects (302"),
        (Reply::Status(404), "answered 404"),
        (Reply::Bytes("{}".into()), "issuer is no string"),
    ] {
        world.idp.set(DISCOVERY, reply);
        let (class, text) = refusal(&world.verifier(json!({})), &token).await;
        assert!(
            class == Class::VerifierUnavailable && text.contains(reason),
            "{reason:?}: {text}"
        );
    }
    // RFC 8414's place, where OpenID's has nothing.
    world.idp.set(DISCOVERY, Reply::Status(404));
    world.idp.set(METADATA, Reply::Json(world.idp.document()));
    assert!(check(&world.verifier(json!({})), &token).await.is_ok());
    // And none at all, where the keys' address is configured.
    world.idp.set(METADATA, Reply::Status(500));
    assert!(
        check(
            &world.verifier(json!({ "jwks_uri": world.idp.url(JWKS) })),
            &token
        )
        .await
        .is_ok()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_change_under_load_lose_no_token() {
    let world = Arc::new(World::new());
    let next = SigningKey::new("ec-2", Algorithm::ES256);
    let verifier = Arc::new(world.verifier(json!({})));
    let old = world.ec.sign(&world.claims());
    assert!(check(&verifier, &old).await.is_ok());
    let began = tokio::time::Instant::now();
    // The overlap that a rotation has: both keys are published, the new one signs.
    world.idp.publish(&[&world.ec, &next]);
    let new = next.sign(&world.claims());
    let load: Vec<_> = (0..8)
        .map(|n| {
            let (verifier, token) = (
                verifier.clone(),
                if n % 2 == 0 { old.clone() } else { new.clone() },
            );
            tokio::spawn(async move {
                let mut refused = 0;
                let end = began + limits::METADATA_FLOOR + Duration::from_secs(3);
                let mut last = false;
                while tokio::time::Instant::now() < end {
                    last = check(&verifier, token.as_str()).await.is_ok();
                    refused += u32::from(!last);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                (n, refused, last)
            })
        })
        .collect();
    for one in load {
        let (n, refused, last) = one.await.unwrap();
        assert!(last, "task {n} ended refused");
        assert!(
            n % 2 == 1 || refused == 0,
            "a good token was refused {refused} times"
        );
    }
    let fetches = world.idp.calls(JWKS).len();
    assert!((2..=3).contains(&fetches), "{fetches} fetches");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opaque_tokens_are_asked_about() {
    let world = World::new();
    let active = |name: &str, value: Value| {
        let mut claims = world.claims();
        claims["active"] = true.into();
        claims[name] = value;
        Reply::Json(claims)
    };
    let asking = |more: Value| {
        let mut introspection = json!({ "timeout_seconds": 1 });
        for (name, value) in more.as_object().unwrap() {
            introspection[name] = value.clone();
        }
        world.verifier(json!({ "introspection": introspection, "scopes": ["read"] }))
    };
    world.idp.set(INTROSPECTION, active("scope", json!("read")));
    let verifier = asking(json!({
        "client_id": "me", "client_auth": { "method": "client_secret_basic", "secret": { "env": "S" } },
        "hint": "access_token", "body_args": { "realm": "x" },
    }));
    for _ in 0..3 {
        let verified = check(&verifier, "opaque-1").await.unwrap();
        assert_eq!(
            (verified.kind, verified.identity.as_deref()),
            (Kind::Introspected, Some("alice"))
        );
    }
    let calls = world.idp.calls(INTROSPECTION);
    assert_eq!(calls.len(), 1, "two of three came from the cache");
    assert_eq!(calls[0].form["token"], "opaque-1");
    assert_eq!(
        (
            calls[0].form["token_type_hint"].as_str(),
            calls[0].form["realm"].as_str()
        ),
        ("access_token", "x")
    );
    assert!(calls[0].authorization.as_ref().unwrap().starts_with("Basic "));
    // A JWT is not asked about, unless always.
    world.idp.publish(&[&world.ec]);
    assert!(
        check(&verifier, world.ec.sign(&world.with("scope", json!("read"))))
            .await
            .is_ok()
    );
    assert_eq!(world.idp.calls(INTROSPECTION).len(), 1);
    let always = asking(json!({ "always": true, "cache": false, "authorization": { "env": "RAW" } }));
    for _ in 0..2 {
        assert!(check(&always, world.ec.sign(&json!({}))).await.is_ok());
    }
    let calls = world.idp.calls(INTROSPECTION);
    assert_eq!(calls.len(), 3);
    assert!(calls[2].authorization.as_ref().unwrap().contains("variable RAW"));
    let slow = Reply::Slow(Duration::from_secs(20), Box::new(Reply::Status(500)));
    let huge = active("padding", json!("x".repeat(limits::INTROSPECTION_BYTES)));
    for (reply, class, reason, calls) in [
        (
            Reply::Json(json!({ "active": false })),
            Class::InvalidToken,
            "not active",
            1,
        ),
        (active("exp", json!(1)), Class::InvalidToken, "expired", 1),
        (
            active("exp", json!(null)),
            Class::InvalidToken,
            "exp is no number",
            1,
        ),
        (
            active("aud", json!("other")),
            Class::InvalidToken,
            "another audience",
            1,
        ),
        (
            active("scope", json!("write")),
            Class::InsufficientScope,
            "lacks a scope",
            1,
        ),
        (
            active("active", json!("true")),
            Class::VerifierUnavailable,
            "no member active",
            1,
        ),
        (
            active("active", json!(null)),
            Class::VerifierUnavailable,
            "no member active",
            1,
        ),
        (
            Reply::Bytes("active".into()),
            Class::VerifierUnavailable,
            "answer is no JSON",
            1,
        ),
        (huge, Class::VerifierUnavailable, "more than 65536 bytes", 1),
        (
            Reply::Redirect(world.idp.url("/x")),
            Class::VerifierUnavailable,
            "redirects",
            1,
        ),
        (
            Reply::Status(401),
            Class::VaultCredentials,
            "refused the agent's credentials",
            1,
        ),
        (Reply::Status(503), Class::VerifierUnavailable, "answered 503", 2),
        (slow, Class::VerifierUnavailable, "did not answer within 1 s", 2),
    ] {
        world.idp.set(INTROSPECTION, reply);
        let before = world.idp.calls(INTROSPECTION).len();
        let (found, text) = refusal(&asking(json!({})), "opaque-2").await;
        assert!(
            found == class && text.contains(reason),
            "{reason:?}: {text} ({found:?})"
        );
        assert_eq!(world.idp.calls(INTROSPECTION).len() - before, calls, "{reason}");
        assert!(!text.contains("opaque-2"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_issuer_is_asked_about_few_tokens_at_once() {
    let world = World::new();
    let slow = Reply::Slow(Duration::from_secs(60), Box::new(Reply::Status(500)));
    world.idp.set(INTROSPECTION, slow);
    let verifier = Arc::new(world.verifier(json!({ "introspection": { "timeout_seconds": 2 } })));
    let asked = limits::INTROSPECTIONS_AT_ONCE + 20;
    let all: Vec<_> = (0..asked)
        .map(|n| {
            let verifier = verifier.clone();
            tokio::spawn(async move { refusal(&verifier, format!("opaque-{n}")).await })
        })
        .collect();
    let mut busy = 0;
    for one in all {
        let (class, text) = one.await.unwrap();
        assert_eq!(class, Class::VerifierUnavailable);
        busy += usize::from(text.contains("too many tokens are being asked about"));
    }
    let calls = world.idp.calls(INTROSPECTION).len();
    assert!(busy > 0, "{calls} calls");
    // Each that had its turn was repeated once.
    assert!(calls <= 2 * (asked - busy), "{calls} calls, {busy} turned away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_check_says_of_a_verifier() {
    let world = World::new();
    let reached = world
        .verifier(json!({ "introspection": {} }))
        .reach()
        .await
        .unwrap();
    assert_eq!(reached, format!("asks {}, 2 keys", world.idp.url(INTROSPECTION)));
    world.idp.set(JWKS, Reply::Status(503));
    let why = world.verifier(json!({})).reach().await.unwrap_err();
    assert!(why.contains("answered 503"), "{why}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jwt_inside_the_answer_is_verified_too() {
    let world = World::new();
    let answer = |inner: Value| {
        let mut claims = world.claims();
        claims["active"] = true.into();
        claims["jwt"] = inner;
        world.idp.set(INTROSPECTION, Reply::Json(claims));
    };
    let asking = |trust: bool| {
        let introspection = json!({ "jwt_claim": ["jwt"], "trust": trust, "cache": false });
        world.verifier(json!({ "introspection": introspection }))
    };
    let mut expired = world.with("exp", json!(1));
    expired["inner"] = true.into();
    answer(world.ec.sign(&expired).into());
    let verified = check(&asking(true), "opaque").await.unwrap();
    assert_eq!(verified.claims["inner"], true);
    let (_, text) = refusal(&asking(false), "opaque").await;
    assert!(text.contains("expired"), "{text}");
    answer(SigningKey::new("ec-1", Algorithm::ES256).sign(&expired).into());
    let (_, text) = refusal(&asking(true), "opaque").await;
    assert!(text.contains("signature is wrong"), "{text}");
    for none in [Value::Null, json!(5)] {
        answer(none);
        let (class, text) = refusal(&asking(true), "opaque").await;
        assert!(
            class == Class::InvalidToken && text.contains("no JWT in its claim jwt"),
            "{text}"
        );
    }
}

/// A flow whose routes verify tokens of an issuer of its own.
async fn verifying(verify: Value) -> (Flow, Idp, SigningKey) {
    let flow = Setup::default().start().await;
    let key = SigningKey::new("k", Algorithm::ES256);
    let idp = Idp::start(&flow.pki, &[&key]).unwrap();
    let routes = json!([
        { "name": "example", "hosts": ["*.example.test"], "vault": "main", "connection": "example",
          "verify": verify },
        { "name": "open", "hosts": ["*.open.test"], "vault": "main", "connection": "example",
          "verify": verify, "on_missing_token": "passthrough" },
    ]);
    let verifiers = json!({
        "corp": { "issuer": idp.issuer(), "audiences": ["api"], "scopes": ["read"] },
        "net": { "issuer": idp.issuer(), "audiences": ["net"] },
    });
    flow.agent.reload(flow.config_with(routes, verifiers)).unwrap();
    (flow, idp, key)
}

fn claims(idp: &Idp, aud: &str, scope: &str) -> Value {
    json!({ "iss": idp.issuer(), "aud": aud, "sub": "alice", "scope": scope, "exp": now() + 600 })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_verified_before_the_vault_is_asked() {
    let (flow, idp, key) = verifying(json!("corp")).await;
    let good = key.sign(&claims(&idp, "api", "read write"));
    flow.auth0.connect(&good, "example", PROVIDER, 3600);
    flow.origin.forbid(&good);
    let mut client = flow.h1(HOST).await;
    assert_eq!(client.get_as(&good, "/headers").await.status, 200);
    let exchanges = flow.auth0.exchanges().len();
    // The vault would take these.
    let (bad, poor) = (SUBJECT.to_owned(), key.sign(&claims(&idp, "api", "write")));
    flow.auth0.connect(&poor, "example", PROVIDER, 3600);
    let answer = flow.h1(HOST).await.get_as(&bad, "/headers").await;
    let refused = answer.refusal();
    assert_eq!((refused.0, refused.1.as_str()), (401, "invalid_token"));
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert!(
        challenge.contains("error=\"invalid_token\"") && challenge.contains("corp"),
        "{challenge}"
    );
    let answer = flow.h1(HOST).await.get_as(&poor, "/headers").await;
    let refused = answer.refusal();
    assert_eq!((refused.0, refused.1.as_str()), (403, "insufficient_scope"));
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("error=\"insufficient_scope\""), "{challenge}");
    // No token at all: refused on both routes, since the verifier is not optional.
    for host in [HOST, OPEN_HOST] {
        let mut client = flow.h1(host).await;
        let request = client.bare("GET", "/headers").body(empty()).unwrap();
        let answer = client.answer(request).await;
        let refused = answer.refusal();
        assert_eq!((refused.0, refused.1.as_str()), (401, "unauthorized"));
    }
    assert_eq!(flow.auth0.exchanges().len(), exchanges);
    let (kept, _) = flow.agent.flows().follow();
    let identities: Vec<_> = kept
        .iter()
        .filter(|f| f.kind == "request")
        .map(|f| f.identity.clone())
        .collect();
    assert_eq!(identities[0].as_deref(), Some("alice"));
    assert!(identities[1..].iter().all(Option::is_none));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_passes_while_the_issuer_is_down() {
    let (flow, idp, key) = verifying(json!("corp")).await;
    idp.set(JWKS, Reply::Status(500));
    let token = key.sign(&claims(&idp, "api", "read"));
    flow.auth0.connect(&token, "example", PROVIDER, 3600);
    let answer = flow.h1(HOST).await.get_as(&token, "/headers").await;
    let refused = answer.refusal();
    assert_eq!((refused.0, refused.1.as_str()), (503, "verifier_unavailable"));
    assert!(answer.headers.contains_key("retry-after"));
    assert!(flow.auth0.exchanges().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_token_is_verified_and_taken_off() {
    let channel = json!({ "verifier": "net", "header": "X-Channel" });
    let (flow, idp, key) = verifying(json!({ "access": "corp", "channel": channel, "optional": true })).await;
    let access = key.sign(&claims(&idp, "api", "read"));
    let net = key.sign(&claims(&idp, "net", ""));
    flow.auth0.connect(&access, "example", PROVIDER, 3600);
    flow.origin.forbid(&net);
    let ask = async |host: &str, access: Option<&str>, channel: &[&str]| {
        let mut client = flow.h1(host).await;
        let mut request = client.bare("GET", "/headers");
        if let Some(access) = access {
            request = request.header("authorization", format!("Bearer {access}"));
        }
        for value in channel {
            request = request.header("x-channel", *value);
        }
        let answer = client.answer(request.body(empty()).unwrap()).await;
        (answer.status.as_u16(), answer.text())
    };
    let bearer = format!("Bearer {net}");
    for good in [net.as_str(), &bearer] {
        let (status, text) = ask(HOST, Some(&access), &[good]).await;
        assert!(
            status == 200 && !text.to_lowercase().contains("x-channel"),
            "{status} {text}"
        );
    }
    // The access token is optional, so on_missing_token decides.
    assert_eq!(ask(OPEN_HOST, None, &[&net]).await.0, 200);
    assert_eq!(ask(HOST, None, &[&net]).await.0, 401);
    let (net, access) = (net.as_str(), access.as_str());
    for bad in [&[][..], &[net, net], &[""], &["Basic x"], &[access], &["garbage"]] {
        let (status, text) = ask(HOST, Some(access), bad).await;
        assert!(
            status == 401 && text.to_lowercase().contains("channel"),
            "{status} {text}"
        );
    }
}

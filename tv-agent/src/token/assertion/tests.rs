//! What is signed, by which key, and what is no key.

use jsonwebtoken::{DecodingKey, Validation};
use serde_json::Value;

use super::*;
use crate::policy::Hint;

const ENDPOINT: &str = "https://tenant.example/";
const NOW: Duration = Duration::from_secs(1_800_000_000);

/// A P-256 key of this test run: its private and public PEM.
fn ec_key() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    (key.serialize_pem(), key.public_key_pem())
}

fn rsa_key() -> (String, String) {
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    (key.serialize_pem(), key.public_key_pem())
}

pub fn worker() -> Worker {
    Worker {
        signer: Signer::from_pem(ec_key().0.as_bytes(), Algorithm::ES256, None).unwrap(),
        audit_context: "nightly sync".into(),
        organization: None,
        user: Hint::Fixed("auth0|1".into()),
    }
}

fn opened(token: &Secret, key: &DecodingKey, algorithm: Algorithm) -> (jsonwebtoken::Header, Value) {
    let mut rules = Validation::new(algorithm);
    rules.validate_exp = false;
    rules.validate_aud = false;
    let data = jsonwebtoken::decode::<Value>(token.expose(), key, &rules).unwrap();
    (data.header, data.claims)
}

#[test]
fn a_client_assertion_says_who_to_whom_and_once() {
    let rsa = rsa_key();
    let public = DecodingKey::from_rsa_pem(rsa.1.as_bytes()).unwrap();
    for algorithm in [Algorithm::RS256, Algorithm::RS384, Algorithm::PS256] {
        let signer = Signer::from_pem(rsa.0.as_bytes(), algorithm, Some("k1".into())).unwrap();
        let token = signer.client("client-1", ENDPOINT, NOW, "id-1").unwrap();
        let (header, claims) = opened(&token, &public, algorithm);
        assert_eq!((header.alg, header.kid.as_deref()), (algorithm, Some("k1")));
        let expected = serde_json::json!({
            "iss": "client-1", "sub": "client-1", "aud": ENDPOINT, "jti": "id-1",
            "iat": 1_800_000_000u64, "exp": 1_800_000_060u64,
        });
        assert_eq!(claims, expected);
    }
    let ec = ec_key();
    let signer = Signer::from_pem(ec.0.as_bytes(), Algorithm::ES256, None).unwrap();
    let token = signer.client("client-1", ENDPOINT, NOW, "id-1").unwrap();
    let public = DecodingKey::from_ec_pem(ec.1.as_bytes()).unwrap();
    let (header, _) = opened(&token, &public, Algorithm::ES256);
    assert_eq!((header.typ.as_deref(), header.kid), (Some("JWT"), None));
}

#[test]
fn a_worker_request_is_as_documented() {
    let ec = ec_key();
    let worker = Worker {
        signer: Signer::from_pem(ec.0.as_bytes(), Algorithm::ES256, Some("k".into())).unwrap(),
        organization: Some("org_1".into()),
        ..worker()
    };
    let token = worker
        .request("client-1", ENDPOINT, "auth0|1", NOW, "id-1")
        .unwrap();
    let public = DecodingKey::from_ec_pem(ec.1.as_bytes()).unwrap();
    let (header, claims) = opened(&token, &public, Algorithm::ES256);
    assert_eq!(header.typ.as_deref(), Some("token-vault-req+jwt"));
    let expected = serde_json::json!({
        "iss": "client-1", "sub": "auth0|1", "aud": ENDPOINT, "jti": "id-1", "org_id": "org_1",
        "iat": 1_800_000_000u64, "exp": 1_800_000_060u64, "audit_context": "nightly sync",
    });
    assert_eq!(claims, expected);
}

#[test]
fn what_is_no_key_for_the_algorithm_is_refused() {
    let (rsa, ec) = (rsa_key(), ec_key());
    let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)
        .unwrap()
        .serialize_pem();
    for (pem, algorithm) in [
        (rsa.0.as_str(), Algorithm::ES256),
        (ec.0.as_str(), Algorithm::RS256),
        (p384.as_str(), Algorithm::ES256),
        (rsa.1.as_str(), Algorithm::RS256),
        ("", Algorithm::RS256),
        (
            "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
            Algorithm::ES256,
        ),
    ] {
        assert!(
            Signer::from_pem(pem.as_bytes(), algorithm, None).is_err(),
            "{algorithm:?}"
        );
    }
}

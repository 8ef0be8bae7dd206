//! Whatever a workload sends as its token: header, claims and the rules about claims.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use tv_agent::secret::Secret;
use tv_agent::verify::claims::{self, Paths, Rules};

fuzz_target!(|text: &str| {
    let token = Secret::new(text.to_owned());
    let _ = token.jws_header();
    let _ = token.jwt_expiry();
    if let Ok(claims) = token.jwt_claims_unverified::<Map<String, Value>>() {
        judge(&claims);
    }
    // The claims as they stand, so that not every input has to be base64 first.
    if let Ok(claims) = tv_agent::oidc::object(text.as_bytes()) {
        judge(&claims);
    }
});

fn judge(claims: &Map<String, Value>) {
    const NOW: u64 = 1_800_000_000;
    let rules = Rules {
        leeway: 10,
        verify_expiry: true,
        verify_not_before: true,
        issuers: vec![],
        audiences: vec!["api".into()],
        subjects: vec![],
        scopes: vec![vec!["read".into(), "write".into()], vec!["admin".into()]],
        required: vec![],
        paths: Paths::default(),
        lenient: false,
    };
    if let Ok(said) = claims::check(&rules, claims, NOW) {
        assert!(
            said.expires.is_none_or(|end| end + rules.leeway >= NOW),
            "an expired token passed"
        );
        let audience = &claims["aud"];
        let listed = audience.as_array().is_some_and(|all| all.contains(&"api".into()));
        assert!(audience == "api" || listed, "another audience passed");
    }
}

//! What an issuer publishes: key sets, discovery documents, answers about tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tv_agent::oidc::{self, KeySet};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(keys) = KeySet::parse(bytes) {
        for algorithm in tv_agent::oidc::fuzzing::ALGORITHMS {
            let _ = keys.find(algorithm, None);
            let _ = keys.find(algorithm, Some("a"));
        }
    }
    let _ = oidc::object(bytes);
    oidc::fuzzing::document(bytes);
    tv_agent::verify::fuzzing::introspection(bytes);
});

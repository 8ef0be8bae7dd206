//! `keysets:` and what a `jwt_signer` vault says, as written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};
use serde_saphyr::Spanned;

/// One of `generate`, `file` and `url`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    pub generate: Option<Spanned<Generate>>,
    pub rotate_days: Option<Spanned<u64>>,
    pub file: Option<Spanned<PathBuf>>,
    pub url: Option<Spanned<String>>,
    pub refresh_seconds: Option<Spanned<u64>>,
    pub extra_roots: Option<Spanned<Vec<PathBuf>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    pub algorithm: Spanned<String>,
    pub bits: Option<Spanned<u64>>,
}

/// How a token is made of another, in a vault and in its `channel`.
#[derive(Default)]
pub struct Signing {
    pub keyset: Option<Spanned<String>>,
    pub algorithm: Option<Spanned<String>>,
    pub issuer: Option<Spanned<String>>,
    pub expiry_leeway_seconds: Option<Spanned<i64>>,
    pub add_claims: Option<Spanned<Claims>>,
    pub set_claims: Option<Spanned<Claims>>,
    pub remove_claims: Option<Vec<Spanned<String>>>,
    pub original_token_header: Option<Spanned<String>>,
}

/// Values as in JSON.
pub type Claims = BTreeMap<String, Value>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub header: Spanned<String>,
    pub keyset: Option<Spanned<String>>,
    pub algorithm: Option<Spanned<String>>,
    pub issuer: Option<Spanned<String>>,
    pub expiry_leeway_seconds: Option<Spanned<i64>>,
    pub add_claims: Option<Spanned<Claims>>,
    pub set_claims: Option<Spanned<Claims>>,
    pub remove_claims: Option<Vec<Spanned<String>>>,
    pub original_token_header: Option<Spanned<String>>,
}

impl Channel {
    /// The header, and the rest.
    pub fn split(self) -> (Spanned<String>, Signing) {
        let signing = Signing {
            keyset: self.keyset,
            algorithm: self.algorithm,
            issuer: self.issuer,
            expiry_leeway_seconds: self.expiry_leeway_seconds,
            add_claims: self.add_claims,
            set_claims: self.set_claims,
            remove_claims: self.remove_claims,
            original_token_header: self.original_token_header,
        };
        (self.header, signing)
    }
}

/// In the order of the names, as they are signed.
pub fn map(claims: Claims) -> Map<String, Value> {
    claims.into_iter().collect()
}

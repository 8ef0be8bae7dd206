//! `verifiers:` and a route's `verify:`, as written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::SecretSource;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    pub issuer: Option<Spanned<String>>,
    pub jwks_uri: Option<Spanned<String>>,
    pub algorithms: Option<Spanned<Vec<Spanned<String>>>>,
    pub hs_secret: Option<Spanned<SecretSource>>,
    #[serde(default = "yes")]
    pub verify_signature: bool,
    pub leeway_seconds: Option<Spanned<u64>>,
    #[serde(default = "yes")]
    pub verify_expiry: bool,
    #[serde(default = "yes")]
    pub verify_not_before: bool,
    #[serde(default)]
    pub audiences: Vec<String>,
    #[serde(default)]
    pub subjects: Vec<String>,
    #[serde(default)]
    pub issuers: Vec<String>,
    #[serde(default)]
    pub scopes: Vec<Spanned<String>>,
    #[serde(default)]
    pub claim_paths: ClaimPaths,
    #[serde(default)]
    pub required_claims: Vec<Spanned<Vec<String>>>,
    pub jwks_rotate_seconds: Option<Spanned<u64>>,
    pub introspection: Option<Spanned<Introspection>>,
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimPaths {
    pub scope: Option<Spanned<Vec<String>>>,
    pub subject: Option<Spanned<Vec<String>>>,
    pub issuer: Option<Spanned<Vec<String>>>,
    pub audience: Option<Spanned<Vec<String>>>,
    pub expiry: Option<Spanned<Vec<String>>>,
    pub not_before: Option<Spanned<Vec<String>>>,
    pub identity: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    pub endpoint: Option<Spanned<String>>,
    pub client_id: Option<Spanned<String>>,
    pub client_auth: Option<Spanned<IntrospectionAuth>>,
    pub authorization: Option<Spanned<SecretSource>>,
    pub hint: Option<String>,
    #[serde(default)]
    pub body_args: BTreeMap<String, Spanned<String>>,
    pub timeout_seconds: Option<Spanned<u64>>,
    #[serde(default = "yes")]
    pub cache: bool,
    pub jwt_claim: Option<Spanned<Vec<String>>>,
    #[serde(default = "yes")]
    pub trust: bool,
    #[serde(default)]
    pub always: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntrospectionAuth {
    pub method: IntrospectionMethod,
    pub secret: Spanned<SecretSource>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub enum IntrospectionMethod {
    ClientSecretPost,
    ClientSecretBasic,
}

/// A route's `verify:`: a verifier's name, or more about it.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Verify {
    Name(String),
    Tokens(VerifyTokens),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyTokens {
    pub access: String,
    #[serde(default)]
    pub optional: bool,
    pub channel: Option<Channel>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Channel {
    pub verifier: String,
    pub header: String,
    #[serde(default)]
    pub optional: bool,
}

fn yes() -> bool {
    true
}

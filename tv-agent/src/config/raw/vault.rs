//! `vaults:` as written. Every key of every kind; which go together is checked later.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{SecretSource, keyset};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    pub kind: Spanned<Kind>,
    pub domain: Option<Spanned<String>>,
    pub token_endpoint: Option<Spanned<String>>,
    pub issuer: Option<Spanned<String>>,
    pub client_id: Option<Spanned<String>>,
    pub client_auth: Option<Spanned<ClientAuth>>,
    #[serde(default)]
    pub encoding: Encoding,
    pub timeout_seconds: Option<Spanned<u64>>,
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
    pub rate_limit: Option<Spanned<RateLimit>>,
    pub circuit_breaker: Option<Spanned<CircuitBreaker>>,
    pub when: Option<Spanned<Vec<Condition>>>,
    pub requested_token_type: Option<Spanned<String>>,
    // auth0_token_vault
    pub subject: Option<Spanned<Subject>>,
    pub privileged_worker: Option<Spanned<Worker>>,
    // token_exchange, on_behalf_of
    pub preset: Option<Spanned<Preset>>,
    pub grant_type: Option<Spanned<String>>,
    pub subject_token_type: Option<Spanned<String>>,
    pub actor: Option<Spanned<Actor>>,
    pub validate: Option<Spanned<String>>,
    // and client_credentials
    pub audience: Option<Spanned<OneOrMore>>,
    pub resource: Option<Spanned<OneOrMore>>,
    pub scope: Option<Spanned<String>>,
    pub extra: Option<Spanned<BTreeMap<String, String>>>,
    // client_credentials
    pub credentials: Option<Spanned<Credentials>>,
    pub forward_identity: Option<Spanned<ForwardIdentity>>,
    // jwt_signer, beside issuer
    pub keyset: Option<Spanned<String>>,
    pub algorithm: Option<Spanned<String>>,
    pub expiry_leeway_seconds: Option<Spanned<i64>>,
    pub add_claims: Option<Spanned<keyset::Claims>>,
    pub set_claims: Option<Spanned<keyset::Claims>>,
    pub remove_claims: Option<Vec<Spanned<String>>>,
    pub original_token_header: Option<Spanned<String>>,
    pub channel: Option<Spanned<keyset::Channel>>,
}

impl Vault {
    /// What a `jwt_signer` says, taken out; the issuer is left where it stands, since others have one too.
    pub fn take_signing(&mut self) -> (keyset::Signing, Option<Spanned<keyset::Channel>>) {
        let signing = keyset::Signing {
            keyset: self.keyset.take(),
            algorithm: self.algorithm.take(),
            issuer: None,
            expiry_leeway_seconds: self.expiry_leeway_seconds.take(),
            add_claims: self.add_claims.take(),
            set_claims: self.set_claims.take(),
            remove_claims: self.remove_claims.take(),
            original_token_header: self.original_token_header.take(),
        };
        (signing, self.channel.take())
    }
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Auth0TokenVault,
    TokenExchange,
    OnBehalfOf,
    ClientCredentials,
    JwtSigner,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    AccessToken,
    RefreshToken,
    PrivilegedWorker,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    Generic,
    Keycloak,
    Okta,
    Auth0Obo,
    EntraObo,
}

/// A word, or a list of words.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    pub fn list(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::More(words) => words,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    pub method: Spanned<Method>,
    pub secret: Option<Spanned<SecretSource>>,
    pub key: Option<Spanned<PathBuf>>,
    pub algorithm: Option<Algorithm>,
    pub kid: Option<String>,
    pub audience: Option<String>,
    pub certificate: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    ClientSecretPost,
    ClientSecretBasic,
    PrivateKeyJwt,
    TlsClientAuth,
    None,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    RS256,
    RS384,
    PS256,
    ES256,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Worker {
    pub key: Spanned<PathBuf>,
    pub algorithm: Option<Algorithm>,
    pub kid: Option<String>,
    pub audit_context: Spanned<String>,
    pub organization: Option<String>,
    pub user: Spanned<Hint>,
}

/// A fixed word, a header, or a claim.
#[derive(Deserialize, Clone)]
#[serde(untagged)]
pub enum Hint {
    Fixed(String),
    Header(HeaderHint),
    Claim(ClaimHint),
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct HeaderHint {
    pub header: String,
}

#[derive(Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct ClaimHint {
    pub claim: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Actor {
    pub from: ActorFrom,
    pub secret: Option<Spanned<SecretSource>>,
    pub header: Option<Spanned<String>>,
    pub token_type: Option<String>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ActorFrom {
    Config,
    Header,
    ClientCredentials,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    pub from: Vec<Place>,
    pub id_name: Option<String>,
    pub secret_name: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Header,
    Query,
    Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ForwardIdentity {
    pub header: Spanned<String>,
    pub claim: Vec<String>,
}

#[derive(Deserialize, Default, Clone)]
#[serde(deny_unknown_fields, default)]
pub struct Condition {
    pub issuer: Option<String>,
    pub has_audience: Vec<String>,
    pub missing_audience: Vec<String>,
    pub has_scopes: Vec<String>,
    pub missing_scopes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub per_second: Option<Spanned<f64>>,
    pub burst: Option<Spanned<u64>>,
    pub at_once: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CircuitBreaker {
    pub failures: Option<Spanned<u64>>,
    pub open_seconds: Option<Spanned<u64>>,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    #[default]
    Form,
    Json,
}

//! The configuration file as written: every key of it, nothing checked but types and names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::decide::OnUnknownName;
use crate::policy::OnMissingToken;
use crate::policy::credentials::OnForeignToken;

pub mod inject;
pub mod keyset;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    pub intercept: Intercept,
    pub listen: Listen,
    pub vaults: BTreeMap<String, Spanned<Vault>>,
    pub keysets: BTreeMap<String, Spanned<keyset::KeySet>>,
    /// Where generated keys are kept.
    pub keysets_dir: Option<PathBuf>,
    pub routes: Vec<Spanned<Route>>,
    pub upstream: Upstream,
    pub admin: Admin,
    pub ca: Ca,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Intercept {
    pub cgroups: Vec<Spanned<String>>,
    pub ports: Option<Vec<Spanned<u64>>>,
    pub capture: Option<Spanned<Capture>>,
    pub bypass_cidrs: Option<Vec<Spanned<String>>>,
    pub quic: Quic,
    pub on_agent_down: OnAgentDown,
    pub on_unknown_name: OnUnknownName,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    All,
    Dns,
    Cidr,
}

#[derive(Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Quic {
    #[default]
    Block,
    Allow,
}

#[derive(Deserialize, Clone, Copy, Default, PartialEq, Eq, Debug)]
#[serde(rename_all = "snake_case")]
pub enum OnAgentDown {
    #[default]
    Closed,
    Open,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    pub port: Option<Spanned<u64>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vault {
    pub kind: Spanned<Kind>,
    pub domain: Option<Spanned<String>>,
    pub token_endpoint: Option<Spanned<String>>,
    pub client_id: Option<Spanned<String>>,
    pub client_auth: Option<ClientAuth>,
    #[serde(default)]
    pub encoding: Encoding,
    pub timeout_seconds: Option<Spanned<u64>>,
    pub requested_token_type: Option<String>,
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
    // jwt_signer
    pub keyset: Option<Spanned<String>>,
    pub algorithm: Option<Spanned<String>>,
    pub issuer: Option<Spanned<String>>,
    pub expiry_leeway_seconds: Option<Spanned<i64>>,
    pub add_claims: Option<Spanned<keyset::Claims>>,
    pub set_claims: Option<Spanned<keyset::Claims>>,
    pub remove_claims: Option<Vec<Spanned<String>>>,
    pub original_token_header: Option<Spanned<String>>,
    pub channel: Option<Spanned<keyset::Channel>>,
}

impl Vault {
    /// What only a `jwt_signer` says, taken out.
    pub fn take_signing(&mut self) -> (keyset::Signing, Option<Spanned<keyset::Channel>>) {
        let signing = keyset::Signing {
            keyset: self.keyset.take(),
            algorithm: self.algorithm.take(),
            issuer: self.issuer.take(),
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientAuth {
    pub method: Method,
    pub secret: Spanned<SecretSource>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    ClientSecretPost,
    ClientSecretBasic,
}

/// Where a secret comes from; never the secret itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SecretSource {
    Env(String),
    File(PathBuf),
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    #[default]
    Form,
    Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: Spanned<String>,
    pub hosts: Vec<Spanned<String>>,
    pub vault: Spanned<String>,
    pub connection: Spanned<String>,
    pub login_hint: Option<String>,
    #[serde(default)]
    pub on_missing_token: OnMissingToken,
    #[serde(default)]
    pub on_foreign_token: OnForeignToken,
    #[serde(default)]
    pub inject: inject::Inject,
    #[serde(default)]
    pub subject_from: Vec<Spanned<inject::Place>>,
    #[serde(default)]
    pub purge: inject::Purge,
    #[serde(default)]
    pub workloads: Vec<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Upstream {
    pub extra_roots: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub socket: Option<PathBuf>,
    pub metrics: Option<Spanned<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Ca {
    pub dir: Option<PathBuf>,
}

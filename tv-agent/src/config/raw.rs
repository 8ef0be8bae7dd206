//! The configuration file as written: every key of it, nothing checked but types and names.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use super::{trust::Install, workloads};
use crate::audit::OnFailure;
use crate::decide::OnUnknownName;
use crate::policy::credentials::OnForeignToken;
use crate::policy::{OnMissingToken, OnUntrusted};

pub mod inject;
pub mod keyset;
pub mod kubernetes;
pub mod shared;
pub mod vault;
mod verifier;

use vault::Vault;
pub use verifier::*;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Raw {
    pub intercept: Intercept,
    pub listen: Listen,
    pub vaults: BTreeMap<String, Spanned<Vault>>,
    pub verifiers: BTreeMap<String, Spanned<Verifier>>,
    pub keysets: BTreeMap<String, Spanned<keyset::KeySet>>,
    /// Where generated keys are kept.
    pub keysets_dir: Option<PathBuf>,
    pub routes: Vec<Spanned<Route>>,
    pub shared_cache: Option<shared::SharedCache>,
    pub upstream: Upstream,
    pub admin: Admin,
    pub audit: Audit,
    pub traces: Option<Traces>,
    pub ca: Ca,
    pub trust: Trust,
    pub privileges: Privileges,
    pub kubernetes: Option<Spanned<kubernetes::Kubernetes>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Intercept {
    pub cgroups: Vec<Spanned<String>>,
    pub ports: Option<Vec<Spanned<u64>>>,
    pub capture: Option<Spanned<Capture>>,
    pub capture_cidrs: Option<Spanned<Vec<Spanned<String>>>>,
    pub unsure_seconds: Option<Spanned<u64>>,
    pub bypass_cidrs: Option<Vec<Spanned<String>>>,
    pub quic: Quic,
    pub on_agent_down: OnAgentDown,
    pub on_unknown_name: OnUnknownName,
    pub pod_facts: Option<Spanned<PathBuf>>,
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
    pub drain_seconds: Option<Spanned<u64>>,
}

/// Where a secret comes from; never the secret itself.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum SecretSource {
    Env(String),
    File(PathBuf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: Spanned<String>,
    pub hosts: Vec<Spanned<String>>,
    pub vault: Spanned<String>,
    pub connection: Option<Spanned<String>>,
    pub audience: Option<Spanned<vault::OneOrMore>>,
    pub resource: Option<Spanned<vault::OneOrMore>>,
    pub scope: Option<Spanned<String>>,
    pub login_hint: Option<Spanned<vault::Hint>>,
    pub verify: Option<Spanned<Verify>>,
    #[serde(default)]
    pub on_missing_token: OnMissingToken,
    pub on_untrusted: Option<OnUntrusted>,
    #[serde(default)]
    pub on_foreign_token: OnForeignToken,
    #[serde(default)]
    pub inject: inject::Inject,
    #[serde(default)]
    pub subject_from: Vec<Spanned<inject::Place>>,
    #[serde(default)]
    pub purge: inject::Purge,
    #[serde(default)]
    pub workloads: Vec<Spanned<workloads::Raw>>,
    #[serde(default)]
    pub connection_override: Vec<Spanned<String>>,
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
    /// Whether `metrics` has a page for people.
    pub page: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    pub to: Option<Spanned<String>>,
    pub on_failure: OnFailure,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Ca {
    pub dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traces {
    pub endpoint: Spanned<String>,
    pub sample: Option<Spanned<f64>>,
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    pub install: Install,
    pub host: bool,
    pub on_untrusted: OnUntrusted,
    pub dir: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Privileges {
    pub user: Option<Spanned<String>>,
}

//! `kubernetes:` as written.

use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::kubernetes::{Enrol, Unknown};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubernetes {
    pub node: Spanned<Name>,
    pub kubeconfig: Option<Spanned<PathBuf>>,
    pub api_server: Option<Spanned<String>>,
    pub token_file: Option<Spanned<PathBuf>>,
    pub ca_file: Option<Spanned<PathBuf>>,
    pub prefix: Option<Spanned<String>>,
    #[serde(default)]
    pub enrol: Enrol,
    #[serde(default)]
    pub unknown: Unknown,
    pub exclude_containers: Option<Vec<Spanned<String>>>,
    pub events: Option<bool>,
}

/// A name, or the variable that holds it.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Name {
    Literal(String),
    Env(NameOf),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NameOf {
    pub env: String,
}

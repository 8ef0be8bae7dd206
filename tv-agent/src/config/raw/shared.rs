//! `shared_cache:` as written.

use std::path::PathBuf;

use serde::Deserialize;
use serde_saphyr::Spanned;

pub use super::SecretSource;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedCache {
    pub url: Spanned<String>,
    pub user: Option<Spanned<String>>,
    pub password: Option<Spanned<SecretSource>>,
    pub keys: Spanned<Vec<Spanned<SecretSource>>>,
    pub prefix: Option<Spanned<String>>,
    pub timeout_ms: Option<Spanned<u64>>,
    pub ttl_max_seconds: Option<Spanned<u64>>,
    #[serde(default)]
    pub extra_roots: Vec<PathBuf>,
}

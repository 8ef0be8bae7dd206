//! What a route says about credentials, as written.

use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::policy::credentials::InjectScheme;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Inject {
    pub header: Option<Spanned<String>>,
    pub scheme: InjectScheme,
    pub user: Option<Spanned<String>>,
}

/// One of the three.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum Place {
    Header(String),
    Query(String),
    Cookie(String),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Purge {
    pub statuses: Option<Vec<Spanned<u64>>>,
    pub json: Option<JsonRule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonRule {
    pub pointer: Spanned<String>,
    pub equals: serde_json::Value,
}

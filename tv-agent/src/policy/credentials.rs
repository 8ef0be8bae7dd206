//! How a route takes the caller's token and sends the provider's. Plain data.

use http::header::{AUTHORIZATION, HeaderName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a route says about credentials, besides where the provider's come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Credentials {
    pub inject: Inject,
    /// Where the caller's token may stand besides `Authorization`, in the order in which it is looked for.
    pub places: Vec<Place>,
    pub on_foreign: OnForeignToken,
    /// Whose tokens are subject tokens; empty: a token's issuer tells nothing.
    pub issuers: Vec<Issuer>,
    pub purge: Purge,
}

/// Where and in which form the provider's token goes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inject {
    pub header: HeaderName,
    pub scheme: InjectScheme,
    /// The user name of Basic.
    pub user: String,
}

impl Default for Inject {
    fn default() -> Self {
        Self {
            header: AUTHORIZATION,
            scheme: InjectScheme::AsPresented,
            // The user name that GitHub documents for app and OAuth tokens.
            user: "x-access-token".to_owned(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize)]
pub enum InjectScheme {
    /// As the caller's token came; Bearer when that was not in `Authorization`.
    #[default]
    #[serde(rename = "as_presented")]
    AsPresented,
    Bearer,
    #[serde(rename = "token")]
    Token,
    Basic,
    /// The token and nothing else.
    #[serde(rename = "none")]
    None,
}

/// A place of a request other than `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The token alone, or `Bearer` and the token.
    Header(HeaderName),
    /// A parameter of the address, by its decoded name.
    Query(String),
    Cookie(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query parameter {name}"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
        }
    }
}

/// What happens to a token that is none of the vault's: another issuer's, or one of a provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnForeignToken {
    #[default]
    Reject,
    /// The request goes on as it came.
    Passthrough,
    /// The vault is asked all the same.
    Exchange,
}

/// An issuer whose tokens are subject tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// The `iss` claim itself; a `/` at the end makes no difference.
    Named(String),
    /// Any issuer at this `host` or `host:port`.
    At(String),
}

impl Issuer {
    /// Whether `iss` names this issuer.
    pub fn is(&self, iss: &str) -> bool {
        match self {
            Self::Named(name) => name.trim_end_matches('/') == iss.trim_end_matches('/'),
            Self::At(authority) => url::Url::parse(iss)
                .is_ok_and(|url| url.scheme() == "https" && url.authority().eq_ignore_ascii_case(authority)),
        }
    }
}

impl std::fmt::Display for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::At(authority) => write!(f, "https://{authority}/"),
        }
    }
}

/// Which answers of a provider mean that it refused the token.
#[derive(Clone, Debug, PartialEq)]
pub struct Purge {
    pub statuses: Vec<u16>,
    pub json: Option<JsonRule>,
}

impl Default for Purge {
    fn default() -> Self {
        Self {
            statuses: vec![401],
            json: None,
        }
    }
}

/// A JSON answer whose value at `pointer` (RFC 6901) is `equals`.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonRule {
    pub pointer: String,
    pub equals: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_is_told_by_name_or_by_its_host() {
        let named = Issuer::Named("https://idp.example/realms/x".into());
        assert!(named.is("https://idp.example/realms/x/"));
        assert!(!named.is("https://idp.example/realms/y"));
        let at = Issuer::At("tenant.eu.auth0.com".into());
        assert!(at.is("https://tenant.eu.auth0.com/"));
        for other in [
            "https://tenant.eu.auth0.com.evil.example/",
            "https://tenant.eu.auth0.com@evil.example/",
            "http://tenant.eu.auth0.com/",
            "https://tenant.eu.auth0.com:8443/",
            "tenant.eu.auth0.com",
            "",
        ] {
            assert!(!at.is(other), "{other}");
        }
        assert!(Issuer::At("127.0.0.1:8443".into()).is("https://127.0.0.1:8443/x"));
    }
}

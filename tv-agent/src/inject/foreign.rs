//! Tokens that are no subject tokens: of another issuer, or a provider's own. Told by their look only. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Presented;
use crate::class::{Class, Refusal};
use crate::policy::Route;
use crate::policy::credentials::{Issuer, OnForeignToken};
use crate::secret::Secret;

/// How tokens of well-known providers begin. Sources: the providers' own documentation and secret scanners.
const SHAPES: &[(&str, &str)] = &[
    ("ghp_", "GitHub"),
    ("gho_", "GitHub"),
    ("ghu_", "GitHub"),
    ("ghs_", "GitHub"),
    ("ghr_", "GitHub"),
    ("github_pat_", "GitHub"),
    ("ya29.", "Google"),
    ("xoxa-", "Slack"),
    ("xoxb-", "Slack"),
    ("xoxp-", "Slack"),
    ("xoxr-", "Slack"),
    ("xoxs-", "Slack"),
    ("xoxe.", "Slack"),
    ("xoxe-", "Slack"),
    ("xapp-", "Slack"),
    ("sk_live_", "Stripe"),
    ("sk_test_", "Stripe"),
    ("rk_live_", "Stripe"),
    ("rk_test_", "Stripe"),
];

/// Longest issuer that is repeated in a message, bytes.
const SHOWN: usize = 200;

/// Why a token is no subject token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// It begins as tokens of this provider do.
    Provider(&'static str),
    /// A JWT whose `iss` is none of the route's. The text is unverified, and fit to be shown.
    Issuer(String),
}

impl std::fmt::Display for Foreign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Provider(name) => write!(f, "the token is one of {name}'s own"),
            Self::Issuer(iss) => write!(f, "the token was issued by {iss}"),
        }
    }
}

/// What `subject` is, when it is nothing that the vault would know. Without `issuers` a JWT is never foreign.
pub fn foreign(subject: &Secret, issuers: &[Issuer]) -> Option<Foreign> {
    let text = subject.expose();
    if let Some((_, provider)) = SHAPES.iter().find(|(start, _)| text.starts_with(start)) {
        return Some(Foreign::Provider(provider));
    }
    if issuers.is_empty() {
        return None;
    }
    let iss = issuer(text)?;
    (!issuers.iter().any(|issuer| issuer.is(&iss))).then(|| {
        let plain = iss.len() <= SHOWN && !iss.is_empty() && iss.bytes().all(|byte| byte.is_ascii_graphic());
        Foreign::Issuer(if plain { iss } else { "another issuer".to_owned() })
    })
}

/// Whether a request goes on as it came, since its token is none of the vault's.
///
/// # Errors
/// When the route refuses such tokens.
pub fn passes(presented: &Presented, route: &Route) -> Result<bool, Refusal> {
    let credentials = &route.credentials;
    if credentials.on_foreign == OnForeignToken::Exchange {
        return Ok(false);
    }
    let Some(foreign) = foreign(&presented.subject, &credentials.issuers) else {
        return Ok(false);
    };
    if credentials.on_foreign == OnForeignToken::Passthrough {
        return Ok(true);
    }
    let text = format!(
        "{foreign}, and this route swaps the vault's tokens only; send one of those, or let the operator set \
         on_foreign_token to passthrough or exchange on route {}",
        route.name
    );
    Err(Refusal::new(Class::InvalidToken, text))
}

/// The `iss` claim (RFC 7519 §4.1.1) of what looks like a signed JWT. Unverified: whoever made the token chose
/// it, which is good enough to keep a token that nobody would take from being sent to the vault.
fn issuer(token: &str) -> Option<String> {
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    #[derive(Deserialize)]
    struct Claims {
        iss: Option<String>,
    }
    let bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload).ok()?);
    serde_json::from_slice::<Claims>(&bytes).ok()?.iss
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(payload: &str) -> String {
        format!(
            "{}.{}.sig",
            URL_SAFE_NO_PAD.encode("{}"),
            URL_SAFE_NO_PAD.encode(payload)
        )
    }

    fn look(token: &str) -> Option<Foreign> {
        let own = [
            Issuer::At("tenant.eu.auth0.com".into()),
            Issuer::Named("https://other.example/x".into()),
        ];
        foreign(&Secret::new(token.to_owned()), &own)
    }

    #[test]
    fn providers_are_known_by_the_beginning_of_their_tokens() {
        for (start, provider) in SHAPES {
            assert_eq!(
                look(&format!("{start}abcdef0123456789")),
                Some(Foreign::Provider(provider))
            );
            // Case tells them apart from chance.
            assert_eq!(look(&format!("{}abc", start.to_uppercase())), None);
        }
        for own in ["opaque-token", "eyJhbGciOi", "xgho_abc", "AQabc"] {
            assert_eq!(look(own), None, "{own}");
        }
    }

    #[test]
    fn a_jwt_is_foreign_when_its_issuer_is_none_of_ours() {
        for own in ["https://tenant.eu.auth0.com/", "https://other.example/x/"] {
            assert_eq!(look(&jwt(&format!(r#"{{"iss":"{own}"}}"#))), None);
        }
        let other = Foreign::Issuer("https://accounts.google.com".into());
        assert_eq!(
            look(&jwt(r#"{"iss":"https://accounts.google.com"}"#)),
            Some(other.clone())
        );
        // Without a list nothing is said about issuers.
        let token = Secret::new(jwt(r#"{"iss":"https://accounts.google.com"}"#));
        assert_eq!(foreign(&token, &[]), None);
        // No issuer, no JWT, too deep: for the vault to judge.
        let deep = format!("{}1{}", r#"{"a":"#.repeat(1000), "}".repeat(1000));
        for none in [
            r#"{}"#,
            r#"{"iss":null}"#,
            r#"{"iss":7}"#,
            "[]",
            "x",
            deep.as_str(),
        ] {
            assert_eq!(look(&jwt(none)), None, "{none}");
        }
        assert_eq!(
            look(&format!("{}.x.y", jwt("{}"))),
            None,
            "five parts are no signed JWT"
        );
        assert_eq!(look("..!"), None);
    }

    #[test]
    fn what_is_shown_of_an_issuer_is_bounded_and_plain() {
        for iss in ["a\\u001b[31mb".to_owned(), "x".repeat(SHOWN + 1), String::new()] {
            let text = look(&jwt(&format!(r#"{{"iss":"{iss}"}}"#))).unwrap().to_string();
            assert_eq!(text, "the token was issued by another issuer");
        }
    }
}

//! An issuer's discovery document: where it is, and what of it is believed.

use serde_json::{Map, Value};
use url::Url;

use super::fetch::{self, Fetched, Rejected, Unfetched};
use super::json;
use crate::limits;

/// The members that we use (RFC 8414 §2); addresses are https ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    pub jwks_uri: Option<Url>,
    pub token_endpoint: Option<Url>,
    pub introspection_endpoint: Option<Url>,
}

/// Fetches the issuer's document: OpenID Connect's place first, then RFC 8414's.
pub(super) async fn discover(client: &reqwest::Client, issuer: &Url) -> Result<Fetched<Document>, Unfetched> {
    let [openid, oauth] = places(issuer);
    let (url, fetched) = match fetch::get(client, &openid, limits::DISCOVERY_BYTES).await {
        Err(Unfetched::Status { status, .. }) if status == http::StatusCode::NOT_FOUND => {
            let fetched = fetch::get(client, &oauth, limits::DISCOVERY_BYTES).await?;
            (oauth, fetched)
        }
        other => (openid, other?),
    };
    let value = read(&fetched.value, issuer).map_err(|why| Unfetched::Rejected {
        url: url.as_str().into(),
        why,
    })?;
    let fresh = fetched.fresh;
    Ok(Fetched { value, fresh })
}

/// OpenID Connect Discovery §4 appends to the issuer's path, RFC 8414 §3.1 inserts before it. Pure.
fn places(issuer: &Url) -> [Url; 2] {
    let path = issuer.path().trim_end_matches('/').to_owned();
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    };
    [
        at(format!("{path}/.well-known/openid-configuration")),
        at(format!("/.well-known/oauth-authorization-server{path}")),
    ]
}

/// Reads a document of `issuer`. Pure.
pub(super) fn read(bytes: &[u8], issuer: &Url) -> Result<Document, Rejected> {
    let members = json::object(bytes)?;
    let found = string(&members, "issuer")?.ok_or(Rejected::NoString("issuer"))?;
    // RFC 8414 §3.3: identical. A parsed address has a slash where a bare host was written.
    let wanted = issuer.as_str();
    let bare = wanted.strip_suffix('/').filter(|_| issuer.path() == "/");
    if found != wanted && Some(found) != bare {
        return Err(Rejected::Issuer {
            found: found.chars().take(200).collect(),
            wanted: wanted.to_owned(),
        });
    }
    Ok(Document {
        jwks_uri: address(&members, "jwks_uri")?,
        token_endpoint: address(&members, "token_endpoint")?,
        introspection_endpoint: address(&members, "introspection_endpoint")?,
    })
}

fn string<'a>(members: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, Rejected> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Rejected::NoString(name)),
    }
}

fn address(members: &Map<String, Value>, name: &'static str) -> Result<Option<Url>, Rejected> {
    let Some(text) = string(members, name)? else {
        return Ok(None);
    };
    let url = Url::parse(text).map_err(|_| Rejected::NoHttps(name))?;
    let plain = url.username().is_empty() && url.password().is_none();
    if url.scheme() == "https" && url.host_str().is_some() && plain {
        Ok(Some(url))
    } else {
        Err(Rejected::NoHttps(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn both_places_are_where_the_standards_say() {
        let of = |issuer: &str| places(&url(issuer)).map(|url| url.to_string());
        assert_eq!(
            of("https://idp.test/realms/x"),
            [
                "https://idp.test/realms/x/.well-known/openid-configuration",
                "https://idp.test/.well-known/oauth-authorization-server/realms/x",
            ]
        );
        assert_eq!(
            of("https://idp.test/"),
            [
                "https://idp.test/.well-known/openid-configuration",
                "https://idp.test/.well-known/oauth-authorization-server",
            ]
        );
    }

    #[test]
    fn a_document_has_to_be_of_its_issuer() {
        let read = |found: Value, issuer: &str| {
            read(json!({ "issuer": found }).to_string().as_bytes(), &url(issuer))
        };
        for (found, issuer) in [
            ("https://idp.test", "https://idp.test"),
            ("https://idp.test/", "https://idp.test"),
            ("https://idp.test/a", "https://idp.test/a"),
        ] {
            assert!(read(found.into(), issuer).is_ok(), "{found} {issuer}");
        }
        for (found, issuer) in [
            ("https://evil.test", "https://idp.test"),
            ("https://idp.test/a/", "https://idp.test/a"),
            ("https://idp.test/a", "https://idp.test/a/"),
            ("http://idp.test", "https://idp.test"),
            ("https://IDP.test", "https://idp.test"),
        ] {
            assert!(
                matches!(read(found.into(), issuer), Err(Rejected::Issuer { .. })),
                "{found}"
            );
        }
        assert_eq!(
            read(Value::Null, "https://idp.test"),
            Err(Rejected::NoString("issuer"))
        );
        assert_eq!(
            super::read(b"{}", &url("https://idp.test")),
            Err(Rejected::NoString("issuer"))
        );
    }

    #[test]
    fn addresses_are_https_strings_or_absent() {
        let read = |value: Value| {
            let text = json!({ "issuer": "https://idp.test", "jwks_uri": value }).to_string();
            read(text.as_bytes(), &url("https://idp.test")).map(|document| document.jwks_uri)
        };
        assert_eq!(
            read(json!("https://idp.test/k")),
            Ok(Some(url("https://idp.test/k")))
        );
        for (value, fault) in [
            (Value::Null, Rejected::NoString("jwks_uri")),
            (json!(["https://idp.test/k"]), Rejected::NoString("jwks_uri")),
            (json!("http://idp.test/k"), Rejected::NoHttps("jwks_uri")),
            (json!("file:///etc/keys"), Rejected::NoHttps("jwks_uri")),
            (json!("https://me:pw@idp.test/k"), Rejected::NoHttps("jwks_uri")),
            (json!(""), Rejected::NoHttps("jwks_uri")),
        ] {
            assert_eq!(read(value.clone()), Err(fault), "{value}");
        }
    }
}

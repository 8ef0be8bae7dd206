//! A configuration without what could be secret in it. Pure.
//!
//! A valid configuration names secrets by environment variable or file; a wrong one may hold anything.

use serde_json::Value;

/// Keys, or parts of keys, under which a plain text is not shown.
const SECRET: [&str; 9] = [
    "secret",
    "password",
    "passwd",
    "token",
    "authorization",
    "credential",
    "header",
    "args",
    "key",
];
/// Of those, keys whose value says what, not which: `token_endpoint: https://…`.
const PLAIN: [&str; 12] = [
    "token_endpoint",
    "on_missing_token",
    "on_foreign_token",
    "token_type",
    "subject_token_type",
    "requested_token_type",
    "keysets_dir",
    "keyset",
    "keysets",
    "credentials",
    "kind",
    "key_id",
];
/// Where a secret is named by its place.
const PLACES: [&str; 2] = ["env", "file"];

pub(super) fn redacted(value: Value) -> Value {
    walk(value, false)
}

fn walk(value: Value, hide: bool) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.into_iter()
                .map(|(key, value)| {
                    let lower = key.to_lowercase();
                    let place = PLACES.contains(&&*lower) && value.is_string();
                    let secret = SECRET.iter().any(|part| lower.contains(part));
                    let hide = !place && (hide || secret) && !PLAIN.contains(&&*lower);
                    (key, walk(value, hide))
                })
                .collect(),
        ),
        Value::Array(list) => Value::Array(list.into_iter().map(|value| walk(value, hide)).collect()),
        Value::String(_) if hide => "(not shown)".into(),
        Value::String(text) => without_userinfo(&text).into(),
        other => other,
    }
}

/// `https://user:password@host` without the first part.
fn without_userinfo(text: &str) -> String {
    match url::Url::parse(text) {
        Ok(mut url) if !url.username().is_empty() || url.password().is_some() => {
            // Both can fail only for addresses that cannot have them.
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.to_string()
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_could_be_secret_is_not_shown_and_its_place_is() {
        let value = json!({
            "vaults": { "main": {
                "kind": "token_exchange",
                "token_endpoint": "https://me:canary@idp.example/token",
                "client_id": "id",
                "client_auth": { "method": "client_secret_post", "secret": { "env": "NAME" } },
                "request": { "headers": { "X-Api": "canary" }, "body_args": ["canary"] },
            }, "wrong": { "client_auth": { "secret": "canary" }, "Password": "canary" } },
            "admin": { "page": true, "metrics": "127.0.0.1:1" },
        });
        let shown = redacted(value);
        assert!(!shown.to_string().contains("canary"), "{shown}");
        let main = &shown["vaults"]["main"];
        assert_eq!(main["token_endpoint"], "https://idp.example/token");
        assert_eq!(main["client_auth"]["secret"]["env"], "NAME");
        assert_eq!(
            (&main["client_id"], &shown["admin"]["page"]),
            (&"id".into(), &true.into())
        );
        assert_eq!(shown["vaults"]["wrong"]["client_auth"]["secret"], "(not shown)");
    }
}

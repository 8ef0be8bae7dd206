//! Headers that tell the provider who asks, set from claims that were verified. Pure.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value};

/// Sets `header` to the claim at `path`, and to nothing else: what the caller put there goes away first, also
/// when the claim is missing or cannot stand in a header.
pub fn forward(headers: &mut HeaderMap, header: &HeaderName, path: &[String], claims: &Map<String, Value>) {
    headers.remove(header);
    if let Some(value) = at(claims, path).and_then(text) {
        headers.insert(header, value);
    }
}

fn at<'a>(claims: &'a Map<String, Value>, path: &[String]) -> Option<&'a Value> {
    let (first, rest) = path.split_first()?;
    rest.iter()
        .try_fold(claims.get(first)?, |value, key| value.get(key))
}

/// A string, number or truth value as it is; a list of them separated by spaces, as `scope` is.
fn text(value: &Value) -> Option<HeaderValue> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(_) | Value::Bool(_) => Some(value.to_string()),
        _ => None,
    };
    let text = match value {
        Value::Array(all) => all.iter().map(one).collect::<Option<Vec<_>>>()?.join(" "),
        other => one(other)?,
    };
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    // Text beyond ASCII has no agreed meaning in a header (RFC 9110 §5.5).
    plain.then(|| HeaderValue::from_str(&text).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_callers_own_copy_never_stays() {
        let name = HeaderName::from_static("x-user");
        let claims = json!({
            "sub": "auth0|1", "n": 7, "roles": ["a", "b"], "deep": { "er": "x" },
            "null": null, "empty": "", "line": "a\r\nx-admin: 1", "wide": "ü", "object": {}, "mixed": ["a", {}],
        });
        let claims = claims.as_object().unwrap();
        let set = |path: &[&str]| {
            let mut headers = HeaderMap::new();
            headers.append(&name, HeaderValue::from_static("root"));
            headers.append(&name, HeaderValue::from_static("admin"));
            let path: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
            forward(&mut headers, &name, &path, claims);
            let all: Vec<String> = headers
                .get_all(&name)
                .iter()
                .map(|v| v.to_str().unwrap().to_owned())
                .collect();
            all
        };
        assert_eq!(set(&["sub"]), ["auth0|1"]);
        assert_eq!(set(&["n"]), ["7"]);
        assert_eq!(set(&["roles"]), ["a b"]);
        assert_eq!(set(&["deep", "er"]), ["x"]);
        let nothing: &[&str] = &[];
        for path in [
            &["missing"] as &[&str],
            &["null"],
            &["empty"],
            &["line"],
            &["wide"],
            &["object"],
            &["mixed"],
            &["deep", "missing"],
            &["sub", "x"],
            nothing,
        ] {
            assert!(set(path).is_empty(), "{path:?}");
        }
    }
}

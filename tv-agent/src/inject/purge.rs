//! Whether a provider's answer means that it refused the token. Pure.

use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};

use crate::limits;
use crate::policy::credentials::{JsonRule, Purge};

/// Whether the status says it.
pub fn by_status(purge: &Purge, status: StatusCode) -> bool {
    purge.statuses.contains(&status.as_u16())
}

/// The rule that has to be tried on the answer's body: it is JSON, not encoded, and not known to be too long.
pub fn body_rule<'a>(purge: &'a Purge, headers: &HeaderMap) -> Option<&'a JsonRule> {
    let rule = purge.json.as_ref()?;
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let kind = kind.split(';').next().unwrap_or_default().trim();
    let json = kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json");
    let plain = headers
        .get(CONTENT_ENCODING)
        .is_none_or(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let fits = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .is_none_or(|length| length <= limits::PURGE_BODY_BYTES as u64);
    (json && plain && fits).then_some(rule)
}

/// Whether a whole body says it. What is no JSON says nothing.
pub fn by_body(rule: &JsonRule, body: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(body)
        .is_ok_and(|answer| answer.pointer(&rule.pointer) == Some(&rule.equals))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use serde_json::json;

    fn slack() -> Purge {
        Purge {
            statuses: vec![401, 403],
            json: Some(JsonRule {
                pointer: "/ok".into(),
                equals: json!(false),
            }),
        }
    }

    #[test]
    fn statuses() {
        assert!(by_status(&Purge::default(), StatusCode::UNAUTHORIZED));
        assert!(!by_status(&Purge::default(), StatusCode::FORBIDDEN));
        assert!(by_status(&slack(), StatusCode::FORBIDDEN));
    }

    #[test]
    fn only_short_plain_json_is_looked_at() {
        let looked_at = |lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.insert(*name, value.parse().unwrap());
            }
            body_rule(&slack(), &headers).is_some()
        };
        assert!(looked_at(&[("content-type", "application/json; charset=utf-8")]));
        assert!(looked_at(&[
            ("content-type", "application/problem+JSON"),
            ("content-encoding", "identity")
        ]));
        let limit = limits::PURGE_BODY_BYTES;
        assert!(looked_at(&[
            ("content-type", "application/json"),
            ("content-length", &limit.to_string())
        ]));
        assert!(!looked_at(&[
            ("content-type", "application/json"),
            ("content-length", &(limit + 1).to_string())
        ]));
        assert!(!looked_at(&[
            ("content-type", "application/json"),
            ("content-encoding", "gzip")
        ]));
        assert!(!looked_at(&[("content-type", "text/html")]));
        assert!(!looked_at(&[]));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert!(body_rule(&Purge::default(), &headers).is_none());
    }

    #[test]
    fn the_value_at_the_pointer_decides() {
        let rule = slack().json.unwrap();
        assert!(by_body(&rule, br#"{"ok":false,"error":"invalid_auth"}"#));
        for no in [
            r#"{"ok":true}"#,
            r#"{"ok":"false"}"#,
            "{}",
            "[false]",
            r#"{"ok":false"#,
            "",
            "\u{0}",
        ] {
            assert!(!by_body(&rule, no.as_bytes()), "{no}");
        }
        let nested = JsonRule {
            pointer: "/errors/0/code".into(),
            equals: json!("INVALID_SESSION_ID"),
        };
        assert!(by_body(&nested, br#"{"errors":[{"code":"INVALID_SESSION_ID"}]}"#));
    }
}

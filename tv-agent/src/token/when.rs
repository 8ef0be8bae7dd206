//! Which subject tokens a vault exchanges: Kong's conditions on issuer, audience and scopes. Pure.

use serde_json::{Map, Value};

/// One set of conditions, all of which have to hold. An empty one always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// `iss` is this.
    pub issuer: Option<String>,
    /// `aud` holds one of these.
    pub has_audience: Vec<String>,
    /// `aud` lacks one of these.
    pub missing_audience: Vec<String>,
    /// `scope` (or `scp`) holds all of these.
    pub has_scopes: Vec<String>,
    /// `scope` (or `scp`) lacks one of these.
    pub missing_scopes: Vec<String>,
}

/// What becomes of a subject token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    Exchange,
    /// No condition holds: the token would go on as it is. Only a verified one may.
    Keep,
}

/// Decides by `claims`, which need not be verified to be exchanged: the token endpoint judges the token itself.
///
/// `None` stands for an opaque token, which has no claims: conditions cannot hold for it.
pub fn decide(conditions: &[Condition], claims: Option<&Map<String, Value>>) -> Decision {
    let applies = conditions.is_empty()
        || claims.is_some_and(|claims| conditions.iter().any(|condition| condition.holds(claims)));
    if applies {
        Decision::Exchange
    } else {
        Decision::Keep
    }
}

impl Condition {
    fn holds(&self, claims: &Map<String, Value>) -> bool {
        let issuer = claims.get("iss").and_then(Value::as_str);
        let audiences = words(claims.get("aud"), false);
        let scopes = words(claims.get("scope").or_else(|| claims.get("scp")), true);
        let lacks_one = |wanted: &[String], have: &[&str]| {
            wanted.is_empty() || wanted.iter().any(|word| !have.contains(&word.as_str()))
        };
        self.issuer.as_deref().is_none_or(|wanted| issuer == Some(wanted))
            && (self.has_audience.is_empty()
                || self
                    .has_audience
                    .iter()
                    .any(|word| audiences.contains(&word.as_str())))
            && lacks_one(&self.missing_audience, &audiences)
            && self.has_scopes.iter().all(|word| scopes.contains(&word.as_str()))
            && lacks_one(&self.missing_scopes, &scopes)
    }
}

/// A claim that is a string or a list of strings (RFC 7519 §4.1.3); `split`: a string of several words.
fn words(claim: Option<&Value>, split: bool) -> Vec<&str> {
    match claim {
        Some(Value::String(text)) if split => text.split_ascii_whitespace().collect(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn exchanged(condition: &Condition, claims: Value) -> bool {
        decide(std::slice::from_ref(condition), claims.as_object()) == Decision::Exchange
    }

    #[test]
    fn each_condition_alone() {
        let token = || json!({"iss": "https://a", "aud": ["x", "y"], "scope": "read write"});
        let none = Condition::default;
        let cases = [
            (none(), true),
            (
                Condition {
                    issuer: Some("https://a".into()),
                    ..none()
                },
                true,
            ),
            (
                Condition {
                    issuer: Some("https://a/".into()),
                    ..none()
                },
                false,
            ),
            (
                Condition {
                    has_audience: list(&["z", "y"]),
                    ..none()
                },
                true,
            ),
            (
                Condition {
                    has_audience: list(&["z"]),
                    ..none()
                },
                false,
            ),
            (
                Condition {
                    missing_audience: list(&["x"]),
                    ..none()
                },
                false,
            ),
            (
                Condition {
                    missing_audience: list(&["x", "z"]),
                    ..none()
                },
                true,
            ),
            (
                Condition {
                    has_scopes: list(&["read", "write"]),
                    ..none()
                },
                true,
            ),
            (
                Condition {
                    has_scopes: list(&["read", "admin"]),
                    ..none()
                },
                false,
            ),
            (
                Condition {
                    missing_scopes: list(&["read"]),
                    ..none()
                },
                false,
            ),
            (
                Condition {
                    missing_scopes: list(&["profile"]),
                    ..none()
                },
                true,
            ),
        ];
        for (condition, expected) in cases {
            assert_eq!(exchanged(&condition, token()), expected, "{condition:?}");
        }
        assert_eq!(decide(&[], None), Decision::Exchange);
    }

    #[test]
    fn all_of_one_and_any_of_several() {
        let both = Condition {
            issuer: Some("https://a".into()),
            missing_scopes: list(&["profile"]),
            ..Condition::default()
        };
        assert!(exchanged(&both, json!({"iss": "https://a"})));
        assert!(!exchanged(&both, json!({"iss": "https://b"})));
        assert!(!exchanged(&both, json!({"iss": "https://a", "scope": "profile"})));
        let other = Condition {
            issuer: Some("https://b".into()),
            ..Condition::default()
        };
        let claims = json!({"iss": "https://b"});
        assert_eq!(
            decide(&[both.clone(), other], claims.as_object()),
            Decision::Exchange
        );
        assert_eq!(
            decide(&[both], None),
            Decision::Keep,
            "an opaque token has no claims"
        );
    }

    #[test]
    fn claims_of_odd_forms_hold_nothing() {
        let audience = Condition {
            has_audience: list(&["x"]),
            ..Condition::default()
        };
        assert!(exchanged(&audience, json!({"aud": "x"})));
        for odd in [
            json!(null),
            json!(1),
            json!({"x": 1}),
            json!([["x"]]),
            json!("x y"),
        ] {
            assert!(!exchanged(&audience, json!({"aud": odd})), "{odd}");
        }
        let scopes = Condition {
            has_scopes: list(&["a"]),
            ..Condition::default()
        };
        assert!(exchanged(&scopes, json!({"scp": ["a", "b"]})));
        assert!(exchanged(&scopes, json!({"scp": "a b"})));
        assert!(!exchanged(&scopes, json!({"scope": null, "scp": "a"})));
        assert!(!exchanged(&scopes, json!({"scope": "ab"})));
    }
}

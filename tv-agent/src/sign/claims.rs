//! The claims of a token of ours, made from those of the caller's. Pure.

use serde_json::{Map, Value};

use super::{Edits, Error};

/// Claims that the agent sets itself, so that no edit may.
pub const OURS: [&str; 4] = ["iss", "exp", "iat", "jti"];

/// Life of a token whose source says no end, seconds.
pub const LIFE: u64 = 300;

/// The claims that are signed, and when they end (seconds since 1970). `now` is in seconds since 1970, `jti` an id
/// that was never used.
///
/// # Errors
/// When the source's `exp` is no time, or the result would be over already.
pub fn edited(
    source: &Map<String, Value>,
    edits: &Edits,
    now: u64,
    jti: String,
) -> Result<(Map<String, Value>, u64), Error> {
    let mut claims = source.clone();
    let end = match source.get("exp") {
        None => now.saturating_add(LIFE),
        Some(exp) => numeric_date(exp).ok_or(Error::Expiry)?,
    };
    let exp = end.saturating_add_signed(edits.expiry_leeway);
    if exp <= now {
        return Err(Error::Over);
    }
    for name in &edits.remove {
        claims.remove(name);
    }
    for (name, value) in &edits.add {
        claims.entry(name.clone()).or_insert_with(|| value.clone());
    }
    for (name, value) in &edits.set {
        claims.insert(name.clone(), value.clone());
    }
    match source.get("iss") {
        // Only of the source: what the caller's token says under our name for it is not the issuer.
        Some(iss) => claims.insert("original_iss".to_owned(), iss.clone()),
        None => claims.remove("original_iss"),
    };
    claims.insert("iss".to_owned(), edits.issuer.as_str().into());
    claims.insert("exp".to_owned(), exp.into());
    claims.insert("iat".to_owned(), now.into());
    claims.insert("jti".to_owned(), jti.into());
    Ok((claims, exp))
}

/// Whole seconds of a NumericDate (RFC 7519 §2), which may have a fraction.
fn numeric_date(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| {
        let seconds = value.as_f64()?;
        // Beyond what a time can be, an end that never comes: the largest will do.
        (seconds.is_finite() && seconds >= 0.0).then_some(seconds as u64)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn edits() -> Edits {
        Edits {
            issuer: "tv-agent".into(),
            expiry_leeway: 0,
            add: Map::new(),
            set: Map::new(),
            remove: Vec::new(),
        }
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn sign(source: Value, edits: &Edits) -> Result<(Value, u64), Error> {
        edited(&object(source), edits, NOW, "id".into()).map(|(claims, end)| (Value::Object(claims), end))
    }

    #[test]
    fn the_issuer_is_ours_and_the_old_one_is_kept() {
        let (claims, end) = sign(
            json!({ "iss": "https://idp/", "sub": "a", "exp": NOW + 60, "iat": 1, "jti": "theirs" }),
            &edits(),
        )
        .unwrap();
        let expected = json!({
            "iss": "tv-agent", "original_iss": "https://idp/", "sub": "a", "exp": NOW + 60, "iat": NOW, "jti": "id",
        });
        assert_eq!((claims, end), (expected, NOW + 60));
        let (claims, end) = sign(json!({ "original_iss": "made up" }), &edits()).unwrap();
        assert_eq!(
            claims,
            json!({ "iss": "tv-agent", "exp": NOW + LIFE, "iat": NOW, "jti": "id" })
        );
        assert_eq!(end, NOW + LIFE);
    }

    #[test]
    fn add_fills_set_overwrites_remove_removes() {
        let edits = Edits {
            add: object(json!({ "sub": "added", "tier": { "name": "gold", "n": [1, null] } })),
            set: object(json!({ "aud": ["x", "y"], "gone": "back" })),
            remove: vec!["gone".into(), "email".into(), "absent".into()],
            ..edits()
        };
        let source = json!({ "sub": "a", "aud": "z", "email": "e", "gone": 1, "exp": NOW + 1 });
        let (claims, _) = sign(source, &edits).unwrap();
        let expected = json!({
            "iss": "tv-agent", "sub": "a", "aud": ["x", "y"], "tier": { "name": "gold", "n": [1, null] },
            "gone": "back", "exp": NOW + 1, "iat": NOW, "jti": "id",
        });
        assert_eq!(claims, expected);
    }

    #[test]
    fn the_end_moves_by_the_leeway_and_is_never_past() {
        let with = |leeway, exp: Value| {
            let edits = Edits {
                expiry_leeway: leeway,
                ..edits()
            };
            sign(json!({ "exp": exp }), &edits).map(|(_, end)| end)
        };
        assert_eq!(with(30, json!(NOW + 60)), Ok(NOW + 90));
        assert_eq!(with(-30, json!(NOW + 60)), Ok(NOW + 30));
        assert_eq!(with(0, json!(1_700_000_060.9)), Ok(NOW + 60));
        assert_eq!(with(30, json!(NOW - 10)), Ok(NOW + 20));
        assert_eq!(with(-60, json!(NOW + 60)), Err(Error::Over));
        assert_eq!(with(0, json!(NOW)), Err(Error::Over));
        assert_eq!(with(0, json!(0)), Err(Error::Over));
        assert_eq!(with(i64::MAX, json!(u64::MAX)), Ok(u64::MAX));
        assert_eq!(with(i64::MIN, json!(NOW + 60)), Err(Error::Over));
        assert_eq!(with(0, json!(1e300)), Ok(u64::MAX));
        for bad in [json!("soon"), json!(null), json!(-1), json!([]), json!(true)] {
            assert_eq!(with(0, bad.clone()), Err(Error::Expiry), "{bad}");
        }
    }
}

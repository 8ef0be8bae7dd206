//! Every demand, met and not met, with each odd form that a claim can have.

use serde_json::json;

use super::*;

const NOW: u64 = 1_700_000_000;

fn strict() -> Rules {
    Rules {
        verify_expiry: true,
        verify_not_before: true,
        ..Rules::default()
    }
}

fn verdict(rules: &Rules, claims: Value) -> Result<Said, Refused> {
    let Value::Object(claims) = claims else {
        unreachable!()
    };
    check(rules, &claims, NOW)
}

fn refused(rules: &Rules, claims: Value) -> Refused {
    let shown = claims.to_string();
    verdict(rules, claims).expect_err(&shown)
}

fn claim(name: &str) -> Path {
    Path::of(name)
}

#[test]
fn expiry_is_a_time_that_has_not_come() {
    let rules = strict();
    for exp in [
        json!(NOW + 1),
        json!(NOW as f64 + 0.5),
        json!(limits::TOKEN_TIME_MAX),
    ] {
        assert!(verdict(&rules, json!({ "exp": exp })).is_ok(), "{exp}");
    }
    for (exp, ago) in [
        (json!(NOW), 0),
        (json!(NOW - 5), 5),
        (json!(NOW as f64 - 0.5), 0),
        (json!(0), NOW),
    ] {
        assert_eq!(
            refused(&rules, json!({ "exp": exp })),
            Refused::Expired { ago },
            "{exp}"
        );
    }
    assert_eq!(
        refused(&rules, json!({ "exp": -1e300 })),
        Refused::Expired { ago: NOW }
    );
    assert_eq!(
        refused(&rules, json!({})),
        Refused::Missing { claim: claim("exp") }
    );
    for exp in [
        json!("1800000000"),
        json!(null),
        json!([NOW + 1]),
        json!({}),
        json!(true),
    ] {
        assert_eq!(
            refused(&rules, json!({ "exp": exp })),
            Refused::NotNumber { claim: claim("exp") }
        );
    }
    // Milliseconds, and worse.
    for exp in [
        json!(NOW * 1000),
        json!(limits::TOKEN_TIME_MAX + 1),
        json!(u64::MAX),
        json!(1e300),
    ] {
        assert_eq!(
            refused(&rules, json!({ "exp": exp })),
            Refused::OutOfRange { claim: claim("exp") }
        );
    }
    let unchecked = Rules {
        verify_expiry: false,
        ..strict()
    };
    for exp in [json!(5), json!(null), json!("x"), json!(1e300)] {
        assert!(verdict(&unchecked, json!({ "exp": exp })).is_ok(), "{exp}");
    }
    assert_eq!(verdict(&unchecked, json!({ "exp": 5 })).unwrap().expires, Some(5));
}

#[test]
fn leeway_moves_both_ends() {
    let rules = Rules {
        leeway: 30,
        ..strict()
    };
    assert!(verdict(&rules, json!({ "exp": NOW - 29, "nbf": NOW + 30 })).is_ok());
    assert_eq!(
        refused(&rules, json!({ "exp": NOW - 30 })),
        Refused::Expired { ago: 30 }
    );
    assert_eq!(
        refused(&rules, json!({ "exp": NOW + 99, "nbf": NOW + 31 })),
        Refused::NotYet { wait: 31 }
    );
    let early = Rules {
        verify_not_before: false,
        ..rules
    };
    assert!(verdict(&early, json!({ "exp": NOW + 99, "nbf": NOW + 31 })).is_ok());
}

#[test]
fn issuer_and_subject_are_strings_among_those_allowed() {
    let rules = Rules {
        issuers: vec!["https://a".into(), "https://b".into()],
        subjects: vec!["alice".into()],
        ..Rules::default()
    };
    assert!(verdict(&rules, json!({ "iss": "https://b", "sub": "alice" })).is_ok());
    assert_eq!(
        refused(&rules, json!({ "iss": "https://c", "sub": "alice" })),
        Refused::Issuer
    );
    assert_eq!(
        refused(&rules, json!({ "iss": "https://a", "sub": "Alice" })),
        Refused::Subject
    );
    assert_eq!(
        refused(&rules, json!({ "sub": "alice" })),
        Refused::Missing { claim: claim("iss") }
    );
    for iss in [json!(null), json!(["https://a"]), json!(1)] {
        assert_eq!(
            refused(&rules, json!({ "iss": iss, "sub": "alice" })),
            Refused::NotString { claim: claim("iss") }
        );
    }
    // RFC 7662 leaves iss out; a wrong one is wrong all the same.
    let lenient = Rules {
        lenient: true,
        verify_expiry: true,
        ..rules
    };
    assert!(verdict(&lenient, json!({ "sub": "alice" })).is_ok());
    assert_eq!(
        refused(&lenient, json!({ "iss": "x", "sub": "alice" })),
        Refused::Issuer
    );
    assert_eq!(
        refused(&lenient, json!({})),
        Refused::Missing { claim: claim("sub") }
    );
    assert_eq!(
        refused(&lenient, json!({ "sub": "alice", "exp": 1 })),
        Refused::Expired { ago: NOW - 1 }
    );
}

#[test]
fn an_audience_is_a_string_or_a_list_of_them() {
    let rules = Rules {
        audiences: vec!["a".into(), "b".into()],
        ..Rules::default()
    };
    for aud in [json!("a"), json!(["x", "b"])] {
        assert!(verdict(&rules, json!({ "aud": aud })).is_ok());
    }
    for aud in [json!("a b"), json!("x"), json!([]), json!(["A"])] {
        assert_eq!(refused(&rules, json!({ "aud": aud })), Refused::Audience, "{aud}");
    }
    for aud in [json!(null), json!({ "a": 1 }), json!(["a", null]), json!(1)] {
        assert_eq!(
            refused(&rules, json!({ "aud": aud })),
            Refused::NotString { claim: claim("aud") },
            "{aud}"
        );
    }
}

#[test]
fn scopes_are_and_within_an_entry_and_or_between_entries() {
    let entry = |text: &str| text.split(' ').map(str::to_owned).collect();
    let rules = Rules {
        scopes: vec![entry("read write"), entry("admin")],
        ..Rules::default()
    };
    for scope in [
        json!("write x read"),
        json!("admin"),
        json!(["read", "write"]),
        json!(["admin"]),
    ] {
        assert!(verdict(&rules, json!({ "scope": scope })).is_ok(), "{scope}");
    }
    for scope in [
        json!("read"),
        json!("Admin"),
        json!(""),
        json!("administrator"),
        json!(["read write"]),
    ] {
        assert!(
            matches!(refused(&rules, json!({ "scope": scope })), Refused::Scope { .. }),
            "{scope}"
        );
    }
    let error = refused(&rules, json!({}));
    assert_eq!(
        error.to_string(),
        "it lacks a scope; required: read write, or admin"
    );
    for scope in [json!(null), json!(5), json!([1])] {
        assert_eq!(
            refused(&rules, json!({ "scope": scope })),
            Refused::NotString {
                claim: claim("scope")
            }
        );
    }
}

#[test]
fn claims_are_found_in_nested_objects() {
    let path = |names: &[&str]| Path::new(names.iter().map(|&n| n.to_owned()).collect()).unwrap();
    let mut rules = Rules {
        scopes: vec![vec!["coffee".to_owned()]],
        required: vec![path(&["tenant", "id"])],
        ..Rules::default()
    };
    rules.paths.scope = path(&["employee", "favourites", "beverage"]);
    rules.paths.identity = path(&["tenant", "user"]);
    let claims = |id: Value| {
        json!({
            "employee": { "favourites": { "beverage": ["tea", "coffee"] } },
            "tenant": { "id": id, "user": "al\u{7}ice\n" },
        })
    };
    assert_eq!(
        verdict(&rules, claims(json!(1))).unwrap().identity.as_deref(),
        Some("alice")
    );
    let missing = Refused::Missing {
        claim: path(&["tenant", "id"]),
    };
    assert_eq!(missing.to_string(), "it has no claim tenant.id");
    assert_eq!(refused(&rules, claims(Value::Null)), missing);
    assert_eq!(refused(&rules, json!({ "tenant": "id" })), missing);
    assert!(Path::new(vec![]).is_none() && Path::new(vec!["a".into(), String::new()]).is_none());
}

#[test]
fn an_identity_is_bounded_text() {
    let of = |sub: Value| {
        verdict(&Rules::default(), json!({ "sub": sub }))
            .unwrap()
            .identity
    };
    assert_eq!(of(json!(42)).as_deref(), Some("42"));
    assert_eq!(of(json!("x".repeat(1000))).unwrap().len(), limits::IDENTITY_CHARS);
    for none in [
        json!(null),
        json!({}),
        json!([]),
        json!(""),
        json!("\n"),
        json!(true),
    ] {
        assert_eq!(of(none.clone()), None, "{none}");
    }
}

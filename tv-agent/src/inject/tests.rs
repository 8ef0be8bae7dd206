//! Every form of credentials that is taken, and those that are refused.

use super::*;

mod properties;

const SUBJECT: &str = "eyJhbGciOi.subject.signature";

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn read(name: &str, values: &[&str]) -> Result<Option<(Scheme, String)>, Error> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    }
    presented(
        &headers,
        &"/".parse().unwrap(),
        &host(name),
        &Credentials::default(),
    )
    .map(|p| p.map(|p| (p.scheme, p.subject.expose().to_owned())))
}

fn basic(text: &str) -> String {
    format!("Basic {}", BASE64.encode(text))
}

#[test]
fn schemes_are_read_in_any_case_and_with_any_space() {
    for value in ["Bearer abc", "bearer abc", "BEARER  abc", " Bearer\tabc "] {
        assert_eq!(
            read("www.googleapis.com", &[value]),
            Ok(Some((Scheme::Bearer, "abc".into()))),
            "{value}"
        );
    }
    assert_eq!(
        read("api.github.com", &["token abc"]),
        Ok(Some((Scheme::Token, "abc".into())))
    );
    assert_eq!(read("www.googleapis.com", &["token abc"]), Err(Error::Scheme));
    assert_eq!(read("www.googleapis.com", &[&basic("u:p")]), Err(Error::Scheme));
    assert_eq!(read("www.googleapis.com", &[]), Ok(None));
}

#[test]
fn git_presents_the_token_as_a_password() {
    for text in ["x-access-token:tok", "alice:tok", "tok:", "tok:x-oauth-basic"] {
        assert_eq!(
            read("github.com", &[&basic(text)]),
            Ok(Some((Scheme::Basic, "tok".into()))),
            "{text}"
        );
    }
    for bad in ["Basic", "Basic ***", &basic("no colon"), &basic(":")] {
        assert_eq!(read("github.com", &[bad]), Err(Error::Malformed), "{bad}");
    }
}

#[test]
fn wrong_forms_are_refused() {
    assert_eq!(read("a.example", &["Bearer a", "Bearer b"]), Err(Error::Repeated));
    for bad in ["Bearer", "Bearer ", "", "Bearer a b", "abc"] {
        assert_eq!(read("a.example", &[bad]), Err(Error::Malformed), "{bad:?}");
    }
    let long = format!("Bearer {}", "a".repeat(limits::SUBJECT_TOKEN_BYTES + 1));
    assert_eq!(read("a.example", &[&long]), Err(Error::TooLong));
    assert_eq!(read("a.example", &["Digest x=y"]), Err(Error::Scheme));
}

#[test]
fn every_copy_of_the_subject_token_goes() {
    let request = http::Request::get("https://a.example/x?y=1")
        .header("authorization", format!("Bearer {SUBJECT}"))
        .header("cookie", format!("session=1; at={SUBJECT}"))
        .header("x-forwarded-access-token", SUBJECT)
        .header("accept", "*/*")
        .body(())
        .unwrap();
    let (mut head, ()) = request.into_parts();
    let route = Credentials::default();
    let given = presented(&head.headers, &head.uri, &host("a.example"), &route)
        .unwrap()
        .unwrap();
    replace(
        &mut head,
        Some(&given),
        &Secret::new("gho_provider".into()),
        &route,
    )
    .unwrap();
    let left: Vec<_> = head
        .headers
        .iter()
        .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
        .collect();
    assert_eq!(left.len(), 3, "{left:?}");
    assert!(left.contains(&"cookie: session=1".to_owned()), "{left:?}");
    assert!(
        left.contains(&"accept: */*".to_owned())
            && left.contains(&"authorization: Bearer gho_provider".to_owned())
    );
    assert!(head.headers[AUTHORIZATION].is_sensitive());
    assert!(!format!("{:?}", head.headers).contains("gho_provider"));

    head.uri = format!("https://a.example/x?access_token={SUBJECT}")
        .parse()
        .unwrap();
    assert_eq!(
        replace(
            &mut head,
            Some(&given),
            &Secret::new("gho_provider".into()),
            &route
        ),
        Err(Error::InAddress)
    );
}

#[test]
fn the_scheme_goes_out_as_it_came_in() {
    let token = Secret::new("gho_provider".into());
    let text = |s| {
        credentials(&Inject::default(), s, &token)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(text(Scheme::Bearer), "Bearer gho_provider");
    assert_eq!(text(Scheme::Token), "token gho_provider");
    assert_eq!(text(Scheme::Basic), basic("x-access-token:gho_provider"));
    assert_eq!(
        credentials(&Inject::default(), Scheme::Bearer, &Secret::new("a\nb".into())),
        Err(Error::Unsendable)
    );
}

#[test]
fn a_response_header_with_the_provider_token_is_dropped() {
    let mut headers = HeaderMap::new();
    headers.insert("x-echo", HeaderValue::from_static("Bearer gho_provider"));
    headers.insert("etag", HeaderValue::from_static("1"));
    assert_eq!(scrub(&mut headers, &Secret::new("gho_provider".into())), 1);
    assert_eq!(headers.len(), 1);
}

#[test]
fn a_path_that_repeats_the_credentials_is_not_for_the_log() {
    let shown = |path: &str, authorization: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        loggable_path(&path.parse().unwrap(), &headers, None)
    };
    let basic = format!("Basic {}", BASE64.encode("x-access-token:a-long-token-1"));
    for authorization in [
        "Bearer a-long-token-1",
        "Digest a-long-token-1",
        "a-long-token-1",
        &basic,
    ] {
        for path in [
            "/x/a-long-token-1",
            "/bota-long-token-1/y?z",
            "/%61-long%2dtoken-1",
        ] {
            let shown = shown(path, authorization);
            assert!(
                !shown.contains("long") && shown.starts_with("(withheld"),
                "{shown}"
            );
        }
        assert_eq!(shown("/repos/1?t=a-long-token-1", authorization), "/repos/1");
    }
    assert_eq!(shown("/Bearer", "Bearer"), "/Bearer", "too short to be a secret");
}

#[test]
fn the_route_says_where_and_how_the_token_goes_out() {
    let cases = [
        (InjectScheme::Bearer, "Bearer gho_provider".to_owned()),
        (InjectScheme::Token, "token gho_provider".to_owned()),
        (InjectScheme::Basic, basic("oauth2:gho_provider")),
        (InjectScheme::None, "gho_provider".to_owned()),
        (InjectScheme::AsPresented, "token gho_provider".to_owned()),
    ];
    for (scheme, expected) in cases {
        let route = Credentials {
            inject: Inject {
                header: "x-api-key".parse().unwrap(),
                scheme,
                user: "oauth2".into(),
            },
            ..Credentials::default()
        };
        let request = http::Request::get("/")
            .header("authorization", format!("token {SUBJECT}"))
            .header("x-api-key", "the caller's own")
            .body(())
            .unwrap();
        let (mut head, ()) = request.into_parts();
        let given = presented(&head.headers, &head.uri, &host("api.github.com"), &route)
            .unwrap()
            .unwrap();
        replace(
            &mut head,
            Some(&given),
            &Secret::new("gho_provider".into()),
            &route,
        )
        .unwrap();
        assert_eq!(head.headers.len(), 1, "{:?}", head.headers);
        assert_eq!(head.headers["x-api-key"], expected);
        assert!(head.headers["x-api-key"].is_sensitive());
    }
}

#[test]
fn the_token_is_taken_from_the_first_place_that_holds_one_and_from_all_of_them() {
    let route = Credentials {
        places: vec![
            Place::Header("x-token".parse().unwrap()),
            Place::Query("access_token".into()),
            Place::Cookie("at".into()),
        ],
        ..Credentials::default()
    };
    let request = http::Request::get(format!("/p?a=1&access_token={SUBJECT}&b=%20"))
        .header("cookie", "theme=dark; at=another-token-of-mine")
        .header("x-token", SUBJECT)
        .body(())
        .unwrap();
    let (mut head, ()) = request.into_parts();
    let given = presented(&head.headers, &head.uri, &host("a.example"), &route)
        .unwrap()
        .unwrap();
    assert_eq!((given.scheme, given.subject.expose()), (Scheme::Bearer, SUBJECT));
    replace(
        &mut head,
        Some(&given),
        &Secret::new("gho_provider".into()),
        &route,
    )
    .unwrap();
    assert_eq!(head.uri, "/p?a=1&b=%20");
    assert_eq!(head.headers["cookie"], "theme=dark");
    assert_eq!(head.headers["authorization"], "Bearer gho_provider");
    assert_eq!(head.headers.len(), 2);

    // `Authorization` comes first, and what is wrong there is not made good by another place.
    let headers = |value: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("x-token", HeaderValue::from_static(SUBJECT));
        headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
        presented(&headers, &"/".parse().unwrap(), &host("a.example"), &route)
            .map(|given| given.unwrap().subject.expose().to_owned())
    };
    assert_eq!(headers("Bearer first"), Ok("first".to_owned()));
    assert_eq!(headers("Digest x"), Err(Error::Scheme));

    // A place is as good as Authorization for keeping a path out of the log.
    let mut only = HeaderMap::new();
    only.insert("x-token", HeaderValue::from_static(SUBJECT));
    let uri = format!("/x/{SUBJECT}").parse().unwrap();
    assert!(loggable_path(&uri, &only, Some(&route)).starts_with("(withheld"));
    assert_eq!(loggable_path(&uri, &only, None), uri.path());
}

#[test]
fn schemes_of_the_provider_are_read_where_the_route_names_them() {
    let read = |route: &Credentials, value: &str| {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, value.parse().unwrap());
        presented(&headers, &"/".parse().unwrap(), &host("api.stripe.com"), route)
            .map(|given| given.unwrap().subject.expose().to_owned())
    };
    let stripe = basic("sk_live_0123456789:");
    let mut route = Credentials::default();
    assert_eq!(read(&route, &stripe), Err(Error::Scheme));
    route.inject.scheme = InjectScheme::Basic;
    assert_eq!(read(&route, &stripe), Ok("sk_live_0123456789".to_owned()));
    assert_eq!(read(&route, "token abc"), Err(Error::Scheme));
    route = Credentials {
        on_foreign: OnForeignToken::Passthrough,
        ..Credentials::default()
    };
    assert_eq!(read(&route, &stripe), Ok("sk_live_0123456789".to_owned()));
}

#[test]
fn a_purge_rule_on_the_body_asks_for_one_that_can_be_read() {
    let mut route = Credentials::default();
    let send = |route: &Credentials| {
        let request = http::Request::get("/")
            .header("authorization", format!("Bearer {SUBJECT}"))
            .header("accept-encoding", "gzip, br")
            .body(())
            .unwrap();
        let (mut head, ()) = request.into_parts();
        let given = presented(&head.headers, &head.uri, &host("slack.com"), route)
            .unwrap()
            .unwrap();
        replace(
            &mut head,
            Some(&given),
            &Secret::new("xoxp-provider".into()),
            route,
        )
        .unwrap();
        head.headers["accept-encoding"].clone()
    };
    assert_eq!(send(&route), "gzip, br");
    route.purge.json = Some(crate::policy::credentials::JsonRule {
        pointer: "/ok".into(),
        equals: false.into(),
    });
    assert_eq!(send(&route), "identity");
}

#[test]
fn what_passes_as_it_came_is_sensitive_all_the_same() {
    let route = Credentials {
        places: vec![Place::Header("x-token".parse().unwrap())],
        ..Credentials::default()
    };
    let mut headers = HeaderMap::new();
    for name in ["authorization", "x-token", "accept"] {
        headers.insert(name, HeaderValue::from_static("v"));
    }
    mark_sensitive(&mut headers, &route);
    let sensitive: Vec<bool> = ["authorization", "x-token", "accept"]
        .map(|name| headers[name].is_sensitive())
        .into();
    assert_eq!(sensitive, [true, true, false]);
}

#[test]
fn a_foreign_token_is_refused_with_the_way_to_allow_it() {
    let jwt = "e30.eyJpc3MiOiJodHRwczovL2FjY291bnRzLmdvb2dsZS5jb20ifQ.sig"; // iss: https://accounts.google.com
    let route = |on_foreign| crate::policy::Route {
        name: "github".into(),
        hosts: vec![],
        vault: "main".into(),
        wanted: std::sync::Arc::new(crate::policy::Wanted::connection("github")),
        login_hint: None,
        verify: None,
        on_missing_token: crate::policy::OnMissingToken::Reject,
        on_untrusted: crate::policy::OnUntrusted::Refuse,
        credentials: Credentials {
            on_foreign,
            issuers: vec![crate::policy::credentials::Issuer::At("t.auth0.com".into())],
            ..Credentials::default()
        },
        workloads: vec![],
        connection_override: vec![],
    };
    let verdict = |token: &str, on_foreign| {
        let presented = Presented {
            scheme: Scheme::Bearer,
            subject: Arc::new(Secret::new(token.to_owned())),
        };
        passes(&presented, &route(on_foreign))
    };
    for (token, what) in [
        ("ghp_0123456789", "GitHub's own"),
        (jwt, "https://accounts.google.com"),
    ] {
        let refused = verdict(token, OnForeignToken::Reject).unwrap_err();
        assert_eq!(refused.class, Class::InvalidToken);
        for part in [
            what,
            "on_foreign_token",
            "passthrough",
            "exchange",
            "route github",
        ] {
            assert!(refused.description.contains(part), "{}", refused.description);
        }
        assert!(!refused.description.contains(token));
        assert!(verdict(token, OnForeignToken::Passthrough).unwrap());
        assert!(!verdict(token, OnForeignToken::Exchange).unwrap());
    }
    for on_foreign in [OnForeignToken::Reject, OnForeignToken::Passthrough] {
        assert!(!verdict("an-opaque-token", on_foreign).unwrap());
    }
}

#[test]
fn a_further_token_takes_the_place_of_what_the_caller_wrote() {
    let name = HeaderName::from_static("x-channel");
    let mut headers = HeaderMap::new();
    headers.append(&name, HeaderValue::from_static("forged"));
    headers.append(&name, HeaderValue::from_static("twice"));
    assert_eq!(
        set_token(&mut headers, &name, &Secret::new("a\nb".into())),
        Err(Error::Unsendable)
    );
    assert!(headers.is_empty(), "neither ours nor theirs");
    set_token(&mut headers, &name, &Secret::new("channel-token".into())).unwrap();
    assert_eq!(headers.get_all(&name).iter().count(), 1);
    assert_eq!(headers[&name], "channel-token");
    assert!(headers[&name].is_sensitive());
}

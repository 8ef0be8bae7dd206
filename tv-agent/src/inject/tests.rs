//! Every form of credentials that is taken, and those that are refused.

use super::*;

const SUBJECT: &str = "eyJhbGciOi.subject.signature";

fn host(name: &str) -> HostName {
    HostName::parse(name).unwrap()
}

fn read(name: &str, values: &[&str]) -> Result<Option<(Scheme, String)>, Error> {
    let mut headers = HeaderMap::new();
    for value in values {
        headers.append(AUTHORIZATION, HeaderValue::from_str(value).unwrap());
    }
    presented(&headers, &host(name)).map(|p| p.map(|p| (p.scheme, p.subject.expose().to_owned())))
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
    let given = presented(&head.headers, &host("a.example")).unwrap().unwrap();
    replace(&mut head, Some(&given), &Secret::new("gho_provider".into())).unwrap();
    let left: Vec<_> = head
        .headers
        .iter()
        .map(|(n, v)| format!("{n}: {}", v.to_str().unwrap()))
        .collect();
    assert_eq!(left.len(), 2, "{left:?}");
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
        replace(&mut head, Some(&given), &Secret::new("gho_provider".into())),
        Err(Error::InAddress)
    );
}

#[test]
fn the_scheme_goes_out_as_it_came_in() {
    let token = Secret::new("gho_provider".into());
    let text = |s| credentials(s, &token).unwrap().to_str().unwrap().to_owned();
    assert_eq!(text(Scheme::Bearer), "Bearer gho_provider");
    assert_eq!(text(Scheme::Token), "token gho_provider");
    assert_eq!(text(Scheme::Basic), basic("x-access-token:gho_provider"));
    assert_eq!(
        credentials(Scheme::Bearer, &Secret::new("a\nb".into())),
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
        loggable_path(&path.parse().unwrap(), &headers)
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

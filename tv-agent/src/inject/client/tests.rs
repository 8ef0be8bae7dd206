//! Credentials in each place, what is left of the request, and what is no credentials.

use http::Request;

use super::*;

fn wanted(from: &[Place]) -> CallerCredentials {
    CallerCredentials {
        from: from.to_vec(),
        id_name: "client_id".into(),
        secret_name: "client_secret".into(),
    }
}

const ALL: [Place; 3] = [Place::Header, Place::Query, Place::Body];

fn head(uri: &str, authorization: &[&str]) -> Parts {
    let request = authorization
        .iter()
        .fold(Request::get(uri), |r, value| r.header(AUTHORIZATION, *value));
    request.body(()).unwrap().into_parts().0
}

fn basic_of(pair: &str) -> String {
    format!("Basic {}", BASE64.encode(pair))
}

fn pair(client: Option<Client>) -> Option<(String, String)> {
    client.map(|client| (client.id, client.secret.expose().to_owned()))
}

fn some(id: &str, secret: &str) -> Option<(String, String)> {
    Some((id.to_owned(), secret.to_owned()))
}

#[test]
fn the_header_is_read_and_removed() {
    for (sent, id, secret) in [("me:pass", "me", "pass"), ("me:a:b+%41", "me", "a:b+%41")] {
        let mut head = head("/", &[&basic_of(sent)]);
        assert_eq!(
            pair(take_client(&mut head, &wanted(&ALL)).unwrap()),
            some(id, secret)
        );
        assert!(!head.headers.contains_key(AUTHORIZATION));
    }
    for bad in [
        "Bearer x",
        "Basic",
        "Basic ?",
        &basic_of("no colon"),
        &basic_of(":x"),
        &basic_of("x:"),
    ] {
        assert!(
            take_client(&mut head("/", &[bad]), &wanted(&ALL)).is_err(),
            "{bad}"
        );
    }
    let twice = basic_of("a:b");
    assert!(take_client(&mut head("/", &[&twice, &twice]), &wanted(&ALL)).is_err());
}

#[test]
fn the_query_keeps_the_rest_byte_for_byte() {
    let cases = [
        ("/a?client_id=me&client_secret=p%2Bw", "/a"),
        (
            "/a?x=%20+&client_id=me&y&client_secret=p%2Bw&=z",
            "/a?x=%20+&y&=z",
        ),
        (
            "/a?client%5Fid=me&client_secret=p%2Bw&client_idx=1",
            "/a?client_idx=1",
        ),
    ];
    for (uri, left) in cases {
        let mut head = head(uri, &[]);
        assert_eq!(
            pair(take_client(&mut head, &wanted(&ALL)).unwrap()),
            some("me", "p+w"),
            "{uri}"
        );
        assert_eq!(head.uri.to_string(), left);
    }
    for none in ["/a", "/a?x=1&client", "/?"] {
        let mut head = head(none, &[]);
        assert!(take_client(&mut head, &wanted(&ALL)).unwrap().is_none());
        assert_eq!(head.uri.to_string(), none);
    }
    for bad in [
        "/?client_id=a",
        "/?client_secret=a",
        "/?client_id=a&client_secret=b&client_id=c",
        "/?client_id=&client_secret=",
    ] {
        assert!(take_client(&mut head(bad, &[]), &wanted(&ALL)).is_err(), "{bad}");
    }
    // Where nobody looks, nothing is taken.
    let mut head = head("/?client_id=a&client_secret=b", &[]);
    assert!(
        take_client(&mut head, &wanted(&[Place::Header]))
            .unwrap()
            .is_none()
    );
}

#[test]
fn the_first_place_counts_and_none_keeps_them() {
    let mut head = head("/?client_id=q&client_secret=qs&x=1", &[&basic_of("h:hs")]);
    assert_eq!(
        pair(take_client(&mut head, &wanted(&ALL)).unwrap()),
        some("h", "hs")
    );
    assert_eq!((head.uri.to_string().as_str(), head.headers.len()), ("/?x=1", 0));
}

#[test]
fn a_form_loses_the_two_fields_only() {
    let (client, rest) =
        take_client_from_form(b"a=1&client_id=me&client_secret=s%26&b=%20", &wanted(&ALL)).unwrap();
    assert_eq!(pair(client), some("me", "s&"));
    assert_eq!(&rest[..], b"a=1&b=%20");
    let (client, rest) = take_client_from_form(b"a=1", &wanted(&ALL)).unwrap();
    assert_eq!((pair(client), &rest[..]), (None, &b"a=1"[..]));
    assert!(take_client_from_form(b"client_id=me", &wanted(&ALL)).is_err());
    assert!(take_client_from_form(b"client_id=\xff&client_secret=x", &wanted(&ALL)).is_err());
    let long = format!(
        "client_id=me&client_secret={}",
        "x".repeat(limits::CREDENTIAL_BYTES + 1)
    );
    assert!(take_client_from_form(long.as_bytes(), &wanted(&ALL)).is_err());
}

#[test]
fn an_identity_is_never_the_callers_own_word() {
    let name = HeaderName::from_static("x-user");
    let mut headers = HeaderMap::new();
    headers.append("x-user", "root".parse().unwrap());
    headers.append("x-user", "admin".parse().unwrap());
    set_identity(&mut headers, &name, Some("alice")).unwrap();
    assert_eq!(headers.get_all(&name).iter().collect::<Vec<_>>(), ["alice"]);
    set_identity(&mut headers, &name, None).unwrap();
    assert!(headers.is_empty());
    headers.append("x-user", "root".parse().unwrap());
    assert!(set_identity(&mut headers, &name, Some("a\r\nb: c")).is_err());
    assert!(headers.is_empty());
}

#[test]
fn a_header_is_taken_once() {
    let name = HeaderName::from_static("x-hint");
    let mut headers = HeaderMap::new();
    assert_eq!(take_header(&mut headers, &name), Ok(None));
    headers.insert("x-hint", " me ".parse().unwrap());
    assert_eq!(take_header(&mut headers, &name), Ok(Some("me".to_owned())));
    assert!(headers.is_empty());
    headers.append("x-hint", "a".parse().unwrap());
    headers.append("x-hint", "b".parse().unwrap());
    assert_eq!(take_header(&mut headers, &name), Err(Error::RepeatedField));
    assert!(headers.is_empty());
}

#[test]
fn forms_are_known_by_their_type() {
    let form = |kind: &str| {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", kind.parse().unwrap());
        is_form(&headers)
    };
    assert!(
        form("application/x-www-form-urlencoded") && form("Application/X-WWW-Form-Urlencoded; charset=utf-8")
    );
    assert!(!form("application/json") && !form("multipart/form-data") && !is_form(&HeaderMap::new()));
}

#[test]
fn a_form_without_credentials_goes_on_byte_for_byte() {
    for form in ["&", "&&a=b&", "a=b&&", ""] {
        let (client, rest) = take_client_from_form(form.as_bytes(), &wanted(&[Place::Body])).unwrap();
        assert!(client.is_none());
        assert_eq!(&*rest, form.as_bytes(), "{form:?}");
    }
}

//! A request's credentials, wherever they stand: lines of `name: value`, the first one the address.
#![no_main]

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tv_agent::addr::HostName;
use tv_agent::inject;
use tv_agent::policy::credentials::{Credentials, Place};
use tv_agent::secret::Secret;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|&byte| byte == b'\n');
    let Ok(uri) = http::Uri::try_from(lines.next().unwrap_or_default()) else {
        return;
    };
    let mut headers = HeaderMap::new();
    for line in lines.take(32) {
        let (name, value) = line.split_at(line.iter().position(|&b| b == b':').unwrap_or(0));
        let value = value.strip_prefix(b":").unwrap_or(value);
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    let host = HostName::parse("api.github.com").expect("a name");
    let route = Credentials {
        places: vec![
            Place::Query("access_token".into()),
            Place::Cookie("token".into()),
            Place::Header(HeaderName::from_static("x-token")),
        ],
        ..Credentials::default()
    };
    let Ok(Some(presented)) = inject::presented(&headers, &uri, &host, &route) else {
        return;
    };
    let subject = presented.subject.expose().to_owned();
    let (mut head, ()) = http::Request::new(()).into_parts();
    (head.uri, head.headers) = (uri, headers);
    let token = Secret::new("provider-token-0001".to_owned());
    if inject::replace(&mut head, Some(&presented), &token, &route).is_ok() && subject.len() >= 8 {
        let left = head.headers.iter().filter(|(name, _)| *name != AUTHORIZATION);
        for (name, value) in left {
            let value = String::from_utf8_lossy(value.as_bytes());
            assert!(!value.contains(&subject), "the subject token stays in {name}");
        }
        let address = head.uri.to_string();
        assert!(
            !address.contains(&subject),
            "the subject token stays in the address"
        );
    }
});

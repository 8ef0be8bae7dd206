//! The pure checks on a request; whole requests are tested over loopback in the flow tests.

use super::*;
use crate::addr::{HostName, OriginAddr};
use crate::netns::Netns;

fn target() -> Target {
    Target {
        host: HostName::parse("api.example.com").unwrap(),
        origin: OriginAddr("192.0.2.1:443".parse().unwrap()),
        workload: 1,
        netns: Netns::OWN,
    }
}

fn verdict(request: http::request::Builder) -> Option<Class> {
    check_form(&request.body(()).unwrap(), &target())
        .err()
        .map(|refusal| refusal.class)
}

#[test]
fn a_request_has_to_be_for_the_host_of_its_connection() {
    for host in ["api.example.com", "API.example.com.", "api.example.com:443"] {
        assert_eq!(verdict(Request::get("/").header("host", host)), None, "{host}");
    }
    for host in [
        "other.example.com",
        "api.example.com:8443",
        "192.0.2.1",
        "",
        "api.example.com@evil.example",
    ] {
        assert_eq!(
            verdict(Request::get("/").header("host", host)),
            Some(Class::Misdirected),
            "{host}"
        );
    }
    let absolute = Request::get("https://evil.example/").header("host", "api.example.com");
    assert_eq!(verdict(absolute), Some(Class::Misdirected));
    assert_eq!(verdict(Request::get("https://api.example.com/")), None);
    assert_eq!(verdict(Request::get("/")), Some(Class::BadRequest));
    let twice = Request::get("/")
        .header("host", "api.example.com")
        .header("host", "api.example.com");
    assert_eq!(verdict(twice), Some(Class::BadRequest));
    assert_eq!(
        verdict(Request::builder().method("TRACE").uri("/")),
        Some(Class::Forbidden)
    );
}

#[test]
fn only_a_real_upgrade_is_one() {
    let upgrade = |pairs: &[(&str, &str)]| {
        let request = pairs.iter().fold(Request::get("/"), |r, (n, v)| r.header(*n, *v));
        upgrade_of(&request.body(()).unwrap()).is_some()
    };
    assert!(upgrade(&[
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket")
    ]));
    assert!(!upgrade(&[("upgrade", "websocket")]));
    assert!(!upgrade(&[("connection", "upgrade")]));
    assert!(!upgrade(&[("connection", "upgrade"), ("upgrade", "h2c")]));
}

//! What is taken, and what is said of the rest.

use std::path::Path;
use std::time::Duration;

use crate::config::{Config, Error};
use crate::limits;

/// 32 bytes each, as variables.
fn env(name: &str) -> Option<String> {
    use base64::Engine as _;
    let encode = |byte: u8, length| base64::engine::general_purpose::STANDARD.encode(vec![byte; length]);
    match name {
        "KEY1" | "AGAIN" => Some(encode(1, 32)),
        "KEY2" => Some(encode(2, 32)),
        "SHORT" => Some(encode(3, 16)),
        "PASSWORD" => Some("CANARY-password".to_owned()),
        _ => None,
    }
}

fn parse(lines: &str) -> Result<Config, Error> {
    let text = format!("shared_cache:\n{lines}\n");
    Config::parse(&text, Path::new("tv.yaml"), &env)
}

fn refused(lines: &str) -> String {
    let error = parse(lines).err().unwrap_or_else(|| panic!("accepted: {lines}"));
    let text = error.to_string();
    assert!(!text.contains("CANARY"), "{text}");
    text
}

#[test]
fn what_is_not_said_has_a_default() {
    let cache = parse("  url: redis://cache.internal\n  keys: [{ env: KEY1 }]").unwrap();
    let cache = cache.shared_cache.unwrap();
    let settings = cache.settings;
    assert_eq!((&*settings.host, settings.port), ("cache.internal", 6379));
    assert_eq!((settings.tls, settings.db), (false, 0));
    assert!(settings.user.is_none() && settings.password.is_none());
    assert_eq!(&*settings.prefix, "tv-agent:");
    assert_eq!(settings.timeout, Duration::from_millis(50));
    assert_eq!(settings.ttl_max, limits::TOKEN_TTL_MAX);
    assert!(
        Config::parse("{}", Path::new("tv.yaml"), &env)
            .unwrap()
            .shared_cache
            .is_none()
    );
}

#[test]
fn every_key_is_read() {
    let cache = parse(
        "  url: rediss://[2001:db8::7]:6380/3\n  user: tv\n  password: { env: PASSWORD }\n  \
         keys: [{ env: KEY2 }, { env: KEY1 }]\n  prefix: \"fleet-a:\"\n  timeout_ms: 20\n  \
         ttl_max_seconds: 600\n  extra_roots: [/etc/redis-ca.pem]",
    );
    let cache = cache.unwrap().shared_cache.unwrap();
    let settings = cache.settings;
    assert_eq!((&*settings.host, settings.port), ("2001:db8::7", 6380));
    assert_eq!((settings.tls, settings.db, settings.keys.len()), (true, 3, 2));
    assert_eq!(settings.user.as_deref(), Some("tv"));
    assert!(settings.password.is_some());
    assert_eq!(
        (&*settings.prefix, settings.timeout),
        ("fleet-a:", Duration::from_millis(20))
    );
    assert_eq!(settings.ttl_max, Duration::from_secs(600));
    assert_eq!(cache.extra_roots.len(), 1);
}

#[test]
fn each_mistake_is_named_with_what_is_allowed() {
    let keys = "\n  keys: [{ env: KEY1 }]";
    let cases = [
        (format!("  url: cache.internal{keys}"), "shared_cache.url"),
        (
            format!("  url: https://cache.internal{keys}"),
            "rediss://HOST:PORT",
        ),
        (
            format!("  url: redis://u:CANARY@cache.internal{keys}"),
            "keys of their own",
        ),
        (format!("  url: redis://cache.internal/name{keys}"), "database"),
        (
            format!("  url: redis://cache.internal/0?x=y{keys}"),
            "more than an address",
        ),
        (format!("  url: redis://c\n  user: tv{keys}"), "shared_cache.user"),
        (
            format!("  url: redis://c\n  password: {{ env: NOT_SET }}{keys}"),
            "shared_cache.password",
        ),
        (
            format!("  url: redis://c\n  password: CANARY{keys}"),
            "never the secret itself",
        ),
        (
            format!("  url: redis://c\n  prefix: \"\"{keys}"),
            "shared_cache.prefix",
        ),
        (
            format!("  url: redis://c\n  prefix: \"a*\"{keys}"),
            "shared_cache.prefix",
        ),
        (
            format!("  url: redis://c\n  prefix: {}{keys}", "a".repeat(65)),
            "shared_cache.prefix",
        ),
        (format!("  url: redis://c\n  timeout_ms: 0{keys}"), "1 to 1000"),
        (format!("  url: redis://c\n  timeout_ms: 1001{keys}"), "1 to 1000"),
        (
            format!("  url: redis://c\n  ttl_max_seconds: 86401{keys}"),
            "1 to 86400",
        ),
        ("  url: redis://c\n  keys: []".to_owned(), "1 to 4"),
        (
            "  url: redis://c\n  keys: [CANARY]".to_owned(),
            "never a key itself",
        ),
        (
            "  url: redis://c\n  keys: [{ env: SHORT }]".to_owned(),
            "openssl rand -base64 32",
        ),
        (
            "  url: redis://c\n  keys: [{ env: KEY1 }, { env: AGAIN }]".to_owned(),
            "number 2",
        ),
        ("  url: redis://c".to_owned(), "keys"),
        (format!("  url: redis://c\n  cluster: true{keys}"), "cluster"),
    ];
    for (lines, wanted) in cases {
        let text = refused(&lines);
        assert!(
            text.contains(wanted) && text.contains("tv.yaml:"),
            "{lines}\n{text}"
        );
    }
    let five = "{ env: KEY1 }, ".repeat(5);
    assert!(refused(&format!("  url: redis://c\n  keys: [{five}]")).contains("1 to 4"));
}

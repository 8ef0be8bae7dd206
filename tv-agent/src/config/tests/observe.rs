//! The audit trail, traces and the page.

use super::*;
use crate::audit::{Destination, OnFailure};

#[test]
fn nothing_is_written_or_sent_unless_it_is_asked_for() {
    let config = parse(GOOD).unwrap();
    assert_eq!((config.audit, config.traces, config.page), (None, None, false));
}

#[test]
fn audit_traces_and_page_are_understood() {
    let more = "
audit: { to: /var/log/tv-agent/audit.json, on_failure: refuse }
traces: { endpoint: \"http://127.0.0.1:4318/v1/traces\", sample: 0.25, extra_roots: [/etc/collector.pem] }
";
    let text = format!("{GOOD}{more}").replace("metrics: \"127.0.0.1:1\"", "page: true");
    let config = parse(&text).unwrap();
    let audit = config.audit.unwrap();
    assert_eq!(audit.to, Destination::File("/var/log/tv-agent/audit.json".into()));
    assert_eq!(audit.on_failure, OnFailure::Refuse);
    let (traces, roots) = config.traces.unwrap();
    assert_eq!(traces.endpoint.port(), Some(4318));
    assert!((traces.sample - 0.25).abs() < f64::EPSILON);
    assert_eq!(roots, [PathBuf::from("/etc/collector.pem")]);
    assert!(config.page);
    let stdout = parse(&format!("{GOOD}audit: {{ to: stdout }}\n"))
        .unwrap()
        .audit
        .unwrap();
    assert_eq!(
        (stdout.to, stdout.on_failure),
        (Destination::Stdout, OnFailure::Continue)
    );
    assert_eq!(
        parse(&format!("{GOOD}audit: {{ to: off }}\n")).unwrap().audit,
        None
    );
}

#[test]
fn each_mistake_is_named() {
    for (more, parts) in [
        ("audit: { to: here }", ["audit.to", "\"here\"", "absolute path"]),
        (
            "audit: { to: stdout, on_failure: panic }",
            ["tv.yaml:26", "panic", "refuse"],
        ),
        (
            "traces: { endpoint: \"127.0.0.1:4318\" }",
            ["traces.endpoint", "127.0.0.1:4318", "http or https"],
        ),
        (
            "traces: { endpoint: \"http://a:b@c/v1/traces\" }",
            ["traces.endpoint", "with credentials", "http or https"],
        ),
        (
            "traces: { endpoint: \"https://c/v1/traces\", sample: 2 }",
            ["traces.sample", "2", "0 to 1"],
        ),
        ("traces: { sample: 1 }", ["tv.yaml:26", "endpoint", "missing"]),
    ] {
        let message = parse(&format!("{GOOD}{more}\n"))
            .err()
            .unwrap_or_else(|| panic!("{more} was accepted"));
        for part in parts {
            assert!(
                message.contains(part),
                "{more}: {part:?} is missing in: {message}"
            );
        }
    }
}

//! Selectors against workloads of which all, something or nothing is known.

use super::*;
use crate::workload::Cgroup;
use std::sync::Arc;

const UID: &str = "8f6a1c2e-1b2c-4d3e-9f00-aabbccddeeff";
const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn nobody() -> Workload {
    Workload {
        uid: Some(1000),
        ..Workload::default()
    }
}

fn at(path: &str) -> Workload {
    Workload {
        cgroup: Some(Arc::new(Cgroup::at(path))),
        ..nobody()
    }
}

/// In a pod whose facts are not known.
fn stranger() -> Workload {
    at(&format!("/kubepods/burstable/pod{UID}/{ID}"))
}

fn cart() -> Workload {
    let labels = [("app", "cart"), ("tier", "web")].map(|(k, v)| (k.to_owned(), v.to_owned()));
    Workload {
        pod: Some(Arc::new(Pod {
            annotations: Default::default(),
            containers: Default::default(),
            prefix: crate::workload::DEFAULT_PREFIX.into(),
            namespace: "shop".into(),
            name: "cart-0".into(),
            service_account: "cart".into(),
            labels: labels.into(),
        })),
        ..stranger()
    }
}

/// A selector as a configuration writes it.
fn selector(criteria: &[(&str, &str)]) -> Selector {
    let mut selector = Selector::default();
    for (key, value) in criteria {
        let value = (*value).to_owned();
        match *key {
            "cgroup" => selector.cgroup = Some(value),
            "unit" => selector.unit = Some(value),
            "container" => selector.container = Some(value),
            "pod" => selector.pod = Some(value),
            "namespace" => selector.namespace = Some(value),
            "name" => selector.name = Some(value),
            "service_account" => selector.service_account = Some(value),
            "uid" => selector.uid = Some(value.parse().unwrap()),
            label => drop(selector.labels.insert(label.to_owned(), value)),
        }
    }
    selector
}

#[test]
fn every_criterion_admits_and_differs() {
    let unit = at("/system.slice/billing.service");
    for (criterion, workload, good, bad) in [
        ("cgroup", &unit, "/system.slice", "/user.slice"),
        ("unit", &unit, "bill*.service", "billing"),
        ("container", &cart(), &ID[..12], "123456789abc"),
        ("pod", &cart(), UID, "00000000-1b2c-4d3e-9f00-aabbccddeeff"),
        ("namespace", &cart(), "sh*", "sh"),
        ("name", &cart(), "cart-*", "cart"),
        ("service_account", &cart(), "cart", "default"),
        ("uid", &unit, "1000", "0"),
        ("app", &cart(), "cart", "car*"),
    ] {
        let verdict = |value| selector(&[(criterion, value)]).verdict(workload);
        assert_eq!(verdict(good), Verdict::Admitted, "{criterion}: {good}");
        assert!(matches!(verdict(bad), Verdict::Differs(_)), "{criterion}: {bad}");
    }
}

#[test]
fn all_criteria_of_one_selector_must_hold() {
    let two = selector(&[("app", "cart"), ("tier", "web")]);
    assert_eq!(two.verdict(&cart()), Verdict::Admitted);
    let two = selector(&[("app", "cart"), ("tier", "db")]);
    assert_eq!(two.verdict(&cart()), Verdict::Differs("labels"));
    let two = selector(&[("namespace", "shop"), ("uid", "0")]);
    assert_eq!(two.verdict(&cart()), Verdict::Differs("uid"));
    assert_eq!(Selector::default().verdict(&nobody()), Verdict::Admitted);
}

#[test]
fn what_is_not_known_is_not_no() {
    for criterion in ["namespace", "name", "service_account", "app"] {
        let wanted = selector(&[(criterion, "x")]);
        assert!(
            matches!(wanted.verdict(&stranger()), Verdict::Unknown(_)),
            "{criterion}: facts that may come"
        );
        assert!(
            matches!(wanted.verdict(&nobody()), Verdict::Unknown(_)),
            "{criterion}: it may be a pod"
        );
        assert!(
            matches!(
                wanted.verdict(&at("/system.slice/a.service")),
                Verdict::Differs(_)
            ),
            "{criterion}: no pod"
        );
    }
    for criterion in ["cgroup", "unit", "container", "pod"] {
        let wanted = selector(&[(criterion, "x")]);
        assert_eq!(wanted.verdict(&nobody()), Verdict::Unknown(criterion));
    }
    // What is known and differs settles it.
    let wanted = selector(&[("namespace", "shop"), ("uid", "0")]);
    assert_eq!(wanted.verdict(&stranger()), Verdict::Differs("uid"));
    let imagined = Workload::default();
    assert_eq!(
        selector(&[("uid", "0")]).verdict(&imagined),
        Verdict::Unknown("uid")
    );
}

#[test]
fn globs() {
    assert!(covers("/a/*.service", "/a/x.service/sub"));
    assert!(covers("/", "/anything"));
    assert!(!covers("/a/b", "/a"));
    assert!(!covers("/a/*x", "/a/y"));
    assert!(covers("*a*b*", "/xxaYYbZZ"));
    assert!(covers("/kubepods*/pod-*", "/kubepods.slice/pod-7/container"));
    assert!(!covers("/a*a", "/a"), "one character is not two");
    assert!(matches("é*é", "éxé") && matches("*", "") && matches("", "") && !matches("", "x"));
    assert!(matches("a*b*c", "abbc") && !matches("a*b*c", "acb"));
    // Were it tried in every place, this would not end.
    assert!(!matches(&"*a".repeat(100), &format!("{}b", "a".repeat(200))));
}

#[test]
fn it_is_shown_as_it_is_written() {
    for (criteria, text) in [
        (&[("cgroup", "/a*")][..], "/a*"),
        (&[("cgroup", "/a"), ("uid", "7")], "{cgroup: /a, uid: 7}"),
        (
            &[("namespace", "shop"), ("app", "cart")],
            "{namespace: shop, labels: {app: cart}}",
        ),
    ] {
        assert_eq!(selector(criteria).to_string(), text);
    }
}

//! Alerts and dashboard: real expressions, over metrics that the agent has.

use std::collections::BTreeSet;
use std::time::Duration;

use promql_parser::parser::{self, Expr, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use serde_json::Value;
use tv_agent::metrics::{CertificateLabels, Metrics, ReasonLabels, ResultLabels};

use crate::support::{objects, only};

/// Prometheus' own.
const OTHERS: [&str; 1] = ["up"];
/// The kernel half's counters, which `admin` writes beside the registry.
const KERNEL_HALF: &str = "tv_agent_bpf_events_total";

/// Every series that the agent can show, by name.
fn shown() -> BTreeSet<String> {
    let metrics = Metrics::new();
    // A family without a series is not shown.
    metrics.connection("tunnel", "not_routed");
    metrics.handshake("workload", "ok");
    metrics.exchange(&"main".into(), "ok", Duration::ZERO);
    metrics.exchange_retry(&"main".into());
    metrics.breaker(&"main".into(), true);
    metrics.cache_event("hit");
    metrics.request(&"github".into(), "forwarded", 200, Duration::ZERO);
    metrics.identity("alice");
    metrics.shared_cache("hit");
    metrics.trust_moved(None, Some("verified"));
    for family in [
        &metrics.config_reloads,
        &metrics.audit,
        &metrics.trust_installations,
    ] {
        family.get_or_create(&ResultLabels { result: "ok" }).inc();
    }
    let certificate = "root";
    metrics
        .ca_expiry
        .get_or_create(&CertificateLabels { certificate })
        .set(1);
    for family in [&metrics.namespace_failures, &metrics.uncaptured] {
        family.get_or_create(&ReasonLabels { reason: "enter" }).inc();
    }
    let text = metrics.render();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let names = lines.map(|line| line.split(['{', ' ']).next().unwrap().to_owned());
    names.chain([KERNEL_HALF.to_owned()]).collect()
}

#[derive(Default)]
struct Selectors(Vec<VectorSelector>);

impl ExprVisitor for Selectors {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.0.push(selector.clone()),
            Expr::MatrixSelector(selector) => self.0.push(selector.vs.clone()),
            _ => {}
        }
        Ok(true)
    }
}

/// The names in an expression, which must be one.
#[track_caller]
fn names(expression: &str) -> Vec<String> {
    // What Grafana fills in.
    let plain = expression.replace("$__rate_interval", "5m");
    let parsed = parser::parse(&plain).unwrap_or_else(|error| panic!("{expression}: {error}"));
    let mut selectors = Selectors::default();
    walk_expr(&mut selectors, &parsed).unwrap();
    let names = selectors.0.into_iter().map(|selector| selector.name);
    names.map(|name| name.expect("a metric by its name")).collect()
}

fn alerts() -> Vec<&'static Value> {
    let groups = only("all", "PrometheusRule")["spec"]["groups"]
        .as_array()
        .unwrap();
    groups
        .iter()
        .flat_map(|group| group["rules"].as_array().unwrap())
        .collect()
}

fn dashboard() -> Value {
    let maps = objects("all", "ConfigMap");
    let text = maps.iter().find_map(|map| map["data"]["tv-agent.json"].as_str());
    serde_json::from_str(text.unwrap()).unwrap()
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

#[test]
fn alerts_and_panels_read_what_the_agent_shows() {
    let shown = shown();
    let dashboard = dashboard();
    let targets = panels(&dashboard).flat_map(|panel| panel["targets"].as_array().unwrap());
    let expressions: Vec<&str> = alerts()
        .into_iter()
        .chain(targets)
        .map(|rule| rule["expr"].as_str().unwrap())
        .collect();
    assert!(expressions.len() > 30, "{}", expressions.len());
    for expression in expressions.into_iter().filter(|it| *it != "vector(1)") {
        let names = names(expression);
        assert!(!names.is_empty(), "{expression}");
        for name in names.iter().filter(|name| !OTHERS.contains(&name.as_str())) {
            assert!(shown.contains(name), "{expression}: the agent has no {name}");
        }
    }
}

#[test]
fn what_is_not_there_would_be_seen() {
    assert!(!shown().contains("tv_agent_swaps_total"));
    assert_eq!(
        names("sum(rate(a_total{b=\"c\"}[$__rate_interval])) / d"),
        ["a_total", "d"]
    );
}

/// DESIGN: swaps, refusals by reason, exchange latency and errors, cache hit ratio, trust coverage, per-node health.
#[test]
fn the_dashboard_shows_what_operators_ask_for() {
    let dashboard = dashboard();
    let titles: Vec<&str> = panels(&dashboard)
        .map(|panel| panel["title"].as_str().unwrap())
        .collect();
    for title in [
        "Requests with a swapped token",
        "Refusals by reason",
        "Exchange latency",
        "Exchanges by result",
        "Cache hit ratio",
        "Trust coverage",
        "Agents that answer",
    ] {
        assert!(titles.contains(&title), "{title}: {titles:?}");
    }
    let mut places: Vec<(i64, i64, i64, i64)> = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let part = |key: &str| panel["gridPos"][key].as_i64().unwrap();
        let (x, y, w, h) = (part("x"), part("y"), part("w"), part("h"));
        assert!(x + w <= 24);
        for (ox, oy, ow, oh) in &places {
            let apart = x >= ox + ow || ox >= &(x + w) || y >= oy + oh || oy >= &(y + h);
            assert!(apart, "{} lies over another panel", panel["title"]);
        }
        places.push((x, y, w, h));
    }
}

#[test]
fn every_alert_says_where_and_how_bad() {
    for alert in alerts().into_iter().filter(|alert| alert["alert"] != "More") {
        let name = alert["alert"].as_str().unwrap();
        assert!(
            ["warning", "critical"]
                .iter()
                .any(|severity| alert["labels"]["severity"] == *severity),
            "{name}"
        );
        let summary = alert["annotations"]["summary"].as_str().unwrap();
        assert!(summary.contains("$labels.node"), "{name}: {summary}");
        assert!(
            alert["expr"].as_str().unwrap().contains("namespace=\"tv-agent\""),
            "{name}"
        );
    }
}

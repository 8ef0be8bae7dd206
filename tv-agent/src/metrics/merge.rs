//! The metrics of two processes as one text: equal series are added. Pure.

use std::collections::HashMap;

/// `ours` with the values of `theirs`; both in the OpenMetrics text format, without exemplars and timestamps. Series that
/// only `theirs` has stand behind the last one of their family, and families that only it has at the end.
pub fn merged(ours: &str, theirs: &str) -> String {
    let mut more = families(theirs);
    let mut text = String::with_capacity(ours.len() + theirs.len());
    for (name, family) in families(ours) {
        let other = more.iter().position(|(other, _)| *other == name);
        let other = other.map(|at| more.remove(at).1);
        write(&mut text, &family, other.as_ref());
    }
    for (_, family) in &more {
        write(&mut text, family, None);
    }
    text.push_str("# EOF\n");
    text
}

#[derive(Default)]
struct Family<'a> {
    /// Lines about the family.
    about: Vec<&'a str>,
    /// Series and values, in order.
    series: Vec<(&'a str, &'a str)>,
}

fn families(text: &str) -> Vec<(&str, Family<'_>)> {
    let mut all: Vec<(&str, Family<'_>)> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty() && *line != "# EOF") {
        if let Some(about) = line.strip_prefix("# ") {
            let name = about.split(' ').nth(1).unwrap_or_default();
            if all.last().is_none_or(|(last, _)| *last != name) {
                all.push((name, Family::default()));
            }
            if let Some((_, family)) = all.last_mut() {
                family.about.push(line);
            }
        } else if let (Some((_, family)), Some((series, value))) = (all.last_mut(), line.rsplit_once(' ')) {
            family.series.push((series, value));
        }
    }
    all
}

fn write(text: &mut String, family: &Family<'_>, other: Option<&Family<'_>>) {
    let mut line = |parts: &[&str]| {
        parts.iter().for_each(|part| text.push_str(part));
        text.push('\n');
    };
    let mut more: HashMap<&str, &str> =
        other.map_or_else(HashMap::new, |other| other.series.iter().copied().collect());
    family.about.iter().for_each(|about| line(&[about]));
    for (series, value) in &family.series {
        match more.remove(series) {
            Some(other) => line(&[series, " ", &sum(value, other)]),
            None => line(&[series, " ", value]),
        }
    }
    let order = other.map(|other| &other.series[..]).unwrap_or_default();
    for (series, value) in order.iter().filter(|(series, _)| more.contains_key(series)) {
        line(&[series, " ", value]);
    }
}

/// Whole numbers stay whole, however large.
fn sum(one: &str, other: &str) -> String {
    match (one.parse::<i128>(), other.parse::<i128>()) {
        (Ok(one), Ok(other)) => (one + other).to_string(),
        _ => match (one.parse::<f64>(), other.parse::<f64>()) {
            (Ok(one), Ok(other)) => {
                let sum = one + other;
                if sum.fract() == 0.0 && sum.abs() < 1e15 {
                    format!("{sum:.1}")
                } else {
                    sum.to_string()
                }
            }
            _ => one.to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use std::time::Duration;

    #[test]
    fn equal_series_are_added_and_others_stay_in_their_family() {
        let (ours, theirs) = (Metrics::new(), Metrics::new());
        ours.connection("tunnel", "not_routed");
        theirs.connection("tunnel", "not_routed");
        theirs.connection("refuse", "unrecorded");
        theirs.namespaces.set(3);
        ours.request(&"r".into(), "forwarded", 200, Duration::from_millis(3));
        theirs.request(&"r".into(), "forwarded", 200, Duration::from_millis(300));
        ours.identity("a b");
        theirs.identity("a b");
        let text = merged(&ours.render(), &theirs.render());
        for line in [
            r#"tv_agent_connections_total{decision="tunnel",reason="not_routed"} 2"#,
            r#"tv_agent_connections_total{decision="refuse",reason="unrecorded"} 1"#,
            "tv_agent_network_namespaces 3",
            "tv_agent_request_duration_seconds_count 2",
            r#"tv_agent_request_duration_seconds_bucket{le="0.005"} 1"#,
            r#"tv_agent_identified_requests_total{identity="a b"} 2"#,
        ] {
            assert!(text.lines().any(|known| known == line), "{line}\n{text}");
        }
        let types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let mut once = types.clone();
        once.dedup();
        assert_eq!(types, once);
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn what_nobody_else_has_is_left_as_it_is() {
        let metrics = Metrics::new();
        metrics.connection("tunnel", "not_routed");
        let text = metrics.render();
        assert_eq!(merged(&text, ""), text);
        assert_eq!(merged(&text, &Metrics::new().render()), text);
        assert_eq!(merged("", &text), text);
    }

    #[test]
    fn numbers_are_added_as_numbers() {
        assert_eq!(sum("18446744073709551615", "1"), "18446744073709551616");
        assert_eq!(sum("0.25", "0.5"), "0.75");
        assert_eq!(sum("0.5", "0.5"), "1.0");
        assert_eq!(sum("-1", "1"), "0");
        assert_eq!(sum("odd", "1"), "odd");
    }
}

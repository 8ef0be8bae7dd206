//! The chart's values: described, checked before anything is installed.

use serde_json::Value;

use crate::support::{MISTAKES, directory, kept_in_step, refused};

const README: &str = "deploy/helm/tv-agent/README.md";
const BEGIN: &str = "<!-- values: made of values.yaml -->\n";
const END: &str = "<!-- end of values -->";

fn text() -> String {
    std::fs::read_to_string(directory("deploy/helm/tv-agent/values.yaml")).unwrap()
}

/// `## @param name description`, in sections.
fn described(text: &str) -> Vec<(&str, Vec<(&str, &str)>)> {
    let mut sections = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(title) = line.strip_prefix("## @section ") {
            sections.push((title, Vec::new()));
        } else if let Some((name, what)) = line
            .strip_prefix("## @param ")
            .and_then(|rest| rest.split_once(' '))
        {
            sections.last_mut().expect("a section").1.push((name, what));
        }
    }
    sections
}

fn at<'a>(values: &'a Value, name: &str) -> &'a Value {
    name.split('.').fold(values, |value, key| &value[key])
}

#[test]
fn the_readme_lists_every_value() {
    let text = text();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let mut table = String::new();
    for (title, parameters) in described(&text) {
        table += &format!("### {title}\n\n| value | | default |\n|---|---|---|\n");
        for (name, what) in parameters {
            let default = match at(&values, name) {
                Value::String(text) if text.is_empty() => "".to_owned(),
                Value::String(text) => format!("`{text}`"),
                value => format!("`{value}`"),
            };
            table += &format!("| `{name}` | {what} | {default} |\n");
        }
        table.push('\n');
    }
    let readme = std::fs::read_to_string(directory(README)).unwrap();
    let (before, rest) = readme.split_once(BEGIN).expect("a mark where the values begin");
    let (_, after) = rest.split_once(END).expect("a mark where they end");
    kept_in_step(README, &format!("{before}{BEGIN}\n{table}{END}{after}"));
}

/// Each leaf of values.yaml lies at or below a described name, and each name is in the schema.
#[test]
fn every_value_is_described_and_in_the_schema() {
    let text = text();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let sections = described(&text);
    let names: Vec<&str> = sections
        .iter()
        .flat_map(|(_, list)| list.iter().map(|(name, _)| *name))
        .collect();
    let mut todo: Vec<(String, &Value)> = vec![(String::new(), &values)];
    while let Some((path, value)) = todo.pop() {
        if names.contains(&path.as_str()) {
            continue;
        }
        let Value::Object(map) = value else {
            panic!("{path} is not described in values.yaml");
        };
        let below = |key: &String| {
            if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            }
        };
        todo.extend(map.iter().map(|(key, value)| (below(key), value)));
    }
    let schema = std::fs::read_to_string(directory("deploy/helm/tv-agent/values.schema.json")).unwrap();
    let schema: Value = serde_json::from_str(&schema).unwrap();
    for name in names {
        let pointer: String = name.split('.').map(|key| format!("/properties/{key}")).collect();
        assert!(schema.pointer(&pointer).is_some(), "{name} is not in the schema");
        assert!(!at(&values, name).is_null(), "{name} is described and not there");
    }
}

#[test]
fn a_mistake_is_told_before_anything_is_installed() {
    for (at, (values, place)) in MISTAKES.iter().enumerate() {
        let error = refused(at).unwrap_or_else(|| panic!("{values} is not refused"));
        assert!(error.contains(place), "{values}: {error}");
    }
}

//! Whether each test that docs/faults.md names exists: a row without one is a claim.

use std::path::Path;

use super::Finding;

const TABLE: &str = "docs/faults.md";

/// Rows whose last column names no test, or one that is nowhere.
pub fn check(root: &Path) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    match read(TABLE) {
        Some(text) => check_table(&text, &read),
        None => vec![finding(0, "is missing".to_owned())],
    }
}

/// A test is written `layer: module::name` for the layers of tests/, `host: path/of/file.rs: name` else.
fn check_table(text: &str, read: &dyn Fn(&str) -> Option<String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let rows = text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    // The heading and the line below it.
    let rows: Vec<_> = rows.skip(2).collect();
    if rows.is_empty() {
        findings.push(finding(0, "has no rows".to_owned()));
    }
    for (number, row) in rows {
        let tests = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default();
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            findings.push(finding(number, "names no test".to_owned()));
        }
        for test in named.into_iter().filter(|test| !exists(test, read)) {
            findings.push(finding(number, format!("there is no test `{test}`")));
        }
    }
    findings
}

fn exists(test: &str, read: &dyn Fn(&str) -> Option<String>) -> bool {
    let Some((layer, rest)) = test.split_once(": ") else {
        return false;
    };
    let (file, name) = match layer {
        "host" => match rest.split_once(": ") {
            Some((file, name)) => (file.to_owned(), name),
            None => return false,
        },
        _ => match rest.split_once("::") {
            Some((module, name)) => (format!("tests/{layer}/{module}.rs"), name),
            None => return false,
        },
    };
    let function = format!("fn {name}(");
    read(&file).is_some_and(|text| text.lines().any(|line| line.trim_start().contains(&function)))
}

fn finding(line: usize, text: String) -> Finding {
    Finding {
        file: TABLE.into(),
        line: line + 1,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(table: &str) -> Vec<String> {
        let read = |path: &str| match path {
            "tests/e2e/pods.rs" => Some("#[test]\nfn gone() {}\n".to_owned()),
            "tv-agent/src/a.rs" => Some("    #[test]\n    fn inner() {}\n".to_owned()),
            _ => None,
        };
        let table = format!("# Faults\n\n| fault | test |\n|---|---|\n{table}");
        check_table(&table, &read)
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn a_test_that_is_there_is_found() {
        assert_eq!(
            texts("| x | `e2e: pods::gone`, `host: tv-agent/src/a.rs: inner` |\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_row_without_its_test_is_told() {
        for row in [
            "| x | none |\n",
            "| x | `e2e: pods::other` |\n",
            "| x | `e2e: absent::gone` |\n",
            "| x | `host: tv-agent/src/a.rs: other` |\n",
            "| x | `gone` |\n",
            "",
        ] {
            assert_eq!(texts(row).len(), 1, "{row}");
        }
        assert_eq!(texts("| x | `e2e: pods::gone`, `e2e: pods::none` |\n").len(), 1);
    }
}

//! Who may import whom: `tv-agent/src/lib.rs` lists the modules in the order of a connection's life, and a
//! module imports only what stands before it.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Finding, rust_files};

/// The comment in lib.rs after which stages begin; what stands before are sides.
const STAGES: &str = "// Stages, in order.";

/// Imports that go against the order.
pub fn check(root: &Path) -> Vec<Finding> {
    let source = root.join("tv-agent/src");
    let Ok(lib) = std::fs::read_to_string(source.join("lib.rs")) else {
        return Vec::new();
    };
    let order = order(&lib);
    let mut findings = Vec::new();
    for file in rust_files(&source) {
        let below = file.strip_prefix(&source).unwrap_or(&file);
        let Some(module) = below.iter().next().and_then(|first| Path::new(first).file_stem()) else {
            continue;
        };
        let module = module.to_string_lossy();
        let Some(place) = order.get(&*module) else {
            continue;
        };
        if below.ends_with("tests.rs") || below.iter().any(|part| part == "tests") {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(&file) else {
            continue;
        };
        let name = file.strip_prefix(root).unwrap_or(&file);
        for (line, imported) in imports(&text) {
            let Some(other) = order.get(imported) else {
                continue;
            };
            if imported != module && other > place {
                let text = format!(
                    "`{module}` imports `{imported}`, which comes later (lib.rs): move what is shared to the earlier one"
                );
                findings.push(Finding {
                    file: name.to_owned(),
                    line,
                    text,
                });
            }
        }
    }
    findings
}

/// Each module's rank: all sides 0, then the stages 1, 2, 3… Pure.
fn order(lib: &str) -> BTreeMap<&str, usize> {
    let mut rank = 0;
    let mut stages = false;
    let mut order = BTreeMap::new();
    for line in lib.lines() {
        stages |= line == STAGES;
        if let Some(name) = line
            .strip_prefix("pub mod ")
            .and_then(|rest| rest.strip_suffix(';'))
        {
            rank += usize::from(stages);
            order.insert(name, rank);
        }
    }
    order
}

/// Modules named after `crate::` in the production part, with the line. Pure.
fn imports(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .enumerate()
        .flat_map(|(number, line)| {
            let code = line.split("//").next().unwrap_or(line);
            code.match_indices("crate::").filter_map(move |(at, found)| {
                let rest = &code[at + found.len()..];
                let end = rest
                    .find(|c: char| !c.is_alphanumeric() && c != '_')
                    .unwrap_or(rest.len());
                (end > 0).then_some((number + 1, &rest[..end]))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_come_before_all_stages() {
        let order = order("pub mod a;\npub mod b;\n\n// Stages, in order.\npub mod c;\npub mod d;\n");
        assert_eq!(order, BTreeMap::from([("a", 0), ("b", 0), ("c", 1), ("d", 2)]));
    }

    #[test]
    fn imports_are_found_outside_of_tests_and_comments() {
        let text =
            "use crate::one::X;\n// crate::no\nfn f() { crate::two::g() }\n#[cfg(test)]\nuse crate::three;\n";
        assert_eq!(imports(text).collect::<Vec<_>>(), [(1, "one"), (3, "two")]);
    }
}

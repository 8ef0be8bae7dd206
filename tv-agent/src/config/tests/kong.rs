//! docs/kong.md names keys of the configuration: each of them has to be one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What may stand below a mapping: name → its own mapping, if it is one.
type Fields = BTreeMap<String, String>;

/// The structs and enums of `raw.rs` and its modules.
fn schema() -> BTreeMap<String, Fields> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config");
    let mut texts = vec![std::fs::read_to_string(src.join("raw.rs")).unwrap()];
    for entry in std::fs::read_dir(src.join("raw")).unwrap() {
        texts.push(std::fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    let mut all: BTreeMap<String, Fields> = BTreeMap::new();
    for text in &texts {
        let mut inside: Option<(String, bool)> = None;
        for line in text.lines() {
            let declared = ["struct", "enum"].into_iter().find_map(|what| {
                let rest = line.strip_prefix("pub ")?.strip_prefix(what)?.trim();
                Some((rest.strip_suffix('{')?.trim().to_owned(), what == "enum"))
            });
            match (&inside, declared) {
                (_, Some(declared)) => inside = Some(declared),
                (Some(_), None) if line == "}" => inside = None,
                (Some((name, is_enum)), None) => {
                    let fields = all.entry(name.clone()).or_default();
                    let line = line.trim().trim_end_matches(',');
                    if let Some((field, kind)) = line.strip_prefix("pub ").and_then(|l| l.split_once(": ")) {
                        fields.insert(field.to_owned(), innermost(kind));
                    } else if *is_enum && line.starts_with(char::is_alphabetic) {
                        let (variant, kind) = line.split_once('(').unwrap_or((line, ""));
                        fields.insert(format!("={variant}"), innermost(kind.trim_end_matches(')')));
                    }
                }
                (None, None) => {}
            }
        }
    }
    all
}

/// `Option<Spanned<Vec<a::B>>>` → `B`.
fn innermost(kind: &str) -> String {
    let last = kind
        .trim_end_matches('>')
        .rsplit(['<', ' '])
        .next()
        .unwrap_or_default();
    last.rsplit("::").next().unwrap_or_default().to_owned()
}

/// The type of `field` of the type `name`; of an enum, of what its variants hold.
fn step(schema: &BTreeMap<String, Fields>, name: &str, field: &str) -> Option<String> {
    let fields = schema.get(name)?;
    let held = fields
        .iter()
        .filter(|(variant, held)| variant.starts_with('=') && !held.is_empty() && *held != name);
    fields
        .get(field)
        .cloned()
        .or_else(|| held.into_iter().find_map(|(_, held)| step(schema, held, field)))
}

fn exists(schema: &BTreeMap<String, Fields>, key: &str) -> bool {
    let mut at = "Raw".to_owned();
    for part in key.split('.').filter(|part| *part != "NAME") {
        match step(schema, &at, part.trim_end_matches("[]")) {
            Some(next) => at = next,
            None => return false,
        }
    }
    true
}

/// Every `a.b.c` in code marks that begins at the top of the file.
fn named(text: &str) -> BTreeSet<&str> {
    let marked = text.split('`').skip(1).step_by(2);
    let tops = [
        "routes[].",
        "vaults.NAME.",
        "keysets.NAME.",
        "verifiers.NAME.",
        "admin.",
        "keysets_dir",
    ];
    marked
        .filter(|word| tops.iter().any(|top| word.starts_with(top)) && !word.ends_with('.'))
        .collect()
}

#[test]
fn each_of_our_keys_in_the_table_is_one() {
    let table = include_str!("../../../../docs/kong.md");
    let (schema, names) = (schema(), named(table));
    assert!(names.len() > 60, "the table is read: {names:?}");
    let missing: BTreeSet<&str> = names.into_iter().filter(|name| !exists(&schema, name)).collect();
    assert!(missing.is_empty(), "in docs/kong.md, but no key: {missing:?}");
}

#[test]
fn the_check_knows_keys_from_words() {
    let schema = schema();
    for key in [
        "keysets_dir",
        "admin.metrics",
        "vaults.NAME.channel.header",
        "routes[].purge.json.equals",
    ] {
        assert!(exists(&schema, key), "{key}");
    }
    for key in [
        "keyset_dir",
        "admin.metric",
        "vaults.NAME.channel.heade",
        "routes[].purge.json.equals.x",
        "routes",
    ] {
        assert_eq!(exists(&schema, key), key == "routes", "{key}");
    }
    assert_eq!(named("`routes[].x` routes[].y `vaults.NAME.z: 1`").len(), 2);
}

//! A configuration written as a user writes it: block YAML.

use std::fmt::Write as _;

use serde_json::Value;

/// `value` as YAML; strings are quoted, so that none of them is read as something else.
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    write(&mut text, value, 0);
    text
}

fn write(text: &mut String, value: &Value, indent: usize) {
    match value {
        Value::Object(members) if !members.is_empty() => {
            for (name, member) in members {
                let _ = write!(text, "{:indent$}{name}:", "");
                nested(text, member, indent + 2);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                let mut block = String::new();
                write(&mut block, item, indent + 2);
                // The first line of the item stands beside its dash.
                let _ = writeln!(text, "{:indent$}- {}", "", block.trim());
            }
        }
        // JSON's scalars and empty collections are YAML's.
        flat => {
            let _ = writeln!(text, "{:indent$}{flat}", "");
        }
    }
}

fn nested(text: &mut String, value: &Value, indent: usize) {
    let block = match value {
        Value::Object(members) => !members.is_empty(),
        Value::Array(items) => items.iter().any(Value::is_object),
        _ => false,
    };
    if block {
        text.push('\n');
        write(text, value, indent);
    } else {
        let _ = writeln!(text, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nested_values_become_blocks() {
        let value = json!({ "a": { "b": [1, "two"], "c": {} }, "d": [{ "e": true, "f": { "g": null } }, { "h": 1 }] });
        let expected = "\
a:
  b: [1,\"two\"]
  c: {}
d:
  - e: true
    f:
      g: null
  - h: 1
";
        assert_eq!(to_yaml(&value), expected);
    }
}

//! Whether docs/incidents.md says what to do about each word that a refusal can show.

use std::path::Path;

use super::Finding;

const GUIDE: &str = "docs/incidents.md";
/// Where the words stand, and what stands before each in its line.
const SOURCES: [(&str, &[&str]); 4] = [
    ("tv-agent/src/class.rs", &["=> \""]),
    ("tv-agent/src/decide.rs", &["Refuse(\"", "unknown(\"", ", \""]),
    (
        "tv-agent/src/connection.rs",
        &["Refused(\"", "=> \"", "Ok((\"tunnel\", \""],
    ),
    ("tv-agent/src/terminate.rs", &["=> \""]),
];

/// Words of the code that the guide does not have.
pub fn check(root: &Path) -> Vec<Finding> {
    let read = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let Some(guide) = read(GUIDE) else {
        return vec![finding("is missing".to_owned())];
    };
    let mut findings = Vec::new();
    for (path, marks) in SOURCES {
        match read(path).map(|text| words(&text, marks)) {
            Some(words) if !words.is_empty() => findings.extend(missing(&guide, path, &words)),
            _ => findings.push(finding(format!(
                "{path} has no words of refusals; look at this check"
            ))),
        }
    }
    findings
}

fn missing(guide: &str, path: &str, words: &[String]) -> Vec<Finding> {
    let missing = words.iter().filter(|word| !guide.contains(&format!("`{word}`")));
    missing
        .map(|word| finding(format!("does not say what to do about `{word}` ({path})")))
        .collect()
}

/// Labels after `marks`, up to the tests.
fn words(text: &str, marks: &[&str]) -> Vec<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut words: Vec<String> = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| marks.iter().flat_map(move |mark| line.split(mark).skip(1)))
        .filter_map(|rest| Some(rest.split_once('"')?.0.to_owned()))
        .filter(|word| word.contains('_') && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
        .collect();
    words.sort_unstable();
    words.dedup();
    words
}

fn finding(text: String) -> Finding {
    Finding {
        file: GUIDE.into(),
        line: 1,
        text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_the_guide_lacks_is_told() {
        let code = "A => \"bad_one\",\nB => \"other_one\", // => \"no\"\n#[cfg(test)]\nC => \"test_only\"\n";
        let words = words(code, &["=> \""]);
        assert_eq!(words, ["bad_one", "other_one"]);
        assert_eq!(missing("| `bad_one` | do |", "x.rs", &words).len(), 1);
        assert!(missing("`bad_one` and `other_one`", "x.rs", &words).is_empty());
    }
}

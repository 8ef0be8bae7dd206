//! Options of a Java runtime in variables: which trust store they name. Pure.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// What every JVM reads, and tells on standard error that it did.
pub const OPTIONS: &str = "JAVA_TOOL_OPTIONS";
/// As above, and what the launcher and Oracle's JVM read besides.
pub const ALL_OPTIONS: [&str; 3] = [OPTIONS, "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"];

const STORE: &str = "-Djavax.net.ssl.trustStore=";
const PASSWORD: &str = "-Djavax.net.ssl.trustStorePassword=changeit";

/// `options` with `keystore` as the trust store; None when they name one of their own.
pub fn with_trust_store(options: &str, keystore: &Path) -> Option<String> {
    if trust_store(options).is_some() {
        return None;
    }
    let keystore = keystore.display().to_string();
    let quote = if keystore.contains(char::is_whitespace) {
        "\""
    } else {
        ""
    };
    let own = options.trim();
    let space = if own.is_empty() { "" } else { " " };
    Some(format!("{own}{space}{quote}{STORE}{keystore}{quote} {PASSWORD}"))
}

/// The trust store that one word of a command line names.
pub fn named(word: &OsStr) -> Option<PathBuf> {
    let path = word.as_bytes().strip_prefix(STORE.as_bytes())?;
    (!path.is_empty()).then(|| OsStr::from_bytes(path).into())
}

/// The trust store that `-Djavax.net.ssl.trustStore=` in JVM options (JAVA_TOOL_OPTIONS and its like) names; the last
/// one wins, as in the JVM. Words are parted by white space, save within quotes.
pub fn trust_store(options: &str) -> Option<PathBuf> {
    let words = words_of(options);
    let last = words.iter().rfind(|word| word.starts_with(STORE))?;
    named(OsStr::new(last))
}

/// As the JVM parts them.
pub fn words_of(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for char in options.chars() {
        match (quote, char) {
            (Some(open), _) if open == char => quote = None,
            (None, '"' | '\'') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, _) if char.is_ascii_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trust_store_is_the_last_one_and_quotes_part_no_words() {
        for (options, store) in [
            ("", None),
            ("-Xmx1g -Djavax.net.ssl.trustStorePassword=x", None),
            ("-Djavax.net.ssl.trustStore=", None),
            ("-Xmx1g -Djavax.net.ssl.trustStore=/a/b.jks", Some("/a/b.jks")),
            (
                "-Djavax.net.ssl.trustStore=/a\t-Djavax.net.ssl.trustStore=/b -Xms1m",
                Some("/b"),
            ),
            (
                "'-Djavax.net.ssl.trustStore=/with space' -Xms1m",
                Some("/with space"),
            ),
            (
                "-Djavax.net.ssl.trustStore=\"/with 'both'\"",
                Some("/with 'both'"),
            ),
            ("-Dx='-Djavax.net.ssl.trustStore=/no", None),
        ] {
            assert_eq!(trust_store(options).as_deref(), store.map(Path::new), "{options}");
        }
    }

    #[test]
    fn a_trust_store_is_added_to_options_that_name_none() {
        let added = with_trust_store(" -Xmx1g ", Path::new("/run/c")).unwrap();
        assert_eq!(
            added,
            "-Xmx1g -Djavax.net.ssl.trustStore=/run/c -Djavax.net.ssl.trustStorePassword=changeit"
        );
        let spaced = with_trust_store("", Path::new("/a b/c")).unwrap();
        assert_eq!(trust_store(&spaced).unwrap(), Path::new("/a b/c"));
        assert_eq!(with_trust_store(&added, Path::new("/other")), None);
    }
}

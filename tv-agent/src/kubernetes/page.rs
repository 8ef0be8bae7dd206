//! The API server's answers, piece by piece: a list's page, a watch's lines. Pure.

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::limits;

/// A page of a list; its objects are looked at one by one, so that a malformed one spoils no other.
#[derive(Deserialize)]
pub struct Page<'a> {
    pub metadata: PageMetadata,
    #[serde(borrow, default = "Vec::new")]
    pub items: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PageMetadata {
    pub resource_version: String,
    #[serde(rename = "continue")]
    pub more: Option<String>,
}

/// A line of a watch.
#[derive(Deserialize)]
pub struct Line<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    pub object: &'a RawValue,
}

/// `Status`, as far as it matters.
#[derive(Deserialize)]
pub struct Failure {
    pub code: Option<u16>,
    pub message: Option<String>,
}

/// Cuts a stream of bytes into lines of at most [`limits::API_OBJECT_BYTES`].
#[derive(Default)]
pub struct Lines {
    held: Vec<u8>,
    /// Up to here there is no end of a line.
    searched: usize,
}

/// A line is longer than any object can be.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

impl Lines {
    pub fn push(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// The next whole line, if there is one.
    ///
    /// # Errors
    /// When what there is of it is too long already.
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let end = self.held[self.searched..].iter().position(|&byte| byte == b'\n');
        let Some(end) = end.map(|end| end + self.searched) else {
            self.searched = self.held.len();
            return if self.held.len() > limits::API_OBJECT_BYTES {
                Err(TooLong)
            } else {
                Ok(None)
            };
        };
        self.searched = 0;
        let rest = self.held.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.held, rest);
        line.truncate(end);
        if line.len() > limits::API_OBJECT_BYTES {
            return Err(TooLong);
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines_wherever_they_are_cut() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for byte in b"{\"a\":1}\n\nxy\nrest" {
            lines.push(&[*byte]);
            while let Some(line) = lines.next().unwrap() {
                found.push(String::from_utf8(line).unwrap());
            }
        }
        assert_eq!(found, ["{\"a\":1}", "", "xy"]);
        lines.push(b" of it\nnext\n");
        assert_eq!(lines.next().unwrap().unwrap(), b"rest of it");
        assert_eq!(lines.next().unwrap().unwrap(), b"next");
        assert_eq!(lines.next(), Ok(None));
    }

    #[test]
    fn a_line_without_end_is_given_up() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; limits::API_OBJECT_BYTES]);
        assert_eq!(lines.next(), Ok(None));
        lines.push(b"x");
        assert_eq!(lines.next(), Err(TooLong));
    }

    #[test]
    fn a_malformed_item_spoils_no_other() {
        let text = r#"{"metadata":{"resourceVersion":"5","continue":"x"},"items":[{"a":1},7,null]}"#;
        let page: Page<'_> = serde_json::from_str(text).unwrap();
        assert_eq!((page.items.len(), page.items[1].get()), (3, "7"));
        assert_eq!(page.metadata.more.as_deref(), Some("x"));
        let line: Line<'_> = serde_json::from_str(r#"{"type":"ADDED","object":{"x":[1]}}"#).unwrap();
        assert_eq!((&*line.kind, line.object.get()), ("ADDED", r#"{"x":[1]}"#));
    }
}

//! An HTTP answer as `curl --include` prints it.

use serde_json::Value;

use crate::process::Finished;

/// Status, header and body of one answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers in lower case, one a line.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The last answer that curl printed (those before it are interim ones, 1xx); `None` when there is none.
    pub fn parse(finished: &Finished) -> Option<Self> {
        let mut rest = finished.stdout.as_str();
        loop {
            let (head, body) = rest.split_once("\r\n\r\n")?;
            let status = head.split(' ').nth(1)?.trim().parse().ok()?;
            if status >= 200 {
                return Some(Self {
                    status,
                    head: head.to_ascii_lowercase(),
                    body: body.to_owned(),
                });
            }
            rest = body;
        }
    }

    /// The value of the first header of that name (lower case), in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.named(name).next()
    }

    /// The values of all headers of that name.
    pub fn headers(&self, name: &str) -> Vec<&str> {
        self.named(name).collect()
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &str> {
        let fields = self.head.lines().filter_map(|line| line.split_once(':'));
        fields
            .filter(move |(field, _)| *field == name)
            .map(|(_, value)| value.trim())
    }

    /// The body as JSON, `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interim_answers_are_passed_over() {
        let finished = Finished {
            status: std::process::ExitStatus::default(),
            stdout: "HTTP/1.1 100 Continue\r\n\r\nHTTP/2 401 \r\nA: One\r\na: two\r\n\r\n{\"error\":\"x\"}"
                .to_owned(),
            stderr: String::new(),
        };
        let answer = Answer::parse(&finished).unwrap();
        assert_eq!((answer.status, answer.header("a")), (401, Some("one")));
        assert_eq!(answer.headers("a"), ["one", "two"]);
        assert_eq!(answer.json()["error"], "x");
        let empty = Finished {
            stdout: String::new(),
            ..finished
        };
        assert!(Answer::parse(&empty).is_none());
    }
}

//! The caller's place in a distributed trace, as its `traceparent` header says it (W3C Trace Context §3.2). Pure.

use http::HeaderMap;

use crate::encode;

/// What a request is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: [u8; 16],
    /// The span that made the request.
    pub parent: [u8; 8],
    /// Whether the caller records this trace.
    pub sampled: bool,
}

impl TraceContext {
    /// None where there is no `traceparent`, several, or one that says nothing.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all("traceparent").iter();
        let (only, None) = (all.next()?, all.next()) else {
            return None;
        };
        Self::parse(only.to_str().ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']);
        let mut parts = text.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let context = Self {
            trace: hex(parts.next()?)?,
            parent: hex(parts.next()?)?,
            sampled: hex::<1>(parts.next()?)?[0] & 1 == 1,
        };
        // Later versions may add fields; version 0 has none, and 255 is not allowed.
        let allowed = version[0] != 0xff && (version[0] != 0 || parts.next().is_none());
        (allowed && context.trace != [0; 16] && context.parent != [0; 8]).then_some(context)
    }

    /// The trace id as it stands in the header.
    pub fn trace_id(&self) -> String {
        encode::hex(&self.trace)
    }
}

/// Exactly `N` bytes in lower case, as the standard demands.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|d| matches!(d, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standards_example_is_read() {
        let context = TraceContext::parse(GOOD).unwrap();
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(context.parent[0], 0xb7);
        assert!(context.sampled);
        assert!(!TraceContext::parse(&GOOD.replace("-01", "-00")).unwrap().sampled);
        assert!(TraceContext::parse(&format!("01{}-more", &GOOD[2..])).is_some());
    }

    #[test]
    fn what_says_nothing_is_nothing() {
        for bad in [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD[..54],
            &format!("{GOOD}-more"),
            &format!("ff{}", &GOOD[2..]),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-é",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        let mut headers = HeaderMap::new();
        assert_eq!(TraceContext::of(&headers), None);
        headers.append("traceparent", GOOD.parse().unwrap());
        assert!(TraceContext::of(&headers).is_some());
        headers.append("traceparent", GOOD.parse().unwrap());
        assert_eq!(TraceContext::of(&headers), None, "two of them");
    }
}

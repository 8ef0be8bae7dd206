//! Places of a request besides `Authorization`: finding a token there, and taking it away. What is not taken
//! away stays byte for byte. Pure.

use http::header::{COOKIE, HeaderMap, HeaderValue};
use http::uri::{PathAndQuery, Uri};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::{Error, contains};
use crate::policy::credentials::Place;
use crate::secret::Secret;

/// The token at `place`, if there is one.
///
/// # Errors
/// When it stands there twice, or is no text.
pub(super) fn find(headers: &HeaderMap, uri: &Uri, place: &Place) -> Result<Option<Secret>, Error> {
    let mut found = match place {
        Place::Header(name) => headers
            .get_all(name)
            .iter()
            .map(|value| value.to_str().map(|text| Zeroizing::new(bare(text).to_owned())))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Error::Unreadable)?,
        Place::Query(name) => pairs(uri.query().unwrap_or_default())
            .filter(|(key, _)| decoded(key).as_deref().map(String::as_str) == Some(name))
            .map(|(_, value)| decoded(value).ok_or(Error::Unreadable))
            .collect::<Result<Vec<_>, _>>()?,
        Place::Cookie(name) => {
            let mut found = Vec::new();
            for line in headers.get_all(COOKIE) {
                // Cookies may hold anything; a line that is no text holds no token.
                let cookies = line.to_str().unwrap_or_default().split(';').map(cookie);
                for (_, value) in cookies.filter(|(key, _)| key == name) {
                    found.push(decoded(value.trim_matches('"')).ok_or(Error::Unreadable)?);
                }
            }
            found
        }
    };
    let first = found.pop();
    if found.is_empty() {
        Ok(first.map(|mut text| Secret::new(std::mem::take(&mut *text))))
    } else {
        Err(Error::RepeatedElsewhere)
    }
}

/// Takes away whatever stands at `place`.
pub(super) fn clear(headers: &mut HeaderMap, uri: &mut Uri, place: &Place) {
    match place {
        Place::Header(name) => {
            headers.remove(name);
        }
        Place::Query(name) => {
            keep_parameters(uri, |key, _| {
                decoded(key).as_deref().map(String::as_str) != Some(name)
            });
        }
        Place::Cookie(name) => keep_cookies(headers, |key, _| key != name),
    }
}

/// Takes every cookie away that holds `secret`, encoded or not.
pub(super) fn clear_cookies(headers: &mut HeaderMap, secret: &[u8]) {
    keep_cookies(headers, |key, value| {
        !holds(key.as_bytes(), secret) && !holds(value.as_bytes(), secret)
    });
}

/// Whether `text` holds `secret`, percent-encoded or not.
pub(super) fn holds(text: &[u8], secret: &[u8]) -> bool {
    contains(text, secret)
        || text.contains(&b'%')
            && contains(
                &Zeroizing::new(percent_encoding::percent_decode(text).collect::<Vec<_>>()),
                secret,
            )
}

fn keep_cookies(headers: &mut HeaderMap, keep: impl Fn(&str, &str) -> bool) {
    let lines: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    let kept: Vec<HeaderValue> = lines.iter().filter_map(|line| kept_of(line, &keep)).collect();
    if kept != lines {
        headers.remove(COOKIE);
        for line in kept {
            headers.append(COOKIE, line);
        }
    }
}

/// The line without the cookies that are not kept; None when none is left.
fn kept_of(line: &HeaderValue, keep: &impl Fn(&str, &str) -> bool) -> Option<HeaderValue> {
    // Bytes above ASCII are legal here, so the line is cut as bytes.
    let all: Vec<&[u8]> = line.as_bytes().split(|&byte| byte == b';').collect();
    let text = |part| String::from_utf8_lossy(part);
    let kept: Vec<&[u8]> = all
        .iter()
        .filter(|part| {
            let text = text(part);
            let (key, value) = cookie(&text);
            keep(key, value)
        })
        .copied()
        .collect();
    if kept.len() == all.len() {
        return Some(line.clone());
    }
    let joined = kept.join(&b';');
    let bytes = joined.trim_ascii_start();
    if bytes.is_empty() {
        return None;
    }
    HeaderValue::from_bytes(bytes).ok()
}

fn keep_parameters(uri: &mut Uri, keep: impl Fn(&str, &str) -> bool) {
    let Some(query) = uri.query() else { return };
    let all: Vec<&str> = query.split('&').collect();
    let kept: Vec<&str> = all
        .iter()
        .filter(|pair| {
            let (key, value) = split(pair);
            keep(key, value)
        })
        .copied()
        .collect();
    if kept.len() == all.len() {
        return;
    }
    let mut address = uri.path().to_owned();
    if !kept.is_empty() {
        address.push('?');
        address.push_str(&kept.join("&"));
    }
    let mut parts = std::mem::take(uri).into_parts();
    // Parts of a valid address in their order are a valid address.
    parts.path_and_query = Some(PathAndQuery::try_from(address).expect("a part of what was parsed"));
    *uri = Uri::from_parts(parts).expect("only its query is shorter");
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').map(split)
}

fn split(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

fn cookie(part: &str) -> (&str, &str) {
    let (key, value) = split(part);
    (key.trim(), value.trim())
}

/// None: the bytes are no UTF-8.
fn decoded(text: &str) -> Option<Zeroizing<String>> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    Some(Zeroizing::new(text.into_owned()))
}

/// A header's token without the scheme that some write there too.
fn bare(value: &str) -> &str {
    let value = value.trim();
    match value.split_once(' ') {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("bearer") => rest.trim_start(),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::credentials::Place;

    const TOKEN: &str = "eyJhbGciOi.subject.signature";

    fn request(uri: &str, lines: &[(&'static str, &str)]) -> (HeaderMap, Uri) {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        (headers, uri.parse().unwrap())
    }

    fn token(uri: &str, lines: &[(&'static str, &str)], place: &Place) -> Result<Option<String>, Error> {
        let (headers, uri) = request(uri, lines);
        find(&headers, &uri, place).map(|found| found.map(|secret| secret.expose().to_owned()))
    }

    fn encoded() -> String {
        TOKEN.bytes().map(|byte| format!("%{byte:02X}")).collect()
    }

    #[test]
    fn a_token_is_found_at_each_place() {
        let header = Place::Header("x-token".parse().unwrap());
        let query = Place::Query("access_token".into());
        let cookie = Place::Cookie("at".into());
        let some = Ok(Some(TOKEN.to_owned()));
        for value in [
            TOKEN.to_owned(),
            format!("Bearer {TOKEN}"),
            format!("bearer  {TOKEN}"),
        ] {
            assert_eq!(token("/", &[("x-token", &value)], &header), some);
        }
        for uri in [
            format!("/x?access_token={TOKEN}"),
            format!("/x?a=1&access%5Ftoken={}&b", encoded()),
        ] {
            assert_eq!(token(&uri, &[], &query), some, "{uri}");
        }
        for line in [
            format!("at={TOKEN}"),
            format!("a=1; at=\"{TOKEN}\" ;b=2"),
            format!("a=1;at={}", encoded()),
        ] {
            assert_eq!(token("/", &[("cookie", &line)], &cookie), some, "{line}");
        }
        assert_eq!(
            token(
                "/",
                &[("cookie", "b=1"), ("cookie", &format!("at={TOKEN}"))],
                &cookie
            ),
            some,
            "HTTP/2 may send one line per cookie"
        );
        for place in [&header, &query, &cookie] {
            assert_eq!(token("/?y=1", &[("cookie", "AT=1; xat=2")], place), Ok(None));
        }
        let twice = format!("/?access_token={TOKEN}&access_token=other");
        assert_eq!(token(&twice, &[], &query), Err(Error::RepeatedElsewhere));
        assert_eq!(
            token("/", &[("x-token", "a"), ("x-token", "b")], &header),
            Err(Error::RepeatedElsewhere)
        );
        assert_eq!(
            token("/", &[("cookie", "at=1; at=2")], &cookie),
            Err(Error::RepeatedElsewhere)
        );
        assert_eq!(token("/?access_token=%ff", &[], &query), Err(Error::Unreadable));
    }

    #[test]
    fn only_what_is_named_goes_and_the_rest_stays_as_it_was() {
        let query = Place::Query("access_token".into());
        for (before, after) in [
            ("/p?access_token=x", "/p"),
            ("/p%20q?a=%2f&access_token=x&&b=c=d&", "/p%20q?a=%2f&&b=c=d&"),
            ("/p?access%5ftoken=x&z", "/p?z"),
            ("/p?access_token", "/p"),
            ("/p?xaccess_token=1", "/p?xaccess_token=1"),
            (
                "https://h.example:1/p?access_token=1&b=2",
                "https://h.example:1/p?b=2",
            ),
            ("/p?", "/p?"),
            ("/p", "/p"),
        ] {
            let (mut headers, mut uri) = request(before, &[]);
            clear(&mut headers, &mut uri, &query);
            assert_eq!(uri.to_string(), after);
        }
        for (before, after) in [
            ("at=1", None),
            ("a=1; at=1;  b=\"x y\"", Some("a=1;  b=\"x y\"")),
            ("at=1; a=ü=", Some("a=ü=")),
            ("a=at; b=at=1", Some("a=at; b=at=1")),
        ] {
            let (mut headers, mut uri) = request("/", &[("cookie", before)]);
            clear(&mut headers, &mut uri, &Place::Cookie("at".into()));
            assert_eq!(
                headers.get(COOKIE).map(HeaderValue::as_bytes),
                after.map(str::as_bytes)
            );
        }
        let (mut headers, _) = request("/", &[("cookie", &format!("a=1; x={}; b=2", encoded()))]);
        clear_cookies(&mut headers, TOKEN.as_bytes());
        assert_eq!(headers[COOKIE], "a=1; b=2");
    }
}

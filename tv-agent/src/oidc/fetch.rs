//! One bounded GET of a document that an issuer publishes.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{ACCEPT, AGE, CACHE_CONTROL, HeaderMap};
use url::Url;

use super::{NoKey, NotJson};
use crate::https;
use crate::limits;

/// A document, and how long its server lets it be used.
#[derive(Debug)]
pub struct Fetched<T> {
    pub value: T,
    /// None when the server does not say (RFC 9111 §4.2.1).
    pub fresh: Option<Duration>,
}

/// Why a document could not be had. Cheap to clone: all who wait for one fetch get the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unfetched {
    #[error("{url} cannot be reached ({why}); check its name, the network and extra_roots")]
    Connect { url: Arc<str>, why: String },
    #[error("{url} broke the connection ({why})")]
    Broken { url: Arc<str>, why: String },
    #[error("{url} did not answer in whole within {} s", limit.as_secs_f32())]
    Timeout { url: Arc<str>, limit: Duration },
    #[error("{url} redirects ({status}), which is not followed; configure the final address")]
    Redirect { url: Arc<str>, status: StatusCode },
    #[error("{url} answered {status}")]
    Status { url: Arc<str>, status: StatusCode },
    #[error("{url} answered with more than {limit} bytes")]
    TooLarge { url: Arc<str>, limit: usize },
    #[error("{url}: {why}")]
    Rejected { url: Arc<str>, why: Rejected },
    #[error("neither configured nor discovered: {0}")]
    Lacks(&'static str),
    #[error("the fetch ended without a result; this is a defect of tv-agent, please report it")]
    Aborted,
}

/// What is wrong with a document that came in whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    #[error("it {0}")]
    Json(#[from] NotJson),
    #[error("its issuer is {found:?}, not {wanted:?}; configure the issuer exactly as the server spells it")]
    Issuer { found: String, wanted: String },
    #[error("its member {0} is no string, or missing")]
    NoString(&'static str),
    #[error("its member {0} is no https address")]
    NoHttps(&'static str),
    #[error("its member keys is no list, or missing")]
    NoKeys,
    #[error("it has more than {} keys", limits::JWKS_KEYS)]
    TooManyKeys,
    #[error("{0}")]
    Unusable(NoKey),
}

/// Fetches `url`: at most `limit` bytes, within [`limits::METADATA_TIME`], no redirect.
pub(super) async fn get(
    client: &reqwest::Client,
    url: &Url,
    limit: usize,
) -> Result<Fetched<Vec<u8>>, Unfetched> {
    let time = limits::METADATA_TIME;
    tokio::time::timeout(time, get_unbounded(client, url, limit))
        .await
        .unwrap_or_else(|_| {
            Err(Unfetched::Timeout {
                url: url.as_str().into(),
                limit: time,
            })
        })
}

async fn get_unbounded(
    client: &reqwest::Client,
    url: &Url,
    limit: usize,
) -> Result<Fetched<Vec<u8>>, Unfetched> {
    let failed = |error: reqwest::Error| {
        let (url, connect) = (url.as_str().into(), error.is_connect());
        let why = https::causes(&error.without_url());
        if connect {
            Unfetched::Connect { url, why }
        } else {
            Unfetched::Broken { url, why }
        }
    };
    let call = client.get(url.clone()).header(ACCEPT, "application/json");
    let mut answer = call.send().await.map_err(failed)?;
    let status = answer.status();
    let url = url.as_str().into();
    if status.is_redirection() {
        return Err(Unfetched::Redirect { url, status });
    }
    if status != StatusCode::OK {
        return Err(Unfetched::Status { url, status });
    }
    let announced = answer.content_length().unwrap_or(0);
    let mut value = Vec::new();
    if announced > limit as u64
        || !https::fill(&mut answer, &mut value, limit)
            .await
            .map_err(failed)?
    {
        return Err(Unfetched::TooLarge { url, limit });
    }
    let fresh = freshness(answer.headers());
    Ok(Fetched { value, fresh })
}

/// How long an answer may be used, by `Cache-Control` and `Age` (RFC 9111 §4.2). Pure.
fn freshness(headers: &HeaderMap) -> Option<Duration> {
    let mut age = None;
    let values = headers.get_all(CACHE_CONTROL);
    let directives = values.iter().filter_map(|value| value.to_str().ok());
    for directive in directives.flat_map(|value| value.split(',')) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        match name.trim().to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => return Some(Duration::ZERO),
            "max-age" => age = value.trim().trim_matches('"').parse().ok(),
            _ => {}
        }
    }
    let spent = headers
        .get(AGE)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    age.map(|age: u64| Duration::from_secs(age.saturating_sub(spent.unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freshness_is_what_the_server_says() {
        let of = |fields: &[(http::HeaderName, &'static str)]| {
            let headers: HeaderMap = fields
                .iter()
                .map(|(name, value)| (name.clone(), http::HeaderValue::from_static(value)))
                .collect();
            freshness(&headers).map(|fresh| fresh.as_secs())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[(CACHE_CONTROL, "public, Max-Age=600")]), Some(600));
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=600"), (AGE, "100")]), Some(500));
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=1"), (AGE, "100")]), Some(0));
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=600, no-cache")]), Some(0));
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=soon")]), None);
        assert_eq!(of(&[(CACHE_CONTROL, "max-age=-5")]), None);
    }
}

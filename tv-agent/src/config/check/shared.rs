//! `shared_cache:`: where it is, by which keys it is sealed, and how long anybody waits for it.

use std::time::Duration;

use serde_saphyr::Spanned;
use url::Url;

use super::super::raw::shared as raw;
use super::super::{Error, SharedCache};
use super::Checker;
use crate::limits;
use crate::token::shared::{SealKey, Settings};

const DEFAULT_PORT: u16 = 6379;
const DEFAULT_PREFIX: &str = "tv-agent:";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(50);
/// Longest prefix, characters.
const PREFIX: usize = 64;

impl Checker<'_> {
    pub(super) fn shared_cache(&self, raw: raw::SharedCache) -> Result<SharedCache, Error> {
        let (host, port, tls, db) = self.address(&raw.url)?;
        if let Some(at) = raw
            .user
            .as_ref()
            .filter(|at| at.value.is_empty() || raw.password.is_none())
        {
            let problem = "stands alone or is empty; allowed: a user's name beside password";
            return Err(self.value("shared_cache.user", at, &at.value, problem));
        }
        let password = raw.password.as_ref();
        let password = password
            .map(|at| self.secret("shared_cache.password", at))
            .transpose()?;
        let prefix = match &raw.prefix {
            Some(at) if is_prefix(&at.value) => at.value.clone(),
            Some(at) => {
                let problem = "cannot begin a name; allowed: 1 to 64 letters, digits and : . _ -";
                return Err(self.value("shared_cache.prefix", at, &at.value, problem));
            }
            None => DEFAULT_PREFIX.to_owned(),
        };
        let longest = limits::SHARED_TIME_MAX.as_millis() as u64;
        let settings = Settings {
            host,
            port,
            tls,
            db,
            user: raw.user.map(|at| at.value),
            password,
            keys: self.seal_keys(&raw.keys)?,
            prefix,
            timeout: self
                .within("shared_cache.timeout_ms", &raw.timeout_ms, 1..=longest)?
                .map_or(DEFAULT_TIMEOUT, Duration::from_millis),
            ttl_max: self
                .within(
                    "shared_cache.ttl_max_seconds",
                    &raw.ttl_max_seconds,
                    1..=limits::TOKEN_TTL_MAX.as_secs(),
                )?
                .map_or(limits::TOKEN_TTL_MAX, Duration::from_secs),
        };
        Ok(SharedCache {
            settings,
            extra_roots: raw.extra_roots,
        })
    }

    /// Host, port, whether over TLS, and the number of the database.
    fn address(&self, at: &Spanned<String>) -> Result<(String, u16, bool, i64), Error> {
        let wrong = |problem: &str| self.value("shared_cache.url", at, shown(&at.value), problem);
        let allowed = "allowed: rediss://HOST:PORT (TLS) or redis://HOST:PORT, and /NUMBER for a database";
        let url = Url::parse(&at.value).map_err(|_| wrong(&format!("is no address; {allowed}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "holds credentials; allowed: user and password as keys of their own",
            ));
        }
        let tls = match url.scheme() {
            "rediss" => true,
            "redis" => false,
            _ => return Err(wrong(&format!("is no address of Redis or Valkey; {allowed}"))),
        };
        let host = url.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| wrong(&format!("names no host; {allowed}")))?;
        let db = match url.path().trim_start_matches('/') {
            "" => 0,
            number => number.parse::<u16>().map_err(|_| {
                wrong(&format!(
                    "ends in something else than a database's number; {allowed}"
                ))
            })?,
        };
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong(&format!("says more than an address; {allowed}")));
        }
        // An IPv6 address stands in brackets in a URL only.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok((host, url.port().unwrap_or(DEFAULT_PORT), tls, db.into()))
    }

    fn seal_keys(&self, at: &Spanned<Vec<Spanned<raw::SecretSource>>>) -> Result<Vec<SealKey>, Error> {
        let count = at.value.len();
        if !(1..=limits::SHARED_KEYS).contains(&count) {
            let problem = format!(
                "keys are too few or too many; allowed: 1 to {}",
                limits::SHARED_KEYS
            );
            return Err(self.value("shared_cache.keys", at, count, problem));
        }
        let mut keys: Vec<SealKey> = Vec::new();
        for (index, source) in at.value.iter().enumerate() {
            let key = SealKey::parse(&self.secret("shared_cache.keys", source)?);
            let problem = match &key {
                Some(key) if keys.iter().any(|other| other.id() == key.id()) => {
                    "is the same as one before it; allowed: keys that differ"
                }
                Some(_) => "",
                None => "is no key; allowed: 32 bytes in base64, as `openssl rand -base64 32` makes them",
            };
            match key {
                Some(key) if problem.is_empty() => keys.push(key),
                _ => {
                    return Err(self.value(
                        "shared_cache.keys",
                        source,
                        format!("number {}", index + 1),
                        problem,
                    ));
                }
            }
        }
        Ok(keys)
    }
}

/// Nothing in it may mean something to SCAN's patterns.
fn is_prefix(text: &str) -> bool {
    (1..=PREFIX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b":._-".contains(&b))
}

/// The address without what stands before an @, which may be a password.
fn shown(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}…{}", &url[..scheme + 3], &url[at..]),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! `vaults:`: which keys go with which kind, and what their values may be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde_saphyr::Spanned;
use url::Url;

use super::super::raw::vault as raw;
use super::super::{Error, VaultConfig, VerifierConfig, endpoint_of};
use super::Checker;
use crate::policy::{Hint, Wanted};
use crate::token::settings::{self, Pacing, Preset, VaultSettings};
use crate::token::{Condition, Encoding};
use crate::{files, limits};

mod auth;
mod kinds;

/// One vault under inspection: its errors begin with `vaults.NAME.`
pub(super) struct At<'a> {
    pub checker: &'a Checker<'a>,
    pub name: Arc<str>,
    /// The kind, in words, for messages.
    pub kind: &'static str,
}

impl At<'_> {
    pub fn wrong<T>(
        &self,
        key: &str,
        at: &Spanned<T>,
        value: impl ToString,
        problem: impl Into<String>,
    ) -> Error {
        let key = format!("vaults.{}.{key}", self.name);
        self.checker.value(&key, at, value, problem)
    }

    /// Refuses a key that does nothing for this kind of vault.
    fn only_for<T>(&self, key: &str, at: Option<&Spanned<T>>, kinds: &str) -> Result<(), Error> {
        let Some(at) = at else { return Ok(()) };
        let problem = format!("does nothing for {}; allowed: only with {kinds}", self.kind);
        Err(self.wrong(key, at, "", problem))
    }

    fn need<'r, T, K>(
        &self,
        key: &str,
        found: &'r Option<Spanned<T>>,
        beside: &Spanned<K>,
        what: &str,
    ) -> Result<&'r Spanned<T>, Error> {
        found.as_ref().ok_or_else(|| {
            let problem = format!("is missing for {}; allowed: {what}", self.kind);
            self.wrong(key, beside, "", problem)
        })
    }

    fn count(
        &self,
        key: &str,
        at: &Spanned<u64>,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<u64, Error> {
        if range.contains(&at.value) {
            return Ok(at.value);
        }
        let problem = format!("is out of range; allowed: {} to {}", range.start(), range.end());
        Err(self.wrong(key, at, at.value, problem))
    }

    fn header<T>(&self, key: &str, at: &Spanned<T>, name: &str) -> Result<HeaderName, Error> {
        // These decide how the message is read, or whom it is for.
        const NOT: [&str; 7] = [
            "host",
            "content-length",
            "transfer-encoding",
            "connection",
            "upgrade",
            "te",
            "authorization",
        ];
        HeaderName::from_bytes(name.as_bytes())
            .ok()
            .filter(|name| !NOT.contains(&name.as_str()))
            .ok_or_else(|| {
                let problem = "is no header that can be used here; allowed: a header's name such as X-User";
                self.wrong(key, at, name, problem)
            })
    }

    fn list(&self, key: &str, at: Option<&Spanned<raw::OneOrMore>>) -> Result<Vec<String>, Error> {
        let Some(at) = at else { return Ok(Vec::new()) };
        let list = at.value.clone().list();
        if list.is_empty() || list.iter().any(String::is_empty) {
            let problem = "is empty; allowed: a word or a list of words";
            return Err(self.wrong(key, at, "", problem));
        }
        Ok(list)
    }

    fn wanted(&self, raw: &raw::Vault) -> Result<Wanted, Error> {
        Ok(Wanted {
            connection: None,
            audience: self.list("audience", raw.audience.as_ref())?,
            resource: self.list("resource", raw.resource.as_ref())?,
            scope: raw.scope.as_ref().map(|at| at.value.clone()),
        })
    }

    fn extra(&self, raw: &raw::Vault) -> Result<Vec<(String, String)>, Error> {
        let Some(at) = &raw.extra else {
            return Ok(Vec::new());
        };
        if let Some(name) = at
            .value
            .keys()
            .find(|name| name.is_empty() || settings::RESERVED.contains(&name.as_str()))
        {
            let problem = "is set by a key of its own; allowed: parameters that no other key sets";
            return Err(self.wrong("extra", at, name, problem));
        }
        Ok(at.value.clone().into_iter().collect())
    }

    fn pacing(&self, raw: &raw::Vault) -> Result<Pacing, Error> {
        let mut pacing = Pacing::default();
        if let Some(limit) = raw.rate_limit.as_ref().map(|at| &at.value) {
            if let Some(at) = &limit.per_second {
                if !(0.01..=10_000.0).contains(&at.value) {
                    let problem = "is out of range; allowed: 0.01 to 10000 calls per second";
                    return Err(self.wrong("rate_limit.per_second", at, at.value, problem));
                }
                pacing.per_second = Some(at.value);
                pacing.burst = (at.value as u32).max(1);
            }
            if let Some(at) = &limit.burst {
                pacing.burst = self.count("rate_limit.burst", at, 1..=10_000)? as u32;
            }
            if let Some(at) = &limit.at_once {
                pacing.at_once = self.count("rate_limit.at_once", at, 1..=1024)? as usize;
            }
        }
        if let Some(breaker) = raw.circuit_breaker.as_ref().map(|at| &at.value) {
            if let Some(at) = &breaker.failures {
                pacing.failures = self.count("circuit_breaker.failures", at, 1..=1000)? as u32;
            }
            if let Some(at) = &breaker.open_seconds {
                pacing.open = Duration::from_secs(self.count("circuit_breaker.open_seconds", at, 1..=600)?);
            }
        }
        Ok(pacing)
    }

    /// The token endpoint; or the issuer, and true.
    fn endpoint(&self, raw: &raw::Vault) -> Result<(Url, bool), Error> {
        let https = |key: &str, at: &Spanned<String>, what: &str| {
            let url = Url::parse(&at.value).ok();
            url.filter(|url| url.scheme() == "https" && url.host_str().is_some())
                .ok_or_else(|| {
                    let problem = format!("is not {what}; allowed: an https:// address");
                    self.wrong(key, at, &at.value, problem)
                })
        };
        let both = |key: &str, at: &Spanned<String>| {
            let problem = "stands beside another one; allowed: one of domain, token_endpoint and issuer";
            self.wrong(key, at, &at.value, problem)
        };
        match (&raw.domain, &raw.token_endpoint, &raw.issuer) {
            (Some(at), None, None) => endpoint_of(&at.value)
                .map(|url| (url, false))
                .map_err(|problem| self.wrong("domain", at, &at.value, problem)),
            (None, Some(at), None) => Ok((https("token_endpoint", at, "a token endpoint")?, false)),
            (None, None, Some(at)) => Ok((https("issuer", at, "an issuer")?, true)),
            (None, None, None) => {
                let problem = "has neither domain, token_endpoint nor issuer; allowed: one of the three";
                let key = format!("vaults.{}", self.name);
                Err(self.checker.value(&key, &raw.kind, &*self.name, problem))
            }
            (Some(at), _, _) => Err(both("domain", at)),
            (None, Some(at), Some(_)) => Err(both("token_endpoint", at)),
        }
    }
}

impl Checker<'_> {
    pub(super) fn vault(
        &self,
        name: Arc<str>,
        raw: raw::Vault,
        verifiers: &BTreeMap<Arc<str>, VerifierConfig>,
    ) -> Result<VaultConfig, Error> {
        let kind = match raw.kind.value {
            raw::Kind::Auth0TokenVault => "auth0_token_vault",
            raw::Kind::TokenExchange => "token_exchange",
            raw::Kind::OnBehalfOf => "on_behalf_of",
            raw::Kind::ClientCredentials => "client_credentials",
            // Read by `vaults` in keyset.rs.
            raw::Kind::JwtSigner => "jwt_signer",
        };
        let at = At {
            checker: self,
            name: name.clone(),
            kind,
        };
        let validate = match &raw.validate {
            Some(given) if !verifiers.contains_key(given.value.as_str()) => {
                let known: Vec<&str> = verifiers.keys().map(|name| &**name).collect();
                let problem = format!("is no verifier of this file; allowed: {}", known.join(", "));
                return Err(at.wrong("validate", given, &given.value, problem));
            }
            given => given.as_ref().map(|given| given.value.as_str().into()),
        };
        let (token_endpoint, discover) = at.endpoint(&raw)?;
        let kind = at.kind(&raw)?;
        let timeout = match &raw.timeout_seconds {
            Some(given) if (1..=60).contains(&given.value) => Duration::from_secs(given.value),
            Some(given) => {
                let problem = "is out of range; allowed: 1 to 60 seconds";
                return Err(at.wrong("timeout_seconds", given, given.value, problem));
            }
            None => limits::TOKEN_TIME,
        };
        let (client_id, client_auth) = at.client(&raw, &kind, &token_endpoint)?;
        Ok(VaultConfig {
            settings: VaultSettings {
                name,
                kind,
                token_endpoint,
                discover,
                client_id,
                client_auth,
                encoding: match raw.encoding {
                    raw::Encoding::Form => Encoding::Form,
                    raw::Encoding::Json => Encoding::Json,
                },
                extra_roots: Vec::new(),
                timeout,
                ttl_default: limits::TOKEN_TTL_DEFAULT,
                ttl_max: limits::TOKEN_TTL_MAX,
                pacing: at.pacing(&raw)?,
                when: conditions(&raw),
            },
            extra_roots: raw.extra_roots,
            validate,
        })
    }

    /// A fixed word, a header of the request, or a claim of the caller's token.
    pub(super) fn hint(&self, key: &str, at: &Spanned<raw::Hint>) -> Result<Hint, Error> {
        let allowed = "a word, { header: NAME } or { claim: [PATH] }";
        match &at.value {
            raw::Hint::Fixed(word) if !word.is_empty() => Ok(Hint::Fixed(word.as_str().into())),
            raw::Hint::Fixed(word) => Err(self.value(key, at, word, format!("is empty; allowed: {allowed}"))),
            raw::Hint::Header(raw::HeaderHint { header }) => HeaderName::from_bytes(header.as_bytes())
                .map(Hint::Header)
                .map_err(|_| {
                    self.value(
                        key,
                        at,
                        header,
                        format!("is no header's name; allowed: {allowed}"),
                    )
                }),
            raw::Hint::Claim(raw::ClaimHint { claim }) if !claim.is_empty() => Ok(Hint::Claim(claim.clone())),
            raw::Hint::Claim(_) => {
                Err(self.value(key, at, "[]", format!("is an empty path; allowed: {allowed}")))
            }
        }
    }
}

fn conditions(raw: &raw::Vault) -> Vec<Condition> {
    let Some(at) = &raw.when else {
        return Vec::new();
    };
    at.value
        .iter()
        .cloned()
        .map(|c| Condition {
            issuer: c.issuer,
            has_audience: c.has_audience,
            missing_audience: c.missing_audience,
            has_scopes: c.has_scopes,
            missing_scopes: c.missing_scopes,
        })
        .collect()
}

fn preset_of(raw: raw::Preset) -> Preset {
    match raw {
        raw::Preset::Generic => Preset::Generic,
        raw::Preset::Keycloak => Preset::Keycloak,
        raw::Preset::Okta => Preset::Okta,
        raw::Preset::Auth0Obo => Preset::Auth0Obo,
        raw::Preset::EntraObo => Preset::EntraObo,
    }
}

/// The text of a file that holds a key or certificate, wiped after use.
fn read(path: &Path) -> Result<zeroize::Zeroizing<Vec<u8>>, String> {
    files::read(path)
        .map(zeroize::Zeroizing::new)
        .map_err(|error| format!("cannot be read ({error}); allowed: a PEM file"))
}

//! A route's credentials, checked.

use std::collections::BTreeMap;

use http::header::{self, HeaderName};
use serde_saphyr::Spanned;

use super::super::raw::{self, inject as written};
use super::{Checker, Error};
use crate::policy::credentials::{Credentials, Inject, InjectScheme, Issuer, JsonRule, Place, Purge};

/// Most places that a route may name; each is looked at in each request.
const PLACES: usize = 8;

/// Headers that mean something to HTTP itself, or to us.
const TAKEN: [HeaderName; 9] = [
    header::HOST,
    header::COOKIE,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::TRANSFER_ENCODING,
    header::TE,
    header::UPGRADE,
    header::EXPECT,
];

/// Whose tokens each vault takes, where that is known: Auth0's issuer is at its domain. A token endpoint tells
/// nothing, for it may stand behind another name than the issuer's.
pub(super) fn issuers(vaults: &BTreeMap<String, Spanned<raw::vault::Vault>>) -> BTreeMap<String, Issuer> {
    let of = |(name, vault): (&String, &Spanned<raw::vault::Vault>)| {
        let domain = vault.value.domain.as_ref()?;
        let host = crate::addr::HostName::parse(&domain.value)?;
        Some((name.clone(), Issuer::At(host.to_string())))
    };
    vaults.iter().filter_map(of).collect()
}

impl Checker<'_> {
    /// `issuers`: whose tokens the route's vault or verifier takes.
    pub(super) fn credentials(&self, raw: &raw::Route, issuers: Vec<Issuer>) -> Result<Credentials, Error> {
        let name = &raw.name.value;
        let key = |rest: &str| format!("routes.{name}.{rest}");
        if let Some(at) = raw.subject_from.get(PLACES) {
            let problem = format!("is one place too many; allowed: at most {PLACES}");
            return Err(self.value(&key("subject_from"), at, PLACES + 1, problem));
        }
        let places = raw
            .subject_from
            .iter()
            .map(|at| self.place(&key("subject_from"), at));
        Ok(Credentials {
            inject: self.inject(&key("inject"), &raw.inject)?,
            places: places.collect::<Result<_, _>>()?,
            on_foreign: raw.on_foreign_token,
            issuers,
            purge: self.purge(&key("purge"), &raw.purge)?,
        })
    }

    fn inject(&self, key: &str, raw: &written::Inject) -> Result<Inject, Error> {
        let default = Inject::default();
        let header = match &raw.header {
            Some(at) => self.header(&format!("{key}.header"), at, &at.value)?,
            None => default.header,
        };
        let user = match &raw.user {
            None => default.user,
            Some(at) => {
                let key = format!("{key}.user");
                // RFC 7617 §2: the user name ends at the first colon.
                let plain = at.value.bytes().all(|b| b.is_ascii_graphic() && b != b':');
                if !plain || at.value.is_empty() {
                    let problem =
                        "is no user name; allowed: visible ASCII without a colon, such as x-access-token";
                    return Err(self.value(&key, at, &at.value, problem));
                }
                if !matches!(raw.scheme, InjectScheme::AsPresented | InjectScheme::Basic) {
                    let problem =
                        "has no meaning with this scheme; allowed: with scheme Basic or as_presented";
                    return Err(self.value(&key, at, &at.value, problem));
                }
                at.value.clone()
            }
        };
        Ok(Inject {
            header,
            scheme: raw.scheme,
            user,
        })
    }

    fn place(&self, key: &str, at: &Spanned<written::Place>) -> Result<Place, Error> {
        let named = |name: &str| {
            let plain =
                !name.is_empty() && name.bytes().all(|b| b.is_ascii_graphic() && !b"=;,".contains(&b));
            plain.then(|| name.to_owned()).ok_or_else(|| {
                let problem = "is no name; allowed: visible ASCII without = ; or a comma";
                self.value(key, at, name, problem)
            })
        };
        Ok(match &at.value {
            written::Place::Header(name) => {
                let header = self.header(key, at, name)?;
                if header == header::AUTHORIZATION {
                    let problem = "is always looked at; allowed: another header";
                    return Err(self.value(key, at, name, problem));
                }
                Place::Header(header)
            }
            written::Place::Query(name) => Place::Query(named(name)?),
            written::Place::Cookie(name) => Place::Cookie(named(name)?),
        })
    }

    fn purge(&self, key: &str, raw: &written::Purge) -> Result<Purge, Error> {
        let statuses = match &raw.statuses {
            None => Purge::default().statuses,
            Some(list) => list
                .iter()
                .map(|at| match u16::try_from(at.value) {
                    Ok(status @ 400..=599) => Ok(status),
                    _ => {
                        let problem = "is no status of a refusal; allowed: 400 to 599";
                        Err(self.value(&format!("{key}.statuses"), at, at.value, problem))
                    }
                })
                .collect::<Result<_, _>>()?,
        };
        let json = match &raw.json {
            None => None,
            Some(rule) => {
                let at = &rule.pointer;
                // RFC 6901 §3.
                let escaped = at
                    .value
                    .split('~')
                    .skip(1)
                    .all(|rest| rest.starts_with(['0', '1']));
                if !at.value.starts_with('/') || !escaped {
                    let problem =
                        "is no JSON pointer; allowed: names behind slashes, such as /ok or /error/code";
                    return Err(self.value(&format!("{key}.json.pointer"), at, &at.value, problem));
                }
                Some(JsonRule {
                    pointer: at.value.clone(),
                    equals: rule.equals.clone(),
                })
            }
        };
        Ok(Purge { statuses, json })
    }

    /// A header that a token or a claim may stand in.
    pub(super) fn header<T>(&self, key: &str, at: &Spanned<T>, name: &str) -> Result<HeaderName, Error> {
        let parsed = HeaderName::try_from(name).ok();
        parsed.filter(|name| !TAKEN.contains(name)).ok_or_else(|| {
            let problem = "cannot be used here; allowed: a header name that HTTP itself does not need, such as X-Api-Key";
            self.value(key, at, name, problem)
        })
    }
}

//! What a token's claims have to say: times, issuer, audience, subject, scopes, required ones. Pure.

use serde_json::{Map, Value};

use crate::limits;

/// Where a claim stands: the names of nested objects, outermost first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<String>);

impl Path {
    /// None for a path without a name.
    pub fn new(names: Vec<String>) -> Option<Self> {
        (!names.is_empty() && names.iter().all(|name| !name.is_empty())).then_some(Self(names))
    }

    fn of(name: &str) -> Self {
        Self(vec![name.to_owned()])
    }

    /// The value there.
    pub fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (last, outer) = self.0.split_last()?;
        let mut object = claims;
        for name in outer {
            object = object.get(name)?.as_object()?;
        }
        object.get(last)
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("."))
    }
}

/// Where each claim is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub scope: Path,
    pub subject: Path,
    pub issuer: Path,
    pub audience: Path,
    pub expiry: Path,
    pub not_before: Path,
    pub identity: Path,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            scope: Path::of("scope"),
            subject: Path::of("sub"),
            issuer: Path::of("iss"),
            audience: Path::of("aud"),
            expiry: Path::of("exp"),
            not_before: Path::of("nbf"),
            identity: Path::of("sub"),
        }
    }
}

/// What is demanded. An empty list demands nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// By how much the issuer's clock may differ, seconds.
    pub leeway: u64,
    pub verify_expiry: bool,
    pub verify_not_before: bool,
    /// One of these.
    pub issuers: Vec<String>,
    /// One of these is among the token's.
    pub audiences: Vec<String>,
    /// One of these.
    pub subjects: Vec<String>,
    /// All of one of these.
    pub scopes: Vec<Vec<String>>,
    /// All of these are there, and not null.
    pub required: Vec<Path>,
    pub paths: Paths,
    /// Claims that introspection may leave out (RFC 7662 §2.2): there they are checked only when they are there.
    pub lenient: bool,
}

/// What the claims say that matters later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub identity: Option<String>,
    /// Seconds since 1970.
    pub expires: Option<u64>,
}

/// Which demand is not met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it has no claim {claim}")]
    Missing { claim: Path },
    #[error("its claim {claim} is no number")]
    NotNumber { claim: Path },
    #[error("its claim {claim} is no time in seconds (beyond the year 9999, or not finite)")]
    OutOfRange { claim: Path },
    #[error("its claim {claim} is no string")]
    NotString { claim: Path },
    #[error("it expired {ago} s ago")]
    Expired { ago: u64 },
    #[error("it is valid only in {wait} s")]
    NotYet { wait: u64 },
    #[error("its issuer is not accepted here")]
    Issuer,
    #[error("it is for another audience")]
    Audience,
    #[error("its subject is not accepted here")]
    Subject,
    #[error("it lacks a scope; required: {}", .required.iter().map(|all| all.join(" ")).collect::<Vec<_>>().join(", or "))]
    Scope { required: Vec<Vec<String>> },
}

/// Checks `claims` at `now` (seconds since 1970).
///
/// # Errors
/// The first demand that is not met.
pub fn check(rules: &Rules, claims: &Map<String, Value>, now: u64) -> Result<Said, Refused> {
    let paths = &rules.paths;
    let expires = time(claims, &paths.expiry);
    if rules.verify_expiry {
        match expires.clone()? {
            // The current time has to be before it (RFC 7519 §4.1.4).
            Some(expiry) if now as f64 >= expiry + rules.leeway as f64 => {
                let ago = (now as f64 - expiry) as u64;
                return Err(Refused::Expired { ago });
            }
            None if !rules.lenient => {
                let claim = paths.expiry.clone();
                return Err(Refused::Missing { claim });
            }
            _ => {}
        }
    }
    if rules.verify_not_before
        && let Some(begin) = time(claims, &paths.not_before)?
        && (now as f64) + (rules.leeway as f64) < begin
    {
        let wait = (begin - now as f64).ceil() as u64;
        return Err(Refused::NotYet { wait });
    }
    one_of(
        claims,
        &paths.issuer,
        &rules.issuers,
        rules.lenient,
        Refused::Issuer,
    )?;
    one_of(claims, &paths.subject, &rules.subjects, false, Refused::Subject)?;
    if !rules.audiences.is_empty() {
        let audiences = list(claims, &paths.audience, |text| vec![text])?;
        if !audiences
            .iter()
            .any(|one| rules.audiences.iter().any(|a| a == one))
        {
            return Err(Refused::Audience);
        }
    }
    for claim in &rules.required {
        if claim.find(claims).is_none_or(Value::is_null) {
            let claim = claim.clone();
            return Err(Refused::Missing { claim });
        }
    }
    if !rules.scopes.is_empty() {
        let held = match list(claims, &paths.scope, |text| text.split(' ').collect()) {
            // No scope at all is one too few, not a malformed token.
            Err(Refused::Missing { .. }) => Vec::new(),
            other => other?,
        };
        let holds = |scope: &String| held.contains(&scope.as_str());
        if !rules.scopes.iter().any(|all| all.iter().all(holds)) {
            let required = rules.scopes.clone();
            return Err(Refused::Scope { required });
        }
    }
    Ok(Said {
        identity: paths.identity.find(claims).and_then(identity),
        expires: expires.ok().flatten().map(|expiry| expiry as u64),
    })
}

/// A NumericDate (RFC 7519 §2): whole or fractional seconds. None when the claim is absent.
fn time(claims: &Map<String, Value>, path: &Path) -> Result<Option<f64>, Refused> {
    let claim = || path.clone();
    let Some(value) = path.find(claims) else {
        return Ok(None);
    };
    let seconds = value
        .as_f64()
        .ok_or_else(|| Refused::NotNumber { claim: claim() })?;
    if seconds.is_finite() && seconds <= limits::TOKEN_TIME_MAX as f64 {
        // Before 1970 is as long ago as 1970.
        Ok(Some(seconds.max(0.0)))
    } else {
        Err(Refused::OutOfRange { claim: claim() })
    }
}

fn one_of(
    claims: &Map<String, Value>,
    path: &Path,
    allowed: &[String],
    may_be_absent: bool,
    refused: Refused,
) -> Result<(), Refused> {
    if allowed.is_empty() {
        return Ok(());
    }
    let claim = || path.clone();
    match path.find(claims) {
        None if may_be_absent => Ok(()),
        None => Err(Refused::Missing { claim: claim() }),
        Some(Value::String(text)) if allowed.contains(text) => Ok(()),
        Some(Value::String(_)) => Err(refused),
        Some(_) => Err(Refused::NotString { claim: claim() }),
    }
}

/// The strings of a claim that is a string (split by `split`) or an array of strings.
fn list<'a>(
    claims: &'a Map<String, Value>,
    path: &Path,
    split: impl Fn(&'a str) -> Vec<&'a str>,
) -> Result<Vec<&'a str>, Refused> {
    let claim = || path.clone();
    match path.find(claims) {
        None => Err(Refused::Missing { claim: claim() }),
        Some(Value::String(text)) => Ok(split(text)),
        Some(Value::Array(all)) => all
            .iter()
            .map(|one| one.as_str().ok_or_else(|| Refused::NotString { claim: claim() }))
            .collect(),
        Some(_) => Err(Refused::NotString { claim: claim() }),
    }
}

/// Who the caller is, for records: a string or whole number, bounded, and free of what a log could stumble over.
fn identity(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let clean: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(limits::IDENTITY_CHARS)
        .collect();
    Some(clean).filter(|clean| !clean.is_empty())
}

#[cfg(test)]
mod tests;

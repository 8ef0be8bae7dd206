//! `verifiers:` and a route's `verify:`, checked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderName};
use jsonwebtoken::Algorithm;
use serde_saphyr::Spanned;
use url::Url;

use super::Checker;
use crate::config::raw::{self, SecretSource};
use crate::config::{Error, VerifierConfig};
use crate::limits;
use crate::policy::{Channel, Verify};
use crate::verify::{Auth, Introspection, Path, Paths, Rules, Settings};

/// Asymmetric ones: whoever can check a signature by them cannot make one.
const DEFAULT: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
const SYMMETRIC: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
/// Parameters of an introspection that have keys of their own (RFC 7662 §2.1, RFC 6749 §2.3.1).
const RESERVED: [&str; 4] = ["token", "token_type_hint", "client_id", "client_secret"];

impl Checker<'_> {
    pub(super) fn verifier(
        &self,
        name: &Arc<str>,
        whole: Spanned<raw::Verifier>,
    ) -> Result<VerifierConfig, Error> {
        let prefix = format!("verifiers.{name}");
        let key = |rest: &str| format!("{prefix}.{rest}");
        let wrong = |problem: &str| Err(self.value(&prefix, &whole, name, problem));
        let raw = &whole.value;
        let issuer = self.https(&key("issuer"), raw.issuer.as_ref())?;
        if let (Some(url), Some(at)) = (&issuer, &raw.issuer)
            && url.query().is_some()
        {
            let problem = "is no issuer; allowed: an https:// address without query (RFC 8414 §2)";
            return Err(self.value(&key("issuer"), at, &at.value, problem));
        }
        let jwks_uri = self.https(&key("jwks_uri"), raw.jwks_uri.as_ref())?;
        let algorithms = match &raw.algorithms {
            Some(list) => self.algorithms(&key("algorithms"), list, raw.hs_secret.is_some())?,
            None if raw.hs_secret.is_some() => [&DEFAULT[..], &SYMMETRIC].concat(),
            None => DEFAULT.to_vec(),
        };
        if let Some(at) = &raw.hs_secret
            && !algorithms.iter().any(|one| SYMMETRIC.contains(one))
        {
            let problem = "is for none of the algorithms; allowed: with HS256, HS384 or HS512 among them";
            return Err(self.value(&key("hs_secret"), at, "", problem));
        }
        let hs_secret = match &raw.hs_secret {
            Some(at) => Some(self.hs_secret(&key("hs_secret"), at)?),
            None => None,
        };
        let introspection = match &raw.introspection {
            Some(at) => Some(self.introspection(&prefix, at)?),
            None => None,
        };
        let asks = introspection.as_ref();
        if asks.is_some_and(|how| how.endpoint.is_none()) && issuer.is_none() {
            return wrong("asks by introspection, but has neither issuer nor introspection.endpoint");
        }
        let keys = issuer.is_some() || jwks_uri.is_some() || hs_secret.is_some();
        if asks.is_none() && raw.verify_signature && !keys {
            return wrong("has nothing to verify by; allowed: issuer, jwks_uri, hs_secret or introspection");
        }
        let rules = self.rules(&prefix, raw, issuer.is_some())?;
        let rotate = self.seconds(
            &key("jwks_rotate_seconds"),
            raw.jwks_rotate_seconds.as_ref(),
            86_400,
        )?;
        Ok(VerifierConfig {
            extra_roots: raw.extra_roots.clone(),
            settings: Settings {
                name: name.clone(),
                issuer,
                jwks_uri,
                algorithms,
                hs_secret,
                verify_signature: raw.verify_signature,
                rules,
                jwks_rotate: rotate.filter(|seconds| *seconds > 0).map(Duration::from_secs),
                introspection,
            },
        })
    }

    fn rules(&self, prefix: &str, raw: &raw::Verifier, discovers: bool) -> Result<Rules, Error> {
        let key = |rest: &str| format!("{prefix}.{rest}");
        let mut scopes = Vec::new();
        for at in &raw.scopes {
            let all: Vec<String> = at.value.split_whitespace().map(str::to_owned).collect();
            if all.is_empty() {
                let problem = "is empty; allowed: scopes separated by spaces, all of which are needed";
                return Err(self.value(&key("scopes"), at, &at.value, problem));
            }
            scopes.push(all);
        }
        let required = raw.required_claims.iter();
        let required = required
            .map(|at| self.path(&key("required_claims"), at))
            .collect::<Result<_, _>>()?;
        // As it is written: a token's `iss` has no slash that a parser added.
        let own = raw.issuer.iter().filter(|_| discovers).map(|at| at.value.clone());
        Ok(Rules {
            leeway: self
                .seconds(&key("leeway_seconds"), raw.leeway_seconds.as_ref(), 3600)?
                .unwrap_or(0),
            verify_expiry: raw.verify_expiry,
            verify_not_before: raw.verify_not_before,
            issuers: own.chain(raw.issuers.iter().cloned()).collect(),
            audiences: raw.audiences.clone(),
            subjects: raw.subjects.clone(),
            scopes,
            required,
            paths: self.paths(&key("claim_paths"), &raw.claim_paths)?,
            lenient: false,
        })
    }

    fn paths(&self, prefix: &str, raw: &raw::ClaimPaths) -> Result<Paths, Error> {
        let mut paths = Paths::default();
        for (name, at, path) in [
            ("scope", &raw.scope, &mut paths.scope),
            ("subject", &raw.subject, &mut paths.subject),
            ("issuer", &raw.issuer, &mut paths.issuer),
            ("audience", &raw.audience, &mut paths.audience),
            ("expiry", &raw.expiry, &mut paths.expiry),
            ("not_before", &raw.not_before, &mut paths.not_before),
            ("identity", &raw.identity, &mut paths.identity),
        ] {
            if let Some(at) = at {
                *path = self.path(&format!("{prefix}.{name}"), at)?;
            }
        }
        Ok(paths)
    }

    fn path(&self, key: &str, at: &Spanned<Vec<String>>) -> Result<Path, Error> {
        Path::new(at.value.clone()).ok_or_else(|| {
            let problem = "is no claim path; allowed: a list of names such as [realm_access, roles]";
            self.value(key, at, format!("{:?}", at.value), problem)
        })
    }

    fn introspection(&self, prefix: &str, at: &Spanned<raw::Introspection>) -> Result<Introspection, Error> {
        let key = |rest: &str| format!("{prefix}.introspection.{rest}");
        let raw = &at.value;
        let auth = match (&raw.authorization, &raw.client_id, &raw.client_auth) {
            (None, None, None) => Auth::None,
            (Some(at), None, None) => Auth::Raw(self.secret(&key("authorization"), at)?),
            (None, Some(id), Some(auth)) => {
                let secret = self.secret(&key("client_auth.secret"), &auth.value.secret)?;
                let id = id.value.clone();
                match auth.value.method {
                    raw::IntrospectionMethod::ClientSecretBasic => Auth::Basic { id, secret },
                    raw::IntrospectionMethod::ClientSecretPost => Auth::Post { id, secret },
                }
            }
            _ => {
                let problem =
                    "mixes ways to authenticate; allowed: authorization, or client_id with client_auth";
                return Err(self.value(&format!("{prefix}.introspection"), at, "", problem));
            }
        };
        for (name, at) in &raw.body_args {
            if RESERVED.contains(&name.as_str()) {
                let problem = format!(
                    "is set by other keys; allowed: names besides {}",
                    RESERVED.join(", ")
                );
                return Err(self.value(&key("body_args"), at, name, problem));
            }
        }
        let timeout = match &raw.timeout_seconds {
            Some(at) if (1..=60).contains(&at.value) => Duration::from_secs(at.value),
            Some(at) => {
                let problem = "is out of range; allowed: 1 to 60 seconds";
                return Err(self.value(&key("timeout_seconds"), at, at.value, problem));
            }
            None => limits::INTROSPECTION_TIME,
        };
        let jwt_claim = match &raw.jwt_claim {
            Some(at) => Some(self.path(&key("jwt_claim"), at)?),
            None => None,
        };
        Ok(Introspection {
            endpoint: self.https(&key("endpoint"), raw.endpoint.as_ref())?,
            auth,
            hint: raw.hint.clone(),
            body: raw
                .body_args
                .iter()
                .map(|(name, at)| (name.clone(), at.value.clone()))
                .collect(),
            timeout,
            cache: raw.cache,
            jwt_claim,
            trust: raw.trust,
            always: raw.always,
        })
    }

    fn algorithms(
        &self,
        key: &str,
        list: &Spanned<Vec<Spanned<String>>>,
        secret: bool,
    ) -> Result<Vec<Algorithm>, Error> {
        if list.value.is_empty() {
            return Err(self.value(key, list, "[]", "is empty; allowed: at least one"));
        }
        let mut algorithms = Vec::new();
        for at in &list.value {
            let algorithm = at
                .value
                .parse()
                .ok()
                .filter(|one| secret || !SYMMETRIC.contains(one));
            algorithms.push(algorithm.ok_or_else(|| {
                let names = DEFAULT.map(|one| format!("{one:?}")).join(", ");
                let problem =
                    format!("is not available; allowed: {names}; with hs_secret also HS256, HS384, HS512");
                self.value(key, at, &at.value, problem)
            })?);
        }
        Ok(algorithms)
    }

    fn hs_secret(&self, key: &str, at: &Spanned<SecretSource>) -> Result<jsonwebtoken::DecodingKey, Error> {
        let secret = self.secret(key, at)?;
        // RFC 7518 §3.2: as long as the hash.
        if secret.len() < 32 {
            return Err(self.value(key, at, "", "is too short; allowed: at least 32 bytes"));
        }
        Ok(secret.hmac_key())
    }

    fn https(&self, key: &str, at: Option<&Spanned<String>>) -> Result<Option<Url>, Error> {
        let Some(at) = at else { return Ok(None) };
        let plain =
            |url: &Url| url.username().is_empty() && url.password().is_none() && url.fragment().is_none();
        Url::parse(&at.value)
            .ok()
            .filter(|url| url.scheme() == "https" && url.host_str().is_some() && plain(url))
            .map(Some)
            .ok_or_else(|| {
                let problem =
                    "is not an address; allowed: an https:// address without user name and fragment";
                self.value(key, at, &at.value, problem)
            })
    }

    fn seconds(&self, key: &str, at: Option<&Spanned<u64>>, most: u64) -> Result<Option<u64>, Error> {
        match at {
            Some(at) if at.value > most => {
                let problem = format!("is out of range; allowed: 0 to {most} seconds");
                Err(self.value(key, at, at.value, problem))
            }
            at => Ok(at.map(|at| at.value)),
        }
    }

    pub(super) fn verify(
        &self,
        key: &str,
        at: &Spanned<raw::Verify>,
        verifiers: &BTreeMap<Arc<str>, VerifierConfig>,
    ) -> Result<Verify, Error> {
        let known = |name: &str| match verifiers.get_key_value(name) {
            Some((name, _)) => Ok(name.clone()),
            None => {
                let known: Vec<&str> = verifiers.keys().map(|name| &**name).collect();
                let problem = format!("is no verifier of this file; allowed: {}", known.join(", "));
                Err(self.value(key, at, name, problem))
            }
        };
        let tokens = match &at.value {
            raw::Verify::Name(name) => {
                return Ok(Verify {
                    access: known(name)?,
                    optional: false,
                    channel: None,
                });
            }
            raw::Verify::Tokens(tokens) => tokens,
        };
        let channel = match &tokens.channel {
            Some(channel) => Some(Channel {
                verifier: known(&channel.verifier)?,
                header: HeaderName::try_from(channel.header.as_str())
                    .ok()
                    .filter(|name| ![header::AUTHORIZATION, header::HOST, header::CONNECTION].contains(name))
                    .ok_or_else(|| {
                        let problem = "cannot carry the channel token; allowed: a header of its own, such as X-Channel-Token";
                        self.value(&format!("{key}.channel.header"), at, &channel.header, problem)
                    })?,
                optional: channel.optional,
            }),
            None => None,
        };
        Ok(Verify {
            access: known(&tokens.access)?,
            optional: tokens.optional,
            channel,
        })
    }
}

#[cfg(test)]
mod tests;

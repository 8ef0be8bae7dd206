//! Stage: is the caller's token what the route demands? A JWT by its issuer's keys, an opaque token by asking
//! its issuer, and the claims of both by the verifier's rules.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::errors::ErrorKind as JwtError;
use jsonwebtoken::{Algorithm, DecodingKey};
use moka::sync::Cache;
use rustls::RootCertStore;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use url::Url;

use crate::clock;
use crate::https;
use crate::limits;
use crate::oidc::{Issuer, Key, KeySet, KeySource, NoKey, NotJson, Object, object};
use crate::secret::Secret;

pub mod claims;
mod error;
mod introspect;

pub use claims::{Path, Paths, Rules};
pub use error::{Error, ErrorKind};
pub use introspect::{Auth, Fault, Introspection};

use introspect::Introspector;

/// A verifier as configured.
pub struct Settings {
    /// Its name in the configuration.
    pub name: Arc<str>,
    pub issuer: Option<Url>,
    /// None: the issuer's discovery document says it.
    pub jwks_uri: Option<Url>,
    pub algorithms: Vec<Algorithm>,
    /// The key of HS256, HS384 and HS512.
    pub hs_secret: Option<DecodingKey>,
    pub verify_signature: bool,
    pub rules: Rules,
    /// Keys are fetched again after this.
    pub jwks_rotate: Option<Duration>,
    pub introspection: Option<Introspection>,
}

/// How a token was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Jwt,
    Introspected,
}

/// A token that was accepted.
#[derive(Clone, Debug)]
pub struct Verified {
    pub claims: Arc<Map<String, Value>>,
    /// Who the caller is, for records.
    pub identity: Option<String>,
    /// Seconds since 1970.
    pub expires: Option<u64>,
    pub kind: Kind,
}

/// Checks tokens of one kind. Its keys and answers are kept inside.
pub struct Verifier {
    settings: Settings,
    /// The rules for what an issuer answered, where some claims may be left out.
    lenient: Rules,
    issuer: Option<Issuer>,
    introspector: Option<Introspector>,
    /// JWTs whose signature was right, by their hash.
    seen: Cache<[u8; 32], Seen>,
}

/// A right signature, as long as the keys are still these.
#[derive(Clone)]
struct Seen {
    claims: Arc<Map<String, Value>>,
    /// None: the configured secret.
    keys: Option<Arc<KeySet>>,
    bytes: u32,
}

impl Verifier {
    /// Makes the verifier; nothing is fetched before the first token. Its servers are verified by `roots`.
    ///
    /// # Errors
    /// When the HTTPS client cannot be made.
    pub fn new(mut settings: Settings, roots: Arc<RootCertStore>) -> Result<Self, https::Error> {
        if !settings.verify_signature {
            tracing::warn!(verifier = %settings.name, "verify_signature is off: anybody can make tokens that it accepts");
        }
        let client = https::client(roots)?;
        let source = settings
            .jwks_uri
            .clone()
            .map_or(KeySource::Issuer, KeySource::Uri);
        let known = settings.issuer.is_some() || settings.jwks_uri.is_some();
        let issuer =
            known.then(|| Issuer::new(&client, settings.issuer.as_ref(), source, settings.jwks_rotate));
        let introspection = settings.introspection.take();
        Ok(Self {
            lenient: Rules {
                lenient: true,
                ..settings.rules.clone()
            },
            introspector: introspection.map(|how| Introspector::new(how, client, issuer.clone())),
            issuer,
            seen: Cache::builder()
                .max_capacity(limits::VERIFIED_BYTES)
                .weigher(|_, seen: &Seen| seen.bytes)
                .time_to_live(limits::VERIFIED_TTL)
                .build(),
            settings,
        })
    }

    pub fn name(&self) -> &Arc<str> {
        &self.settings.name
    }

    /// Whether its keys, or the address to ask, can be had; what there is. For `check`.
    ///
    /// # Errors
    /// Why not.
    pub async fn reach(&self) -> Result<String, String> {
        let mut found = Vec::new();
        if let Some(how) = &self.introspector {
            let endpoint = how.endpoint().await.map_err(|fault| fault.to_string())?;
            found.push(format!("asks {endpoint}"));
        }
        let always = self.introspector.as_ref().is_some_and(|how| how.settings.always);
        if let (Some(issuer), true, false) = (&self.issuer, self.settings.verify_signature, always) {
            let keys = issuer
                .keys()
                .await
                .map_err(|unavailable| unavailable.to_string())?;
            found.push(format!("{} keys", keys.len()));
        }
        if self.settings.hs_secret.is_some() {
            found.push("a shared secret".to_owned());
        }
        Ok(found.join(", "))
    }

    /// Checks one token. Cancel-safe; waits at most for two fetches and two calls of the issuer.
    ///
    /// # Errors
    /// [`Error::class`] says whose fault it is.
    pub async fn check(&self, token: &Secret) -> Result<Verified, Error> {
        let now = clock::unix_now();
        let checking = self.check_at(token, now.as_secs());
        checking.await.map_err(|kind| Error {
            verifier: self.settings.name.clone(),
            kind,
        })
    }

    async fn check_at(&self, token: &Secret, now: u64) -> Result<Verified, ErrorKind> {
        if token.len() > limits::SUBJECT_TOKEN_BYTES {
            return Err(ErrorKind::TooLong);
        }
        match &self.introspector {
            Some(how) if how.settings.always || !is_jwt(token) => self.introspected(how, token, now).await,
            _ => {
                let claims = self.jwt(token).await?;
                accepted(&self.settings.rules, claims, Kind::Jwt, now)
            }
        }
    }

    async fn introspected(
        &self,
        how: &Introspector,
        token: &Secret,
        now: u64,
    ) -> Result<Verified, ErrorKind> {
        let answer = how.ask(token).await.map_err(ErrorKind::Introspection)?;
        let members = answer.active.ok_or(ErrorKind::Inactive)?;
        let verified = accepted(&self.lenient, members, Kind::Introspected, now)?;
        let Some(path) = &how.settings.jwt_claim else {
            return Ok(verified);
        };
        let Some(Value::String(inner)) = path.find(&verified.claims) else {
            return Err(ErrorKind::NoInnerJwt(path.to_string()));
        };
        let claims = self.jwt(&Secret::new(inner.clone())).await?;
        if how.settings.trust {
            Ok(Verified { claims, ..verified })
        } else {
            accepted(&self.settings.rules, claims, Kind::Introspected, now)
        }
    }

    /// The claims of a JWT whose signature is right.
    async fn jwt(&self, token: &Secret) -> Result<Arc<Map<String, Value>>, ErrorKind> {
        let header = Header::read(token)?;
        if !self.settings.verify_signature {
            let Object(claims) = token.jwt_claims_unverified().map_err(|e| unread(e.kind()))?;
            return Ok(claims.into());
        }
        let algorithm = header.algorithm(&self.settings.algorithms)?;
        let key = token_key(token);
        let known = self.seen.get(&key);
        let (claims, keys) = match (&self.settings.hs_secret, &self.issuer) {
            (Some(secret), _) if is_hmac(algorithm) => {
                if let Some(seen) = known.filter(|seen| seen.keys.is_none()) {
                    return Ok(seen.claims);
                }
                (signed(token, secret, algorithm)?, None)
            }
            (_, Some(issuer)) => {
                let mut keys = issuer.keys().await.map_err(ErrorKind::Keys)?;
                let unchanged = |seen: &Seen| seen.keys.as_ref().is_some_and(|old| Arc::ptr_eq(old, &keys));
                if let Some(seen) = known.filter(unchanged) {
                    return Ok(seen.claims);
                }
                let kid = header.kid.as_deref();
                if let Err(NoKey::Unknown { .. }) = keys.find(algorithm, kid)
                    && let Some(newer) = issuer.keys_after(&keys).await.map_err(ErrorKind::Keys)?
                {
                    keys = newer;
                }
                let key = keys
                    .find(algorithm, kid)
                    .map(Key::decoding)
                    .map_err(ErrorKind::NoKey)?;
                (signed(token, key, algorithm)?, Some(keys))
            }
            (_, None) => return Err(ErrorKind::Algorithm(header.alg)),
        };
        let seen = Seen {
            claims: claims.into(),
            keys,
            // Its claims, taken apart, are larger than its text.
            bytes: u32::try_from(2 * token.len() + 1024).unwrap_or(u32::MAX),
        };
        self.seen.insert(key, seen.clone());
        Ok(seen.claims)
    }
}

/// What of a header counts (RFC 7515 §4.1).
struct Header {
    alg: String,
    kid: Option<String>,
}

impl Header {
    fn read(token: &Secret) -> Result<Self, ErrorKind> {
        let bytes = token.jws_header().ok_or(ErrorKind::NotJwt)?;
        let members = object(&bytes).map_err(ErrorKind::Header)?;
        let Some(Value::String(alg)) = members.get("alg") else {
            return Err(ErrorKind::Algorithm(String::new()));
        };
        // RFC 7515 §4.1.11: none of its extensions is known here, RFC 7797's b64 neither.
        if members.contains_key("crit") || members.contains_key("b64") {
            return Err(ErrorKind::Critical);
        }
        let kid = match members.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(ErrorKind::KeyId),
        };
        let alg = alg.chars().take(16).collect();
        Ok(Self { alg, kid })
    }

    /// The algorithm, if it is among those accepted.
    fn algorithm(&self, accepted: &[Algorithm]) -> Result<Algorithm, ErrorKind> {
        if self.alg.eq_ignore_ascii_case("none") {
            return Err(ErrorKind::Unsigned);
        }
        let refused = || ErrorKind::Algorithm(self.alg.clone());
        let algorithm = self.alg.parse().map_err(|_| refused())?;
        accepted
            .contains(&algorithm)
            .then_some(algorithm)
            .ok_or_else(refused)
    }
}

/// Whether to treat a token as a JWT: three parts, the first of which decodes to the begin of a JSON object.
fn is_jwt(token: &Secret) -> bool {
    token.jws_header().is_some_and(|header| header.starts_with(b"{"))
}

fn is_hmac(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512)
}

fn token_key(token: &Secret) -> [u8; 32] {
    let mut hash = Sha256::new();
    token.digest_into(&mut hash);
    hash.finalize().into()
}

fn signed(token: &Secret, key: &DecodingKey, algorithm: Algorithm) -> Result<Map<String, Value>, ErrorKind> {
    let Object(claims) = token.jwt_claims(key, algorithm).map_err(|e| unread(e.kind()))?;
    Ok(claims)
}

fn unread(error: &JwtError) -> ErrorKind {
    match error {
        JwtError::Base64(_) => ErrorKind::Encoding,
        JwtError::Json(error) => ErrorKind::Claims(NotJson::of(error)),
        _ => ErrorKind::Signature,
    }
}

fn accepted(
    rules: &Rules,
    claims: Arc<Map<String, Value>>,
    kind: Kind,
    now: u64,
) -> Result<Verified, ErrorKind> {
    let said = claims::check(rules, &claims, now)?;
    Ok(Verified {
        claims,
        identity: said.identity,
        expires: said.expires,
        kind,
    })
}

/// For the fuzz targets, which see only what is public.
#[cfg(fuzzing)]
pub mod fuzzing {
    pub fn introspection(bytes: &[u8]) {
        if let Ok(Some(members)) = super::introspect::read(bytes) {
            assert_eq!(members["active"], true);
        }
    }
}

#[cfg(test)]
mod tests;

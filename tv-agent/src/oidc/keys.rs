//! Key sets (RFC 7517): which keys of one can verify a signature, and which one a token means.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use url::Url;

use super::fetch::{self, Fetched, Rejected, Unfetched};
use super::json;
use crate::limits;

/// A public key for signatures.
#[derive(Clone)]
pub struct Key {
    kid: Option<String>,
    kind: Kind,
    /// The only algorithm that it is meant for, if it says so.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// The usable keys of one JWKS.
pub struct KeySet(Vec<Key>);

/// Why a set has no key for a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoKey {
    #[error("the issuer has no key with the id {kid:?}")]
    Unknown { kid: String },
    #[error(
        "the issuer has several keys with the id {kid:?} for one algorithm, so that none can be believed"
    )]
    Ambiguous { kid: String },
    #[error("the key {kid:?} of the issuer is not for {algorithm:?}")]
    WrongType { kid: String, algorithm: Algorithm },
    #[error("the token names no key (kid), and the issuer has {count} for {algorithm:?}")]
    Unnamed { count: usize, algorithm: Algorithm },
    #[error("it holds no key that can verify a signature")]
    Empty,
}

impl Key {
    pub fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        let kind = match algorithm {
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => Kind::Rsa,
            Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => Kind::Rsa,
            Algorithm::ES256 => Kind::P256,
            Algorithm::ES384 => Kind::P384,
            Algorithm::EdDSA => Kind::Ed25519,
            // Never by a published key: whoever can read it could sign.
            _ => return false,
        };
        self.kind == kind && self.algorithm.is_none_or(|only| only == algorithm)
    }
}

impl KeySet {
    /// Reads a JWKS. Keys of other types, sizes or uses are left out (RFC 7517 §5), symmetric ones as well.
    ///
    /// # Errors
    /// When it is no JWKS, is too large, or none of its keys is of use.
    pub fn parse(bytes: &[u8]) -> Result<Self, Rejected> {
        let mut members = json::object(bytes)?;
        let Some(Value::Array(list)) = members.remove("keys") else {
            return Err(Rejected::NoKeys);
        };
        if list.len() > limits::JWKS_KEYS {
            return Err(Rejected::TooManyKeys);
        }
        let keys: Vec<Key> = list.into_iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err(Rejected::Unusable(NoKey::Empty));
        }
        Ok(Self(keys))
    }

    /// The one key that a token with this header means.
    ///
    /// # Errors
    /// [`NoKey::Unknown`] is worth a reload, the others are not.
    pub fn find(&self, algorithm: Algorithm, kid: Option<&str>) -> Result<&Key, NoKey> {
        let named = self
            .0
            .iter()
            .filter(|key| kid.is_none() || key.kid.as_deref() == kid);
        let fitting: Vec<&Key> = named.clone().filter(|key| key.fits(algorithm)).collect();
        let kid = kid.map(|kid| kid.chars().take(64).collect::<String>());
        match (&fitting[..], kid) {
            (&[key], _) => Ok(key),
            ([], Some(kid)) if named.count() == 0 => Err(NoKey::Unknown { kid }),
            ([], Some(kid)) => Err(NoKey::WrongType { kid, algorithm }),
            (_, Some(kid)) => Err(NoKey::Ambiguous { kid }),
            (_, None) => Err(NoKey::Unnamed {
                count: fitting.len(),
                algorithm,
            }),
        }
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Fetches and reads the set at `uri`.
pub(super) async fn load(client: &reqwest::Client, uri: &Url) -> Result<Fetched<KeySet>, Unfetched> {
    let fetched = fetch::get(client, uri, limits::JWKS_BYTES).await?;
    let value = KeySet::parse(&fetched.value).map_err(|why| Unfetched::Rejected {
        url: uri.as_str().into(),
        why,
    })?;
    let fresh = fetched.fresh;
    Ok(Fetched { value, fresh })
}

/// The key, if a signature can be verified by it.
fn usable(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    let common = &jwk.common;
    let signs = common
        .public_key_use
        .as_ref()
        .is_none_or(|purpose| *purpose == PublicKeyUse::Signature);
    let verifies = common
        .key_operations
        .as_ref()
        .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !signs || !verifies {
        return None;
    }
    let algorithm = match common.key_algorithm {
        Some(named) => Some(Algorithm::try_from(named).ok()?),
        None => None,
    };
    let decoding = DecodingKey::from_jwk(&jwk).ok()?;
    let kind = kind(&jwk.algorithm, &decoding)?;
    let key = Key {
        kid: jwk.common.key_id,
        kind,
        algorithm,
        decoding,
    };
    // An algorithm that the key's type cannot do is a mistake in the set.
    algorithm.is_none_or(|only| key.fits(only)).then_some(key)
}

/// The type of a key whose numbers have the right size.
fn kind(parameters: &AlgorithmParameters, decoding: &DecodingKey) -> Option<Kind> {
    use jsonwebtoken::DecodingKeyKind as Bytes;
    let length = match decoding.kind() {
        Bytes::SecretOrDer(bytes) => bytes.len(),
        Bytes::RsaModulusExponent { n, .. } => n.iter().skip_while(|&&byte| byte == 0).count(),
    };
    match parameters {
        // 2048 to 8192 bits (RFC 7518 §3.3; the library verifies no longer ones).
        AlgorithmParameters::RSA(_) => (256..=1024).contains(&length).then_some(Kind::Rsa),
        // An uncompressed point: one byte, and two coordinates.
        AlgorithmParameters::EllipticCurve(key) => match key.curve {
            EllipticCurve::P256 => (length == 65).then_some(Kind::P256),
            EllipticCurve::P384 => (length == 97).then_some(Kind::P384),
            _ => None,
        },
        AlgorithmParameters::OctetKeyPair(key) => {
            (key.curve == EllipticCurve::Ed25519 && length == 32).then_some(Kind::Ed25519)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;

//! One signing key: made, read from a JWK (RFC 7517), signed with, shown as the public half of one.
//!
//! The crypto library keeps the private parts and wipes them; what passes through here is wiped on drop.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use aws_lc_rs::rsa::{KeyPairComponents, KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::algorithm::{Algorithm, Family};

/// A key that can sign.
pub struct Key {
    /// Its id in headers and key sets.
    pub kid: String,
    pub algorithm: Algorithm,
    /// Seconds since 1970; 0 where nobody said it.
    pub created: u64,
    pair: Pair,
}

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
    Hmac(Box<hmac::Key>),
}

/// A key on disk: readable by its owner only.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    pub kid: String,
    pub algorithm: Algorithm,
    pub created: u64,
    /// PKCS #8 (RFC 5208), or the bytes themselves for HMAC; base64url.
    pub private: Zeroizing<String>,
}

/// Why bytes are no key. Nothing of them is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("it is no JSON object of a key (RFC 7517)")]
    NotAKey,
    #[error("its private part is missing; a key set to sign with holds private keys")]
    NotPrivate,
    #[error("its parts do not belong together, or are shorter than the algorithm needs (RSA: 2048 bits)")]
    Rejected,
    #[error("its type, curve and alg do not go together, or are not supported")]
    Unsupported,
    #[error("the crypto library could not make one")]
    Generate,
}

impl Key {
    /// A new key. `bits` is for RSA: 2048, 3072 or 4096.
    ///
    /// # Errors
    /// When there is no such key.
    pub(super) fn generate(
        algorithm: Algorithm,
        bits: u16,
        created: u64,
    ) -> Result<(Self, Stored), KeyError> {
        let failed = |_| KeyError::Generate;
        let private = match algorithm.family() {
            Family::Rsa(_) => {
                let size = match bits {
                    2048 => KeySize::Rsa2048,
                    3072 => KeySize::Rsa3072,
                    4096 => KeySize::Rsa4096,
                    _ => return Err(KeyError::Unsupported),
                };
                let pair = RsaKeyPair::generate(size).map_err(failed)?;
                let der: Pkcs8V1Der<'_> = pair.as_der().map_err(failed)?;
                encode(der.as_ref())
            }
            Family::Ec(curve) => {
                let pair = EcdsaKeyPair::generate(curve.signing).map_err(failed)?;
                encode(pair.to_pkcs8v1().map_err(failed)?.as_ref())
            }
            Family::Ed => {
                let pair = Ed25519KeyPair::generate().map_err(failed)?;
                encode(pair.to_pkcs8v1().map_err(failed)?.as_ref())
            }
            Family::Hmac(_, length) => {
                let mut bytes = Zeroizing::new(vec![0; length]);
                SystemRandom::new().fill(&mut bytes).map_err(failed)?;
                encode(&bytes)
            }
        };
        let mut stored = Stored {
            kid: String::new(),
            algorithm,
            created,
            private,
        };
        let mut key = Self::from_stored(&stored)?;
        key.kid = key.thumbprint().map_or_else(random_id, Ok)?;
        stored.kid.clone_from(&key.kid);
        Ok((key, stored))
    }

    pub(super) fn from_stored(stored: &Stored) -> Result<Self, KeyError> {
        let rejected = |_| KeyError::Rejected;
        let private = Zeroizing::new(BASE64.decode(&*stored.private).map_err(|_| KeyError::NotAKey)?);
        let pair = match stored.algorithm.family() {
            Family::Rsa(_) => Pair::Rsa(RsaKeyPair::from_pkcs8(&private).map_err(rejected)?),
            Family::Ec(curve) => {
                Pair::Ec(EcdsaKeyPair::from_pkcs8(curve.signing, &private).map_err(rejected)?)
            }
            Family::Ed => Pair::Ed(Ed25519KeyPair::from_pkcs8(&private).map_err(rejected)?),
            Family::Hmac(hash, length) => Pair::Hmac(symmetric(hash, length, &private)?.into()),
        };
        Ok(Self {
            kid: stored.kid.clone(),
            algorithm: stored.algorithm,
            created: stored.created,
            pair,
        })
    }

    /// A private key of a JWK set. Without `alg` it is for the usual algorithm of its type, without `kid` its
    /// thumbprint (RFC 7638) is its id.
    ///
    /// # Errors
    /// When it is none that can sign.
    pub(super) fn from_jwk(jwk: &str) -> Result<Self, KeyError> {
        let jwk: Jwk = serde_json::from_str(jwk).map_err(|_| KeyError::NotAKey)?;
        let algorithm = match &jwk.alg {
            Some(alg) => Algorithm::parse(alg),
            None => Algorithm::usual(&jwk.kty, jwk.crv.as_deref().unwrap_or_default()),
        };
        let algorithm = algorithm.ok_or(KeyError::Unsupported)?;
        let pair = jwk.pair(algorithm)?;
        let mut key = Self {
            kid: jwk.kid.unwrap_or_default(),
            algorithm,
            created: 0,
            pair,
        };
        if key.kid.is_empty() {
            // A symmetric key's thumbprint would be a hash of the secret that anybody could try guesses on.
            key.kid = key.thumbprint().ok_or(KeyError::NotAKey)?;
        }
        Ok(key)
    }

    /// The signature over `message`; for HMAC the authentication code.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let failed = |_| KeyError::Rejected;
        let random = SystemRandom::new();
        match (&self.pair, self.algorithm.family()) {
            (Pair::Rsa(pair), Family::Rsa(padding)) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(padding, &random, message, &mut signature)
                    .map_err(failed)?;
                Ok(signature)
            }
            (Pair::Ec(pair), _) => Ok(pair.sign(&random, message).map_err(failed)?.as_ref().to_vec()),
            (Pair::Ed(pair), _) => Ok(pair.sign(message).as_ref().to_vec()),
            (Pair::Hmac(key), _) => Ok(hmac::sign(key, message).as_ref().to_vec()),
            (Pair::Rsa(_), _) => Err(KeyError::Unsupported),
        }
    }

    /// The public half as a JWK; None for a symmetric key, which has none.
    pub fn public_jwk(&self) -> Option<Value> {
        let mut jwk = self.public_parts()?;
        jwk["kid"] = self.kid.as_str().into();
        jwk["alg"] = self.algorithm.label().into();
        jwk["use"] = "sig".into();
        Some(jwk)
    }

    /// The members that RFC 7638 §3.2 hashes.
    fn public_parts(&self) -> Option<Value> {
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                Some(json!({ "kty": "RSA", "n": BASE64.encode(public.n), "e": BASE64.encode(public.e) }))
            }
            Pair::Ec(pair) => {
                let Family::Ec(curve) = self.algorithm.family() else {
                    return None;
                };
                // SEC 1 §2.3.3: 4, then both coordinates.
                let (x, y) = pair
                    .public_key()
                    .as_ref()
                    .get(1..)?
                    .split_at_checked(curve.size)?;
                Some(json!({ "kty": "EC", "crv": curve.name, "x": BASE64.encode(x), "y": BASE64.encode(y) }))
            }
            Pair::Ed(pair) => {
                let x = BASE64.encode(pair.public_key());
                Some(json!({ "kty": "OKP", "crv": "Ed25519", "x": x }))
            }
            Pair::Hmac(_) => None,
        }
    }

    /// RFC 7638: the SHA-256 of the required members in the order of their names, without spaces.
    fn thumbprint(&self) -> Option<String> {
        // serde_json's objects are sorted by name.
        let text = self.public_parts()?.to_string();
        Some(BASE64.encode(Sha256::digest(text)))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.algorithm, self.kid)
    }
}

/// A private JWK as written. Wiped on drop; no Debug.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<Zeroizing<String>>,
    p: Option<Zeroizing<String>>,
    q: Option<Zeroizing<String>>,
    dp: Option<Zeroizing<String>>,
    dq: Option<Zeroizing<String>>,
    qi: Option<Zeroizing<String>>,
    k: Option<Zeroizing<String>>,
}

impl Jwk {
    fn pair(&self, algorithm: Algorithm) -> Result<Pair, KeyError> {
        let rejected = |_| KeyError::Rejected;
        let crv = self.crv.as_deref().unwrap_or_default();
        match (algorithm.family(), self.kty.as_str()) {
            (Family::Rsa(_), "RSA") => {
                let components = KeyPairComponents {
                    public_key: PublicKeyComponents {
                        n: public(&self.n)?,
                        e: public(&self.e)?,
                    },
                    d: private(&self.d)?,
                    p: private(&self.p)?,
                    q: private(&self.q)?,
                    dP: private(&self.dp)?,
                    dQ: private(&self.dq)?,
                    qInv: private(&self.qi)?,
                };
                Ok(Pair::Rsa(
                    RsaKeyPair::from_components(&components).map_err(rejected)?,
                ))
            }
            (Family::Ec(curve), "EC") if crv == curve.name => {
                let d = private(&self.d)?;
                // RFC 7518 §6.2.2.1: of the curve's length, with leading zeros.
                let (x, y) = (public(&self.x)?, public(&self.y)?);
                if [d.len(), x.len(), y.len()] != [curve.size; 3] {
                    return Err(KeyError::Rejected);
                }
                let point = [&[4][..], &x, &y].concat();
                let pair = EcdsaKeyPair::from_private_key_and_public_key(curve.signing, &d, &point);
                Ok(Pair::Ec(pair.map_err(rejected)?))
            }
            (Family::Ed, "OKP") if crv == "Ed25519" => {
                let (d, x) = (private(&self.d)?, public(&self.x)?);
                let pair = Ed25519KeyPair::from_seed_and_public_key(&d, &x);
                Ok(Pair::Ed(pair.map_err(rejected)?))
            }
            (Family::Hmac(hash, length), "oct") => {
                Ok(Pair::Hmac(symmetric(hash, length, &private(&self.k)?)?.into()))
            }
            _ => Err(KeyError::Unsupported),
        }
    }
}

fn public(part: &Option<String>) -> Result<Vec<u8>, KeyError> {
    let part = part.as_deref().ok_or(KeyError::NotAKey)?;
    BASE64.decode(part).map_err(|_| KeyError::NotAKey)
}

fn private(part: &Option<Zeroizing<String>>) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let part = part.as_deref().ok_or(KeyError::NotPrivate)?;
    BASE64
        .decode(part)
        .map(Zeroizing::new)
        .map_err(|_| KeyError::NotAKey)
}

/// RFC 7518 §3.2: a key at least as long as the hash.
fn symmetric(hash: hmac::Algorithm, length: usize, bytes: &[u8]) -> Result<hmac::Key, KeyError> {
    if bytes.len() < length {
        return Err(KeyError::Rejected);
    }
    Ok(hmac::Key::new(hash, bytes))
}

fn encode(bytes: &[u8]) -> Zeroizing<String> {
    Zeroizing::new(BASE64.encode(bytes))
}

fn random_id() -> Result<String, KeyError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| KeyError::Generate)?;
    Ok(BASE64.encode(bytes))
}

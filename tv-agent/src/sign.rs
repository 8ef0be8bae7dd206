//! Stage: verified claims in, a token of our own out, signed with a key of a named set.

use std::sync::Arc;

use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use http::HeaderName;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::class::{Class, Refusal};
use crate::limits;
use crate::secret::Secret;

mod algorithm;
pub mod claims;
mod jwks;
mod key;
pub mod keyset;
mod store;

pub use algorithm::Algorithm;
pub use key::{Key, KeyError};
pub use keyset::{KeySet, KeySets, SetError, Shown, Source};
pub use store::{Due, Keeper, Store, StoreError, install as install_keeper};

/// How one token is made of another.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The name of the key set.
    pub keyset: Arc<str>,
    /// Of several keys, the first one for this; omitted: the first one.
    pub algorithm: Option<Algorithm>,
    pub edits: Edits,
    /// Where the token that came goes on beside ours.
    pub original_token_header: Option<HeaderName>,
}

/// A `jwt_signer` vault: the caller's token, and the channel's where there is one.
#[derive(Clone, Debug, PartialEq)]
pub struct VaultSettings {
    pub access: Settings,
    /// And the header that the channel's goes out in.
    pub channel: Option<(HeaderName, Settings)>,
}

/// What changes in the claims.
#[derive(Clone, Debug, PartialEq)]
pub struct Edits {
    pub issuer: String,
    /// Seconds that our token lives longer than the one it is made of; negative: shorter.
    pub expiry_leeway: i64,
    /// Set where they are absent.
    pub add: Map<String, Value>,
    /// Set in any case.
    pub set: Map<String, Value>,
    pub remove: Vec<String>,
}

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("the exp claim of the token is no time (RFC 7519 §4.1.4); get a new token")]
    Expiry,
    #[error("the token is over, or will be before ours could be used; get a new one")]
    Over,
    #[error(
        "the claims are too large: signed, they would have more than {} bytes",
        limits::PROVIDER_TOKEN_BYTES
    )]
    TooLong,
    #[error("there is no key set {set}")]
    NoSet { set: Arc<str> },
    #[error("the key set {set} has no key yet{}; the log says why", algorithm.map(|a| format!(" for {a}")).unwrap_or_default())]
    NoKey {
        set: Arc<str>,
        algorithm: Option<Algorithm>,
    },
    #[error("the key set {set} cannot sign: {source}")]
    Key { set: Arc<str>, source: KeyError },
    #[error("there is no randomness for the id of a token")]
    Random,
}

impl Error {
    pub fn class(&self) -> Class {
        match self {
            Self::Expiry | Self::Over | Self::TooLong => Class::InvalidToken,
            Self::NoKey { .. } => Class::VaultUnavailable,
            Self::NoSet { .. } | Self::Key { .. } | Self::Random => Class::Internal,
        }
    }

    pub fn refusal(&self) -> Refusal {
        Refusal::new(self.class(), self.to_string())
    }
}

/// A token of ours.
#[derive(Clone)]
pub struct Signed {
    pub token: Arc<Secret>,
    /// Seconds since 1970.
    pub expires: u64,
    /// The key that signed it.
    pub kid: String,
}

/// Makes tokens by one [`Settings`].
#[derive(Clone)]
pub struct Signer {
    settings: Settings,
    keys: Arc<KeySet>,
    /// Tokens that were made, by a hash over key and claims.
    made: moka::sync::Cache<[u8; 32], Signed>,
}

impl Signer {
    /// # Errors
    /// When there is no key set of that name.
    pub fn new(settings: Settings, sets: &KeySets) -> Result<Self, Error> {
        let keys = sets.get(&settings.keyset).cloned().ok_or_else(|| Error::NoSet {
            set: settings.keyset.clone(),
        })?;
        let made = moka::sync::Cache::builder()
            .max_capacity(limits::SIGNED_TOKENS)
            .time_to_live(limits::SIGNED_TTL)
            .build();
        Ok(Self { settings, keys, made })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// A token of ours with `claims`, which must have been verified, edited. `now` is in seconds since 1970. The
    /// same claims get the same token for [`limits::SIGNED_TTL`]: an RSA signature takes about a millisecond.
    ///
    /// # Errors
    /// [`Error::class`] says whose fault it is.
    pub fn sign(&self, claims: &Map<String, Value>, now: u64) -> Result<Signed, Error> {
        let set = || self.settings.keyset.clone();
        let key = self
            .keys
            .signing(self.settings.algorithm)
            .ok_or_else(|| Error::NoKey {
                set: set(),
                algorithm: self.settings.algorithm,
            })?;
        let digest = digest(&key.kid, claims);
        if let Some(signed) = self.made.get(&digest).filter(|signed| signed.expires > now) {
            return Ok(signed);
        }
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| Error::Random)?;
        let (claims, expires) = claims::edited(claims, &self.settings.edits, now, BASE64.encode(id))?;
        let token = compact(&key, &claims).map_err(|source| Error::Key { set: set(), source })?;
        if token.len() > limits::PROVIDER_TOKEN_BYTES {
            return Err(Error::TooLong);
        }
        let signed = Signed {
            token: Arc::new(token),
            expires,
            kid: key.kid.clone(),
        };
        self.made.insert(digest, signed.clone());
        Ok(signed)
    }
}

/// The signers of one `jwt_signer` vault.
#[derive(Clone)]
pub struct SigningVault {
    pub access: Signer,
    /// And the header that the channel's goes out in.
    pub channel: Option<(HeaderName, Signer)>,
}

impl SigningVault {
    /// # Errors
    /// When there is no key set of a name that the settings give.
    pub fn new(settings: VaultSettings, sets: &KeySets) -> Result<Self, Error> {
        let channel = settings
            .channel
            .map(|(header, channel)| Ok((header, Signer::new(channel, sets)?)));
        Ok(Self {
            access: Signer::new(settings.access, sets)?,
            channel: channel.transpose()?,
        })
    }
}

fn digest(kid: &str, claims: &Map<String, Value>) -> [u8; 32] {
    let claims = Zeroizing::new(serde_json::to_vec(claims).expect("plain data serialises"));
    let mut hash = Sha256::new();
    hash.update((kid.len() as u64).to_be_bytes());
    hash.update(kid);
    hash.update(&*claims);
    hash.finalize().into()
}

/// RFC 7515 §3.1, §5.1.
fn compact(key: &Key, claims: &Map<String, Value>) -> Result<Secret, KeyError> {
    let header = json!({ "alg": key.algorithm.label(), "kid": key.kid, "typ": "JWT" });
    let claims = Zeroizing::new(serde_json::to_vec(claims).expect("plain data serialises"));
    let mut token = Zeroizing::new(BASE64.encode(header.to_string()));
    token.push('.');
    BASE64.encode_string(&claims, &mut token);
    let signature = key.sign(token.as_bytes())?;
    token.push('.');
    BASE64.encode_string(signature, &mut token);
    Ok(Secret::new(std::mem::take(&mut *token)))
}

#[cfg(test)]
mod tests;

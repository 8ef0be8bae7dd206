//! Java's key stores: ours are added as trusted certificates; every other entry keeps its bytes. Pure.
//!
//! Neither form is taken apart and put together again, as the crates for key stores do it: their models drop
//! attributes, order and unencrypted parts, and a private key would have to be decrypted to be kept.

mod jks;
mod pkcs12;

use super::Anchors;

/// Java's own default, which stores of public certificates have everywhere; or none.
const PASSWORDS: [&str; 2] = ["changeit", ""];

/// Why a key store stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    #[error("it is neither a JKS nor a PKCS12 key store")]
    Form,
    #[error("it is cut off or damaged")]
    Damaged,
    #[error(
        "it has another password than Java's default (changeit); add the root with `keytool -importcert`"
    )]
    Password,
    #[error("it has entries of a kind that cannot be passed over (secret keys in a JCEKS store)")]
    Entry,
    #[error("its integrity is protected by {0}, which is not known here")]
    Mac(String),
    #[error("its password is to be hashed {0} times, more than anybody would ask for")]
    Rounds(i32),
    #[error("the root is among its encrypted entries; remove it with `keytool -delete -alias {0}`")]
    Encrypted(String),
}

/// `store` with those of `anchors` that it is not seen to hold.
///
/// # Errors
/// When it is no key store, damaged, or has a password of its own.
pub fn merge(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    match store {
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => jks::merge(store, anchors),
        [0x30, ..] => pkcs12::merge(store, anchors),
        _ => Err(Unusable::Form),
    }
}

/// `store` without `anchors`, whoever put them in.
///
/// # Errors
/// As [`merge`].
pub fn remove(store: &[u8], anchors: &Anchors) -> Result<Vec<u8>, Unusable> {
    match store {
        [0xfe, 0xed, 0xfe, 0xed, ..] | [0xce, 0xce, 0xce, 0xce, ..] => jks::remove(store, anchors),
        [0x30, ..] => pkcs12::remove(store, anchors),
        _ => Err(Unusable::Form),
    }
}

#[cfg(test)]
mod tests;

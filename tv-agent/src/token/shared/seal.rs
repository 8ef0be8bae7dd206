//! What of a token goes to the shared cache: names that tell nothing, values that only the fleet's key opens. Does no I/O.
//!
//! From each key, HKDF (RFC 5869) makes one key for names and one for each value. The latter takes the entry's own key
//! too, which is a hash over the caller's token: who has the fleet's key and all of Redis, but no caller's token, opens
//! nothing. A value is bound to its name, which says the format and which key it is of, so that one moved to another
//! name does not open.

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::{hkdf, hmac};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::super::cache::Key;
use super::super::life::Lived;
use crate::limits;
use crate::secret::Secret;

/// The format of names and values. Another one lies under other names.
const VERSION: &str = "1";
const KEY_BYTES: usize = 32;
/// Sealed texts are as long as a multiple of this, so that their length tells little.
const BLOCK: usize = 256;

/// One of the fleet's keys.
pub struct SealKey {
    /// Not secret: tells the keys apart in names.
    id: String,
    names: hmac::Key,
    seals: hkdf::Prk,
}

impl SealKey {
    /// Reads 32 bytes of base64, as `openssl rand -base64 32` makes them. `None`: it is something else.
    pub fn parse(text: &Secret) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES + 2]);
        let length = STANDARD
            .decode_slice(text.expose().trim(), bytes.as_mut_slice())
            .ok()?;
        (length == KEY_BYTES).then(|| Self::new(&bytes[..KEY_BYTES]))
    }

    fn new(bytes: &[u8]) -> Self {
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"tv-agent shared cache").extract(bytes);
        let id = derive(&root, &[b"id"]);
        Self {
            id: URL_SAFE_NO_PAD.encode(&id[..6]),
            names: hmac::Key::new(hmac::HMAC_SHA256, &*derive(&root, &[b"names"])),
            seals: root,
        }
    }

    /// Tells this key from others; may be shown.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn name(&self, prefix: &str, key: &Key) -> String {
        let tag = hmac::sign(&self.names, key.as_bytes());
        format!(
            "{prefix}{VERSION}:{}:{}",
            self.id,
            URL_SAFE_NO_PAD.encode(tag.as_ref())
        )
    }

    /// One for each entry. Random nonces of GCM would not last for a fleet's years under a single key, either.
    fn sealer(&self, key: &Key) -> RandomizedNonceKey {
        let bytes = derive(&self.seals, &[b"value", key.as_bytes()]);
        RandomizedNonceKey::new(&AES_256_GCM, &*bytes).expect("AES-256 takes 32 bytes")
    }
}

fn derive(root: &hkdf::Prk, info: &[&[u8]]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    root.expand(info, hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(bytes.as_mut_slice()))
        .expect("HKDF gives up to 255 times its hash's length");
    bytes
}

/// What a local entry holds.
pub struct Contents {
    pub token: Secret,
    pub lived: Lived,
}

/// As it is sealed: JSON, and spaces behind it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<T> {
    token: T,
    fetched_ms: u64,
    expires_ms: u64,
    is_final: bool,
}

/// The fleet's keys. The first seals, all open.
pub struct Ring(Vec<SealKey>);

impl Ring {
    /// `keys` must not be empty.
    pub fn new(keys: Vec<SealKey>) -> Self {
        Self(keys)
    }

    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(SealKey::id)
    }

    /// Where the token of `key` may lie, one name for each of the fleet's keys; it is put at the first.
    pub fn names(&self, prefix: &str, key: &Key) -> Vec<String> {
        self.0.iter().map(|sealing| sealing.name(prefix, key)).collect()
    }

    /// Seals the token of `key` for the first of its names. `None`: it is longer than what would be read.
    pub fn seal(&self, key: &Key, name: &str, token: &Secret, lived: Lived) -> Option<Vec<u8>> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let written = Written {
            token: token.expose(),
            fetched_ms: ms(lived.fetched),
            expires_ms: ms(lived.expires),
            is_final: lived.is_final,
        };
        // Room for an escape at each byte: a buffer that grows leaves copies of the token behind.
        let mut text = Zeroizing::new(Vec::with_capacity(2 * token.len() + 2 * BLOCK));
        serde_json::to_writer(&mut *text, &written).ok()?;
        let padded = text.len().next_multiple_of(BLOCK);
        text.resize(padded, b' ');
        let nonce = self
            .0
            .first()?
            .sealer(key)
            .seal_in_place_append_tag(Aad::from(name), &mut *text)
            .ok()?;
        // Sealed in place: what is copied here is no secret any more.
        let sealed = [nonce.as_ref(), &text[..]].concat();
        (sealed.len() <= limits::SHARED_VALUE_BYTES).then_some(sealed)
    }

    /// Opens what lay at `name`, number `index` of the names of `key`. `None`: nobody with that key sealed it for there.
    pub fn open(&self, key: &Key, index: usize, name: &str, sealed: &[u8]) -> Option<Contents> {
        if sealed.len() > limits::SHARED_VALUE_BYTES {
            return None;
        }
        let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = Zeroizing::new(rest.to_vec());
        let text = self
            .0
            .get(index)?
            .sealer(key)
            .open_in_place(nonce, Aad::from(name), &mut text)
            .ok()?;
        let written: Written<Zeroizing<String>> = serde_json::from_slice(text).ok()?;
        let is_token = (1..=limits::PROVIDER_TOKEN_BYTES).contains(&written.token.len())
            && written.token.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Contents {
            token: Secret::from(written.token),
            lived: Lived {
                fetched: Duration::from_millis(written.fetched_ms),
                expires: Duration::from_millis(written.expires_ms),
                is_final: written.is_final,
            },
        })
    }
}

#[cfg(test)]
mod tests;

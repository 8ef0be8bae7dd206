//! Private keys as others write them: a JWK set (RFC 7517 §5). Pure.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::key::Key;
use super::keyset::SetError;
use crate::limits;

/// The keys of a JWK set, or of one JWK; `set` and `from` are for messages.
///
/// # Errors
/// When one of them cannot be used: a set is taken whole or not at all.
pub(super) fn parse(set: &Arc<str>, from: String, text: &[u8]) -> Result<Vec<Key>, SetError> {
    #[derive(Deserialize)]
    struct Set<'a> {
        // Not parsed further, so that no copy of a private part is left in a `Value`.
        #[serde(borrow)]
        keys: Vec<&'a RawValue>,
    }
    let set = set.clone();
    let not_a_set = || SetError::NotASet {
        set: set.clone(),
        from: from.clone(),
    };
    let raw = match serde_json::from_slice::<Set<'_>>(text) {
        Ok(all) => all.keys,
        Err(_) => vec![serde_json::from_slice::<&RawValue>(text).map_err(|_| not_a_set())?],
    };
    if raw.len() > limits::KEYS {
        return Err(SetError::TooMany { set, from });
    }
    let mut keys: Vec<Key> = Vec::new();
    for (index, jwk) in raw.into_iter().enumerate() {
        let key = Key::from_jwk(jwk.get()).map_err(|source| SetError::Key {
            set: set.clone(),
            from: from.clone(),
            number: index + 1,
            source,
        })?;
        if keys.iter().any(|other| other.kid == key.kid) {
            let kid = key.kid;
            return Err(SetError::Twice { set, from, kid });
        }
        keys.push(key);
    }
    if keys.is_empty() {
        return Err(SetError::Empty { set, from });
    }
    Ok(keys)
}

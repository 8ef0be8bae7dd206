//! Tokens, keys and client secrets: no Debug, no Display, wiped on drop.
//!
//! `expose` is called where secrets are taken, sent and sealed only; `cargo xtask tidy` knows those files, and says so
//! when that changes.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, dangerous};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::encode;

/// A token or secret. It can be hashed, measured and compared by hash, but not printed.
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The secret itself, for the one moment in which it is sent.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Feeds the secret to a hash, length first, so that neighbouring fields cannot run together.
    pub fn digest_into(&self, hash: &mut Sha256) {
        hash.update((self.0.len() as u64).to_be_bytes());
        hash.update(self.0.as_bytes());
    }

    /// The first 16 digits of its SHA-256: enough to tell tokens apart in records, too little to be one.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        self.digest_into(&mut hash);
        encode::hex(&hash.finalize()[..8])
    }

    /// The header of a JWS in compact form (RFC 7515 §7.1), decoded; None when this has not its form.
    pub fn jws_header(&self) -> Option<Vec<u8>> {
        use base64::Engine as _;
        let mut parts = self.0.split('.');
        let header = parts.next()?;
        (parts.count() == 2)
            .then(|| {
                base64::engine::general_purpose::URL_SAFE_NO_PAD
                    .decode(header)
                    .ok()
            })
            .flatten()
    }

    /// The secret as the key of HS256, HS384 or HS512 (RFC 7518 §3.2).
    pub fn hmac_key(&self) -> DecodingKey {
        DecodingKey::from_secret(self.0.as_bytes())
    }

    /// The claims of a JWT that `key` signed by `algorithm`. Nothing but the signature is checked.
    ///
    /// # Errors
    /// When this is no JWT, the key does not fit, or the signature is wrong.
    pub fn jwt_claims<T: DeserializeOwned>(
        &self,
        key: &DecodingKey,
        algorithm: Algorithm,
    ) -> jsonwebtoken::errors::Result<T> {
        let mut validation = Validation::new(algorithm);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = false;
        jsonwebtoken::decode(self.0.as_bytes(), key, &validation).map(|token| token.claims)
    }

    /// The claims of a JWT whose signature nobody looks at: for verifiers that are configured so, and for
    /// deciding whether to ask a token endpoint, which judges the token itself.
    ///
    /// # Errors
    /// When this is no JWT.
    pub fn jwt_claims_unverified<T: DeserializeOwned>(&self) -> jsonwebtoken::errors::Result<T> {
        dangerous::insecure_decode_claims(self.0.as_bytes())
    }

    /// The `exp` claim (seconds since 1970) if this looks like a JWT (RFC 7519 §4.1.4). Unverified: only
    /// ever used to make a cache entry live shorter.
    pub fn jwt_expiry(&self) -> Option<u64> {
        let claims: JwtTimes = serde_json::from_slice(&self.jwt_payload()?).ok()?;
        let exp = claims.exp?;
        // Whole or fractional seconds (NumericDate); anything else is no expiry we can read.
        (exp.is_finite() && exp >= 0.0).then_some(exp as u64)
    }

    fn jwt_payload(&self) -> Option<Zeroizing<Vec<u8>>> {
        use base64::Engine as _;
        let payload = self.0.split('.').nth(1)?;
        let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        engine.decode(payload).ok().map(Zeroizing::new)
    }
}

impl From<Zeroizing<String>> for Secret {
    fn from(value: Zeroizing<String>) -> Self {
        Self(value)
    }
}

#[derive(serde::Deserialize)]
struct JwtTimes {
    exp: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;

    fn jwt(payload: &str) -> Secret {
        let b64 = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        Secret::new(format!("{}.{}.sig", b64.encode("{}"), b64.encode(payload)))
    }

    #[test]
    fn jwt_expiry_is_read_and_nothing_else_is_guessed() {
        assert_eq!(jwt(r#"{"exp":1700000000}"#).jwt_expiry(), Some(1_700_000_000));
        assert_eq!(
            jwt(r#"{"exp":1700000000.5,"sub":"x"}"#).jwt_expiry(),
            Some(1_700_000_000)
        );
        for none in [r#"{}"#, r#"{"exp":"soon"}"#, r#"{"exp":-1}"#, "[]", "not json"] {
            assert_eq!(jwt(none).jwt_expiry(), None, "{none}");
        }
        assert_eq!(Secret::new("opaque".into()).jwt_expiry(), None);
        assert_eq!(Secret::new("a.b.c".into()).jwt_expiry(), None);
    }

    #[test]
    fn hashing_is_length_prefixed() {
        let digest = |parts: &[&str]| {
            let mut hash = Sha256::new();
            parts
                .iter()
                .for_each(|p| Secret::new((*p).into()).digest_into(&mut hash));
            hash.finalize()
        };
        assert_ne!(digest(&["ab", "c"]), digest(&["a", "bc"]));
    }
}

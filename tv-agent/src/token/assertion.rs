//! JWTs that the agent signs to be believed by a token endpoint: client assertions (RFC 7523 §2.2) and the
//! privileged worker's request.

use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde::Serialize;

use super::settings::Worker;
use crate::secret::Secret;

/// RFC 7523 §2.2.
pub(super) const JWT_BEARER_ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
/// Life of an assertion; Auth0 takes five minutes at most and recommends one.
const LIFE: Duration = Duration::from_secs(60);

/// A private key with the algorithm it is used with. No `Debug`.
pub struct Signer {
    key: EncodingKey,
    algorithm: Algorithm,
    kid: Option<String>,
}

impl Signer {
    /// A key of PEM text (PKCS #8, or the key's own form).
    ///
    /// # Errors
    /// When the text holds no private key, or not one for `algorithm`.
    pub fn from_pem(pem: &[u8], algorithm: Algorithm, kid: Option<String>) -> Result<Self, String> {
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_pem(pem),
            _ => EncodingKey::from_rsa_pem(pem),
        };
        let key = key.map_err(|error| error.to_string())?;
        let signer = Self { key, algorithm, kid };
        // A key that is too short or on another curve is found now, not at the first request.
        signer
            .sign(None, &serde_json::json!({}))
            .map_err(|error| error.to_string())?;
        Ok(signer)
    }

    fn sign(
        &self,
        kind: Option<&str>,
        claims: &impl Serialize,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        let mut header = Header::new(self.algorithm);
        header.kid.clone_from(&self.kid);
        if let Some(kind) = kind {
            header.typ = Some(kind.to_owned());
        }
        jsonwebtoken::encode(&header, claims, &self.key).map(Secret::new)
    }

    /// The assertion by which `client` authenticates to `audience` at `now` (since 1970). `id` is used once.
    pub(super) fn client(
        &self,
        client: &str,
        audience: &str,
        now: Duration,
        id: &str,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        self.sign(
            None,
            &serde_json::json!({
                "iss": client, "sub": client, "aud": audience, "jti": id,
                "iat": now.as_secs(), "exp": (now + LIFE).as_secs(),
            }),
        )
    }
}

impl Worker {
    /// The subject token of a privileged worker: a request for `user` by `client` to the tenant `audience`.
    pub(super) fn request(
        &self,
        client: &str,
        audience: &str,
        user: &str,
        now: Duration,
        id: &str,
    ) -> Result<Secret, jsonwebtoken::errors::Error> {
        let mut claims = serde_json::json!({
            "iss": client, "sub": user, "aud": audience, "jti": id,
            "iat": now.as_secs(), "exp": (now + LIFE).as_secs(),
            "audit_context": self.audit_context,
        });
        if let Some(organization) = &self.organization {
            claims["org_id"] = organization.as_str().into();
        }
        self.signer.sign(Some("token-vault-req+jwt"), &claims)
    }
}

#[cfg(test)]
pub(super) mod tests;

//! Signature algorithms of RFC 7518 §3.1 and RFC 8037. Pure.

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{self, EcdsaSigningAlgorithm, RsaEncoding};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Algorithm {
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
    HS256,
    HS384,
    HS512,
    EdDSA,
}

/// What an algorithm signs with.
pub(super) enum Family {
    Rsa(&'static dyn RsaEncoding),
    Ec(&'static Curve),
    /// Ed25519; the other curve of EdDSA is not offered by the crypto library.
    Ed,
    /// And the length of a new key, bytes: that of the hash (RFC 7518 §3.2).
    Hmac(hmac::Algorithm, usize),
}

/// An elliptic curve as JWK knows it (RFC 7518 §6.2.1.1).
pub(super) struct Curve {
    pub name: &'static str,
    /// Length of a coordinate, bytes.
    pub size: usize,
    pub signing: &'static EcdsaSigningAlgorithm,
}

static P256: Curve = Curve {
    name: "P-256",
    size: 32,
    signing: &signature::ECDSA_P256_SHA256_FIXED_SIGNING,
};
static P384: Curve = Curve {
    name: "P-384",
    size: 48,
    signing: &signature::ECDSA_P384_SHA384_FIXED_SIGNING,
};
static P521: Curve = Curve {
    name: "P-521",
    size: 66,
    signing: &signature::ECDSA_P521_SHA512_FIXED_SIGNING,
};

impl Algorithm {
    pub const ALL: [Self; 13] = [
        Self::RS256,
        Self::RS384,
        Self::RS512,
        Self::PS256,
        Self::PS384,
        Self::PS512,
        Self::ES256,
        Self::ES384,
        Self::ES512,
        Self::HS256,
        Self::HS384,
        Self::HS512,
        Self::EdDSA,
    ];

    /// The `alg` of a header or key.
    pub fn label(self) -> &'static str {
        match self {
            Self::RS256 => "RS256",
            Self::RS384 => "RS384",
            Self::RS512 => "RS512",
            Self::PS256 => "PS256",
            Self::PS384 => "PS384",
            Self::PS512 => "PS512",
            Self::ES256 => "ES256",
            Self::ES384 => "ES384",
            Self::ES512 => "ES512",
            Self::HS256 => "HS256",
            Self::HS384 => "HS384",
            Self::HS512 => "HS512",
            Self::EdDSA => "EdDSA",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.label() == text)
    }

    /// Whether whoever can check a signature can make one too: such a key has no public half.
    pub fn is_symmetric(self) -> bool {
        matches!(self.family(), Family::Hmac(..))
    }

    pub fn is_rsa(self) -> bool {
        matches!(self.family(), Family::Rsa(_))
    }

    pub(super) fn family(self) -> Family {
        match self {
            Self::RS256 => Family::Rsa(&signature::RSA_PKCS1_SHA256),
            Self::RS384 => Family::Rsa(&signature::RSA_PKCS1_SHA384),
            Self::RS512 => Family::Rsa(&signature::RSA_PKCS1_SHA512),
            Self::PS256 => Family::Rsa(&signature::RSA_PSS_SHA256),
            Self::PS384 => Family::Rsa(&signature::RSA_PSS_SHA384),
            Self::PS512 => Family::Rsa(&signature::RSA_PSS_SHA512),
            Self::ES256 => Family::Ec(&P256),
            Self::ES384 => Family::Ec(&P384),
            Self::ES512 => Family::Ec(&P521),
            Self::HS256 => Family::Hmac(hmac::HMAC_SHA256, 32),
            Self::HS384 => Family::Hmac(hmac::HMAC_SHA384, 48),
            Self::HS512 => Family::Hmac(hmac::HMAC_SHA512, 64),
            Self::EdDSA => Family::Ed,
        }
    }

    /// The algorithm of a key that names none: the common one of its type.
    pub(super) fn usual(kty: &str, curve: &str) -> Option<Self> {
        Some(match (kty, curve) {
            ("RSA", _) => Self::RS256,
            ("EC", "P-256") => Self::ES256,
            ("EC", "P-384") => Self::ES384,
            ("EC", "P-521") => Self::ES512,
            ("OKP", "Ed25519") => Self::EdDSA,
            ("oct", _) => Self::HS256,
            _ => return None,
        })
    }
}

impl std::fmt::Display for Algorithm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

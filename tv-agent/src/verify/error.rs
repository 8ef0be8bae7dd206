//! Why a token was not accepted: one kind per cause, each with the class that the workload is told.

use std::sync::Arc;
use std::time::Duration;

use crate::class::{Class, Refusal};
use crate::limits;
use crate::oidc::{NoKey, NotJson, Unavailable};

use super::claims::Refused;
use super::introspect::Fault;

/// A token that a verifier did not accept, or could not check.
#[derive(Clone, Debug, thiserror::Error)]
#[error("verifier {verifier:?}: {kind}")]
pub struct Error {
    pub verifier: Arc<str>,
    pub kind: ErrorKind,
}

/// The cause. Nothing of the token is in it but the key id and algorithm that its header names.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ErrorKind {
    #[error("the token is longer than {} bytes", limits::SUBJECT_TOKEN_BYTES)]
    TooLong,
    #[error("the token is no JWT (three parts, of which the first is base64url of a JSON header)")]
    NotJwt,
    #[error("the token's header {0}")]
    Header(NotJson),
    #[error("the token is not signed (alg none)")]
    Unsigned,
    #[error("the token's algorithm {0:?} is not accepted here")]
    Algorithm(String),
    #[error("the token's header demands extensions (crit) that are not known here")]
    Critical,
    #[error("the token's header has a kid that is no string")]
    KeyId,
    #[error("{0}")]
    NoKey(NoKey),
    #[error("the token's signature is wrong")]
    Signature,
    #[error("a part of the token is no base64url")]
    Encoding,
    #[error("the token's header or claims: it {0}")]
    Claims(NotJson),
    #[error("the token is not accepted: {0}")]
    Refused(#[from] Refused),
    #[error("the issuer says that the token is not active (expired, revoked, or not its own)")]
    Inactive,
    #[error("the issuer's answer about the token has no JWT in its claim {0}")]
    NoInnerJwt(String),
    #[error("the issuer's keys cannot be had: {0}")]
    Keys(Unavailable),
    #[error("the issuer cannot be asked about the token: {0}")]
    Introspection(Fault),
}

impl Error {
    pub fn class(&self) -> Class {
        match &self.kind {
            ErrorKind::Refused(Refused::Scope { .. }) => Class::InsufficientScope,
            ErrorKind::Keys(_) => Class::VerifierUnavailable,
            ErrorKind::Introspection(Fault::Credentials(_)) => Class::VaultCredentials,
            ErrorKind::Introspection(_) => Class::VerifierUnavailable,
            _ => Class::InvalidToken,
        }
    }

    /// What the workload is told about the token called `what`.
    pub fn refusal(&self, what: &str) -> Refusal {
        let name = &self.verifier;
        let class = self.class();
        let description = match class {
            Class::VerifierUnavailable => {
                format!("The {what} cannot be verified now ({name}). Repeat the request later.")
            }
            Class::VaultCredentials => format!(
                "The issuer that verifies the {what} ({name}) refused the agent's own credentials. This cannot be \
                 mended by the caller: the operator finds the answer in the agent's log."
            ),
            _ => format!("The {what} was refused by verifier {name}: {}.", self.kind),
        };
        let mut refusal = Refusal::new(class, description);
        refusal.retry_after = match &self.kind {
            ErrorKind::Keys(unavailable) => Some(unavailable.retry_after),
            ErrorKind::Introspection(Fault::Undiscovered(unavailable)) => Some(unavailable.retry_after),
            ErrorKind::Introspection(_) if class == Class::VerifierUnavailable => {
                Some(Duration::from_secs(1))
            }
            _ => None,
        };
        refusal
    }
}

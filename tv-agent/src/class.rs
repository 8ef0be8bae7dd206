//! The closed list of ways in which a request or connection can be refused, and whose fault each one is.
//!
//! Every stage's error maps itself to a [`Class`]; `respond.rs` turns a class into what the workload sees,
//! metrics use [`Class::label`], so that the three never drift apart.

use std::sync::Arc;
use std::time::Duration;

/// Whose fault a refusal is: the first level of every error in this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The workload: its token, its request, its bytes.
    Caller,
    /// The token vault (authorization server).
    Vault,
    /// The real host.
    Provider,
    /// Whoever configured the agent: credentials, routes, policy.
    Operator,
    /// The agent itself.
    Us,
}

/// One way to be refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// A routed request carries no credentials.
    MissingToken,
    /// The credentials have the wrong form.
    InvalidToken,
    /// The caller's token is good, but lacks a scope that the route's verifier asks for.
    InsufficientScope,
    /// The keys or the introspection by which tokens are verified cannot be had.
    VerifierUnavailable,
    /// The vault refused the caller's token.
    ExchangeRefused,
    /// The caller's account is not connected to the provider (or has to be connected again).
    ConnectionRequired,
    /// The token endpoint gives this caller no token for the target.
    AccessDenied,
    /// The user has to do something in person first (step-up, consent).
    InteractionRequired,
    /// Policy says no.
    Forbidden,
    /// `Host`/`:authority` is not the name that the connection was opened for.
    Misdirected,
    /// The request is malformed in a way that HTTP forbids to forward.
    BadRequest,
    /// The header block exceeds the limit.
    HeaderTooLarge,
    /// The vault refused *our* credentials or grant.
    VaultCredentials,
    /// The vault answered something that is no token response.
    VaultInvalidResponse,
    /// The vault's rate limit.
    VaultRateLimited,
    /// The vault cannot be reached or answers 5xx.
    VaultUnavailable,
    /// The vault did not answer in time.
    VaultTimeout,
    /// The provider's certificate or TLS handshake failed.
    UpstreamTls,
    /// The provider cannot be reached.
    UpstreamUnreachable,
    /// The provider did not answer in time.
    UpstreamTimeout,
    /// The provider broke the protocol or the connection in the middle.
    UpstreamProtocol,
    /// The audit trail cannot be written, and requests may not go on without (`audit.on_failure: refuse`).
    AuditUnavailable,
    /// A defect of ours.
    Internal,
}

impl Class {
    pub const ALL: [Self; 23] = [
        Self::MissingToken,
        Self::InvalidToken,
        Self::InsufficientScope,
        Self::VerifierUnavailable,
        Self::ExchangeRefused,
        Self::ConnectionRequired,
        Self::AccessDenied,
        Self::InteractionRequired,
        Self::Forbidden,
        Self::Misdirected,
        Self::BadRequest,
        Self::HeaderTooLarge,
        Self::VaultCredentials,
        Self::VaultInvalidResponse,
        Self::VaultRateLimited,
        Self::VaultUnavailable,
        Self::VaultTimeout,
        Self::UpstreamTls,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::UpstreamProtocol,
        Self::AuditUnavailable,
        Self::Internal,
    ];

    pub fn fault(self) -> Fault {
        match self {
            Self::MissingToken
            | Self::InvalidToken
            | Self::InsufficientScope
            | Self::ExchangeRefused
            | Self::ConnectionRequired
            | Self::AccessDenied
            | Self::InteractionRequired
            | Self::Misdirected
            | Self::BadRequest
            | Self::HeaderTooLarge => Fault::Caller,
            Self::Forbidden | Self::VaultCredentials | Self::AuditUnavailable => Fault::Operator,
            Self::VerifierUnavailable
            | Self::VaultInvalidResponse
            | Self::VaultRateLimited
            | Self::VaultUnavailable
            | Self::VaultTimeout => Fault::Vault,
            Self::UpstreamTls
            | Self::UpstreamUnreachable
            | Self::UpstreamTimeout
            | Self::UpstreamProtocol => Fault::Provider,
            Self::Internal => Fault::Us,
        }
    }

    /// The `error` member of the JSON body, and the value of the `reason` label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::MissingToken => "unauthorized",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
            Self::VerifierUnavailable => "verifier_unavailable",
            Self::ExchangeRefused => "token_exchange_failed",
            Self::ConnectionRequired => "connection_required",
            Self::AccessDenied => "access_denied",
            Self::InteractionRequired => "interaction_required",
            Self::Forbidden => "forbidden",
            Self::Misdirected => "misdirected_request",
            Self::BadRequest => "bad_request",
            Self::HeaderTooLarge => "header_too_large",
            Self::VaultCredentials => "configuration_error",
            Self::VaultInvalidResponse => "invalid_response",
            Self::VaultRateLimited => "rate_limited",
            Self::VaultUnavailable => "vault_unavailable",
            Self::VaultTimeout => "vault_timeout",
            Self::UpstreamTls => "upstream_tls_error",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamProtocol => "upstream_protocol_error",
            Self::AuditUnavailable => "audit_unavailable",
            Self::Internal => "internal_error",
        }
    }
}

/// A refusal ready to be told: its class, a text that is safe to show to the workload, and what goes with it.
///
/// `description` never holds a token, a secret or an answer's raw body.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub class: Class,
    pub description: String,
    /// When the caller may try again, where that is known.
    pub retry_after: Option<Duration>,
    /// What the user has to do, where the token endpoint said it.
    pub interaction: Option<Arc<Interaction>>,
}

/// What a token endpoint wants of the user in person. Both values are checked for form where they are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interaction {
    /// Where to go with a browser (Okta's `interaction_uri`): an https address.
    pub connect_url: Option<String>,
    /// What to ask for when signing in again (Entra's `claims`): a JSON object.
    pub claims: Option<String>,
}

impl Refusal {
    pub fn new(class: Class, description: impl Into<String>) -> Self {
        Self {
            class,
            description: description.into(),
            retry_after: None,
            interaction: None,
        }
    }
}

//! Why a token could not be had: one kind per cause, each with the class that the workload is told.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Vault;
use super::request::Missing;
use crate::class::{Class, Interaction, Refusal};
use crate::oidc;
use crate::policy::Wanted;

mod build;

pub use build::BuildError;

/// No token for a grant. Cheap to clone: every waiter of one exchange gets the same error.
///
/// It holds no token and no secret; what the vault said is bounded and free of control characters.
#[derive(Clone, Debug)]
pub struct Error(Arc<Failure>);

#[derive(Debug)]
struct Failure {
    kind: ErrorKind,
    vault: Arc<str>,
    vault_host: Arc<str>,
    /// The connection, audience or scope that was asked for.
    target: Box<str>,
    retry_at: Option<Instant>,
}

impl Error {
    pub(super) fn new(kind: ErrorKind, vault: &Vault, wanted: &Wanted) -> Self {
        let retry_at = kind.retry_after().map(|wait| Instant::now() + wait);
        Self(Arc::new(Failure {
            kind,
            vault: vault.settings.name.clone(),
            vault_host: vault.host.clone(),
            target: wanted.target().into(),
            retry_at,
        }))
    }

    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    pub fn class(&self) -> Class {
        self.0.kind.class()
    }

    /// What the workload is told. Fixed texts: nothing of the vault's answer is in them.
    pub fn refusal(&self) -> Refusal {
        let Failure {
            vault,
            vault_host,
            target,
            ..
        } = &*self.0;
        let how_to_connect = || {
            format!(
                "Connected Accounts: POST https://{vault_host}/me/v1/connected-accounts/connect with \
                 \"connection\": {target:?}"
            )
        };
        let description = match &self.0.kind {
            ErrorKind::SubjectRefused(_) => format!(
                "The token vault {vault:?} refused the access token of this request. It may be expired, \
                 revoked or issued for another audience: sign in again and repeat the request with a fresh \
                 token."
            ),
            ErrorKind::ConnectionRequired(_) => format!(
                "The user of this access token has not connected an account for {target:?}. Let the user \
                 connect it in your application ({}; a login through the connection is not enough), then \
                 repeat the request.",
                how_to_connect()
            ),
            ErrorKind::ReconnectRequired(_) => format!(
                "The provider no longer accepts the consent that is stored for {target:?}. Let the user \
                 connect the account again in your application ({}), then repeat the request.",
                how_to_connect()
            ),
            ErrorKind::CallerRefused(_) => format!(
                "The token endpoint {vault:?} refused the client credentials of this request. Check client id \
                 and secret."
            ),
            ErrorKind::Denied(_) => format!(
                "The token endpoint {vault:?} gives no token for {target:?} to the bearer of this request's \
                 credentials: they lack the permission. Another sign-in does not help; ask for access."
            ),
            ErrorKind::Interaction { interaction, .. } if interaction.connect_url.is_some() => format!(
                "The user has to connect an account for {target:?} first. Open connect_url in a browser, then \
                 repeat the request."
            ),
            ErrorKind::Interaction { .. } => format!(
                "The token endpoint {vault:?} wants the user to sign in again, with the claims of this \
                 challenge where it names any. Repeat the request with the token of that sign-in."
            ),
            ErrorKind::Missing(missing) => match missing {
                Missing::Subject => "Authorization header required".to_owned(),
                Missing::Actor => format!("The vault {vault:?} needs an actor token besides the caller's."),
                Missing::User => format!(
                    "The vault {vault:?} asks in a user's name, and this request names none; see login_hint and \
                     privileged_worker.user of the configuration."
                ),
                Missing::Connection => format!("The route to vault {vault:?} names no connection."),
            },
            ErrorKind::Credentials(_) | ErrorKind::Sign(_) | ErrorKind::NoEndpoint => format!(
                "The token vault {vault:?} refused the agent's own credentials or grant. This cannot be \
                 mended by the caller: the operator finds the vault's answer in the agent's log."
            ),
            ErrorKind::Unvalidated(_) => format!(
                "The token that {vault:?} gave did not pass its verification; the operator finds the reason in \
                 the agent's log."
            ),
            ErrorKind::InvalidResponse(_) => {
                format!("The token vault {vault:?} gave an answer that is no token response.")
            }
            ErrorKind::RateLimited { .. } | ErrorKind::Paused { .. } | ErrorKind::Paced { .. } => {
                format!("The token vault {vault:?} limits the rate of exchanges. Repeat the request later.")
            }
            ErrorKind::Busy => {
                format!("Too many exchanges wait for the token vault {vault:?}. Repeat the request later.")
            }
            ErrorKind::Open { .. } => format!(
                "The token vault {vault:?} kept failing and is left alone for a moment. Repeat the request later."
            ),
            ErrorKind::Discovery(_)
            | ErrorKind::Server { .. }
            | ErrorKind::Connect(_)
            | ErrorKind::Broken(_) => {
                format!("The token vault {vault:?} is unavailable. Repeat the request later.")
            }
            ErrorKind::Timeout(_) => format!("The token vault {vault:?} did not answer in time."),
            ErrorKind::Aborted => "The agent gave up the token exchange by a defect of its own.".to_owned(),
        };
        let mut refusal = Refusal::new(self.class(), description);
        // What is left of it now: the error may come out of the cache.
        refusal.retry_after = self
            .0
            .retry_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        if let ErrorKind::Interaction { interaction, .. } = &self.0.kind {
            refusal.interaction = Some(interaction.clone());
        }
        refusal
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { vault, target, .. } = &*self.0;
        write!(f, "no token for {target:?} from vault {vault:?}")
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.kind)
    }
}

/// The cause of an [`Error`]. Its text is for our log, not for the workload.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    #[error("the vault refused the caller's token ({0})")]
    SubjectRefused(Answer),
    #[error("the user has not connected this account ({0})")]
    ConnectionRequired(Answer),
    #[error("the provider refused the consent stored in the vault, the user must connect again ({0})")]
    ReconnectRequired(Answer),
    #[error("the vault refused the caller's client credentials ({0})")]
    CallerRefused(Answer),
    #[error("the caller may have no token for this target ({0})")]
    Denied(Answer),
    #[error("the user has to act in person first ({answer})")]
    Interaction {
        answer: Answer,
        interaction: Arc<Interaction>,
    },
    #[error("{0}")]
    Missing(Missing),
    #[error("the token that the vault gave was not believed: {0}")]
    Unvalidated(String),
    #[error("cannot find the token endpoint; check issuer, the network and extra_roots")]
    Discovery(#[source] oidc::Unavailable),
    #[error("the issuer's document names no token_endpoint; set token_endpoint in place of issuer")]
    NoEndpoint,
    #[error("cannot sign with the configured key")]
    Sign(#[source] jsonwebtoken::errors::Error),
    #[error("the configured rate is used up, {} s to wait; nothing was sent", remaining.as_secs_f32().ceil())]
    Paced { remaining: Duration },
    #[error("the vault keeps failing, {} s until it is tried again; nothing was sent", remaining.as_secs_f32().ceil())]
    Open { remaining: Duration },
    #[error(
        "the vault refused our credentials, grant or request ({0}); check client_id, secret, client_auth, \
         the client's grant types and the tenant's MFA policy"
    )]
    Credentials(Answer),
    #[error("the vault's answer is no token response: {0}; check token_endpoint")]
    InvalidResponse(Malformed),
    #[error("the vault's rate limit is reached, {} s to wait ({answer})", retry_after.as_secs_f32().ceil())]
    RateLimited { retry_after: Duration, answer: Answer },
    #[error("the vault told us to wait, {} s remain; nothing was sent", remaining.as_secs_f32().ceil())]
    Paused { remaining: Duration },
    #[error("too many exchanges already wait for this vault; nothing was sent")]
    Busy,
    #[error("the vault fails ({answer})")]
    Server {
        retry_after: Option<Duration>,
        answer: Answer,
    },
    #[error("cannot connect to the vault; check its name, the network and extra_roots")]
    Connect(#[source] reqwest::Error),
    #[error("the vault broke the connection")]
    Broken(#[source] reqwest::Error),
    #[error("the vault did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the exchange ended without a result; this is a defect of tv-agent, please report it")]
    Aborted,
}

impl ErrorKind {
    pub fn class(&self) -> Class {
        match self {
            Self::SubjectRefused(_) | Self::CallerRefused(_) => Class::ExchangeRefused,
            Self::Denied(_) => Class::AccessDenied,
            Self::Interaction { interaction, .. } if interaction.connect_url.is_some() => {
                Class::ConnectionRequired
            }
            Self::Interaction { .. } => Class::InteractionRequired,
            Self::Missing(Missing::Subject | Missing::Actor) => Class::MissingToken,
            Self::Missing(Missing::User) => Class::InvalidToken,
            Self::Missing(Missing::Connection) => Class::Internal,
            Self::Unvalidated(_) => Class::VaultInvalidResponse,
            Self::Sign(_) | Self::NoEndpoint => Class::VaultCredentials,
            Self::Discovery(_) => Class::VaultUnavailable,
            Self::Paced { .. } => Class::VaultRateLimited,
            Self::Open { .. } => Class::VaultUnavailable,
            Self::ConnectionRequired(_) | Self::ReconnectRequired(_) => Class::ConnectionRequired,
            Self::Credentials(_) => Class::VaultCredentials,
            Self::InvalidResponse(_) => Class::VaultInvalidResponse,
            Self::RateLimited { .. } | Self::Paused { .. } => Class::VaultRateLimited,
            Self::Busy | Self::Server { .. } | Self::Connect(_) | Self::Broken(_) => Class::VaultUnavailable,
            Self::Timeout(_) => Class::VaultTimeout,
            Self::Aborted => Class::Internal,
        }
    }

    /// How long this answer is given again without asking the vault; `None`: the next caller asks.
    ///
    /// A rate limit has no entry of its own: it pauses the whole vault.
    pub(super) fn negative_ttl(&self) -> Option<Duration> {
        match self {
            Self::ConnectionRequired(_)
            | Self::ReconnectRequired(_)
            | Self::Denied(_)
            | Self::Interaction { .. } => Some(Duration::from_secs(10)),
            Self::SubjectRefused(_) | Self::CallerRefused(_) => Some(Duration::from_secs(30)),
            Self::Credentials(_) | Self::Unvalidated(_) | Self::Sign(_) | Self::NoEndpoint => {
                Some(Duration::from_secs(5))
            }
            Self::InvalidResponse(_)
            | Self::Discovery(_)
            | Self::Server { .. }
            | Self::Connect(_)
            | Self::Broken(_)
            | Self::Timeout(_) => Some(Duration::from_secs(1)),
            Self::RateLimited { .. }
            | Self::Paused { .. }
            | Self::Paced { .. }
            | Self::Open { .. }
            | Self::Missing(_)
            | Self::Busy
            | Self::Aborted => None,
        }
    }

    /// The endpoint cannot be reached, or cannot do its work: the circuit breaker counts these.
    pub(super) fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Discovery(_) | Self::Server { .. } | Self::Connect(_) | Self::Broken(_) | Self::Timeout(_)
        )
    }

    /// Worth another call at once: a fault in passing, for which the endpoint names no time of its own.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Server {
                retry_after: None,
                ..
            } | Self::Connect(_)
                | Self::Broken(_)
                | Self::InvalidResponse(Malformed::Empty)
        )
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Paused { remaining } | Self::Paced { remaining } | Self::Open { remaining } => {
                Some(*remaining)
            }
            Self::Discovery(unavailable) => Some(unavailable.retry_after.max(Duration::from_secs(1))),
            Self::Server {
                retry_after: Some(wait),
                ..
            } => Some(*wait),
            Self::Server {
                retry_after: None, ..
            }
            | Self::Busy
            | Self::Connect(_)
            | Self::Broken(_) => Some(Duration::from_secs(1)),
            Self::SubjectRefused(_)
            | Self::CallerRefused(_)
            | Self::Denied(_)
            | Self::Interaction { .. }
            | Self::Missing(_)
            | Self::Unvalidated(_)
            | Self::Sign(_)
            | Self::NoEndpoint
            | Self::ConnectionRequired(_)
            | Self::ReconnectRequired(_)
            | Self::Credentials(_)
            | Self::InvalidResponse(_)
            | Self::Timeout(_)
            | Self::Aborted => None,
        }
    }
}

/// What the vault said when it refused: for our log only.
///
/// Both texts are cut, cleaned of control characters, and empty if they echo a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub code: String,
    pub description: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, ", error {:?}", self.code)?;
        }
        if !self.description.is_empty() {
            write!(f, ", description {:?}", self.description)?;
        }
        Ok(())
    }
}

/// What is wrong with a success answer. No variant holds any of its bytes: they may be a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("status {0} is neither a success nor an error of RFC 6749")]
    Status(u16),
    #[error("it is longer than {} bytes", crate::limits::TOKEN_RESPONSE_BYTES)]
    TooLarge,
    #[error("it is empty")]
    Empty,
    #[error("it is not JSON")]
    NotJson,
    #[error("it is not a JSON object with each member once")]
    NotObject,
    #[error("it lacks access_token")]
    NoAccessToken,
    #[error(
        "access_token is not a string of 1 to {} printable ASCII characters",
        crate::limits::PROVIDER_TOKEN_BYTES
    )]
    BadAccessToken,
    #[error("token_type is not Bearer, so the token cannot be sent as one")]
    TokenType,
    #[error("expires_in is not a number of seconds from 0 up")]
    ExpiresIn,
}

//! Why a token could not be had: one kind per cause, each with the class that the workload is told.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::class::{Class, Refusal};
use crate::https;

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
    connection: Arc<str>,
    retry_at: Option<Instant>,
}

impl Error {
    pub(super) fn new(
        kind: ErrorKind,
        vault: &Arc<str>,
        vault_host: &Arc<str>,
        connection: &Arc<str>,
    ) -> Self {
        let retry_at = kind.retry_after().map(|wait| Instant::now() + wait);
        Self(Arc::new(Failure {
            kind,
            vault: vault.clone(),
            vault_host: vault_host.clone(),
            connection: connection.clone(),
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
            connection,
            ..
        } = &*self.0;
        let how_to_connect = || {
            format!(
                "Connected Accounts: POST https://{vault_host}/me/v1/connected-accounts/connect with \
                 \"connection\": {connection:?}"
            )
        };
        let description = match &self.0.kind {
            ErrorKind::SubjectRefused(_) => format!(
                "The token vault {vault:?} refused the access token of this request. It may be expired, \
                 revoked or issued for another audience: sign in again and repeat the request with a fresh \
                 token."
            ),
            ErrorKind::ConnectionRequired(_) => format!(
                "The user of this access token has not connected an account for {connection:?}. Let the user \
                 connect it in your application ({}; a login through the connection is not enough), then \
                 repeat the request.",
                how_to_connect()
            ),
            ErrorKind::ReconnectRequired(_) => format!(
                "The provider no longer accepts the consent that is stored for {connection:?}. Let the user \
                 connect the account again in your application ({}), then repeat the request.",
                how_to_connect()
            ),
            ErrorKind::Credentials(_) => format!(
                "The token vault {vault:?} refused the agent's own credentials or grant. This cannot be \
                 mended by the caller: the operator finds the vault's answer in the agent's log."
            ),
            ErrorKind::InvalidResponse(_) => {
                format!("The token vault {vault:?} gave an answer that is no token response.")
            }
            ErrorKind::RateLimited { .. } | ErrorKind::Paused { .. } => {
                format!("The token vault {vault:?} limits the rate of exchanges. Repeat the request later.")
            }
            ErrorKind::Busy => {
                format!("Too many exchanges wait for the token vault {vault:?}. Repeat the request later.")
            }
            ErrorKind::Server { .. } | ErrorKind::Connect(_) | ErrorKind::Broken(_) => {
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
        refusal
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure {
            vault, connection, ..
        } = &*self.0;
        write!(
            f,
            "no provider token for connection {connection:?} from vault {vault:?}"
        )
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
            Self::SubjectRefused(_) => Class::ExchangeRefused,
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
            Self::ConnectionRequired(_) | Self::ReconnectRequired(_) => Some(Duration::from_secs(10)),
            Self::SubjectRefused(_) => Some(Duration::from_secs(30)),
            Self::Credentials(_) => Some(Duration::from_secs(5)),
            Self::InvalidResponse(_)
            | Self::Server { .. }
            | Self::Connect(_)
            | Self::Broken(_)
            | Self::Timeout(_) => Some(Duration::from_secs(1)),
            Self::RateLimited { .. } | Self::Paused { .. } | Self::Busy | Self::Aborted => None,
        }
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Paused { remaining } => Some(*remaining),
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

/// Why a vault's settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("vault {vault:?}: token_endpoint must be an https:// URL with a host, not {scheme}:")]
    NotHttps { vault: Arc<str>, scheme: String },
    #[error(
        "vault {vault:?}: token_endpoint must hold no user name, password or fragment; \
         use client_id and client_auth"
    )]
    ExtraUrlParts { vault: Arc<str> },
    #[error("vault {vault:?}: client_id is empty")]
    EmptyClientId { vault: Arc<str> },
    #[error("vault {vault:?}: the client secret is empty; check the variable or file that it comes from")]
    EmptySecret { vault: Arc<str> },
    #[error("vault {vault:?}: timeout and ttl_max must be more than 0")]
    ZeroTime { vault: Arc<str> },
    #[error("vault {vault:?}: certificate {index} of extra_roots cannot be a trust anchor")]
    ExtraRoot {
        vault: Arc<str>,
        index: usize,
        #[source]
        source: rustls::Error,
    },
    #[error(
        "vault {vault:?}: no root certificate to verify it with; install ca-certificates or set extra_roots"
    )]
    NoRoots { vault: Arc<str> },
    #[error("vault {vault:?}: cannot make its client")]
    Client {
        vault: Arc<str>,
        #[source]
        source: https::Error,
    },
}

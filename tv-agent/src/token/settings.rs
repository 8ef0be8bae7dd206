//! A vault as configured: plain data. What each kind sends is in `request.rs`, how fast in `pace.rs`.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use url::Url;

use super::assertion::Signer;
use super::when::Condition;
use crate::limits;
use crate::policy::Wanted;
use crate::secret::Secret;

/// RFC 8693 §3.
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const REFRESH_TOKEN: &str = "urn:ietf:params:oauth:token-type:refresh_token";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
/// RFC 8693 §2.1.
pub const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// RFC 7523 §2.1; Entra's On-Behalf-Of.
pub const JWT_BEARER: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// Auth0 Token Vault's grant, the same for every kind of subject token.
pub const FEDERATED: &str =
    "urn:auth0:params:oauth:grant-type:token-exchange:federated-connection-access-token";
const FEDERATED_TOKEN: &str = "http://auth0.com/oauth/token-type/federated-connection-access-token";
const VAULT_TOKEN: &str = "http://auth0.com/oauth/token-type/token-vault-access-token";

/// One source of tokens as configured.
pub struct VaultSettings {
    /// Its name in the configuration: for logs, metrics and messages.
    pub name: Arc<str>,
    pub kind: Kind,
    /// Where tokens are asked for; with `discover` the issuer, whose document names that place.
    pub token_endpoint: Url,
    pub discover: bool,
    /// Empty: none is sent.
    pub client_id: String,
    pub client_auth: ClientAuth,
    pub encoding: Encoding,
    /// Trust anchors besides those given to [`super::Vault::new`].
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// For one whole exchange, connect to last byte, repetitions included ([`limits::TOKEN_TIME`] by default).
    pub timeout: Duration,
    /// Life in the cache when the vault says nothing ([`limits::TOKEN_TTL_DEFAULT`] by default).
    pub ttl_default: Duration,
    /// Longest life in the cache, at most [`limits::TOKEN_TTL_MAX`].
    pub ttl_max: Duration,
    pub pacing: Pacing,
    /// Which subject tokens are exchanged; empty: all.
    pub when: Vec<Condition>,
}

impl VaultSettings {
    /// The tenant as its assertions name it (Auth0's `aud`): the endpoint's origin and a slash.
    pub fn tenant(&self) -> String {
        tenant(&self.token_endpoint)
    }
}

/// See [`VaultSettings::tenant`].
pub fn tenant(endpoint: &Url) -> String {
    format!("{}/", endpoint.origin().ascii_serialization())
}

/// The way from the caller's credentials to the token that goes out.
pub enum Kind {
    TokenVault(TokenVault),
    TokenExchange(TokenExchange),
    ClientCredentials(ClientCredentials),
}

impl Kind {
    /// The key in the configuration.
    pub fn label(&self) -> &'static str {
        match self {
            Self::TokenVault(_) => "auth0_token_vault",
            Self::TokenExchange(_) => "token_exchange",
            Self::ClientCredentials(_) => "client_credentials",
        }
    }

    /// Whether a request has to bring a token of its own.
    pub fn needs_subject(&self) -> bool {
        match self {
            Self::TokenVault(vault) => !matches!(vault.subject, VaultSubject::Worker(_)),
            Self::TokenExchange(_) => true,
            Self::ClientCredentials(_) => false,
        }
    }
}

/// Auth0 Token Vault: the provider's token of a connected account.
#[derive(Default)]
pub struct TokenVault {
    pub subject: VaultSubject,
    /// `None`: Auth0's for this kind of subject.
    pub requested_token_type: Option<String>,
}

impl TokenVault {
    pub fn requested_token_type(&self) -> &str {
        self.requested_token_type
            .as_deref()
            .unwrap_or(match self.subject {
                VaultSubject::AccessToken | VaultSubject::RefreshToken => FEDERATED_TOKEN,
                VaultSubject::Worker(_) => VAULT_TOKEN,
            })
    }
}

/// What stands for the user at Token Vault.
#[derive(Default)]
pub enum VaultSubject {
    #[default]
    AccessToken,
    /// A refresh token of Auth0 whose rotation is off.
    RefreshToken,
    /// A request signed by us for a user who is not present.
    Worker(Worker),
}

/// What a privileged worker signs.
pub struct Worker {
    pub signer: Signer,
    /// For the tenant's log, 1 to 256 characters.
    pub audit_context: String,
    pub organization: Option<String>,
    /// Whose account it is for.
    pub user: crate::policy::Hint,
}

/// RFC 8693, and Entra's dialect of RFC 7523.
pub struct TokenExchange {
    pub preset: Preset,
    pub grant_type: String,
    /// `None`: the subject goes as `assertion` (RFC 7523).
    pub subject_token_type: Option<String>,
    /// `None`: the parameter is left out.
    pub requested_token_type: Option<String>,
    /// What a route does not ask for itself.
    pub wanted: Wanted,
    /// Further parameters, never one of [`RESERVED`].
    pub extra: Vec<(String, String)>,
    pub actor: Option<Actor>,
}

/// A dialect of token exchange with its defaults and its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    Generic,
    Keycloak,
    Okta,
    Auth0Obo,
    EntraObo,
}

impl Preset {
    pub fn label(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Keycloak => "keycloak",
            Self::Okta => "okta",
            Self::Auth0Obo => "auth0_obo",
            Self::EntraObo => "entra_obo",
        }
    }

    pub fn grant_type(self) -> &'static str {
        match self {
            Self::EntraObo => JWT_BEARER,
            Self::Generic | Self::Keycloak | Self::Okta | Self::Auth0Obo => TOKEN_EXCHANGE,
        }
    }

    /// Parameters that the dialect adds by itself.
    pub fn fixed(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::EntraObo => &[("requested_token_use", "on_behalf_of")],
            Self::Generic | Self::Keycloak | Self::Okta | Self::Auth0Obo => &[],
        }
    }
}

/// Who acts for the subject (RFC 8693 §2.1).
pub struct Actor {
    pub from: ActorFrom,
    pub token_type: String,
}

pub enum ActorFrom {
    Config(Arc<Secret>),
    /// A header of the request, which is taken off it.
    Header(HeaderName),
    /// A token of our own, by client credentials from the same endpoint.
    Own,
}

/// RFC 6749 §4.4, by our credentials or the caller's.
#[derive(Default)]
pub struct ClientCredentials {
    pub wanted: Wanted,
    pub extra: Vec<(String, String)>,
    /// Where the caller's credentials stand; `None`: ours are used.
    pub credentials: Option<CallerCredentials>,
    pub forward_identity: Option<ForwardIdentity>,
}

/// Where a request may bring its client credentials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerCredentials {
    pub from: Vec<Place>,
    /// Names of the two in query and body.
    pub id_name: String,
    pub secret_name: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `Authorization: Basic`.
    Header,
    Query,
    /// A form of at most [`limits::CREDENTIALS_BODY_BYTES`] bytes.
    Body,
}

/// The user's identity beside a token that names no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardIdentity {
    pub header: HeaderName,
    /// Path to the claim of the caller's verified token.
    pub claim: Vec<String>,
}

/// How the agent proves who it is to the token endpoint (RFC 6749 §2.3.1, RFC 7523, RFC 8705).
pub enum ClientAuth {
    SecretPost(Secret),
    SecretBasic(Secret),
    PrivateKeyJwt {
        signer: Box<Signer>,
        audience: String,
    },
    TlsClient {
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    },
    None,
    /// The caller's credentials, in the body.
    CallerPost,
    /// The caller's credentials, in the header.
    CallerBasic,
}

impl ClientAuth {
    pub fn label(&self) -> &'static str {
        match self {
            Self::SecretPost(_) => "client_secret_post",
            Self::SecretBasic(_) => "client_secret_basic",
            Self::PrivateKeyJwt { .. } => "private_key_jwt",
            Self::TlsClient { .. } => "tls_client_auth",
            Self::None => "none",
            Self::CallerPost => "the caller's, client_secret_post",
            Self::CallerBasic => "the caller's, client_secret_basic",
        }
    }
}

/// The form of the request's body. RFC 8693 knows the form only; Auth0 takes both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Form,
    Json,
}

/// How much a token endpoint is asked, and when it is left alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pacing {
    /// Calls per second; `None`: as many as come.
    pub per_second: Option<f64>,
    /// Calls at once after a pause, 1 or more.
    pub burst: u32,
    /// Calls that run at once.
    pub at_once: usize,
    /// Failures in a row after which nothing is sent for [`Pacing::open`].
    pub failures: u32,
    pub open: Duration,
}

impl Default for Pacing {
    fn default() -> Self {
        Self {
            per_second: None,
            burst: 1,
            at_once: limits::EXCHANGES_AT_ONCE,
            failures: 10,
            open: Duration::from_secs(10),
        }
    }
}

/// Parameters that `extra` may not set: they come from settings of their own.
pub const RESERVED: [&str; 16] = [
    "grant_type",
    "subject_token",
    "subject_token_type",
    "actor_token",
    "actor_token_type",
    "assertion",
    "audience",
    "resource",
    "scope",
    "requested_token_type",
    "requested_token_use",
    "connection",
    "client_id",
    "client_secret",
    "client_assertion",
    "client_assertion_type",
];

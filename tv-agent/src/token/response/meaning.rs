//! What an error code means, by whom it was said and about whom. Pure.

use http::StatusCode;

use super::Said;
use crate::token::settings::Kind;

/// Whose word an error is, and about whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::token) enum Dialect {
    TokenVault,
    /// RFC 8693 and its relatives: a caller's token for a target.
    Exchange,
    /// Our own client credentials: whatever is wrong is ours.
    Own,
    /// The caller's client credentials.
    CallersClient,
}

impl Dialect {
    pub fn of(kind: &Kind) -> Self {
        match kind {
            Kind::TokenVault(_) => Self::TokenVault,
            Kind::TokenExchange(_) => Self::Exchange,
            Kind::ClientCredentials(_) => Self::Own,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    Subject,
    CallersClient,
    Denied,
    Interaction,
    NotConnected,
    Reconnect,
    Ours,
    RateLimit,
    Down,
}

/// `text` is the description in lower case: some of Auth0's answers carry their meaning there only.
pub(super) fn meaning(dialect: Dialect, status: StatusCode, said: &Said, text: &str) -> Meaning {
    let by_code = by_code(dialect, said, text);
    let by_text = || {
        if text.contains("federated connection refresh token not found") {
            Some(Meaning::NotConnected)
        } else if text.contains("refresh token flow for the federated connection failed") {
            Some(Meaning::Reconnect)
        } else if text.contains("too many requests") {
            Some(Meaning::RateLimit)
        } else {
            None
        }
    };
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Meaning::RateLimit;
    }
    if text.contains("grant type") && text.contains("not allowed") {
        return if dialect == Dialect::CallersClient {
            Meaning::Denied
        } else {
            Meaning::Ours
        };
    }
    // Auth0's word for a wrong client secret.
    if dialect == Dialect::CallersClient && status == StatusCode::UNAUTHORIZED && said.code == "access_denied"
    {
        return Meaning::CallersClient;
    }
    if status.is_server_error() {
        // A failing server's word for somebody else's fault is not believed, save where it is unmistakable.
        return match by_code {
            Some(found @ (Meaning::NotConnected | Meaning::Reconnect)) if said.code != "access_denied" => {
                found
            }
            _ => Meaning::Down,
        };
    }
    by_code.or_else(by_text).unwrap_or(match (status, dialect) {
        (StatusCode::REQUEST_TIMEOUT, _) => Meaning::Down,
        (_, Dialect::Own) => Meaning::Ours,
        (StatusCode::UNAUTHORIZED, Dialect::CallersClient) => Meaning::CallersClient,
        (StatusCode::UNAUTHORIZED, _) => Meaning::Subject,
        (StatusCode::FORBIDDEN, Dialect::Exchange | Dialect::CallersClient) => Meaning::Denied,
        _ => Meaning::Ours,
    })
}

fn by_code(dialect: Dialect, said: &Said, text: &str) -> Option<Meaning> {
    let own_or = |others: Meaning| match dialect {
        Dialect::Own => Meaning::Ours,
        Dialect::CallersClient => Meaning::CallersClient,
        Dialect::TokenVault | Dialect::Exchange => others,
    };
    // What the caller may not have, where it is the caller who asks for it.
    let denied = match dialect {
        Dialect::TokenVault | Dialect::Own => Meaning::Ours,
        Dialect::Exchange | Dialect::CallersClient => Meaning::Denied,
    };
    Some(match said.code.as_str() {
        "too_many_requests" | "too_many_attempts" | "slow_down" => Meaning::RateLimit,
        "temporarily_unavailable" | "server_error" => Meaning::Down,
        "federated_connection_refresh_token_not_found" | "tokenset_not_found" => Meaning::NotConnected,
        "federated_connection_refresh_token_flow_failed" => Meaning::Reconnect,
        "interaction_required" | "consent_required" | "login_required" if dialect != Dialect::Own => {
            Meaning::Interaction
        }
        // Entra: the grant fails because the user has to consent or to step up.
        "invalid_grant" if said.asks_for_consent() && dialect == Dialect::Exchange => Meaning::Interaction,
        "invalid_grant" | "expired_token" | "token_expired" | "invalid_token" => own_or(Meaning::Subject),
        // RFC 8693 §2.2.2: a bad subject token is an invalid_request too.
        "invalid_request" if names_the_subject_token(text) => own_or(Meaning::Subject),
        // Keycloak's word for an audience that this user has no role for; Auth0's for too long a chain.
        "invalid_request" if text.contains("audience not available") || text.contains("delegation chain") => {
            denied
        }
        // Said of the user's account at the provider, unless it says that the client is what is denied.
        "access_denied" if dialect == Dialect::TokenVault => {
            if text.contains("client") || text.contains("grant") {
                Meaning::Ours
            } else {
                Meaning::NotConnected
            }
        }
        // The agent's client lacks a grant or a switch, whoever the caller is.
        "access_denied" if dialect == Dialect::Exchange && blames_the_client(text) => Meaning::Ours,
        "access_denied" | "invalid_target" | "invalid_scope" => denied,
        "unauthorized" if dialect == Dialect::Exchange => Meaning::Denied,
        "invalid_client" if dialect == Dialect::CallersClient => Meaning::CallersClient,
        "unauthorized_client" if dialect == Dialect::CallersClient => Meaning::Denied,
        "invalid_request"
        | "invalid_client"
        | "unauthorized_client"
        | "unsupported_grant_type"
        | "unsupported_token_type"
        | "mfa_required"
        | "use_dpop_nonce" => Meaning::Ours,
        _ => return None,
    })
}

/// Auth0: a missing client grant; Keycloak: the client's switch for token exchange is off.
fn blames_the_client(text: &str) -> bool {
    [
        "client is not authorized",
        "client-grant",
        "client not allowed",
        "client is not allowed",
    ]
    .iter()
    .any(|words| text.contains(words))
}

fn names_the_subject_token(text: &str) -> bool {
    let rest = text
        .replace("subject_token_type", "")
        .replace("subject token type", "")
        .replace("client assertion", "")
        .replace("client_assertion", "");
    [
        "subject_token",
        "subject token",
        "assertion",
        "invalid token",
        "token expired",
        "token is expired",
    ]
    .iter()
    .any(|words| rest.contains(words))
}

//! What is wrong with a vault before it is asked for anything.

use std::sync::Arc;

use crate::https;

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

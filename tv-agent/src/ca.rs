//! Stage 2: the certificates that the agent shows to workloads.
//!
//! A root, which workloads trust, signs one intermediate per node; the intermediate signs a leaf per server
//! name. The root's key does not take part in serving, so it is never loaded by [`Authority`]. The
//! intermediate is bound by name constraints (RFC 5280 §4.2.1.10) to the hosts that the routes name: every
//! client that was measured enforces them there, while some ignore them on a root.

mod authority;
mod facts;
mod files;
mod init;
mod leaves;
mod profile;
mod subtree;

use std::io;
use std::path::PathBuf;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use authority::Authority;
pub use facts::Facts;
pub use init::{Initialised, Outcome, Shown, init, show};
pub use leaves::{Leaves, MayMint};

use crate::addr::HostName;

/// What can go wrong with the CA.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{subtree:?} is no DNS name, so the CA cannot be constrained to it; write it like googleapis.com"
    )]
    Subtree { subtree: String },
    #[error(
        "no hosts to constrain the CA to; name at least one route's host, an unconstrained CA is not made"
    )]
    NoSubtrees,
    #[error("there is no CA in {}; make one with `tv-agent ca init`", .dir.display())]
    Missing { dir: PathBuf },
    #[error("cannot {action} {}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} (mode {mode:04o}) can be written by others; keep the CA in a directory of its own, mode 0700",
        .path.display()
    )]
    DirectoryMode { path: PathBuf, mode: u32 },
    #[error("the private key {} has mode {mode:04o}; run `chmod 0600` on it", .path.display())]
    KeyMode { path: PathBuf, mode: u32 },
    #[error("{} does not hold exactly one PEM certificate", .path.display())]
    NotACertificate { path: PathBuf },
    #[error("{} holds no private key that can be used (PKCS#8 PEM)", .path.display())]
    NotAKey { path: PathBuf, source: rcgen::Error },
    #[error("the key {} does not belong to the certificate {}", .key.display(), .certificate.display())]
    KeyMismatch { key: PathBuf, certificate: PathBuf },
    #[error(
        "{} is no CA certificate: it needs critical basic constraints with CA:TRUE and the key usage keyCertSign",
        .path.display()
    )]
    NotACa { path: PathBuf },
    #[error("the intermediate {} must have the path length 0: it signs leaves only", .path.display())]
    PathLength { path: PathBuf },
    #[error(
        "the intermediate {} has no critical name constraints with permitted DNS names, so its key could sign \
         for any host; issue a constrained one (`tv-agent ca init`)",
        .path.display()
    )]
    Unconstrained { path: PathBuf },
    #[error("{} is valid from {} only; check this node's clock", .path.display(), rfc3339(*.at))]
    NotYetValid { path: PathBuf, at: OffsetDateTime },
    #[error("{} expired at {}; issue a new one (`tv-agent ca init`)", .path.display(), rfc3339(*.at))]
    Expired { path: PathBuf, at: OffsetDateTime },
    #[error("{} was not issued by the root {}", .intermediate.display(), .root.display())]
    NotIssuedByRoot { intermediate: PathBuf, root: PathBuf },
    #[error("a TLS client would refuse what {} signs", .path.display())]
    Unusable { path: PathBuf, source: rustls::Error },
    #[error(
        "the root {} ends at {}, too soon to issue an intermediate; move {} away, run `tv-agent ca init` \
         and distribute the new root",
        .path.display(), rfc3339(*.at), .path.parent().unwrap_or(.path).display()
    )]
    RootWornOut { path: PathBuf, at: OffsetDateTime },
    #[error(
        "{} stands without its root; copy the root's certificate to {}, or move the intermediate away to begin anew",
        .intermediate.display(), .root.display()
    )]
    RootMissing { root: PathBuf, intermediate: PathBuf },
    #[error(
        "a new intermediate is needed ({reason}), but the root's key is not at {}; put it there for the time of \
         `tv-agent ca init`, or issue the intermediate elsewhere and copy intermediate.pem and \
         intermediate-key.pem here",
        .path.display()
    )]
    RootKeyNeeded { reason: String, path: PathBuf },
    #[error("cannot make the {what}")]
    Make {
        what: &'static str,
        source: rcgen::Error,
    },
    #[error("TLS does not take the leaf key")]
    LeafKey { source: rustls::Error },
    #[error("the CA's name constraints do not cover {host}; run `tv-agent ca init` after adding a route")]
    NotPermitted { host: HostName },
    #[error("no route names {host}, so no certificate is made for it")]
    Refused { host: HostName },
    #[error("the CA expired at {}, so no certificate is made for {host}", rfc3339(*.at))]
    AuthorityExpired { host: HostName, at: OffsetDateTime },
    #[error("cannot make a certificate for {host}")]
    Mint { host: HostName, source: rcgen::Error },
}

/// A time as it stands in messages and in `ca show`: RFC 3339, UTC, whole seconds.
fn rfc3339(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .replace_nanosecond(0)
        .unwrap_or(at)
        .format(&Rfc3339)
        .unwrap_or_else(|_| at.unix_timestamp().to_string())
}

#[cfg(test)]
mod tests;

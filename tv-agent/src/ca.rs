//! Stage 2: the certificates that the agent shows to workloads.
//!
//! A root, which workloads trust, signs one intermediate per node; the intermediate signs a leaf per server
//! name. The root's key does not take part in serving, so it is never loaded by [`Authority`]. The
//! intermediate is bound by name constraints (RFC 5280 §4.2.1.10) to the hosts that the routes name: every
//! client that was measured enforces them there, while some ignore them on a root.

mod authority;
mod error;
mod facts;
mod files;
mod init;
mod issue;
mod leaves;
mod mint;
mod profile;
mod rotate;
mod rotation;
mod show;
mod source;
mod subtree;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub use authority::{Authority, Public};
pub use error::Error;
pub use facts::Facts;
pub use init::{Initialised, Outcome, import, init, renew};
pub use leaves::{Leaves, MayMint};
pub use mint::{Elsewhere, KeyKind, Minted, Request};
pub use rotate::{Advanced, advance, objections, rotation};
pub use rotation::{Rotation, Step, Witness};
pub use show::{Shown, anchors, digest, show};
pub use source::Source;

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

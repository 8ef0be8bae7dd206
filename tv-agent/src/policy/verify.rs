//! Which of the caller's tokens a route wants verified, and by which verifier.

use std::sync::Arc;

use http::HeaderName;

/// A route's `verify:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verify {
    /// The verifier of the token that is presented for the exchange.
    pub access: Arc<str>,
    /// A request without it goes on to `on_missing_token`; a bad one is refused all the same.
    pub optional: bool,
    pub channel: Option<Channel>,
}

impl std::fmt::Display for Verify {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let optional = |optional| if optional { " (optional)" } else { "" };
        write!(f, "access token by {}{}", self.access, optional(self.optional))?;
        match &self.channel {
            None => Ok(()),
            Some(channel) => write!(
                f,
                ", channel token in {} by {}{}",
                channel.header,
                channel.verifier,
                optional(channel.optional)
            ),
        }
    }
}

/// A second token, which tells where a request comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Channel {
    pub verifier: Arc<str>,
    /// Taken off the request before it goes on.
    pub header: HeaderName,
    pub optional: bool,
}

//! How long a token is used, and when another is asked for: by the vault's word, the caller's own token, the
//! operator's maximum. Pure.

use std::time::Duration;

use crate::limits;

/// How long a granted token is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub ttl: Duration,
    /// Asking again would gain nothing: the subject token's own end is the limit, or the vault hands out the same
    /// token until it ends.
    pub is_final: bool,
}

impl Life {
    /// The rule of the cache, in numbers: min(expires_in − margin, subject's exp − now, maximum).
    ///
    /// `now` is the time since 1970, `subject_exp` seconds since 1970. `None`: use once, do not keep.
    pub fn of(
        expires_in: Option<Duration>,
        subject_exp: Option<u64>,
        now: Duration,
        default: Duration,
        max: Duration,
    ) -> Option<Self> {
        let by_vault = match expires_in {
            Some(life) => life.saturating_sub(limits::TOKEN_MARGIN),
            None => default,
        };
        let by_vault = by_vault.min(max).min(limits::TOKEN_TTL_MAX);
        let by_subject = subject_exp.map(|exp| Duration::from_secs(exp).saturating_sub(now));
        let life = match by_subject {
            Some(left) if left <= by_vault => Self {
                ttl: left,
                is_final: true,
            },
            _ => Self {
                ttl: by_vault,
                is_final: false,
            },
        };
        (!life.ttl.is_zero()).then_some(life)
    }

    /// Age at which a background refresh is due: when between a fifth and three tenths of the life are left, by `spread`
    /// (0..1), so that the nodes of a fleet do not ask all at once.
    pub fn refresh_at(self, spread: f64) -> Option<Duration> {
        let within = (self.ttl / 10).mul_f64(spread.clamp(0.0, 1.0));
        (!self.is_final).then(|| self.ttl - self.ttl / 5 - within)
    }
}

/// A token's life as another node tells it, in times since 1970 by that node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lived {
    pub fetched: Duration,
    pub expires: Duration,
    pub is_final: bool,
}

/// Why another node's token is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlived {
    Expired,
    /// It was fetched in the future: one of two clocks is wrong, so its end means nothing.
    Clock,
}

impl Lived {
    /// Its age and its whole life, neither of them longer than this node would have it.
    ///
    /// # Errors
    /// When nothing of it is left, or its times cannot be.
    pub fn seen(self, now: Duration, max: Duration) -> Result<(Duration, Life), Unlived> {
        if self.fetched > now + limits::TOKEN_MARGIN {
            return Err(Unlived::Clock);
        }
        let age = now.saturating_sub(self.fetched);
        let told = self.expires.saturating_sub(self.fetched);
        let ttl = told.min(max).min(limits::TOKEN_TTL_MAX);
        if ttl <= age {
            return Err(Unlived::Expired);
        }
        let is_final = self.is_final;
        Ok((age, Life { ttl, is_final }))
    }
}

#[cfg(test)]
mod tests;

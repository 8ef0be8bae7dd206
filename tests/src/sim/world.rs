//! What is outside of the agent: chance, and a vault with a limit for each minute.

use std::time::Duration;

use super::MINUTE;

/// SplitMix64: the same everywhere and in every version.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0..1
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn exponential(&mut self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.unit()).ln())
    }

    /// A round trip to Redis in the same network, 0.5 to 2 ms.
    pub fn redis(&mut self) -> Duration {
        Duration::from_secs_f64(0.0005 + 0.0015 * self.unit())
    }

    /// A call of a vault far away, 150 to 450 ms.
    pub fn vault(&mut self) -> Duration {
        Duration::from_secs_f64(0.15 + 0.3 * self.unit())
    }
}

/// A tenant that answers so many calls in each minute, and 429 beyond.
pub struct Vault {
    limit: usize,
    pub expires_in: Duration,
    minute: u64,
    calls: usize,
    tokens: u64,
}

impl Vault {
    pub fn new(limit: usize, expires_in: Duration) -> Self {
        Self {
            limit,
            expires_in,
            minute: 0,
            calls: 0,
            tokens: 0,
        }
    }

    /// A token, or None for a 429.
    pub fn call(&mut self, now: Duration) -> Option<u64> {
        let minute = now.as_secs() / MINUTE.as_secs();
        if minute != self.minute {
            (self.minute, self.calls) = (minute, 0);
        }
        self.calls += 1;
        (self.calls <= self.limit).then(|| {
            self.tokens += 1;
            self.tokens
        })
    }

    /// What a 429 says, in whole seconds.
    pub fn retry_after(&self, now: Duration) -> Duration {
        let into = now.as_secs() % MINUTE.as_secs();
        Duration::from_secs(MINUTE.as_secs() - into)
    }
}

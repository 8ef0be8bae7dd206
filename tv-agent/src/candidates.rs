//! Addresses that are known to serve a routed host. Never the authority (the SNI is): only a reason to be
//! careful with a connection that shows no name.

use std::net::IpAddr;
use std::time::Duration;

const MAX: u64 = 16 * 1024;
/// Longer than any sane TTL, since a workload may hold on to an address it has looked up long ago.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// A bounded set of addresses; each stays as long as it is seen, and a day longer.
#[derive(Clone)]
pub struct Candidates(moka::sync::Cache<IpAddr, ()>);

impl Candidates {
    pub fn new() -> Self {
        Self(
            moka::sync::Cache::builder()
                .max_capacity(MAX)
                .time_to_idle(KEPT)
                .build(),
        )
    }

    /// A routed host was looked up, or spoken to, at this address.
    pub fn learn(&self, address: IpAddr) {
        if !self.contains(address) {
            self.0.insert(address, ());
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.get(&address).is_some()
    }
}

impl Default for Candidates {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_is_bounded() {
        let candidates = Candidates::new();
        for n in 0..(MAX as u32 + 5000) {
            candidates.learn(IpAddr::from(n.to_be_bytes()));
        }
        candidates.0.run_pending_tasks();
        assert!(candidates.0.entry_count() <= MAX);
        candidates.learn("192.0.2.1".parse().unwrap());
        assert!(candidates.contains("192.0.2.1".parse().unwrap()));
    }
}

//! Addresses that are known to serve a routed host. Never the authority (the SNI is): only a reason to be
//! careful with a connection that shows no name.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;

const MAX: u64 = 16 * 1024;
/// Longer than any sane TTL, since a workload may hold on to an address it has looked up long ago.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// The kernel half is told of an address again after this.
const TOLD: Duration = Duration::from_secs(600);

/// Tells the kernel half of an address, and for how long it has to be kept.
pub type Keep = Arc<dyn Fn(IpAddr, Duration) + Send + Sync>;

/// A bounded set of addresses; each stays as long as it is seen, and a day longer.
#[derive(Clone)]
pub struct Candidates {
    /// When the kernel half was told.
    known: moka::sync::Cache<IpAddr, Instant>,
    /// How many connections are open to each address.
    open: Arc<DashMap<IpAddr, usize>>,
    keep: Keep,
}

/// An open connection to an address.
pub struct InUse {
    open: Arc<DashMap<IpAddr, usize>>,
    address: IpAddr,
}

impl Candidates {
    pub fn new(keep: Keep) -> Self {
        Self {
            known: moka::sync::Cache::builder()
                .max_capacity(MAX)
                .time_to_idle(KEPT)
                .build(),
            open: Arc::default(),
            keep,
        }
    }

    /// A routed host was looked up, or spoken to, at this address.
    pub fn learn(&self, address: IpAddr) {
        let told = self.known.get(&address);
        if told.is_none_or(|told| told.elapsed() > TOLD) {
            (self.keep)(address, KEPT);
            self.known.insert(address, Instant::now());
        }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.known.get(&address).is_some()
    }

    /// Notes a connection until the result is dropped. Bounded by the connections themselves.
    pub fn open(&self, address: IpAddr) -> InUse {
        *self.open.entry(address).or_default() += 1;
        InUse {
            open: self.open.clone(),
            address,
        }
    }

    pub fn is_open(&self, address: IpAddr) -> bool {
        self.open.contains_key(&address)
    }

    /// All addresses that a connection is open to.
    pub fn all_open(&self) -> HashSet<IpAddr> {
        self.open.iter().map(|entry| *entry.key()).collect()
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.open.remove_if_mut(&self.address, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn forgetful() -> Candidates {
        Candidates::new(Arc::new(|_, _| {}))
    }

    #[test]
    fn the_set_is_bounded() {
        let candidates = forgetful();
        for n in 0..(MAX as u32 + 5000) {
            candidates.learn(IpAddr::from(n.to_be_bytes()));
        }
        candidates.known.run_pending_tasks();
        assert!(candidates.known.entry_count() <= MAX);
        candidates.learn("192.0.2.1".parse().unwrap());
        assert!(candidates.contains("192.0.2.1".parse().unwrap()));
    }

    #[test]
    fn the_kernel_half_is_told_once_in_a_while() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let list = told.clone();
        let candidates = Candidates::new(Arc::new(move |address, time| {
            list.lock().unwrap().push((address, time));
        }));
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        candidates.learn(address);
        candidates.learn(address);
        assert_eq!(*told.lock().unwrap(), [(address, KEPT)]);
        let long_ago = Instant::now().checked_sub(TOLD * 2).unwrap();
        candidates.known.insert(address, long_ago);
        candidates.learn(address);
        assert_eq!(told.lock().unwrap().len(), 2);
    }

    #[test]
    fn an_address_is_open_until_its_last_connection_ends() {
        let candidates = forgetful();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let first = candidates.open(address);
        let second = candidates.open(address);
        drop(first);
        assert!(candidates.is_open(address));
        drop(second);
        assert!(!candidates.is_open(address));
        assert!(candidates.open.is_empty());
    }
}

//! What a client may resume with: tickets, and sessions kept for clients without them. All of it can be forgotten at
//! once, since a resumed session shows no certificate: it would outlive the root that it once was verified by.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{ProducesTickets, ServerSessionMemoryCache, StoresServerSessions};

/// Ticket keys that can be replaced.
pub(super) struct Tickets(ArcSwap<Keys>);

/// `dyn` in a struct, since an [`ArcSwap`] holds thin pointers.
struct Keys(Arc<dyn ProducesTickets>);

impl Keys {
    fn new() -> Arc<Self> {
        Arc::new(Self(Ticketer::new().expect("the system gives random numbers")))
    }
}

impl Tickets {
    pub(super) fn new() -> Self {
        Self(ArcSwap::new(Keys::new()))
    }

    pub(super) fn forget(&self) {
        self.0.store(Keys::new());
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        self.0.load().0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.load().0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.load().0.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.load().0.decrypt(cipher)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

/// Sessions that rustls keeps for clients of TLS 1.2 without tickets.
pub(super) struct Kept(ArcSwap<Store>);

struct Store(Arc<dyn StoresServerSessions>);

/// Sessions kept per protocol; rustls' own default.
const SESSIONS: usize = 256;

impl Store {
    fn new() -> Arc<Self> {
        Arc::new(Self(ServerSessionMemoryCache::new(SESSIONS)))
    }
}

impl Kept {
    pub(super) fn new() -> Self {
        Self(ArcSwap::new(Store::new()))
    }

    pub(super) fn forget(&self) {
        self.0.store(Store::new());
    }
}

impl StoresServerSessions for Kept {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.0.load().0.put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.load().0.get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.load().0.take(key)
    }

    fn can_cache(&self) -> bool {
        self.0.load().0.can_cache()
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_cannot_be_resumed() {
        let tickets = Tickets::new();
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        tickets.forget();
        assert_eq!(tickets.decrypt(&ticket), None);
        assert!(tickets.enabled());

        let kept = Kept::new();
        assert!(kept.put(vec![1], vec![2]));
        assert_eq!(kept.get(&[1]), Some(vec![2]));
        kept.forget();
        assert_eq!(kept.get(&[1]), None);
        for n in 0..=u16::try_from(SESSIONS).unwrap() + 10 {
            kept.put(n.to_be_bytes().to_vec(), vec![0]);
        }
        assert_eq!(kept.get(&0u16.to_be_bytes()), None, "they are bounded");
    }
}

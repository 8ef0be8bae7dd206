//! Stand-ins for the outside world: real sockets, real TLS, real DNS, deny by default.
//!
//! Each fake remembers what it received. A call that it does not know is answered with status 599,
//! remembered, and makes the fake panic when it is dropped, naming the call; [`Unexpected::take`] is for
//! tests that provoke one.
//! Every fake runs on threads made by the thread that starts it, so it lives in that thread's namespaces.

pub mod auth0;
pub mod dns;
pub mod idp;
pub mod oauth;
pub mod origin;
pub mod pki;
pub(crate) mod server;

pub use server::{Conn, Connections};

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a fake was asked and does not know.
#[derive(Clone, Default)]
pub struct Unexpected(Arc<Mutex<Vec<String>>>);

impl Unexpected {
    /// Remembers one call that nobody expects.
    pub fn remember(&self, call: impl Into<String>) {
        lock(&self.0).push(call.into());
    }

    /// Every unexpected call so far; they no longer count as failures.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0))
    }

    /// # Panics
    /// When `who` got a call that it does not know, unless the thread is panicking already.
    pub fn assert_none(&self, who: &str) {
        let calls = self.take();
        if !calls.is_empty() && !std::thread::panicking() {
            panic!("{who} got calls it does not expect:\n  {}", calls.join("\n  "));
        }
    }
}

/// Status of an answer to a call that a fake does not know; no real provider sends it.
pub const UNEXPECTED_STATUS: u16 = 599;

/// The value behind `mutex`, also after a panic of another holder: a fake's log is worth reading just then.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

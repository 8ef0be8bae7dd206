//! Addresses of the world's hosts, in 192.0.2.0/24 and 2001:db8::/32 (RFC 5737, RFC 3849), and further hosts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::Ordering;

use super::World;
use crate::fakes::origin::{Origin, Setup, Site};
use crate::fakes::pki::Identity;

/// Last address parts for hosts that a test adds.
pub(super) const SPARES: RangeInclusive<u8> = 50..=59;

impl World {
    /// One more HTTPS host at addresses of its own, with the certificate given.
    ///
    /// # Errors
    /// When its addresses cannot be bound.
    ///
    /// # Panics
    /// When the world has no address left.
    pub fn origin(&self, name: &str, identity: &Identity) -> io::Result<Origin> {
        Origin::start(&Setup {
            site: Site::Plain,
            addrs: &sockets(self.name(name)),
            identity,
            alpn: &["h2", "http/1.1"],
        })
    }

    /// A name with addresses that nobody listens on: connections are refused.
    ///
    /// # Panics
    /// When the world has no address left.
    pub fn deserted(&self, name: &str) {
        self.name(name);
    }

    fn name(&self, name: &str) -> u8 {
        let at = SPARES.start() + self.spares.fetch_add(1, Ordering::Relaxed);
        assert!(SPARES.contains(&at), "this world has no address left for {name}");
        self.dns.set(name, &addresses(at));
        at
    }
}

pub(super) fn addresses(at: u8) -> [IpAddr; 2] {
    [
        Ipv4Addr::new(192, 0, 2, at).into(),
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, at.into()).into(),
    ]
}

pub(super) fn sockets(at: u8) -> [SocketAddr; 2] {
    addresses(at).map(|ip| (ip, 443).into())
}

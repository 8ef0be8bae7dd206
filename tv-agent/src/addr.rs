//! Addresses that carry their role in the type, so that a peer is never mistaken for an origin.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Where the workload connects from, as the accepted socket tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PeerAddr(pub SocketAddr);

/// Where the workload wanted to go, as the kernel half recorded it (never taken from the bytes it sends).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OriginAddr(pub SocketAddr);

impl fmt::Display for OriginAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The kernel's number for a network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NetnsCookie(pub u64);

/// A host name as the policy compares it: lower case, no trailing dot, never an address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostName(std::sync::Arc<str>);

impl HostName {
    /// Normalises `name`; `None` when it is not a DNS name (empty, too long, bad label, an IP address).
    ///
    /// Underscores are let through: they stand in real SNIs, though not in RFC 1123 host names.
    pub fn parse(name: &str) -> Option<Self> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() || name.len() > 253 || name.parse::<IpAddr>().is_ok() {
            return None;
        }
        let label_ok = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        name.split('.')
            .all(label_ok)
            .then(|| Self(name.to_ascii_lowercase().into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Sixteen bytes for either family, IPv4 as v4-mapped: the form of the kernel half's keys.
pub fn to_mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The inverse of [`to_mapped`]: a v4-mapped address comes back as IPv4.
pub fn from_mapped(octets: [u8; 16]) -> IpAddr {
    let v6 = Ipv6Addr::from(octets);
    v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_normalised() {
        let parsed = |s: &str| HostName::parse(s).map(|h| h.as_str().to_owned());
        assert_eq!(parsed("API.GitHub.com."), Some("api.github.com".into()));
        assert_eq!(parsed("a_b.example"), Some("a_b.example".into()));
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a.b",
            "a-.b",
            "192.0.2.1",
            "::1",
            "a b",
            "é.example",
            "a:443",
        ] {
            assert_eq!(parsed(bad), None, "{bad:?}");
        }
        assert_eq!(parsed(&format!("{}.example", "a".repeat(64))), None);
        assert_eq!(parsed(&"a.".repeat(130)), None);
    }

    #[test]
    fn mapped_addresses_round_trip() {
        for ip in ["192.0.2.7", "2001:db8::7", "::1", "0.0.0.0"] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(from_mapped(to_mapped(ip)), ip);
        }
    }
}

//! A policy as the maps hold it. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use tv_ebpf::{Settings, abi};

use crate::addr::to_mapped;
use crate::redirect::names::hashes;
use crate::redirect::{AgentDown, Capture, Error, KernelPolicy};

/// Whether the policy can be expressed, without putting it in force.
pub(in crate::redirect) fn check(policy: &KernelPolicy) -> Result<(), Error> {
    settings(policy, 0)?;
    prefixes(&policy.bypass, "bypass")?;
    match &policy.capture {
        Capture::All => Ok(()),
        Capture::Cidr(nets) => prefixes(nets, "capture").map(drop),
        Capture::Dns { names, .. } => hashes(names).map(drop),
    }
}

pub(super) fn settings(policy: &KernelPolicy, generation: u64) -> Result<Settings, Error> {
    let SocketAddr::V4(v4) = policy.listeners.v4 else {
        return Err(Error::ListenerFamily(policy.listeners.v4));
    };
    let v6 = match policy.listeners.v6 {
        Some(SocketAddr::V6(v6)) => Some(v6),
        Some(other) => return Err(Error::ListenerFamily(other)),
        None => None,
    };
    let own_ports = [Some(v4.port()), v6.map(|v6| v6.port())];
    if let Some(port) = own_ports
        .into_iter()
        .flatten()
        .find(|port| policy.ports.contains(port))
    {
        return Err(Error::ListenerCaptured(port));
    }
    let mut flags = 0;
    for (on, flag) in [
        (policy.on_agent_down == AgentDown::Open, abi::FLAG_OPEN),
        (policy.block_quic, abi::FLAG_BLOCK_QUIC),
        (policy.v6_routable && v6.is_some(), abi::FLAG_V6_ROUTABLE),
        (
            matches!(policy.capture, Capture::Dns { .. }),
            abi::FLAG_CAPTURE_DNS,
        ),
        (matches!(policy.capture, Capture::Cidr(_)), abi::FLAG_CAPTURE_CIDR),
    ] {
        flags |= if on { flag } else { 0 };
    }
    Ok(Settings {
        agent_cgroup: policy.agent_cgroup.unwrap_or(0),
        generation,
        listener_v6: v6.map_or([0; 4], |v6| abi::words(v6.ip().octets())),
        listener_v4: u32::from_ne_bytes(v4.ip().octets()),
        port_v4: v4.port(),
        port_v6: v6.map_or(0, |v6| v6.port()),
        flags,
        padding: 0,
    })
}

/// Sixteen-byte prefixes. One that spans ::ffff:0:0/96 (such as ::/0) must not take IPv4 with it.
/// `what` is their name in errors.
pub(in crate::redirect) fn prefixes(
    nets: &[IpNet],
    what: &'static str,
) -> Result<BTreeMap<(u32, [u8; 16]), u32>, Error> {
    const MAPPED_BITS: u32 = 96;
    let mapped = to_mapped(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
    let mut wanted = BTreeMap::new();
    for net in nets {
        let length = u32::from(net.prefix_len());
        match net {
            IpNet::V4(_) => wanted.insert((length + MAPPED_BITS, to_mapped(net.network())), 1),
            IpNet::V6(v6) => {
                if length < MAPPED_BITS && v6.contains(&std::net::Ipv6Addr::from(mapped)) {
                    wanted.entry((MAPPED_BITS, mapped)).or_insert(0);
                }
                wanted.insert((length, to_mapped(net.network())), 1)
            }
        };
    }
    // CAPTURE holds as many.
    let most = abi::BYPASS_ENTRIES;
    if wanted.len() > most {
        return Err(Error::TooManyPrefixes {
            what,
            count: wanted.len(),
            most,
        });
    }
    Ok(wanted)
}

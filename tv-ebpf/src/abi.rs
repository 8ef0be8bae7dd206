//! What lies in the maps. Integers only, padding explicit, layout asserted: both sides compile this file.
#![cfg_attr(
    feature = "user",
    expect(
        unsafe_code,
        reason = "aya::Pod is an unsafe trait; the structs below are plain integers"
    )
)]

/// Goes into the pin directory's name; raise it whenever a map's key, value or meaning changes.
pub const ABI_VERSION: u32 = 2;

/// Array of one [`Settings`].
pub const SETTINGS: &str = "TV_SETTINGS";
/// Array of one u64: nanoseconds of CLOCK_MONOTONIC until which the agent is trusted to be alive.
pub const DEADLINE: &str = "TV_DEADLINE";
/// Array of [`PORT_WORDS`] u64: bit `port % 64` of word `port / 64` is set for a captured port.
pub const PORTS: &str = "TV_PORTS";
/// LPM trie of 16-byte addresses (IPv4 as v4-mapped) to u32: 0 is captured after all, 1 is bypassed.
pub const BYPASS: &str = "TV_BYPASS";
/// Socket storage of u32: present on the agent's own sockets, listeners included.
pub const OWN: &str = "TV_OWN";
/// Socket storage of [`Record`]: where a redirected socket wanted to go.
pub const ORIGINS: &str = "TV_ORIGINS";
/// LRU hash of [`TupleKey`] to [`Record`].
pub const TUPLES: &str = "TV_TUPLES";
/// Hash of u64, the cookie of a network namespace other than the agent's, to u32: [`FLAG_V6_ROUTABLE`] or 0.
pub const NETNS: &str = "TV_NETNS";
/// Per-CPU array of u64, indexed by [`crate::Reason`].
pub const COUNTERS: &str = "TV_COUNTERS";
/// LPM trie as [`BYPASS`]: 1 is looked at, 0 is not after all. For [`FLAG_CAPTURE_CIDR`].
pub const CAPTURE: &str = "TV_CAPTURE";
/// Hash of u64, a name's [`crate::name`] hash, to u32: [`NAME_EXACT`], [`NAME_BELOW`] or both.
pub const NAMES: &str = "TV_NAMES";
/// Hash of sixteen address bytes (IPv4 as v4-mapped) to u64: nanoseconds of CLOCK_MONOTONIC until which the address is
/// kept at least. Being there is what counts; the agent removes what has had its time.
pub const CANDIDATES: &str = "TV_CANDIDATES";
/// Hash of u64, the cookie of a network namespace, to u64: nanoseconds of CLOCK_MONOTONIC until which nothing is left
/// out there by name.
pub const UNSURE: &str = "TV_UNSURE";
/// Array of two u64, [`WIDE_UNTIL`] and [`WIDE_FOR`].
pub const WIDE: &str = "TV_WIDE";
/// Socket storage of u64: present on sockets that speak DNS, the cookie of their network namespace.
pub const ASKED: &str = "TV_ASKED";
/// Per-CPU array of one DNS message.
pub const SCRATCH: &str = "TV_SCRATCH";

/// Index in [`WIDE`]: as the values of [`UNSURE`], for every network namespace.
pub const WIDE_UNTIL: u32 = 0;
/// Index in [`WIDE`]: nanoseconds for which a network namespace stays unsure.
pub const WIDE_FOR: u32 = 1;
/// Value in [`NAMES`]: the name itself.
pub const NAME_EXACT: u32 = 1;
/// Value in [`NAMES`]: names below this one.
pub const NAME_BELOW: u32 = 1 << 1;

/// The maps that are pinned, and that an agent which starts takes over from the one before it.
pub const MAPS: &[&str] = &[
    SETTINGS, DEADLINE, PORTS, BYPASS, OWN, ORIGINS, TUPLES, NETNS, COUNTERS, CAPTURE, NAMES, CANDIDATES,
    UNSURE, WIDE, ASKED,
];

/// Read-only global (u8): the kernel has `bpf_set_retval` (Linux 5.18), so a refusal can say which one it is.
pub const HAS_SET_RETVAL: &str = "TV_HAS_SET_RETVAL";
/// Read-only global (u8): the kernel has MPTCP and `bpf_skc_to_mptcp_sock` (Linux 5.19), so that getpeername() of an
/// MPTCP socket can be told the origin as well.
pub const HAS_MPTCP: &str = "TV_HAS_MPTCP";

/// Program names, which are also function names in the object and parts of the pins' names.
pub const PROGRAMS: [&str; 7] = [
    "tv_connect4",
    "tv_connect6",
    "tv_sendmsg4",
    "tv_sendmsg6",
    "tv_getpeername4",
    "tv_getpeername6",
    "tv_sock_ops",
];
/// The program that reads DNS answers. Attached only for [`FLAG_CAPTURE_DNS`], since it sees every packet received.
pub const INGRESS: &str = "tv_ingress";

pub const PORT_WORDS: usize = 65_536 / 64;
/// Prefixes in [`BYPASS`].
pub const BYPASS_ENTRIES: usize = 4_096;
/// Network namespaces in [`NETNS`].
pub const NETNS_ENTRIES: usize = 2_048;
/// Prefixes in [`CAPTURE`].
pub const CAPTURE_ENTRIES: usize = 4_096;
/// Names in [`NAMES`].
pub const NAME_ENTRIES: usize = 8_192;
/// Addresses in [`CANDIDATES`].
pub const CANDIDATE_ENTRIES: usize = 16_384;
/// Network namespaces in [`UNSURE`].
pub const UNSURE_ENTRIES: usize = 2_048;
/// Connections between SYN and accept(), LRU. Small LRU maps evict early, in batches (Linux, per-CPU lists).
pub const TUPLE_ENTRIES: usize = 65_536;

/// [`Settings::flags`]: the agent is absent → leave the connection alone instead of refusing it.
pub const FLAG_OPEN: u32 = 1;
/// [`Settings::flags`]: UDP to a captured port is refused.
pub const FLAG_BLOCK_QUIC: u32 = 1 << 1;
/// [`Settings::flags`]: native IPv6 can leave the network namespace, for those that are not in [`NETNS`].
pub const FLAG_V6_ROUTABLE: u32 = 1 << 2;

/// [`Settings::flags`]: only [`CANDIDATES`] are looked at, and everything where a namespace is unsure.
pub const FLAG_CAPTURE_DNS: u32 = 1 << 3;
/// [`Settings::flags`]: only [`CAPTURE`] is looked at.
pub const FLAG_CAPTURE_CIDR: u32 = 1 << 4;

/// Policy besides ports and prefixes. All zero, as the kernel makes it, means: nobody listens, refuse.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// cgroup id of the agent, whose sockets are let through; 0: none.
    pub agent_cgroup: u64,
    /// Counts policy changes.
    pub generation: u64,
    /// IPv6 listener, words in network order.
    pub listener_v6: [u32; 4],
    /// IPv4 listener, network order.
    pub listener_v4: u32,
    /// Host order.
    pub port_v4: u16,
    /// Host order; 0: no IPv6 listener.
    pub port_v6: u16,
    pub flags: u32,
    pub padding: u32,
}

/// Who connected, and where to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Words in network order, IPv4 as v4-mapped.
    pub origin: [u32; 4],
    /// cgroup v2 id of the caller at connect().
    pub cgroup_id: u64,
    /// Cookie of the socket's network namespace.
    pub netns: u64,
    /// Nanoseconds of CLOCK_BOOTTIME at connect(): a process or a 4-tuple that is younger is another one.
    pub connected_ns: u64,
    /// Thread group id in the initial pid namespace.
    pub tgid: u32,
    /// User id in the initial user namespace.
    pub uid: u32,
    /// Host order; 0: the socket's last connect() was not redirected.
    pub port: u16,
    pub padding: [u16; 3],
}

/// The client's end of a redirected connection, as accept() will see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct TupleKey {
    pub netns: u64,
    /// Words in network order, IPv4 as v4-mapped.
    pub address: [u32; 4],
    /// Host order.
    pub port: u16,
    pub padding: [u16; 3],
}

/// The third word of a v4-mapped address.
pub const MAPPED_WORD: u32 = 0x0000_ffff_u32.to_be();

/// An IPv4 address (network order) as v4-mapped words.
#[inline(always)]
pub const fn mapped(v4: u32) -> [u32; 4] {
    [0, 0, MAPPED_WORD, v4]
}

/// Sixteen address bytes as the words that programs see.
pub fn words(octets: [u8; 16]) -> [u32; 4] {
    core::array::from_fn(|i| {
        u32::from_ne_bytes([
            octets[4 * i],
            octets[4 * i + 1],
            octets[4 * i + 2],
            octets[4 * i + 3],
        ])
    })
}

/// The inverse of [`words`].
pub fn octets(words: [u32; 4]) -> [u8; 16] {
    core::array::from_fn(|i| words[i / 4].to_ne_bytes()[i % 4])
}

const _: () = {
    assert!(size_of::<Settings>() == 48 && align_of::<Settings>() == 8);
    assert!(size_of::<Record>() == 56 && align_of::<Record>() == 8);
    assert!(size_of::<TupleKey>() == 32 && align_of::<TupleKey>() == 8);
};

// SAFETY: repr(C), integers only, and the sizes above leave no room for implicit padding.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Settings {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Record {}
// SAFETY: as above.
#[cfg(feature = "user")]
unsafe impl aya::Pod for TupleKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_keep_the_bytes_in_place() {
        let octets_in: [u8; 16] = core::array::from_fn(|i| u8::try_from(i).unwrap());
        assert_eq!(octets(words(octets_in)), octets_in);
        let v4 = u32::from_ne_bytes([192, 0, 2, 7]);
        let expected = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7];
        assert_eq!(octets(mapped(v4)), expected);
    }

    #[test]
    fn map_and_program_names_fit_the_kernel() {
        // BPF_OBJ_NAME_LEN is 16 with the final NUL; the kernel would cut longer names.
        for name in MAPS.iter().copied().chain([SCRATCH, INGRESS]).chain(PROGRAMS) {
            assert!(name.len() < 16, "{name}");
        }
    }
}

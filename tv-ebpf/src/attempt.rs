//! One connect() or sendmsg() as the verdict sees it: facts read from the context, the maps and the kernel.

use core::mem::offset_of;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{
    BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_addr, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1,
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_set_retval, bpf_sk_lookup_tcp, bpf_sk_release};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns};
use aya_ebpf::programs::SockAddrContext;
use tv_ebpf::abi::{
    FLAG_BLOCK_QUIC, FLAG_CAPTURE_CIDR, FLAG_CAPTURE_DNS, FLAG_OPEN, FLAG_V6_ROUTABLE, MAPPED_WORD, mapped,
};
use tv_ebpf::verdict::{Capture, Facts, Family};
use tv_ebpf::{Reason, Settings};

use crate::maps::{
    TV_BYPASS, TV_CAPTURE, TV_DEADLINE, TV_HAS_SET_RETVAL, TV_NETNS, TV_OWN, TV_PORTS, TV_SETTINGS, count,
    storage,
};
use crate::names;

/// Return values of cgroup programs.
pub const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

const ECONNREFUSED: i32 = 111;
const ENETUNREACH: i32 = 101;
/// `TCP_LISTEN`, include/net/tcp_states.h.
const LISTEN: u32 = 10;

pub struct Attempt<'a> {
    pub ctx: &'a SockAddrContext,
    pub settings: &'static Settings,
    /// Network order words, IPv4 as v4-mapped.
    pub destination: [u32; 4],
    /// Host order.
    pub port: u16,
    pub family: Family,
}

impl<'a> Attempt<'a> {
    /// None: the settings cannot be read, which the caller answers with [`refuse`].
    #[inline(always)]
    pub fn v4(ctx: &'a SockAddrContext) -> Option<Self> {
        let destination = mapped(word(ctx, offset_of!(bpf_sock_addr, user_ip4)));
        Self::new(ctx, destination, Family::V4)
    }

    #[inline(always)]
    pub fn v6(ctx: &'a SockAddrContext) -> Option<Self> {
        let destination = user_ip6(ctx);
        let is_mapped = destination[0] == 0 && destination[1] == 0 && destination[2] == MAPPED_WORD;
        let family = if is_mapped { Family::Mapped } else { Family::V6 };
        Self::new(ctx, destination, family)
    }

    #[inline(always)]
    fn new(ctx: &'a SockAddrContext, destination: [u32; 4], family: Family) -> Option<Self> {
        Some(Self {
            ctx,
            settings: TV_SETTINGS.get(0)?,
            destination,
            port: user_port(ctx),
            family,
        })
    }

    #[inline(always)]
    pub fn sk(&self) -> *mut bpf_sock {
        sk(self.ctx)
    }
}

impl Facts for Attempt<'_> {
    #[inline(always)]
    fn protocol(&self) -> u32 {
        word(self.ctx, offset_of!(bpf_sock_addr, protocol))
    }

    #[inline(always)]
    fn family(&self) -> Family {
        self.family
    }

    #[inline(always)]
    fn port_captured(&self) -> bool {
        let port = u32::from(self.port);
        TV_PORTS
            .get(port / 64)
            .is_some_and(|bits| bits & (1 << (port % 64)) != 0)
    }

    #[inline(always)]
    fn own_socket(&self) -> bool {
        // SAFETY: a sock_addr context always has its socket.
        unsafe { !storage(&TV_OWN, self.sk(), 0).is_null() }
    }

    #[inline(always)]
    fn in_agent_cgroup(&self) -> bool {
        let agent = self.settings.agent_cgroup;
        // SAFETY: no arguments.
        agent != 0 && agent == unsafe { bpf_get_current_cgroup_id() }
    }

    #[inline(always)]
    fn bypassed(&self) -> bool {
        TV_BYPASS
            .get(whole(&prefix(&self.destination)))
            .is_some_and(|bypassed| *bypassed != 0)
    }

    #[inline(always)]
    fn capture(&self) -> Capture {
        if self.settings.flags & FLAG_CAPTURE_DNS != 0 {
            Capture::Dns
        } else if self.settings.flags & FLAG_CAPTURE_CIDR != 0 {
            Capture::Cidr
        } else {
            Capture::All
        }
    }

    #[inline(always)]
    fn in_capture_cidr(&self) -> bool {
        TV_CAPTURE
            .get(whole(&prefix(&self.destination)))
            .is_some_and(|captured| *captured != 0)
    }

    #[inline(always)]
    fn candidate(&self) -> bool {
        // A copy: once a helper has a pointer into `self`, LLVM forgets which family it is, and stores where the other
        // family's address would be.
        let address = self.destination;
        names::used(&address)
    }

    #[inline(always)]
    fn unsure(&self) -> bool {
        names::unsure(names::netns(self.ctx))
    }

    #[inline(always)]
    fn bound_to_device(&self) -> bool {
        // SAFETY: a sock_addr context always has its socket; the field is readable on Linux 5.10 and later.
        unsafe { read_volatile(addr_of!((*self.sk()).bound_dev_if)) != 0 }
    }

    #[inline(always)]
    fn late(&self) -> bool {
        // SAFETY: no arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        TV_DEADLINE.get(0).is_none_or(|deadline| now > *deadline)
    }

    #[inline(always)]
    fn listener_alive(&self) -> bool {
        let settings = self.settings;
        let source = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
            saddr: 0,
            daddr: settings.listener_v4,
            sport: 0,
            dport: settings.port_v4.to_be(),
        };
        // Without an IPv6 listener the IPv4 one tells whether the agent lives; the verdict refuses later.
        if self.family == Family::V6 && settings.port_v6 != 0 {
            let ipv6 = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: [0; 4],
                daddr: settings.listener_v6,
                sport: 0,
                dport: settings.port_v6.to_be(),
            };
            listens(
                self.ctx,
                bpf_sock_tuple__bindgen_ty_1 { ipv6 },
                size_of_val(&ipv6),
            )
        } else {
            listens(
                self.ctx,
                bpf_sock_tuple__bindgen_ty_1 { ipv4: source },
                size_of_val(&source),
            )
        }
    }

    #[inline(always)]
    fn v6_routable(&self) -> bool {
        // SAFETY: the helper takes the context; the flags are read at once, and a deleted entry's are as good.
        let own = unsafe {
            let netns = bpf_get_netns_cookie(self.ctx.sock_addr.cast());
            TV_NETNS.get(&netns).copied()
        };
        own.unwrap_or(self.settings.flags) & FLAG_V6_ROUTABLE != 0
    }

    #[inline(always)]
    fn block_quic(&self) -> bool {
        self.settings.flags & FLAG_BLOCK_QUIC != 0
    }

    #[inline(always)]
    fn fail_open(&self) -> bool {
        self.settings.flags & FLAG_OPEN != 0
    }
}

/// A prefix of full length as five words. [`Key`] is packed, which would cost sixteen byte stores; the same bytes,
/// aligned, cost five words.
#[inline(always)]
fn prefix(address: &[u32; 4]) -> [u32; 5] {
    [128, address[0], address[1], address[2], address[3]]
}

#[inline(always)]
fn whole(words: &[u32; 5]) -> &Key<[u32; 4]> {
    // SAFETY: Key<[u32; 4]> is twenty bytes without padding: the prefix length, then the data.
    unsafe { &*words.as_ptr().cast::<Key<[u32; 4]>>() }
}

/// Counts, names the error where the kernel lets us, and refuses.
#[inline(always)]
pub fn refuse(reason: Reason) -> i32 {
    count(reason);
    if TV_HAS_SET_RETVAL.load() != 0 {
        let errno = match reason {
            Reason::V6Unroutable => ENETUNREACH,
            _ => ECONNREFUSED,
        };
        // SAFETY: sets this call's error. On failure the caller sees EPERM, which refuses as well.
        unsafe { bpf_set_retval(-errno) };
    }
    REFUSE
}

/// True when a socket of the agent listens there, in the network namespace of the calling socket.
#[inline(always)]
fn listens(ctx: &SockAddrContext, addresses: bpf_sock_tuple__bindgen_ty_1, size: usize) -> bool {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: addresses,
    };
    // SAFETY: the tuple lives across the call and `size` bytes of it are set; the reference is released on
    // every path, before which nothing of the socket is kept.
    unsafe {
        let netns = BPF_F_CURRENT_NETNS as i64 as u64;
        let listener = bpf_sk_lookup_tcp(ctx.sock_addr.cast(), &raw mut tuple, size as u32, netns, 0);
        if listener.is_null() {
            return false;
        }
        let alive =
            read_volatile(addr_of!((*listener).state)) == LISTEN && !storage(&TV_OWN, listener, 0).is_null();
        bpf_sk_release(listener.cast());
        alive
    }
}

/// The 32-bit field at `offset` of the context. Volatile, because LLVM otherwise merges neighbouring loads into one of
/// 64 bits or hoists their addresses, both of which the verifier refuses ("dereference of modified ctx ptr").
#[inline(always)]
pub fn word(ctx: &SockAddrContext, offset: usize) -> u32 {
    // SAFETY: `offset` is that of a field of the context, which outlives the program.
    unsafe { read_volatile(ctx.sock_addr.byte_add(offset).cast()) }
}

#[inline(always)]
pub fn user_ip6(ctx: &SockAddrContext) -> [u32; 4] {
    [
        word(ctx, offset_of!(bpf_sock_addr, user_ip6)),
        word(ctx, offset_of!(bpf_sock_addr, user_ip6) + 4),
        word(ctx, offset_of!(bpf_sock_addr, user_ip6) + 8),
        word(ctx, offset_of!(bpf_sock_addr, user_ip6) + 12),
    ]
}

/// Host order. The context has it in network order, in the lower half of a word.
#[inline(always)]
pub fn user_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(word(ctx, offset_of!(bpf_sock_addr, user_port)) as u16)
}

#[inline(always)]
pub fn sk(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: reads the pointer out of the context; the verifier knows it to be a socket.
    unsafe { read_volatile(addr_of!((*ctx.sock_addr).__bindgen_anon_1.sk)) }
}

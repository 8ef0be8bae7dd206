//! cgroup_skb/ingress: reads the DNS answers that workloads receive, before the socket has them.
//!
//! Which sockets ask was noted by connect and sendmsg (the network namespace too, which this kind of program cannot ask
//! for before Linux 6.18); sockets older than that are known by the port that answers. Packets are never dropped.

use core::mem::offset_of;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_sk_fullsock, bpf_skb_load_bytes};
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use tv_ebpf::Reason;
use tv_ebpf::answer::{self, BUFFER, Doubt, MESSAGE_BYTES, Reading, Scratch, Tables, Turn, Turns};
use tv_ebpf::verdict::{TCP, UDP};

use crate::maps::{TV_ASKED, TV_NAMES, TV_SCRATCH, count, storage};
use crate::names::{self, DNS};

const ALLOW: i32 = 1;
/// `ETH_P_IP` and `ETH_P_IPV6`, as they lie in the context.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
const IPV6_HEADER: u32 = 40;
const UDP_HEADER: u32 = 8;

#[cgroup_skb(ingress)]
pub fn tv_ingress(ctx: SkBuffContext) -> i32 {
    look(&ctx);
    ALLOW
}

#[inline(always)]
fn look(ctx: &SkBuffContext) {
    let skb = ctx.skb.skb;
    // SAFETY: reads the pointer out of the context; null is checked before each use, and fullsock gives what the
    // storage takes, or null.
    let (protocol, asked) = unsafe {
        let sk = read_volatile(addr_of!((*skb).__bindgen_anon_2.sk));
        if sk.is_null() {
            return;
        }
        let sk = bpf_sk_fullsock(sk);
        if sk.is_null() {
            return;
        }
        (
            read_volatile(addr_of!((*sk).protocol)),
            storage(&TV_ASKED, sk, 0).as_ref().copied(),
        )
    };
    if protocol == TCP {
        if let Some(netns) = asked {
            names::doubt(netns, Reason::DnsUnseen);
        }
    } else if protocol == UDP {
        datagram(ctx, asked);
    }
}

/// `asked`: the namespace of a socket that is known to speak DNS.
#[inline(always)]
fn datagram(ctx: &SkBuffContext, asked: Option<u64>) {
    let netns = asked.unwrap_or(0);
    let Some((port, start, length)) = udp(ctx) else {
        // Extension headers and the like: what a resolver's socket is told this way is not seen.
        if asked.is_some() {
            names::doubt(netns, Reason::DnsUnreadable);
        }
        return;
    };
    if asked.is_none() && port != DNS {
        return;
    }
    let Some(scratch) = TV_SCRATCH.get_ptr_mut(0) else {
        return;
    };
    let whole = length <= MESSAGE_BYTES as u32;
    let taken = if whole { length } else { MESSAGE_BYTES as u32 };
    // For the verifier, which wants to see that it is neither 0 nor too much. An empty datagram fails to load.
    let masked = (taken.wrapping_sub(1) & (BUFFER as u32 - 1)) + 1;
    // SAFETY: it begins with room for MESSAGE_BYTES, and no other program runs on this CPU meanwhile that uses it.
    let reading = unsafe {
        if bpf_skb_load_bytes(ctx.skb.skb.cast(), start, scratch.cast(), masked) != 0 {
            Reading::Unsure(Doubt::Unreadable)
        } else {
            let reading = match answer::begin(&mut *scratch, taken as usize) {
                None => Reading::NotOurs,
                Some(Turn::Failed) => Reading::Unsure(Doubt::Unreadable),
                Some(_) => answer::read(&mut Calls),
            };
            answer::end(&*scratch, reading, whole)
        }
    };
    match reading {
        Reading::NotOurs => {}
        Reading::Learnt => count(Reason::DnsLearnt),
        Reading::Unsure(Doubt::Truncated) => names::doubt(netns, Reason::DnsTruncated),
        Reading::Unsure(Doubt::TooLarge) => names::doubt(netns, Reason::DnsTooLarge),
        Reading::Unsure(Doubt::Unreadable) => names::doubt(netns, Reason::DnsUnreadable),
        Reading::Unsure(Doubt::NoRoom) => names::doubt(netns, Reason::DnsNoRoom),
    }
}

/// Source port, and where the payload begins and how long it is. None: not plain UDP, or several datagrams in one.
#[inline(always)]
fn udp(ctx: &SkBuffContext) -> Option<(u16, u32, u32)> {
    let kind = word(ctx, offset_of!(__sk_buff, protocol));
    let length = word(ctx, offset_of!(__sk_buff, len));
    let header = if kind == IPV4 {
        let ip: [u8; 20] = ctx.load(0).ok()?;
        if u32::from(ip[9]) != UDP {
            return None;
        }
        u32::from(ip[0] & 0xf) * 4
    } else if kind == IPV6 {
        let ip: [u8; 8] = ctx.load(0).ok()?;
        if u32::from(ip[6]) != UDP {
            return None;
        }
        IPV6_HEADER
    } else {
        return None;
    };
    let udp: [u8; UDP_HEADER as usize] = ctx.load(header as usize).ok()?;
    let said = u32::from(u16::from_be_bytes([udp[4], udp[5]]));
    if length < header + UDP_HEADER || length - header != said {
        return None;
    }
    Some((
        u16::from_be_bytes([udp[0], udp[1]]),
        header + UDP_HEADER,
        said - UDP_HEADER,
    ))
}

/// Volatile for the reason given at [`crate::attempt::word`].
#[inline(always)]
fn word(ctx: &SkBuffContext, offset: usize) -> u32 {
    // SAFETY: `offset` is that of a field of the context, which outlives the program.
    unsafe { read_volatile(ctx.skb.skb.byte_add(offset).cast()) }
}

/// Each turn is a global function, which the verifier looks at once and by itself (Linux 5.6).
struct Calls;

impl Turns for Calls {
    #[inline(always)]
    fn fold(&mut self, index: u32) -> Turn {
        turn(tv_fold(index))
    }

    #[inline(always)]
    fn suffix(&mut self, length: u32) -> Turn {
        turn(tv_suffix(length))
    }

    #[inline(always)]
    fn record(&mut self) -> Turn {
        turn(tv_record())
    }
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tv_fold(index: u32) -> u32 {
    with_scratch(|scratch| answer::fold(scratch, index))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tv_suffix(length: u32) -> u32 {
    with_scratch(|scratch| answer::suffix(scratch, length, &Maps))
}

#[inline(never)]
#[unsafe(no_mangle)]
pub extern "C" fn tv_record() -> u32 {
    with_scratch(|scratch| answer::record(scratch, &Maps))
}

#[inline(always)]
fn with_scratch(turn: impl FnOnce(&mut Scratch) -> Turn) -> u32 {
    let Some(scratch) = TV_SCRATCH.get_ptr_mut(0) else {
        return Turn::Failed as u32;
    };
    // SAFETY: this CPU's buffer, which nobody else uses while the program runs; the caller keeps no reference.
    turn(unsafe { &mut *scratch }) as u32
}

#[inline(always)]
fn turn(number: u32) -> Turn {
    match number {
        0 => Turn::More,
        1 => Turn::Done,
        _ => Turn::Failed,
    }
}

struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn name(&self, hash: u64) -> u32 {
        // SAFETY: the value is read at once, and a deleted entry's is as good.
        unsafe { TV_NAMES.get(hash).copied() }.unwrap_or(0)
    }

    #[inline(always)]
    fn learn(&self, address: [u32; 4], ttl: u32) -> bool {
        names::learn(&address, ttl)
    }
}

//! Narrowing by name: candidate addresses, and the namespaces that may know others.

use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use tv_ebpf::Reason;
use tv_ebpf::abi::{FLAG_CAPTURE_DNS, WIDE_FOR, WIDE_UNTIL};
use tv_ebpf::answer::{kept, prolonged};
use tv_ebpf::verdict::{Facts as _, TCP, UDP};

use crate::attempt::Attempt;
use crate::maps::{TV_ASKED, TV_CANDIDATES, TV_UNSURE, TV_WIDE, count, storage};

/// IANA: DNS, and DNS over TLS or QUIC.
pub const DNS: u16 = 53;
const DNS_ENCRYPTED: u16 = 853;

/// Marks the sockets whose answers ingress reads, and makes unsure where it could not read them.
#[inline(always)]
pub fn note_dns(attempt: &Attempt<'_>) {
    if attempt.port != DNS && attempt.port != DNS_ENCRYPTED || attempt.settings.flags & FLAG_CAPTURE_DNS == 0
    {
        return;
    }
    let protocol = attempt.protocol();
    if protocol != TCP && protocol != UDP {
        return;
    }
    let netns = netns(attempt.ctx);
    // SAFETY: a sock_addr context always has its socket; a value that is not null is ours to write.
    let marked = unsafe {
        let asked = storage(&TV_ASKED, attempt.sk(), BPF_SK_STORAGE_GET_F_CREATE.into());
        if !asked.is_null() {
            *asked = netns;
        }
        !asked.is_null()
    };
    if !marked || protocol == TCP || attempt.port != DNS {
        doubt(netns, Reason::DnsUnseen);
    }
}

/// Whether the address is a candidate; if so it is kept for longer.
#[inline(always)]
pub fn used(address: &[u32; 4]) -> bool {
    let Some(until) = TV_CANDIDATES.get_ptr_mut(address) else {
        return false;
    };
    // SAFETY: a slot of the table. Whoever writes at the same time writes about the same.
    unsafe {
        if let Some(later) = prolonged(*until, kept(now(), 0)) {
            *until = later;
        }
    }
    true
}

/// Notes a candidate for `ttl` seconds at least. False: there is no room.
#[inline(always)]
pub fn learn(address: &[u32; 4], ttl: u32) -> bool {
    let wanted = kept(now(), ttl);
    if let Some(until) = TV_CANDIDATES.get_ptr_mut(address) {
        // SAFETY: as in `used`.
        unsafe {
            if let Some(later) = prolonged(*until, wanted) {
                *until = later;
            }
        }
        return true;
    }
    TV_CANDIDATES.insert(address, wanted, 0).is_ok()
}

/// From now on, and for a while, nothing is left out in this namespace; 0: in any.
#[inline(always)]
pub fn doubt(netns: u64, reason: Reason) {
    count(reason);
    let until = now().saturating_add(TV_WIDE.get(WIDE_FOR).copied().unwrap_or(u64::MAX));
    if netns != 0 && set_unsure(netns, until) {
        return;
    }
    if let Some(all) = TV_WIDE.get_ptr_mut(WIDE_UNTIL) {
        // SAFETY: a slot of the array.
        unsafe { lift(all, until) };
    }
}

#[inline(always)]
fn set_unsure(netns: u64, until: u64) -> bool {
    if let Some(slot) = TV_UNSURE.get_ptr_mut(netns) {
        // SAFETY: a slot of the table.
        unsafe { lift(slot, until) };
        return true;
    }
    TV_UNSURE.insert(netns, until, 0).is_ok()
}

/// # Safety
/// `slot` is a valid slot of a map.
#[inline(always)]
unsafe fn lift(slot: *mut u64, until: u64) {
    // SAFETY: by the caller's promise.
    unsafe {
        if *slot < until {
            *slot = until;
        }
    }
}

#[inline(always)]
pub fn unsure(netns: u64) -> bool {
    let now = now();
    // SAFETY: the value is read at once, and a deleted entry's is as good.
    let here = unsafe { TV_UNSURE.get(netns).copied() };
    here.is_some_and(|until| now < until) || TV_WIDE.get(WIDE_UNTIL).is_none_or(|until| now < *until)
}

#[inline(always)]
pub fn netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_ns() }
}

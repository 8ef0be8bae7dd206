//! sock_ops at TCP_CONNECT_CB: the source port is chosen and the SYN is not sent, so the entry is there before
//! any accept(), TCP Fast Open included.

use core::mem::offset_of;
use core::ptr::{addr_of, read_volatile};

use aya_ebpf::bindings::{BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use tv_ebpf::abi::mapped;
use tv_ebpf::{Reason, TupleKey};

use crate::maps::{TV_ORIGINS, TV_TUPLES, count, storage};

const AF_INET6: u32 = 10;
const DONE: u32 = 1;

#[sock_ops]
pub fn tv_sock_ops(ctx: SockOpsContext) -> u32 {
    if word(&ctx, offset_of!(bpf_sock_ops, op)) == BPF_SOCK_OPS_TCP_CONNECT_CB {
        hand_over(&ctx);
    }
    DONE
}

#[inline(always)]
fn hand_over(ctx: &SockOpsContext) {
    // SAFETY: reads the pointer out of the context; null is checked before use.
    let sk = unsafe { read_volatile(addr_of!((*ctx.ops).__bindgen_anon_2.sk)) };
    if sk.is_null() {
        return;
    }
    // SAFETY: not null; the value lives as long as the socket, which the hook's caller has locked.
    let Some(record) = (unsafe { storage(&TV_ORIGINS, sk, 0).as_ref() }) else {
        return;
    };
    if record.port == 0 {
        return;
    }
    let key = TupleKey {
        // bpf_get_netns_cookie is missing in sock_ops before Linux 5.15; connect has it.
        netns: record.netns,
        address: local_address(ctx),
        port: word(ctx, offset_of!(bpf_sock_ops, local_port)) as u16,
        padding: [0; 3],
    };
    if TV_TUPLES.insert(key, record, 0).is_err() {
        count(Reason::HandoverFailed);
        warn!(ctx, "local port {}: the table of origins took no entry", key.port);
    }
}

/// A v4-mapped socket reports AF_INET6 with a v4-mapped address; the accepted side is AF_INET.
///
/// All words are read before the family is looked at. Read in the two branches, LLVM merges the last load of
/// each into one with a chosen offset, volatile or not: "dereference of modified ctx ptr" (rustc 1.96, LLVM 22).
#[inline(always)]
fn local_address(ctx: &SockOpsContext) -> [u32; 4] {
    let v4 = word(ctx, offset_of!(bpf_sock_ops, local_ip4));
    let v6 = [
        word(ctx, offset_of!(bpf_sock_ops, local_ip6)),
        word(ctx, offset_of!(bpf_sock_ops, local_ip6) + 4),
        word(ctx, offset_of!(bpf_sock_ops, local_ip6) + 8),
        word(ctx, offset_of!(bpf_sock_ops, local_ip6) + 12),
    ];
    let family = word(ctx, offset_of!(bpf_sock_ops, family));
    if family == AF_INET6 { v6 } else { mapped(v4) }
}

/// Volatile for the reason given at [`crate::attempt::word`].
#[inline(always)]
fn word(ctx: &SockOpsContext, offset: usize) -> u32 {
    // SAFETY: `offset` is that of a field of the context, which outlives the program.
    unsafe { read_volatile(ctx.ops.byte_add(offset).cast()) }
}

//! cgroup/getpeername4 and getpeername6: the workload sees the peer it asked for, not the agent.

use core::mem::offset_of;
use core::ptr::{addr_of_mut, write_volatile};

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use tv_ebpf::abi::{MAPPED_WORD, mapped};
use tv_ebpf::{Reason, Record, Settings};

use crate::attempt::{ALLOW, sk, user_ip6, user_port, word};
use crate::maps::{TV_ORIGINS, TV_SETTINGS, count, storage};

#[cgroup_sock_addr(getpeername4)]
pub fn tv_getpeername4(ctx: SockAddrContext) -> i32 {
    let peer = mapped(word(&ctx, offset_of!(bpf_sock_addr, user_ip4)));
    if let Some(record) = origin_behind(&ctx, peer) {
        // SAFETY: a writable field of a live context.
        unsafe { write_volatile(addr_of_mut!((*ctx.sock_addr).user_ip4), record.origin[3]) };
        show_port(&ctx, record);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn tv_getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(record) = origin_behind(&ctx, user_ip6(&ctx)) {
        let address = ctx.sock_addr;
        // SAFETY: writable fields of a live context.
        unsafe {
            write_volatile(addr_of_mut!((*address).user_ip6[0]), record.origin[0]);
            write_volatile(addr_of_mut!((*address).user_ip6[1]), record.origin[1]);
            write_volatile(addr_of_mut!((*address).user_ip6[2]), record.origin[2]);
            write_volatile(addr_of_mut!((*address).user_ip6[3]), record.origin[3]);
        }
        show_port(&ctx, record);
    }
    ALLOW
}

/// The record of this socket, if its peer is one of our listeners and its last connect() was redirected.
#[inline(always)]
fn origin_behind(ctx: &SockAddrContext, peer: [u32; 4]) -> Option<&'static Record> {
    let settings = TV_SETTINGS.get(0)?;
    if !is_listener(settings, peer, user_port(ctx)) {
        return None;
    }
    // SAFETY: a sock_addr context always has its socket; the value lives as long as the socket, which the
    // hook's caller has locked.
    let record = unsafe { storage(&TV_ORIGINS, sk(ctx), 0).as_ref() }?;
    (record.port != 0).then_some(record)
}

#[inline(always)]
fn is_listener(settings: &Settings, peer: [u32; 4], port: u16) -> bool {
    let v4 = peer[0] == 0
        && peer[1] == 0
        && peer[2] == MAPPED_WORD
        && peer[3] == settings.listener_v4
        && port == settings.port_v4;
    let v6 = settings.port_v6 != 0 && port == settings.port_v6 && peer == settings.listener_v6;
    v4 || v6
}

#[inline(always)]
fn show_port(ctx: &SockAddrContext, record: &Record) {
    // SAFETY: a writable field of a live context.
    unsafe {
        write_volatile(
            addr_of_mut!((*ctx.sock_addr).user_port),
            u32::from(record.port.to_be()),
        );
    }
    count(Reason::PeerShown);
}

//! cgroup/connect4 and connect6: remember where the socket wanted to go, and send it to the agent.

use core::ptr::{addr_of_mut, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::bpf_get_current_cgroup_id;
use aya_ebpf::helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns, bpf_skc_to_mptcp_sock};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::{debug, warn};
use tv_ebpf::verdict::{self, Facts as _, Family, Verdict};
use tv_ebpf::{Reason, Record};

use crate::attempt::{ALLOW, Attempt, refuse};
use crate::maps::{TV_HAS_MPTCP, TV_ORIGINS, count, storage};
use crate::names;

#[cgroup_sock_addr(connect4)]
pub fn tv_connect4(ctx: SockAddrContext) -> i32 {
    connect(Attempt::v4(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn tv_connect6(ctx: SockAddrContext) -> i32 {
    connect(Attempt::v6(&ctx))
}

#[inline(always)]
fn connect(attempt: Option<Attempt<'_>>) -> i32 {
    let Some(attempt) = attempt else {
        return refuse(Reason::RecordFailed);
    };
    names::note_dns(&attempt);
    match verdict::decide(&attempt) {
        Verdict::Leave(reason) => {
            forget(&attempt);
            count(reason);
            ALLOW
        }
        Verdict::Refuse(reason) => {
            forget(&attempt);
            debug!(
                attempt.ctx,
                "port {}: refused for reason {}", attempt.port, reason as u32
            );
            refuse(reason)
        }
        Verdict::Redirect if record(&attempt) => {
            rewrite(&attempt);
            count(Reason::Redirected);
            ALLOW
        }
        Verdict::Redirect => {
            warn!(
                attempt.ctx,
                "port {}: no memory to remember the origin", attempt.port
            );
            refuse(Reason::RecordFailed)
        }
    }
}

/// Overwrites what an earlier connect() on this socket left: after AF_UNSPEC it may go elsewhere.
#[inline(always)]
fn record(attempt: &Attempt<'_>) -> bool {
    // SAFETY: a sock_addr context always has its socket, and the other one is not null; a value that is not null is
    // ours to write, under the socket's lock. The helpers take no arguments but the context.
    unsafe {
        let record = storage(&TV_ORIGINS, attempt.sk(), BPF_SK_STORAGE_GET_F_CREATE.into());
        if record.is_null() {
            return false;
        }
        *record = Record {
            origin: attempt.destination,
            cgroup_id: bpf_get_current_cgroup_id(),
            netns: bpf_get_netns_cookie(attempt.ctx.sock_addr.cast()),
            connected_ns: bpf_ktime_get_boot_ns(),
            tgid: attempt.ctx.tgid(),
            uid: attempt.ctx.uid(),
            port: attempt.port,
            padding: [0; 3],
        };
        let outer = mptcp_socket(attempt);
        if outer.is_null() {
            return true;
        }
        let copy = storage(&TV_ORIGINS, outer, BPF_SK_STORAGE_GET_F_CREATE.into());
        if copy.is_null() {
            return false;
        }
        *copy = *record;
    }
    true
}

/// A record of an earlier connect() would make getpeername() lie about this one.
#[inline(always)]
fn forget(attempt: &Attempt<'_>) {
    if attempt.protocol() != verdict::TCP {
        return;
    }
    // SAFETY: as in `record`.
    unsafe {
        erase(attempt.sk());
        let outer = mptcp_socket(attempt);
        if !outer.is_null() {
            erase(outer);
        }
    }
}

/// # Safety
/// `sk` is a socket that the verifier knows to be valid and not null.
#[inline(always)]
unsafe fn erase(sk: *mut bpf_sock) {
    // SAFETY: as in `record`.
    unsafe {
        let record = storage(&TV_ORIGINS, sk, 0);
        if !record.is_null() {
            (*record).port = 0;
        }
    }
}

/// The MPTCP socket that the program holds, when the connecting one is its subflow; else null.
///
/// connect() of an MPTCP socket runs this program for a TCP socket inside it, getpeername() for the outer one.
#[inline(always)]
fn mptcp_socket(attempt: &Attempt<'_>) -> *mut bpf_sock {
    if TV_HAS_MPTCP.load() == 0 {
        return core::ptr::null_mut();
    }
    // SAFETY: a sock_addr context always has its socket. The caller of the hook has locked both sockets.
    unsafe { bpf_skc_to_mptcp_sock(attempt.sk().cast()) }.cast()
}

/// Volatile for the reason given at [`crate::attempt::word`]; stores merge as loads do.
#[inline(always)]
fn rewrite(attempt: &Attempt<'_>) {
    let (ctx, settings) = (attempt.ctx.sock_addr, attempt.settings);
    // SAFETY: writable fields of a live context, 32 bits each.
    unsafe {
        match attempt.family {
            Family::V4 => write_volatile(addr_of_mut!((*ctx).user_ip4), settings.listener_v4),
            Family::Mapped => write_volatile(addr_of_mut!((*ctx).user_ip6[3]), settings.listener_v4),
            Family::V6 => {
                write_volatile(addr_of_mut!((*ctx).user_ip6[0]), settings.listener_v6[0]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[1]), settings.listener_v6[1]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[2]), settings.listener_v6[2]);
                write_volatile(addr_of_mut!((*ctx).user_ip6[3]), settings.listener_v6[3]);
            }
        }
        let port = match attempt.family {
            Family::V4 | Family::Mapped => settings.port_v4,
            Family::V6 => settings.port_v6,
        };
        write_volatile(addr_of_mut!((*ctx).user_port), u32::from(port.to_be()));
    }
}

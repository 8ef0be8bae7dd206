//! cgroup/sendmsg4 and sendmsg6: unconnected UDP to a captured port, so that QUIC falls back to TCP; and sockets that
//! ask a name server.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use tv_ebpf::Reason;
use tv_ebpf::verdict::{self, Verdict};

use crate::attempt::{ALLOW, Attempt, refuse};
use crate::maps::count;
use crate::names;

#[cgroup_sock_addr(sendmsg4)]
pub fn tv_sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(Attempt::v4(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn tv_sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(Attempt::v6(&ctx))
}

#[inline(always)]
fn sendmsg(attempt: Option<Attempt<'_>>) -> i32 {
    let Some(attempt) = attempt else {
        return refuse(Reason::RecordFailed);
    };
    names::note_dns(&attempt);
    match verdict::decide(&attempt) {
        Verdict::Leave(reason) => {
            count(reason);
            ALLOW
        }
        Verdict::Refuse(reason) => refuse(reason),
        // Only TCP is redirected, and these hooks see UDP.
        Verdict::Redirect => refuse(Reason::RecordFailed),
    }
}

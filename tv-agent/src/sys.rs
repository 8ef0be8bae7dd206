//! Every `unsafe` block of the agent: one function each, with its SAFETY comment and a test.
#![expect(unsafe_code, reason = "the one place for it")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::addr::NetnsCookie;

/// `SO_NETNS_COOKIE` (include/uapi/asm-generic/socket.h, Linux 5.14); not in libc for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that `socket` was made in (Linux 5.14).
///
/// The kernel half puts the same number into its keys, so it tells apart the same 4-tuple in two namespaces.
pub fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<NetnsCookie> {
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: `cookie` and `len` live across the call, and the kernel writes at most `len` bytes to `cookie`.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if rc == 0 {
        Ok(NetnsCookie(cookie))
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn two_sockets_of_one_namespace_have_one_cookie() {
        let a = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let b = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let cookie = netns_cookie(a.as_fd()).unwrap();
        assert_ne!(cookie.0, 0);
        assert_eq!(cookie, netns_cookie(b.as_fd()).unwrap());
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(netns_cookie(file.as_fd()).is_err());
    }
}

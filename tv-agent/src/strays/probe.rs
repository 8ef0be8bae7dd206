//! Whether this kernel can tell what a look needs, tried out on a connection to ourselves.

use std::net::{Ipv4Addr, TcpListener};

use crate::diag::{self, Protocol};

/// What was found; `Err` with what is wrong and how to mend it.
///
/// # Errors
/// When connections that go past the agent would not be noticed, or not be explained.
pub fn probe() -> Result<&'static str, (String, &'static str)> {
    const MODULES: &str = "load the modules inet_diag and tcp_diag (CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG)";
    let asker =
        diag::open().map_err(|error| (format!("the kernel cannot list connections: {error}"), MODULES))?;
    let tried = || -> std::io::Result<_> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let to = listener.local_addr()?;
        let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        client.connect(&to.into())?;
        Ok((to.port(), listener, client))
    };
    let (port, _listener, _client) = tried().map_err(|error| {
        let detail = format!("cannot be tried, for nothing can be connected on 127.0.0.1: {error}");
        (detail, "bring loopback up: ip link set lo up")
    })?;
    let answer = diag::established(&asker, Protocol::Tcp, &(port..=port), 1).map_err(|error| {
        (
            format!("the kernel cannot list TCP connections: {error}"),
            MODULES,
        )
    })?;
    match answer.connections.first() {
        None => Err((
            "the kernel does not list a connection that is there".to_owned(),
            MODULES,
        )),
        Some(found) if found.cgroup.is_none() => Ok(
            "connections that go past the agent are noticed; why is not known (the kernel tells no socket's cgroup: \
             Linux 5.8, CONFIG_SOCK_CGROUP_DATA)",
        ),
        Some(_) => Ok("connections that go past the agent are noticed"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_kernel_lists_connections() {
        super::probe().unwrap();
    }
}

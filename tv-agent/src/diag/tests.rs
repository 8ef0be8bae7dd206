//! Against the kernel, and against bytes that no kernel sends.

use super::*;
use std::net::{TcpListener, TcpStream, UdpSocket};

/// The connections towards `port`, over the whole way through the kernel.
fn towards(port: u16) -> Vec<Connection> {
    let answer = established(&open().unwrap(), Protocol::Tcp, &(port..=port), 100).unwrap();
    assert!(!answer.truncated);
    answer.connections
}

#[test]
fn a_connection_is_found_with_its_inode_user_and_cgroup() {
    for at in ["127.0.0.1:0", "[::1]:0"] {
        let Ok(listener) = TcpListener::bind(at) else {
            eprintln!("skipped {at}: no such address here");
            continue;
        };
        let to = listener.local_addr().unwrap();
        assert_eq!(towards(to.port()), []);
        let client = TcpStream::connect(to).unwrap();
        let found = towards(to.port());
        let [connection] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            (connection.local, connection.peer),
            (client.local_addr().unwrap(), to)
        );
        let link = std::fs::read_link(format!("/proc/self/fd/{}", client.as_raw_fd())).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{}]", connection.inode));
        assert_eq!(connection.uid, nix::unistd::geteuid().as_raw());
        assert_ne!(connection.cookie, 0);
    }
}

#[test]
fn a_connected_udp_socket_is_found_and_another_is_not() {
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = host.local_addr().unwrap();
    let (client, idle) = (
        UdpSocket::bind("127.0.0.1:0").unwrap(),
        UdpSocket::bind("127.0.0.1:0").unwrap(),
    );
    client.connect(to).unwrap();
    idle.send_to(b"x", to).unwrap();
    let found = established(&open().unwrap(), Protocol::Udp, &(to.port()..=to.port()), 100).unwrap();
    let locals: Vec<_> = found
        .connections
        .iter()
        .map(|one| (one.protocol, one.local))
        .collect();
    assert_eq!(locals, [(Protocol::Udp, client.local_addr().unwrap())]);
}

#[test]
fn a_mapped_address_is_given_as_ipv4() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mapped: SocketAddr = format!("[::ffff:127.0.0.1]:{port}").parse().unwrap();
    let Ok(_client) = TcpStream::connect(mapped) else {
        eprintln!("skipped: no IPv6 here");
        return;
    };
    assert_eq!(towards(port)[0].peer, listener.local_addr().unwrap());
}

#[test]
fn more_than_asked_for_is_truncated() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let _clients: Vec<_> = (0..5).map(|_| TcpStream::connect(to).unwrap()).collect();
    let answer = established(&open().unwrap(), Protocol::Tcp, &(to.port()..=to.port()), 4).unwrap();
    assert_eq!((answer.connections.len(), answer.truncated), (4, true));
    let all = established(&open().unwrap(), Protocol::Tcp, &(to.port()..=to.port()), 5).unwrap();
    assert_eq!((all.connections.len(), all.truncated), (5, false));
}

fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend([0; 10]);
    bytes.extend(body);
    bytes
}

#[test]
fn a_message_is_read_field_by_field() {
    let mut body = vec![AF_INET, 1, 0, 0];
    body.extend(40_000u16.to_be_bytes());
    body.extend(443u16.to_be_bytes());
    body.extend([10, 0, 0, 1]);
    body.extend([0; 12]);
    body.extend([192, 0, 2, 20]);
    body.extend([0; 12]);
    body.extend(0u32.to_ne_bytes());
    body.extend(7u32.to_ne_bytes());
    body.extend(1u32.to_ne_bytes());
    body.extend([0; 12]);
    body.extend(1000u32.to_ne_bytes());
    body.extend(4711u32.to_ne_bytes());
    assert_eq!(body.len(), ANSWER);
    let expected = Connection {
        protocol: Protocol::Tcp,
        local: "10.0.0.1:40000".parse().unwrap(),
        peer: "192.0.2.20:443".parse().unwrap(),
        inode: 4711,
        cookie: (1 << 32) + 7,
        uid: 1000,
        cgroup: None,
    };
    assert_eq!(connection(&body, Protocol::Tcp), Some(expected.clone()));
    // An attribute of odd length before the one that is looked for.
    let mut attributes = body.clone();
    attributes.extend([5, 0, 8, 0, 1, 0, 0, 0]);
    attributes.extend([12, 0, 21, 0]);
    attributes.extend(99u64.to_ne_bytes());
    let with_cgroup = Connection {
        cgroup: Some(99),
        ..expected.clone()
    };
    assert_eq!(connection(&attributes, Protocol::Tcp), Some(with_cgroup));

    let mut datagram = message(SOCK_DIAG_BY_FAMILY, &body);
    datagram.extend(message(77, b"else"));
    datagram.extend(message(NLMSG_ERROR, &(-2i32).to_ne_bytes()));
    datagram.extend(message(NLMSG_DONE, &[0; 4]));
    let read = [Message::Connection(expected), Message::Failed(2), Message::Done];
    assert_eq!(messages(&datagram, Protocol::Tcp), read);
}

#[test]
fn what_is_cut_off_is_no_connection() {
    let mut body = vec![0; ANSWER + 12];
    body[0] = AF_INET6;
    body[ANSWER..ANSWER + 4].copy_from_slice(&[12, 0, 21, 0]);
    let whole = message(SOCK_DIAG_BY_FAMILY, &body);
    assert_eq!(messages(&whole, Protocol::Tcp).len(), 1);
    for length in 0..whole.len() {
        assert_eq!(messages(&whole[..length], Protocol::Tcp), [], "{length}");
    }
    for length in 0..ANSWER {
        assert_eq!(connection(&body[..length], Protocol::Tcp), None, "{length}");
    }
    // A length that is too small would never end.
    for length in 0..4u16 {
        let mut attribute = length.to_ne_bytes().to_vec();
        attribute.extend([21, 0, 0, 0]);
        assert_eq!(cgroup(&attribute), None, "{length}");
    }
    assert_eq!(messages(&[0; 64], Protocol::Tcp), []);
    body[0] = 77;
    assert_eq!(connection(&body, Protocol::Tcp), None, "no such family");
}

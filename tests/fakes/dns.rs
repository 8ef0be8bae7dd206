//! The name server answers what a resolver asks, over UDP, and over TCP when the answer is long.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tv_tests::fakes::dns::Dns;

fn ask(dns: &Dns, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket.send_to(&query(name, kind), dns.addr()).unwrap();
    let mut buffer = [0u8; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn addresses(message: &Message) -> Vec<IpAddr> {
    message
        .answers
        .iter()
        .filter_map(|record| record.data.ip_addr())
        .collect()
}

#[test]
fn answers_by_family_and_nxdomain() {
    let dns = Dns::start("127.0.0.1:0".parse().unwrap()).unwrap();
    let (v4, v6): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap());
    dns.set("API.github.com.", &[v4, v6]);
    let a = ask(&dns, "api.GITHUB.com.", RecordType::A);
    assert_eq!((a.metadata.id, addresses(&a)), (7, vec![v4]));
    assert_eq!(addresses(&ask(&dns, "api.github.com.", RecordType::AAAA)), [v6]);
    let none = ask(&dns, "api.github.com.", RecordType::HTTPS);
    assert_eq!(
        (none.metadata.response_code, none.answers.len()),
        (ResponseCode::NoError, 0)
    );
    let unknown = ask(&dns, "nowhere.example.", RecordType::A);
    assert_eq!(unknown.metadata.response_code, ResponseCode::NXDomain);
    let questions = dns.questions();
    let log: Vec<_> = questions
        .iter()
        .map(|q| (q.name.as_str(), q.kind.as_str()))
        .collect();
    assert_eq!(log[0], ("api.github.com", "A"));
    assert_eq!((questions.len(), log[3]), (4, ("nowhere.example", "A")));
}

#[test]
fn a_long_answer_is_truncated_and_comes_over_tcp() {
    let dns = Dns::start("127.0.0.1:0".parse().unwrap()).unwrap();
    let many: Vec<IpAddr> = (1..=60).map(|n| Ipv4Addr::new(192, 0, 2, n).into()).collect();
    dns.set("many.example", &many);
    assert!(ask(&dns, "many.example.", RecordType::A).metadata.truncation);
    let mut stream = TcpStream::connect(dns.addr()).unwrap();
    let query = query("many.example.", RecordType::A);
    stream
        .write_all(&u16::try_from(query.len()).unwrap().to_be_bytes())
        .unwrap();
    stream.write_all(&query).unwrap();
    let mut length = [0u8; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0u8; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer).unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(addresses(&answer), many);
    assert_eq!(dns.questions()[1].transport, "tcp");
}

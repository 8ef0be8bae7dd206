//! A name server for the fakes' hosts: A and AAAA, NXDOMAIN for the rest, over UDP and TCP.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;

use super::lock;
use super::server;

/// Answers are kept this long by clients, seconds.
const TTL: u32 = 30;
/// Answers longer than this go over TCP where the client does not say more (RFC 1035 section 4.2.1), bytes.
const UDP_BYTES: usize = 512;

/// A running name server.
pub struct Dns {
    runtime: Option<Runtime>,
    addr: SocketAddr,
    zone: Arc<Zone>,
}

/// A question that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Lower case, without the trailing dot.
    pub name: String,
    /// `A`, `AAAA`, `HTTPS`…
    pub kind: String,
    /// `udp` or `tcp`.
    pub transport: &'static str,
}

#[derive(Default)]
struct Zone {
    names: Mutex<HashMap<String, Vec<IpAddr>>>,
    aliases: Mutex<HashMap<String, Name>>,
    questions: Mutex<Vec<Question>>,
}

impl Dns {
    /// Listens on `addr` (port 0: any), UDP and TCP on the same port.
    pub fn start(addr: SocketAddr) -> io::Result<Self> {
        let runtime = server::runtime("fake-dns")?;
        let zone = Arc::new(Zone::default());
        let udp = std::net::UdpSocket::bind(addr)?;
        let addr = udp.local_addr()?;
        let tcp = std::net::TcpListener::bind(addr)?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let guard = runtime.enter();
        runtime.spawn(serve_udp(UdpSocket::from_std(udp)?, zone.clone()));
        runtime.spawn(serve_tcp(TcpListener::from_std(tcp)?, zone.clone()));
        drop(guard);
        Ok(Self {
            runtime: Some(runtime),
            addr,
            zone,
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sets the addresses of `name`.
    pub fn set(&self, name: &str, addrs: &[IpAddr]) {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        lock(&self.zone.names).insert(name, addrs.to_vec());
    }

    /// `name` is an alias of `target` (CNAME), whose addresses come in the same answer.
    ///
    /// # Panics
    /// When `target` is no name.
    pub fn alias(&self, name: &str, target: &str) {
        let target = Name::from_ascii(target).expect("a name");
        lock(&self.zone.aliases).insert(name.to_ascii_lowercase(), target);
    }

    pub fn questions(&self) -> Vec<Question> {
        lock(&self.zone.questions).clone()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        server::stop(self.runtime.take());
    }
}

async fn serve_udp(socket: UdpSocket, zone: Arc<Zone>) {
    let mut buffer = vec![0u8; 4096];
    loop {
        // A client that is gone shows up as an error of the next read (ICMP); the socket stays good.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        if let Some(answer) = zone.answer(&buffer[..length], "udp") {
            socket.send_to(&answer, peer).await.ok();
        }
    }
}

async fn serve_tcp(listener: TcpListener, zone: Arc<Zone>) {
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            let zone = zone.clone();
            // A broken connection ends itself.
            tokio::spawn(async move { converse(stream, &zone).await.ok() });
        }
    }
}

async fn converse(mut stream: TcpStream, zone: &Zone) -> io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut query = vec![0u8; length.into()];
        stream.read_exact(&mut query).await?;
        let Some(answer) = zone.answer(&query, "tcp") else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream
            .write_all(&[&length.to_be_bytes()[..], &answer].concat())
            .await?;
    }
}

impl Zone {
    fn answer(&self, query: &[u8], transport: &'static str) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let mut response = Message::response(query.metadata.id, OpCode::Query);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        for question in &query.queries {
            response.add_query(question.clone());
            let kind = question.query_type();
            let name = question
                .name()
                .to_ascii()
                .trim_end_matches('.')
                .to_ascii_lowercase();
            lock(&self.questions).push(Question {
                name: name.clone(),
                kind: kind.to_string(),
                transport,
            });
            let alias = lock(&self.aliases).get(&name).cloned();
            if let Some(target) = &alias {
                let data = RData::CNAME(CNAME(target.clone()));
                response.add_answer(Record::from_rdata(question.name().clone(), TTL, data));
            }
            let owner = alias.unwrap_or_else(|| question.name().clone());
            let name = owner.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            match lock(&self.names).get(&name) {
                Some(addrs) => {
                    response.add_answers(addrs.iter().filter_map(|ip| record(&owner, kind, *ip)));
                }
                None => response.metadata.response_code = ResponseCode::NXDomain,
            }
        }
        let room = query
            .edns
            .as_ref()
            .map_or(UDP_BYTES, |edns| edns.max_payload().into())
            .max(UDP_BYTES);
        let bytes = response.to_vec().ok()?;
        if transport == "udp" && bytes.len() > room {
            return response.truncate().to_vec().ok();
        }
        Some(bytes)
    }
}

fn record(name: &Name, kind: RecordType, ip: IpAddr) -> Option<Record> {
    let data = match (kind, ip) {
        (RecordType::A, IpAddr::V4(v4)) => RData::A(v4.into()),
        (RecordType::AAAA, IpAddr::V6(v6)) => RData::AAAA(v6.into()),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), TTL, data))
}

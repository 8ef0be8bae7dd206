//! Stage 6: the first bytes of a connection, up to a whole ClientHello: bounded in bytes and in time.
//!
//! The only parser is rustls' `Acceptor`, so what is decided on is what the handshake will see.

use std::io::Cursor;
use std::time::Duration;

use rustls::InvalidMessage;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::{Instant, timeout_at};

use crate::addr::HostName;

/// TLS record type `handshake` (RFC 8446 §5.1): the first byte of every ClientHello.
const HANDSHAKE: u8 = 22;
/// Extension `encrypted_client_hello` (RFC 9849).
const ECH: u16 = 0xfe0d;

/// What of a ClientHello decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// None when there is no SNI, or one that is no DNS name.
    pub sni: Option<HostName>,
    /// Protocols that the client offers, in its order (RFC 7301).
    pub alpn: Vec<Vec<u8>>,
    /// The hello carries an encrypted_client_hello extension: real or GREASE, nobody can tell.
    pub ech: bool,
}

/// The first thing that a client said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    Hello(Hello),
    /// Bytes that are no TLS record.
    NotTls,
    /// TLS, but no ClientHello that rustls can read.
    Bad,
    /// More bytes than the cap without a whole ClientHello.
    TooLong,
    /// Some bytes of a ClientHello, but not all of it in time.
    TooSlow,
    /// Nothing at all in time: a protocol where the server speaks first, or a slow client.
    Silent,
    /// The client went away without a word.
    Closed,
}

/// Caps on reading, see `limits.rs`.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    pub bytes: usize,
    pub time: Duration,
}

/// Reads until the first word is known. Returns it with every byte read, to be replayed.
///
/// # Errors
/// When reading fails (a reset, say).
pub async fn read(io: &mut (impl AsyncRead + Unpin), caps: Caps) -> std::io::Result<(First, Vec<u8>)> {
    let deadline = Instant::now() + caps.time;
    let mut parser = Parser::default();
    let mut seen = Vec::with_capacity(2048);
    loop {
        let room = caps.bytes.saturating_sub(seen.len());
        if room == 0 {
            return Ok((First::TooLong, seen));
        }
        let before = seen.len();
        // One read never takes more than what the cap leaves.
        let mut limited = (&mut *io).take(room as u64);
        match timeout_at(deadline, limited.read_buf(&mut seen)).await {
            Err(_) if seen.is_empty() => return Ok((First::Silent, seen)),
            Err(_) => return Ok((First::TooSlow, seen)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) if seen.is_empty() => return Ok((First::Closed, seen)),
            Ok(Ok(0)) => {
                return Ok((
                    if seen[0] == HANDSHAKE {
                        First::Bad
                    } else {
                        First::NotTls
                    },
                    seen,
                ));
            }
            Ok(Ok(_)) => {}
        }
        if let Some(mut first) = parser.feed(&seen[before..]) {
            if let First::Hello(hello) = &mut first {
                hello.ech = extension_types(&seen).is_some_and(|types| types.contains(&ECH));
            }
            return Ok((first, seen));
        }
    }
}

/// Bytes in, a first word out; None means more bytes are needed. Pure.
#[derive(Default)]
struct Parser {
    acceptor: Acceptor,
    started: bool,
}

impl Parser {
    fn feed(&mut self, bytes: &[u8]) -> Option<First> {
        if !self.started && bytes.first().is_some_and(|&b| b != HANDSHAKE) {
            return Some(First::NotTls);
        }
        self.started = true;
        let mut rest = Cursor::new(bytes);
        while (rest.position() as usize) < bytes.len() {
            // rustls refuses to take more once its own buffer is full of an unfinished message.
            if self.acceptor.read_tls(&mut rest).is_err() {
                return Some(First::TooLong);
            }
            match self.acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Some(First::Hello(Hello {
                        sni: hello.server_name().and_then(HostName::parse),
                        alpn: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                        ech: false,
                    }));
                }
                Err((rustls::Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge), _)) => {
                    return Some(First::TooLong);
                }
                Err(_) => return Some(First::Bad),
            }
        }
        None
    }
}

/// The extension types of a ClientHello that rustls has accepted; rustls does not show them all.
///
/// None when the bytes do not hold one whole hello, which cannot be after `accept`.
fn extension_types(records: &[u8]) -> Option<Vec<u16>> {
    // Records (RFC 8446 §5.1): type, version, length, fragment.
    let mut message = Vec::with_capacity(records.len());
    let mut rest = records;
    while let [HANDSHAKE, _, _, high, low, tail @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        message.extend_from_slice(tail.get(..length.min(tail.len()))?);
        rest = tail.get(length..).unwrap_or_default();
    }
    // msg_type, length, legacy_version, random, then session id, cipher suites, compression (§4.1.2).
    let mut hello = Fields(message.get(4 + 2 + 32..)?);
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    let mut extensions = Fields(hello.vector(2)?);
    let mut types = Vec::new();
    while !extensions.0.is_empty() {
        types.push(u16::try_from(extensions.number(2)?).ok()?);
        extensions.vector(2)?;
    }
    Some(types)
}

/// A cursor over length-prefixed fields.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn number(&mut self, width: usize) -> Option<usize> {
        let (head, tail) = self.0.split_at_checked(width)?;
        self.0 = tail;
        Some(head.iter().fold(0, |n, &b| n << 8 | usize::from(b)))
    }

    fn vector(&mut self, width: usize) -> Option<&'a [u8]> {
        let length = self.number(width)?;
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }
}

#[cfg(test)]
mod tests;

//! A fresh connection in the protocol that TLS settled.

use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};

use super::pool::{Connection, Http2};
use crate::limits;

pub(super) type Stream = tokio_rustls::client::TlsStream<tokio::net::TcpStream>;

/// HTTP/2, with windows that bound what one slow reader can make us hold.
pub(super) async fn http2(stream: Stream) -> Result<Connection, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::H2_WINDOW)
        .initial_connection_window_size(limits::H2_CONNECTION_WINDOW)
        .max_header_list_size(limits::HEADER_BYTES as u32)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(10))
        .handshake(TokioIo::new(stream))
        .await?;
    // Its errors come out at the requests that it breaks.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(Connection::Http2(Http2::new(sender)))
}

/// HTTP/1.1; header names go on in the case in which they came.
pub(super) async fn http1(stream: Stream) -> Result<Connection, hyper::Error> {
    let (sender, connection) = hyper::client::conn::http1::Builder::new()
        .preserve_header_case(true)
        .max_headers(limits::HEADER_FIELDS)
        .max_buf_size(limits::HEADER_BYTES * 2)
        .handshake(TokioIo::new(stream))
        .await?;
    let connection = connection.with_upgrades();
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    Ok(Connection::Http1(sender))
}

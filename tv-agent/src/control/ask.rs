//! The other end of the admin socket: what commands ask the daemon.

use std::path::Path;

use bytes::Bytes;
use http::{Method, Request, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::Error;

/// Asks the agent at `path`, and gives each line of its answer to `each` until that says stop.
///
/// # Errors
/// When nobody answers, or not as expected.
pub async fn ask<T: serde::de::DeserializeOwned>(
    path: &Path,
    method: Method,
    target: &str,
    mut each: impl FnMut(T) -> bool,
) -> Result<(), Error> {
    use http_body_util::BodyExt as _;
    let http = |source| Error::Http {
        path: path.to_owned(),
        source,
    };
    let stream = UnixStream::connect(path).await.map_err(|source| Error::Nobody {
        path: path.to_owned(),
        source,
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.map_err(http)?;
    // Its error comes out at the request.
    let task = tokio::spawn(async move { connection.await.unwrap_or_default() });
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header(header::HOST, "tv-agent")
        .body(http_body_util::Empty::<Bytes>::new())
        .expect("a valid request");
    let response = sender.send_request(request).await.map_err(http)?;
    if !response.status().is_success() {
        return Err(Error::Refused {
            path: path.to_owned(),
            status: response.status(),
        });
    }
    let mut body = response.into_body();
    let mut rest = Vec::new();
    while let Some(frame) = body.frame().await {
        rest.extend_from_slice(&frame.map_err(http)?.into_data().unwrap_or_default());
        while let Some(end) = rest.iter().position(|&b| b == b'\n') {
            let value = serde_json::from_slice(&rest[..end]).map_err(|source| Error::Answer {
                path: path.to_owned(),
                source,
            })?;
            rest.drain(..=end);
            if !each(value) {
                task.abort();
                return Ok(());
            }
        }
    }
    Ok(())
}

//! The origin, dialled while the client has not said anything yet, so that its think time and the way to the origin
//! pass together. At most one connection per client, and it is used for whatever is decided.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::addr::OriginAddr;
use crate::dial::{self, Dialer};
use crate::tunnel::Speaker;

/// A connection to the origin: none, on its way, or there. Dropping it ends the attempt.
#[derive(Default)]
pub(super) enum Early {
    #[default]
    None,
    Dialling(JoinSet<Result<TcpStream, dial::Error>>),
    There(TcpStream),
}

/// Waits for the first word of either side, at most `limit`; dials after `patience` without one.
///
/// # Errors
/// When the origin cannot be reached, which is so whatever the client would have said.
pub(super) async fn first_word(
    client: &TcpStream,
    dialer: &Dialer,
    origin: OriginAddr,
    patience: Duration,
    limit: Duration,
) -> Result<(Speaker, Early), dial::Error> {
    let deadline = Instant::now() + limit;
    let mut byte = [0];
    // Not readable(), which a fresh socket is said to be before anybody has looked.
    if timeout(patience, client.peek(&mut byte)).await.is_ok() {
        return Ok((Speaker::Client, Early::None));
    }
    let mut dialling = JoinSet::new();
    let dialer = dialer.clone();
    dialling.spawn(async move { dialer.connect(origin).await });
    let connected = tokio::select! {
        biased;
        _ = client.peek(&mut byte) => return Ok((Speaker::Client, Early::Dialling(dialling))),
        dialled = dialling.join_next() => joined(dialled)?,
        () = sleep_until(deadline) => return Ok((Speaker::Nobody, Early::Dialling(dialling))),
    };
    let mut other = [0];
    // A client that went away is told by its hello; an origin that closes has spoken too.
    let speaker = tokio::select! {
        biased;
        _ = client.peek(&mut byte) => Speaker::Client,
        _ = connected.peek(&mut other) => Speaker::Origin,
        () = sleep_until(deadline) => Speaker::Nobody,
    };
    Ok((speaker, Early::There(connected)))
}

impl Early {
    /// The connection, dialled now if it was not before.
    pub(super) async fn connect(self, dialer: &Dialer, origin: OriginAddr) -> Result<TcpStream, dial::Error> {
        match self {
            Self::None => dialer.connect(origin).await,
            Self::Dialling(mut dialling) => joined(dialling.join_next().await),
            Self::There(stream) => Ok(stream),
        }
    }

    /// The connection, if it was dialled and the origin has neither closed it nor spoken, as TLS origins do not.
    pub(super) async fn unused(self) -> Result<Option<TcpStream>, dial::Error> {
        let stream = match self {
            Self::None => return Ok(None),
            Self::Dialling(mut dialling) => joined(dialling.join_next().await)?,
            Self::There(stream) => stream,
        };
        let silent = stream
            .try_read(&mut [0])
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        Ok(silent.then_some(stream))
    }
}

/// The task neither panics nor is aborted before its set is dropped.
fn joined(
    dialled: Option<Result<Result<TcpStream, dial::Error>, tokio::task::JoinError>>,
) -> Result<TcpStream, dial::Error> {
    dialled.expect("one task").expect("the dial runs to its end")
}

//! Stage 8: a connection that is not ours to open: bytes copied to the origin, untouched.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::dial::{self, Dialer, reset_on_close};
use crate::redirect::Recorded;

/// One direction's buffer. Two per tunnel; 16 KiB is one TLS record.
const BUFFER: usize = 16 * 1024;

/// How a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Dial(#[from] dial::Error),
    #[error("the tunnel broke off")]
    Broken(#[source] io::Error),
    #[error("no byte went through the tunnel for {} s", limit.as_secs())]
    Idle { limit: Duration },
}

/// Bytes in each direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub to_origin: u64,
    pub to_workload: u64,
}

/// Dials the origin, sends `head` (what was read of the client so far) and copies until both sides are done.
///
/// A half-close goes on to the other side; an error on either side is a reset on the other.
pub async fn run(
    mut client: TcpStream,
    recorded: &Recorded,
    head: &[u8],
    dialer: &Dialer,
    idle: Duration,
) -> Result<Counts, Error> {
    let mut origin = match dialer.connect(recorded.origin).await {
        Ok(origin) => origin,
        Err(error) => {
            reset_on_close(&client);
            return Err(error.into());
        }
    };
    let copied = copy(&mut client, &mut origin, head, idle).await;
    if copied.is_err() {
        reset_on_close(&client);
        reset_on_close(&origin);
    }
    copied
}

/// Who speaks first on a connection whose client has said nothing yet.
#[derive(Debug, PartialEq, Eq)]
pub enum Speaker {
    Client,
    Origin,
    /// Neither within the idle limit, or the client is gone.
    Nobody,
}

/// Waits with an open connection to the origin for the first byte of either side, without taking it.
///
/// A client that was merely slow must still be looked at: its hello may name a routed host.
pub async fn first_speaker(client: &TcpStream, origin: &TcpStream, idle: Duration) -> Speaker {
    let (mut byte, mut other) = ([0], [0]);
    tokio::select! {
        biased;
        said = client.peek(&mut byte) => match said {
            Ok(1..) => Speaker::Client,
            _ => Speaker::Nobody,
        },
        // An origin that closes has spoken too: the copy carries that over.
        _ = origin.peek(&mut other) => Speaker::Origin,
        () = sleep(idle) => Speaker::Nobody,
    }
}

/// Copies between two connected streams, `head` first.
pub async fn copy(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    origin: &mut (impl AsyncRead + AsyncWrite + Unpin),
    head: &[u8],
    idle: Duration,
) -> Result<Counts, Error> {
    origin.write_all(head).await.map_err(Error::Broken)?;
    let mut client = Watched::new(client);
    let activity = client.activity.clone();
    let copied = tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, origin, BUFFER, BUFFER) => copied,
        () = idle_for(activity, idle) => return Err(Error::Idle { limit: idle }),
    };
    let (to_origin, to_workload) = copied.map_err(Error::Broken)?;
    Ok(Counts {
        to_origin: to_origin + head.len() as u64,
        to_workload,
    })
}

async fn idle_for(activity: watched::Activity, limit: Duration) {
    loop {
        let quiet = activity.last().elapsed();
        if quiet >= limit {
            return;
        }
        sleep(limit - quiet).await;
    }
}

use watched::Watched;

/// A stream that remembers when a byte last went through it.
mod watched {
    use super::*;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    #[derive(Clone)]
    pub struct Activity(Arc<Mutex<Instant>>);

    impl Activity {
        pub fn last(&self) -> Instant {
            *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        fn touch(&self) {
            *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
        }
    }

    pub struct Watched<'a, I> {
        io: &'a mut I,
        pub activity: Activity,
    }

    impl<'a, I> Watched<'a, I> {
        pub fn new(io: &'a mut I) -> Self {
            Self {
                io,
                activity: Activity(Arc::new(Mutex::new(Instant::now()))),
            }
        }
    }

    impl<I: AsyncRead + Unpin> AsyncRead for Watched<'_, I> {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            let polled = Pin::new(&mut *self.io).poll_read(cx, buf);
            if polled.is_ready() {
                self.activity.touch();
            }
            polled
        }
    }

    impl<I: AsyncWrite + Unpin> AsyncWrite for Watched<'_, I> {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let polled = Pin::new(&mut *self.io).poll_write(cx, buf);
            if polled.is_ready() {
                self.activity.touch();
            }
            polled
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.io).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut *self.io).poll_shutdown(cx)
        }
    }
}

#[cfg(test)]
mod tests;

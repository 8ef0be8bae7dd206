//! Stage 8: a connection that is not ours to open: bytes copied to the origin, untouched.

use std::io;
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes,
};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::time::{Instant, sleep};

use crate::dial::reset_on_close;

mod pipe;

use pipe::Left;
pub use pipe::Pipes;

/// One direction's buffer. Two per tunnel; 16 KiB is one TLS record.
const BUFFER: usize = 16 * 1024;
/// A stream is long after so many bytes in a row, and goes through a pipe from then on.
const LONG: u64 = 256 * 1024;

/// How a tunnel ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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

/// Sends `head` (what was read of the client so far) to the origin and copies until both sides are done.
///
/// A half-close goes on to the other side; an error on either side is a reset on the other.
pub async fn run(
    mut client: TcpStream,
    mut origin: TcpStream,
    head: &[u8],
    pipes: &Pipes,
    idle: Duration,
) -> Result<Counts, Error> {
    let relayed = relay(&mut client, &mut origin, head, pipes, idle).await;
    if relayed.is_err() {
        reset_on_close(&client);
        reset_on_close(&origin);
    }
    relayed
}

async fn relay(
    client: &mut TcpStream,
    origin: &mut TcpStream,
    head: &[u8],
    pipes: &Pipes,
    idle: Duration,
) -> Result<Counts, Error> {
    let activity = Activity::default();
    let (mut from_client, mut to_client) = client.split();
    let (mut from_origin, mut to_origin) = origin.split();
    let upwards = async {
        to_origin.write_all(head).await?;
        let copied = carry(&mut from_client, &mut to_origin, &activity, pipes).await?;
        Ok(copied + head.len() as u64)
    };
    let downwards = carry(&mut from_origin, &mut to_client, &activity, pipes);
    let both = async { tokio::try_join!(upwards, downwards) };
    let (to_origin, to_workload) = tokio::select! {
        counts = both => counts.map_err(Error::Broken)?,
        () = idle_for(&activity, idle) => return Err(Error::Idle { limit: idle }),
    };
    Ok(Counts {
        to_origin,
        to_workload,
    })
}

/// One direction to its end, which it passes on. Returns the number of bytes.
async fn carry(
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    activity: &Activity,
    pipes: &Pipes,
) -> io::Result<u64> {
    let mut copied = 0;
    loop {
        let target = copied + LONG;
        if copy_up_to(target, &mut copied, from, to, activity).await? {
            break;
        }
        let Some(pipe) = pipes.take() else { continue };
        let left = pipe
            .carry(from.as_ref(), to.as_ref(), activity, &mut copied)
            .await?;
        if left == Left::End {
            break;
        }
    }
    to.shutdown().await?;
    Ok(copied)
}

/// Copies until `copied` reaches `target`; true: the stream ended before.
async fn copy_up_to(
    target: u64,
    copied: &mut u64,
    from: &mut ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    activity: &Activity,
) -> io::Result<bool> {
    let mut buffer = vec![0; BUFFER];
    while *copied < target {
        let got = from.read(&mut buffer).await?;
        if got == 0 {
            return Ok(true);
        }
        activity.touch();
        to.write_all(&buffer[..got]).await?;
        activity.touch();
        *copied += got as u64;
    }
    Ok(false)
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

/// Copies between any two streams, such as those of a protocol that was switched to; `head` first.
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
        () = idle_for(&activity, idle) => return Err(Error::Idle { limit: idle }),
    };
    let (to_origin, to_workload) = copied.map_err(Error::Broken)?;
    Ok(Counts {
        to_origin: to_origin + head.len() as u64,
        to_workload,
    })
}

async fn idle_for(activity: &Activity, limit: Duration) {
    loop {
        let quiet = activity.last().elapsed();
        if quiet >= limit {
            return;
        }
        sleep(limit - quiet).await;
    }
}

use watched::{Activity, Watched};

/// A stream that remembers when a byte last went through it.
mod watched {
    use super::*;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    #[derive(Clone)]
    pub struct Activity(Arc<Mutex<Instant>>);

    impl Default for Activity {
        fn default() -> Self {
            Self(Arc::new(Mutex::new(Instant::now())))
        }
    }

    impl Activity {
        pub fn last(&self) -> Instant {
            *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
        }

        pub fn touch(&self) {
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
                activity: Activity::default(),
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

//! No more is read from the shared cache than what was asked for may take: the client's reader has no bound of its own.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::limits::SHARED_REPLY_BYTES;

/// Answers that may come although nobody waits for them any longer.
const LATE: usize = 4;

/// What may still come over one connection.
#[derive(Clone, Default)]
pub struct Meter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    asked: AtomicUsize,
    allowed: Mutex<usize>,
}

impl Meter {
    /// One more answer is waited for, until this is dropped.
    pub fn expect(&self) -> Expected {
        let asked = self.0.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let mut allowed = self.allowed();
        *allowed = (*allowed + SHARED_REPLY_BYTES).min(most(asked));
        Expected(self.clone())
    }

    /// Whether `count` more bytes may have come.
    fn take(&self, count: usize) -> bool {
        let mut allowed = self.allowed();
        let left = allowed.checked_sub(count);
        *allowed = left.unwrap_or(0);
        left.is_some()
    }

    fn allowed(&self) -> std::sync::MutexGuard<'_, usize> {
        self.0.allowed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn most(asked: usize) -> usize {
    (asked + LATE) * SHARED_REPLY_BYTES
}

pub struct Expected(Meter);

impl Drop for Expected {
    fn drop(&mut self) {
        let asked = self.0.0.asked.fetch_sub(1, Ordering::Relaxed) - 1;
        let mut allowed = self.0.allowed();
        *allowed = (*allowed).min(most(asked));
    }
}

/// A connection that ends when more comes than was asked for.
pub struct Metered<S> {
    pub stream: S,
    pub meter: Meter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if !self.meter.take(buffer.filled().len() - before) {
            // An error comes with nothing read.
            buffer.set_filled(before);
            let text = "the shared cache sends more than it was asked for";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[test]
    fn what_was_not_used_of_an_answer_is_not_kept_for_ever() {
        let meter = Meter::default();
        for _ in 0..1000 {
            drop(meter.expect());
        }
        assert!(meter.take(most(0)));
        assert!(!meter.take(1));
        let expected = meter.expect();
        assert!(meter.take(SHARED_REPLY_BYTES));
        assert!(!meter.take(1));
        drop(expected);
    }

    #[tokio::test]
    async fn a_server_that_sends_without_end_is_cut_off() {
        let (ours, mut theirs) = tokio::io::duplex(64 * 1024);
        let flood = tokio::spawn(async move { while theirs.write_all(&[b'x'; 4096]).await.is_ok() {} });
        let meter = Meter::default();
        let _expected = meter.expect();
        let mut read = Vec::new();
        let mut metered = Metered { stream: ours, meter };
        let error = metered.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert!(read.len() <= SHARED_REPLY_BYTES, "{}", read.len());
        drop(metered);
        flood.await.unwrap();
    }
}

//! What a workload does once it has our certificate: whether it ever says something.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{distrust, is_close};
use crate::trust::Sign;

/// What a client did after the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It sent data: it believes the certificate. That the handshake is finished says less: some clients look at the
    /// certificate afterwards.
    Spoke,
    /// It went away without a word.
    Left(Sign),
}

type Told = Box<dyn FnOnce(Word) + Send>;

/// A stream whose first word is told, once; nothing is when it just stays silent.
pub struct Heard<I> {
    io: I,
    told: Option<Told>,
    since: Instant,
    /// Who leaves later than this after the handshake had other reasons.
    limit: Duration,
}

impl<I> Heard<I> {
    pub(super) fn new(io: I, limit: Duration) -> Self {
        Self {
            io,
            told: None,
            since: Instant::now(),
            limit,
        }
    }

    /// Calls `told` with the first word.
    pub(super) fn tell(&mut self, told: Told) {
        self.told = Some(told);
    }

    fn is(&mut self, word: Word) {
        if let Some(told) = self.told.take()
            && (word == Word::Spoke || self.since.elapsed() <= self.limit)
        {
            told(word);
        }
    }

    /// Only what the other side did.
    fn failed(&mut self, error: &io::Error) {
        match distrust(error) {
            Some(alert) => self.is(Word::Left(Sign::Alert(alert))),
            None if is_close(error) => self.is(Word::Left(Sign::Unused)),
            None => self.told = None,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Heard<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = ready!(Pin::new(&mut self.io).poll_read(cx, buf));
        if self.told.is_some() {
            match &read {
                Ok(()) if buf.filled().len() > before => self.is(Word::Spoke),
                Ok(()) if room > 0 => self.is(Word::Left(Sign::Unused)),
                Ok(()) => {}
                Err(error) => self.failed(error),
            }
        }
        Poll::Ready(read)
    }
}

impl<I: AsyncWrite + Unpin> Heard<I> {
    fn noted<T>(&mut self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let (Poll::Ready(Err(error)), true) = (&done, self.told.is_some()) {
            self.failed(error);
        }
        done
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Heard<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write(cx, buf);
        self.noted(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.noted(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.io).poll_flush(cx);
        self.noted(done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // We are the ones who leave: what comes of it says nothing of the client.
        self.told = None;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// A stream that counts what we have sent.
pub struct Sent<I> {
    io: I,
    bytes: usize,
}

impl<I> Sent<I> {
    pub(super) fn new(io: I) -> Self {
        Self { io, bytes: 0 }
    }

    /// Whether that was more than a HelloRetryRequest (RFC 8446 §4.1.4: 100 bytes or so, an alert 7): two
    /// certificates take a thousand.
    pub(super) fn has_certificate(&self) -> bool {
        const WITHOUT: usize = 512;
        self.bytes > WITHOUT
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.bytes = self.bytes.saturating_add(*bytes);
        }
        written
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Sent<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Sent<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    fn heard(limit: Duration) -> (Heard<DuplexStream>, DuplexStream, Arc<Mutex<Vec<Word>>>) {
        let (ours, theirs) = duplex(64);
        let words = Arc::<Mutex<Vec<Word>>>::default();
        let mut heard = Heard::new(ours, limit);
        let told = words.clone();
        heard.tell(Box::new(move |word| told.lock().unwrap().push(word)));
        (heard, theirs, words)
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn the_first_word_is_told_once() {
        let (mut ours, mut theirs, words) = heard(LONG);
        theirs.write_all(b"GET").await.unwrap();
        ours.read_exact(&mut [0; 3]).await.unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert_eq!(*words.lock().unwrap(), [Word::Spoke]);
    }

    #[tokio::test]
    async fn who_leaves_without_a_word_is_told_of_whoever_notices_it() {
        for writes in [false, true] {
            let (mut ours, theirs, words) = heard(LONG);
            drop(theirs);
            if writes {
                ours.write_all(b"settings").await.unwrap_err();
            } else {
                assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
            }
            assert_eq!(*words.lock().unwrap(), [Word::Left(Sign::Unused)]);
        }
    }

    #[tokio::test]
    async fn who_leaves_late_or_is_left_is_not_told_of() {
        let (mut ours, theirs, words) = heard(Duration::ZERO);
        tokio::time::sleep(Duration::from_millis(2)).await;
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert!(words.lock().unwrap().is_empty());
        let (mut ours, theirs, words) = heard(LONG);
        ours.shutdown().await.unwrap();
        drop(theirs);
        assert_eq!(ours.read(&mut [0]).await.unwrap(), 0);
        assert!(words.lock().unwrap().is_empty());
    }
}

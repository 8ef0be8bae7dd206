//! Bodies on the data path: streamed frame by frame (trailers too), never collected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

/// A body that passes through, or a short one of our own.
pub struct Body {
    inner: Inner,
    /// Counts the exchange as running until the body is done with.
    _running: Option<Running>,
}

enum Inner {
    Passing(Incoming),
    Own(Option<Bytes>),
}

impl Body {
    pub fn passing(incoming: Incoming) -> Self {
        Self {
            inner: Inner::Passing(incoming),
            _running: None,
        }
    }

    pub fn own(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            inner: Inner::Own((!bytes.is_empty()).then_some(bytes)),
            _running: None,
        }
    }

    pub fn empty() -> Self {
        Self::own(Bytes::new())
    }

    pub fn holding(mut self, running: Running) -> Self {
        self._running = Some(running);
        self
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.inner {
            Inner::Passing(incoming) => Pin::new(incoming).poll_frame(cx),
            Inner::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Passing(incoming) => incoming.is_end_stream(),
            Inner::Own(bytes) => bytes.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Passing(incoming) => incoming.size_hint(),
            Inner::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
        }
    }
}

/// One running exchange in a count that others read; ends on drop.
pub struct Running(Arc<AtomicUsize>);

impl Running {
    pub fn start(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

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
    watch: Option<Box<Watch>>,
}

/// A copy of a short body, taken while it passes.
struct Watch {
    kept: Vec<u8>,
    limit: usize,
    told: Told,
}

type Told = Box<dyn FnOnce(&[u8]) + Send + Sync>;

enum Inner {
    Passing(Incoming),
    Own(Option<Bytes>),
}

impl Body {
    pub fn passing(incoming: Incoming) -> Self {
        Self {
            inner: Inner::Passing(incoming),
            _running: None,
            watch: None,
        }
    }

    pub fn own(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self {
            inner: Inner::Own((!bytes.is_empty()).then_some(bytes)),
            _running: None,
            watch: None,
        }
    }

    pub fn empty() -> Self {
        Self::own(Bytes::new())
    }

    /// Gives the whole body to `told` when its end has passed; never, when it is longer than `limit` bytes or
    /// breaks off. Nothing is held back for it.
    pub fn watched(mut self, limit: usize, told: impl FnOnce(&[u8]) + Send + Sync + 'static) -> Self {
        self.watch = Some(Box::new(Watch {
            kept: Vec::new(),
            limit,
            told: Box::new(told),
        }));
        self
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
        let polled = match &mut self.inner {
            Inner::Passing(incoming) => Pin::new(incoming).poll_frame(cx),
            Inner::Own(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
        };
        if self.watch.is_some() {
            // A reader need not ask for the end after the last frame, so it is looked for at once.
            let ended = self.is_end_stream();
            let watch = self.watch.take();
            self.watch = watch.and_then(|watch| watch.see(&polled, ended));
        }
        polled
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

impl Watch {
    /// What is still watched after a frame.
    fn see(
        mut self: Box<Self>,
        polled: &Poll<Option<Result<Frame<Bytes>, hyper::Error>>>,
        ended: bool,
    ) -> Option<Box<Self>> {
        match polled {
            Poll::Pending => return Some(self),
            Poll::Ready(Some(Err(_))) => return None,
            Poll::Ready(Some(Ok(frame))) => {
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if self.kept.len() + data.len() > self.limit {
                    return None;
                }
                self.kept.extend_from_slice(data);
                if !ended && !frame.is_trailers() {
                    return Some(self);
                }
            }
            Poll::Ready(None) => {}
        }
        (self.told)(&self.kept);
        None
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use http_body_util::BodyExt as _;

    use super::*;

    async fn seen(body: Body, limit: usize) -> (Vec<u8>, Option<Vec<u8>>) {
        let told = Arc::new(Mutex::new(None));
        let tell = told.clone();
        let body = body.watched(limit, move |bytes| *tell.lock().unwrap() = Some(bytes.to_vec()));
        let passed = body.collect().await.unwrap().to_bytes().to_vec();
        let told = told.lock().unwrap().take();
        (passed, told)
    }

    #[tokio::test]
    async fn a_short_body_is_told_at_its_end_and_a_long_one_never() {
        let whole = || b"{\"ok\":false}".to_vec();
        assert_eq!(seen(Body::own(whole()), 12).await, (whole(), Some(whole())));
        assert_eq!(seen(Body::own(whole()), 11).await, (whole(), None));
        assert_eq!(seen(Body::empty(), 0).await, (vec![], Some(vec![])));
    }

    #[tokio::test]
    async fn a_reader_that_stops_at_the_last_frame_has_seen_the_end() {
        let told = Arc::new(AtomicUsize::new(0));
        let tell = told.clone();
        let mut body = Body::own("x").watched(9, move |bytes| {
            tell.fetch_add(bytes.len(), Ordering::Relaxed);
        });
        assert!(body.frame().await.unwrap().is_ok());
        assert_eq!(told.load(Ordering::Relaxed), 1);
        assert!(body.frame().await.is_none());
        assert_eq!(told.load(Ordering::Relaxed), 1, "once");
    }

    #[tokio::test]
    async fn a_body_that_nobody_finishes_tells_nothing() {
        let told = Arc::new(AtomicUsize::new(0));
        let tell = told.clone();
        drop(Body::own("x").watched(9, move |_| {
            tell.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(told.load(Ordering::Relaxed), 0);
    }
}

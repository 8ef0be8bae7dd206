//! Wakes the thread that looks for namespaces, when it is to look elsewhere.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

/// Cheap to clone; all clones are one. Without descriptors left it is silent, and the clock wakes the thread.
#[derive(Clone, Default)]
pub struct Bell(Option<Arc<(UnixStream, UnixStream)>>);

impl Bell {
    pub fn new() -> Self {
        let pair = UnixStream::pair().and_then(|(near, far)| {
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            Ok((near, far))
        });
        Self(pair.ok().map(Arc::new))
    }

    pub fn ring(&self) {
        if let Some(ends) = &self.0 {
            // A full pipe rings as well.
            let _ = (&ends.0).write(&[0]);
        }
    }

    /// Readable when it rang.
    pub(super) fn heard_by(&self) -> Option<BorrowedFd<'_>> {
        self.0.as_ref().map(|ends| ends.1.as_fd())
    }

    pub(super) fn silence(&self) {
        if let Some(ends) = &self.0 {
            while (&ends.1).read(&mut [0; 64]).is_ok_and(|count| count > 0) {}
        }
    }
}

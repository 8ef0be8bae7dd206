//! Threads that step into a namespace for one errand and come back.
//!
//! Never a runtime's worker: whatever that did next would happen in the wrong namespace.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// An errand takes some microseconds.
const THREADS: usize = 2;

/// A few threads at home in the namespace that they were started from. Cheap to clone; they end with the last.
#[derive(Clone)]
pub struct Visitors {
    errands: Sender<Errand>,
    shared: Arc<Shared>,
}

struct Errand {
    door: Arc<OwnedFd>,
    /// Told whether it runs in the right place.
    act: Box<dyn FnOnce(io::Result<()>) + Send>,
}

struct Shared {
    /// Emptied when the last sender is gone, which ends the threads.
    queue: Arc<Mutex<Receiver<Errand>>>,
    home: Arc<OwnedFd>,
    running: Arc<AtomicUsize>,
}

impl Visitors {
    /// Call it in the agent's own namespace. Threads are started when they are needed.
    ///
    /// # Errors
    /// When /proc is not there.
    pub fn new() -> io::Result<Self> {
        let (errands, queue) = mpsc::channel();
        let shared = Shared {
            queue: Arc::new(Mutex::new(queue)),
            home: Arc::new(File::open("/proc/thread-self/ns/net")?.into()),
            running: Arc::default(),
        };
        Ok(Self {
            errands,
            shared: Arc::new(shared),
        })
    }

    /// Runs `errand`, which must not wait for anything, inside the namespace behind `door`.
    ///
    /// # Errors
    /// What `errand` says, or the kernel when it does not let us in.
    pub async fn visit<T: Send + 'static>(
        &self,
        door: Arc<OwnedFd>,
        errand: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        // One that could not come home, or panicked, has ended.
        while self.shared.running.load(Ordering::Relaxed) < THREADS {
            self.shared.hire()?;
        }
        let (reply, answer) = oneshot::channel();
        let act = Box::new(move |entered: io::Result<()>| {
            // Nobody waits any more when the connection has ended meanwhile.
            let _ = reply.send(entered.and_then(|()| errand()));
        });
        let gone = || io::Error::other("the thread that enters network namespaces has ended");
        self.errands.send(Errand { door, act }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

impl Visitors {
    /// Runs `errand` inside the namespace behind `door` on this very thread, which has to be one of its own.
    ///
    /// # Errors
    /// What `errand` says, or the kernel when it does not let us in.
    ///
    /// # Panics
    /// When the thread cannot come home: whatever it did next would happen in the wrong namespace.
    pub(super) fn step_in<T>(&self, door: &OwnedFd, errand: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        setns(door, CloneFlags::CLONE_NEWNET)?;
        let done = errand();
        setns(&*self.shared.home, CloneFlags::CLONE_NEWNET)
            .expect("a thread comes home from where it could go to");
        done
    }
}

impl Shared {
    fn hire(&self) -> io::Result<()> {
        let (queue, home) = (self.queue.clone(), self.home.clone());
        let counted = Counted::new(&self.running);
        std::thread::Builder::new()
            .name("tv-netns".into())
            .spawn(move || {
                let _counted = counted;
                attend(&queue, &home);
            })?;
        Ok(())
    }
}

fn attend(queue: &Mutex<Receiver<Errand>>, home: &OwnedFd) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Errand { door, act }) = next else {
            return;
        };
        act(setns(&*door, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        drop(door);
        if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
            // A thread in a namespace keeps that alive, and its next errand might fail to leave it.
            tracing::error!(%error, "a thread could not return from a network namespace, and ends");
            return;
        }
    }
}

/// One running thread.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(running.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

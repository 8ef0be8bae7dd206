//! The warden's side of the split: starts the data path, gives it orders, answers what it asks.
//!
//! What comes from the data path is taken for hostile: it may be whatever the network made of it.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::agent::Serve;
use crate::ca::Authority;
use crate::confine::User;
use crate::kubernetes::Note;
use crate::phase::{self, Phase};
use crate::strays;
use crate::trust::{Ledger, MntnsId};
use crate::wire::{self, Changes, Hello, Line, Order, PROTOCOL, Reply};
use crate::{limits, netns};

mod answers;
mod lodgings;
mod named;
mod signers;
mod spaces;

pub use answers::{Answers, Breach};
pub use lodgings::Lodgings;
pub use named::{Named, Naming};
pub use signers::Signers;
pub use spaces::Spaces;

/// Why there is no data path, or it does not do what it is told.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot start the data path")]
    Start(#[source] io::Error),
    #[error("{0}")]
    Refused(String),
    #[error("the data path does not follow")]
    Silent(#[source] io::Error),
    #[error(
        "the data path (process {pid}) ended ({status}), and the agent with it: connections are refused now"
    )]
    Ended { pid: i32, status: ExitStatus },
}

/// The other process. Dropped, it is killed.
pub struct DataPath {
    child: Child,
    orders: Orders,
}

/// Tells the data path what to do. Cheap to clone.
#[derive(Clone)]
pub struct Orders {
    line: Line<Order, Reply>,
    spaces: Spaces,
}

impl DataPath {
    /// Starts it as another user, from `program`, with the log's options. Call it on the program's first thread: the end of
    /// the thread that it is started on ends it too (PR_SET_PDEATHSIG).
    ///
    /// # Errors
    /// When no process can be started.
    pub fn start(program: &Path, options: &[String], user: User, answers: Answers) -> Result<Self, Error> {
        Self::try_start(program, options, user, answers).map_err(Error::Start)
    }

    fn try_start(program: &Path, options: &[String], user: User, answers: Answers) -> io::Result<Self> {
        let (orders, theirs) = wire::pair()?;
        let (urgent, their_urgent) = wire::pair()?;
        let (slow, their_slow) = wire::pair()?;
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uid: user.uid,
            gid: user.gid,
        };
        let ends = [their_urgent.as_fd(), their_slow.as_fd()];
        wire::send_blocking(orders.as_fd(), &hello, &ends, false)?;
        let child = Command::new(program)
            .args(options)
            .arg(wire::COMMAND)
            .stdin(Stdio::from(theirs))
            .kill_on_drop(true)
            .spawn()?;
        let pid = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .map(Pid::from_raw);
        let end = Arc::new(move |breach: Breach| {
            tracing::error!("{breach}; ending it");
            match pid.map(|pid| kill(pid, Signal::SIGKILL)) {
                // It may have ended already.
                None | Some(Ok(()) | Err(Errno::ESRCH)) => {}
                // Without CAP_KILL. Its listeners count for nothing when nobody writes the heartbeat any more.
                Some(Err(error)) => {
                    tracing::error!(%error, "it cannot be ended; ending the agent");
                    std::process::exit(1);
                }
            }
        });
        let spaces = answers.spaces.clone();
        Arc::new(answers).attend(urgent, slow, end)?;
        Ok(Self {
            child,
            orders: Orders {
                line: Line::start(orders, true)?,
                spaces,
            },
        })
    }

    pub fn orders(&self) -> &Orders {
        &self.orders
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// What is behind an order that was not followed.
    pub async fn why(&mut self, error: Error) -> Error {
        const SOON: Duration = Duration::from_secs(1);
        match error {
            Error::Silent(_) => tokio::time::timeout(SOON, self.ended()).await.unwrap_or(error),
            error => error,
        }
    }

    /// Waits for its end, which nobody asked for.
    pub async fn ended(&mut self) -> Error {
        let pid = self.child.id().unwrap_or_default().cast_signed();
        match self.child.wait().await {
            Ok(status) => Error::Ended { pid, status },
            Err(error) => Error::Silent(error),
        }
    }

    /// Lets it finish what is open; when that is done, it has ended.
    pub async fn end(mut self, handed_over: bool) {
        // What it says does not matter: its end does.
        let _ = self
            .orders
            .tell(Order::End { handed_over }, &[], Duration::MAX)
            .await;
        let _ = self.child.wait().await;
    }
}

impl Orders {
    /// The first order: a configuration by its name and text, and the CA.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    pub async fn begin(
        &self,
        file: &Path,
        text: BorrowedFd<'_>,
        authority: &Authority,
        home: Option<MntnsId>,
    ) -> Result<(), Error> {
        let order = Order::Begin {
            file: file.to_owned(),
            authority: Box::new(authority.public()),
            home,
        };
        self.tell(order, &[text], limits::PREPARE_TIME).await
    }

    /// Builds what a configuration needs; [`install`](Self::install) or [`abandon`](Self::abandon) has to follow.
    ///
    /// # Errors
    /// What is wrong with it.
    pub async fn prepare(&self, text: BorrowedFd<'_>) -> Result<(), Error> {
        self.tell(Order::Prepare, &[text], limits::PREPARE_TIME).await
    }

    /// # Errors
    /// When it does not answer.
    pub async fn install(&self) -> Result<(), Error> {
        self.soon(Order::Install).await
    }

    /// # Errors
    /// When it does not answer.
    pub async fn abandon(&self) -> Result<(), Error> {
        self.soon(Order::Abandon).await
    }

    /// Has `authority` sign from now on.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn adopt(&self, authority: &Authority) -> Result<(), Error> {
        self.soon(Order::Authority(Box::new(authority.public()))).await
    }

    /// # Errors
    /// When it does not answer.
    pub async fn ready(&self, ready: bool) -> Result<(), Error> {
        self.soon(Order::Ready(ready)).await
    }

    /// Gives it the local sockets to answer on.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn serve_local(
        &self,
        admin: BorrowedFd<'_>,
        metrics: Option<BorrowedFd<'_>>,
        page: bool,
    ) -> Result<(), Error> {
        let all: Vec<_> = std::iter::once(admin).chain(metrics).collect();
        self.tell(Order::Local { page }, &all, limits::WIRE_TIME).await
    }

    /// Whether it lives, however long it takes to say so.
    ///
    /// # Errors
    /// When it has ended.
    pub async fn beat(&self) -> Result<(), Error> {
        self.tell(Order::Beat, &[], Duration::MAX).await
    }

    /// Has connections that went past the agent told with the others.
    pub fn teller(&self) -> strays::Tell {
        let orders = self.clone();
        Arc::new(move |flow| {
            let orders = orders.clone();
            tokio::spawn(async move {
                // Its end is told by others.
                let _ = orders.soon(Order::Flow(Box::new(flow))).await;
            });
        })
    }

    /// Has pods told what was found of them. Call it in a runtime; what it gives may be called anywhere.
    pub fn noter(&self) -> Arc<dyn Fn(Note) + Send + Sync> {
        let (orders, runtime) = (self.clone(), tokio::runtime::Handle::current());
        Arc::new(move |note| {
            let orders = orders.clone();
            runtime.spawn(async move {
                // As above.
                let _ = orders.soon(Order::Note(Box::new(note))).await;
            });
        })
    }

    /// Has listeners served there.
    pub fn server(&self) -> Serve {
        let (orders, ids) = (self.clone(), Arc::new(AtomicU64::new(1)));
        Arc::new(move |listener, netns, mut phase| {
            let (orders, id) = (orders.clone(), ids.fetch_add(1, Ordering::Relaxed));
            Box::pin(async move {
                let known = orders.spaces.enter(&netns, listener.netns());
                let order = Order::Serve {
                    id,
                    netns: netns.number().map(|number| (number, listener.netns())),
                };
                let begun = orders.line.begin(order, &[listener.as_fd()]).await;
                let Ok(begun) = begun else {
                    // It has ended, which is told by others.
                    return;
                };
                let served = begun.answer(Duration::MAX);
                tokio::pin!(served);
                tokio::select! {
                    // Whatever it says: it serves no more.
                    _ = &mut served => return,
                    () = phase::reached(&mut phase, Phase::HandedOver) => {}
                }
                // Nobody shall come who is not served any more.
                drop(listener);
                let deserted = *phase.borrow() == Phase::Deserted;
                let left = orders.soon(Order::Leave { id, deserted }).await;
                if left.is_ok() {
                    // As above.
                    let _ = served.await;
                }
                drop(known);
            })
        })
    }

    /// Tells what is put into mount namespaces, until the data path ends.
    pub async fn follow(self, ledger: Ledger) {
        let mut changes = ledger.changes();
        let mut told = std::collections::HashMap::new();
        loop {
            changes.borrow_and_update();
            let now = ledger.all();
            let news = Changes {
                attended: ledger.is_attended(),
                removed: told.keys().filter(|id| !now.contains_key(*id)).copied().collect(),
                installed: now
                    .iter()
                    .filter(|(id, (_, version))| told.get(*id) != Some(version))
                    .map(|(id, (installation, _))| (*id, (**installation).clone()))
                    .collect(),
            };
            told = now.into_iter().map(|(id, (_, version))| (id, version)).collect();
            if self.soon(Order::Ledger(news)).await.is_err() || changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn soon(&self, order: Order) -> Result<(), Error> {
        self.tell(order, &[], limits::WIRE_SLOW_TIME).await
    }

    async fn tell(&self, order: Order, descriptors: &[BorrowedFd<'_>], limit: Duration) -> Result<(), Error> {
        match self.line.ask(order, descriptors, limit).await {
            Ok((Reply::Done, _)) => Ok(()),
            Ok((Reply::Failed(problem), _)) => Err(Error::Refused(problem)),
            Err(error) => Err(Error::Silent(error)),
        }
    }
}

/// A text as a file that nobody else sees.
///
/// # Errors
/// When there are no descriptors left.
pub fn text_file(text: &str) -> io::Result<OwnedFd> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::io::{Seek as _, Write as _};
    let mut file = std::fs::File::from(memfd_create(c"tv-agent.yaml", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// Where the agent lives.
pub fn home() -> Option<MntnsId> {
    netns::MountsId::of("/proc/thread-self/ns/mnt")
        .ok()
        .map(MntnsId::from)
}

//! The data path: the process that parses what the network sends, and that may do nothing but that.
//!
//! It is started by the warden, which gives it listeners and orders and answers what it asks. It never outlives it.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};

use crate::confine::{self, Confined, Confinement, User};
use crate::control::LogFilter;
use crate::wire::{self, Frame, Hello, Order, PROTOCOL, Received, Reply};
use crate::{files, limits, sign};

mod asks;
mod local;
mod running;

use asks::Asks;
use running::Running;

/// Why there is no data path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the data path is started by `tv-agent run`, not by hand")]
    ByHand(#[source] io::Error),
    #[error("the file of this program was replaced while it started (version {version}); start it again")]
    OtherVersion { version: String },
    #[error("the data path cannot be confined; see `tv-agent check`")]
    Confine(#[from] confine::Error),
    #[error("cannot start the data path")]
    Start(#[source] io::Error),
}

/// What was received before anything else, while the process still had its privileges.
pub struct Begun {
    orders: OwnedFd,
    urgent: OwnedFd,
    slow: OwnedFd,
    confined: Confined,
}

/// Takes the warden's first packet from standard input, and gives up every privilege. Call it before there are threads.
///
/// # Errors
/// See [`Error`].
pub fn enter() -> Result<Begun, Error> {
    let orders = io::stdin().as_fd().try_clone_to_owned().map_err(Error::ByHand)?;
    let received = wire::receive_blocking::<Hello>(orders.as_fd(), limits::WIRE_INLINE_BYTES, true);
    let (hello, descriptors) = received
        .map_err(Error::ByHand)?
        .ok_or_else(|| Error::ByHand(io::ErrorKind::UnexpectedEof.into()))?;
    if hello.protocol != PROTOCOL || hello.version != env!("CARGO_PKG_VERSION") {
        return Err(Error::OtherVersion {
            version: hello.version,
        });
    }
    let mut ends = descriptors.into_iter();
    let (Some(urgent), Some(slow)) = (ends.next(), ends.next()) else {
        return Err(Error::ByHand(io::ErrorKind::InvalidData.into()));
    };
    let confined = confine::enter(&Confinement {
        user: User {
            uid: hello.uid,
            gid: hello.gid,
        },
        read: confine::default_trees(),
    })?;
    Ok(Begun {
        orders,
        urgent,
        slow,
        confined,
    })
}

/// Follows the warden's orders until the end. Call it in a runtime.
///
/// # Errors
/// When it cannot begin; the end of the warden is not one.
pub async fn run(begun: Begun, log: LogFilter) -> Result<(), Error> {
    for missing in &begun.confined.missing {
        tracing::warn!("the data path is confined without {missing}");
    }
    // The warden decides when it ends; who stops a whole group of processes tells the warden too.
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
    ];
    let _ignored: Vec<_> = kinds
        .into_iter()
        .map(signal)
        .collect::<Result<_, _>>()
        .map_err(Error::Start)?;
    let asks = Asks::start(begun.urgent, begun.slow).map_err(Error::Start)?;
    files::install(Box::new(asks.clone()));
    sign::install_keeper(Box::new(asks.clone()));
    let orders = Orders(Arc::new(wire::watched(begun.orders).map_err(Error::Start)?));
    let mut running: Option<Running> = None;
    loop {
        let (Frame { id, body }, along) = match orders.next().await {
            Ok(Some(received)) => received,
            // The warden has ended, and everything with it.
            Ok(None) => return Ok(()),
            Err(error) => return Err(Error::Start(error)),
        };
        match (body, &mut running) {
            (
                Order::Begin {
                    file,
                    authority,
                    home,
                },
                None,
            ) => {
                let text = along.into_iter().next();
                match Running::begin(file, text, *authority, home, &asks, &log, &orders) {
                    Ok(begun) => {
                        running = Some(begun);
                        orders.reply(id, Reply::Done).await;
                    }
                    Err(problem) => orders.reply(id, Reply::Failed(problem)).await,
                }
            }
            (Order::End { handed_over }, _) => {
                if let Some(running) = running {
                    running.end(handed_over).await;
                }
                orders.reply(id, Reply::Done).await;
                return Ok(());
            }
            (order, Some(running)) => running.follow(id, order, along).await,
            (_, None) => {
                orders
                    .reply(id, Reply::Failed("nothing has begun".to_owned()))
                    .await;
            }
        }
    }
}

/// The end on which orders come.
#[derive(Clone)]
struct Orders(Arc<UnixStream>);

impl Orders {
    async fn next(&self) -> io::Result<Option<Received<Frame<Order>>>> {
        wire::receive(&self.0, true).await
    }

    async fn reply(&self, id: u64, body: Reply) {
        // When it cannot be said, the warden has ended, which the next order tells.
        let _ = wire::send(&self.0, &Frame { id, body }, &[], false).await;
    }
}

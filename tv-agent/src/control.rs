//! The admin socket: what a running daemon tells and does for the `status`, `flows` and `cache` commands.
//!
//! HTTP on a Unix socket that only root can open. No answer holds a secret.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body::{Body, Frame};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::clock;
use crate::flows::Flows;
use crate::https::causes;
use crate::kubernetes;
use crate::local;
use crate::redirect::Narrowing;
use crate::sign::{KeySets, Shown};
use crate::token::{Filter, Tokens};
pub use crate::trust::Row as TrustRow;

mod ask;

pub use ask::ask;

/// Connections at once, followers included.
const CONNECTIONS: usize = 32;

/// What `tv-agent status` shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub bpf_sha256: Option<String>,
    pub pid: u32,
    /// The process that serves connections, where that is another one.
    #[serde(default)]
    pub data_path: Option<u32>,
    pub ready: bool,
    pub uptime_s: u64,
    pub listeners: Vec<String>,
    /// Directories that the kernel half is attached to.
    pub cgroups: Vec<PathBuf>,
    pub routes: Vec<String>,
    pub open_connections: i64,
    pub cached_tokens: u64,
    /// Connections of enrolled processes that went past the agent.
    pub uncaptured_connections: u64,
    /// None with `capture: all`.
    pub narrowing: Option<Narrowing>,
    /// How the API server is followed; None: it is not.
    #[serde(default)]
    pub kubernetes: Option<kubernetes::Status>,
    /// The kernel half's counters.
    pub kernel: Vec<(String, u64)>,
}

/// What the socket serves.
#[derive(Clone)]
pub struct Control {
    pub status: Arc<dyn Fn() -> Status + Send + Sync>,
    pub flows: Flows,
    pub tokens: Tokens,
    /// The key sets in force.
    pub keys: Arc<dyn Fn() -> KeySets + Send + Sync>,
    pub log: LogFilter,
    /// In the OpenMetrics text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// All enrolled processes and what is believed of their trust in the CA. Blocks.
    pub trust: Arc<dyn Fn() -> Vec<TrustRow> + Send + Sync>,
}

/// What is logged, changed while the daemon runs.
#[derive(Clone)]
pub struct LogFilter(Arc<ChangeFilter>);

type ChangeFilter = dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync;

impl LogFilter {
    /// `change` is given a new filter, or None to be asked; it gives the one in force, or what is wrong with the new.
    pub fn new(change: impl Fn(Option<&str>) -> Result<String, String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(change))
    }

    /// Puts `filter` in force, or tells the one that is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn change(&self, filter: Option<&str>) -> Result<String, String> {
        (self.0)(filter)
    }
}

/// The filter in force, or why it is not the one that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Logging {
    Filter(String),
    Refused(String),
}

/// What became of a rotation: the set's keys, or why it has no new one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rotated {
    Keys(Vec<Shown>),
    Failed(String),
}

/// Why the socket is not served, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("another agent answers at {}; stop it, or set admin.socket", path.display())]
    Taken { path: PathBuf },
    #[error("no agent answers at {}; is the daemon running, and are you root?", path.display())]
    Nobody { path: PathBuf, source: io::Error },
    #[error("the agent at {} broke off", path.display())]
    Http { path: PathBuf, source: hyper::Error },
    #[error("the agent at {} answered {status}", path.display())]
    Refused { path: PathBuf, status: StatusCode },
    #[error("the agent at {} answered nothing", path.display())]
    Silent { path: PathBuf },
    #[error("the agent at {} answered something that this version does not understand", path.display())]
    Answer {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// The socket to serve on. One that nobody answers is replaced: a predecessor that was killed left it.
pub async fn listen(path: &Path) -> Result<UnixListener, Error> {
    let failed = |what| {
        move |source| Error::Io {
            what,
            path: path.to_owned(),
            source,
        }
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(Error::Taken {
            path: path.to_owned(),
        });
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(error)),
        _ => {}
    }
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("make the directory of"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen at"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed("protect"))?;
    Ok(listener)
}

impl Control {
    /// Listens at `path` and serves until the returned task is aborted.
    pub async fn serve(self, path: &Path) -> Result<tokio::task::JoinHandle<()>, Error> {
        Ok(self.serve_on(listen(path).await?))
    }

    /// As [`serve`](Self::serve), on a socket that listens already.
    pub fn serve_on(self, listener: UnixListener) -> tokio::task::JoinHandle<()> {
        tokio::spawn(local::serve(listener, CONNECTIONS, move |request, _| {
            self.answer(request)
        }))
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Lines> {
        match (request.method(), request.uri().path(), request.uri().query()) {
            (&Method::GET, "/status", None) => Lines::one(&(self.status)()),
            (&Method::GET, "/flows", None) => Lines::many(self.flows.follow().0.iter().map(|f| &**f)),
            (&Method::GET, "/flows", Some("follow")) => self.follow(),
            (&Method::GET, "/cache", None) => Lines::many(self.tokens.list().iter()),
            (&Method::POST, "/cache/flush", query) => match filter(query.unwrap_or_default()) {
                Some(filter) => Lines::one(&self.tokens.flush(&filter)),
                None => Lines::status(StatusCode::BAD_REQUEST),
            },
            (&Method::GET, "/metrics", None) => Lines::one(&(self.metrics)()),
            (&Method::GET, "/log", None) => self.logging(None),
            (&Method::POST, "/log", Some(filter)) => self.logging(Some(filter)),
            (&Method::GET, "/keys", None) => Lines::many((self.keys)().list().iter()),
            (&Method::GET, "/trust", None) => self.trusting(),
            (&Method::POST, path, None) => match path.strip_prefix("/keys/rotate/") {
                Some(name) => self.rotate(name),
                None => Lines::status(StatusCode::NOT_FOUND),
            },
            _ => Lines::status(StatusCode::NOT_FOUND),
        }
    }

    /// `filter`: percent-encoded.
    fn logging(&self, filter: Option<&str>) -> Response<Lines> {
        let wanted = filter.map(|filter| percent_encoding::percent_decode_str(filter).decode_utf8_lossy());
        let said = match self.log.change(wanted.as_deref()) {
            Ok(filter) => Logging::Filter(filter),
            Err(problem) => Logging::Refused(problem),
        };
        if let (Some(_), Logging::Filter(filter)) = (wanted, &said) {
            tracing::info!(filter, "what is logged was changed on request");
        }
        Lines::one(&said)
    }

    /// Makes a new key, which takes a moment.
    fn rotate(&self, name: &str) -> Response<Lines> {
        let Some(set) = (self.keys)().get(name).cloned() else {
            return Lines::status(StatusCode::NOT_FOUND);
        };
        let (sender, receiver) = mpsc::channel(1);
        tokio::task::spawn_blocking(move || {
            let rotated = match set.rotate(clock::unix_now().as_secs()) {
                Ok(()) => Rotated::Keys(set.list()),
                Err(error) => Rotated::Failed(causes(&error)),
            };
            if let Rotated::Keys(keys) = &rotated {
                let kid = keys.first().map(|key| key.kid.as_str());
                tracing::info!(keyset = %set.settings().name, kid, "rotated on request");
            }
            // Whoever asked may be gone.
            let _ = sender.blocking_send(line(&rotated));
        });
        Lines::response(Lines {
            ready: Bytes::new(),
            more: Some(receiver),
        })
    }

    /// Looks at all enrolled processes, which takes a moment.
    fn trusting(&self) -> Response<Lines> {
        let (sender, receiver) = mpsc::channel(64);
        let trust = self.trust.clone();
        tokio::task::spawn_blocking(move || {
            for row in trust() {
                if sender.blocking_send(line(&row)).is_err() {
                    return;
                }
            }
        });
        Lines::response(Lines {
            ready: Bytes::new(),
            more: Some(receiver),
        })
    }

    /// What is kept, then each flow as it comes, until the client goes away.
    fn follow(&self) -> Response<Lines> {
        let (kept, mut live) = self.flows.follow();
        let (sender, receiver) = mpsc::channel(64);
        tokio::spawn(async move {
            for flow in kept {
                if sender.send(line(&*flow)).await.is_err() {
                    return;
                }
            }
            loop {
                tokio::select! {
                    flow = live.recv() => match flow {
                        Ok(flow) => if sender.send(line(&*flow)).await.is_err() { return },
                        Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                    },
                    () = sender.closed() => return,
                }
            }
        });
        Lines::response(Lines {
            ready: Bytes::new(),
            more: Some(receiver),
        })
    }
}

/// Each part at most once, and no others: a flush of everything must not come of a typing error.
fn filter(query: &str) -> Option<Filter> {
    let mut filter = Filter::default();
    for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
        let part = match &*name {
            "route" => &mut filter.route,
            "vault" => &mut filter.vault,
            "subject" => &mut filter.subject,
            _ => return None,
        };
        if part.replace(value.into_owned()).is_some() {
            return None;
        }
    }
    Some(filter)
}

/// The address of a flush of what `filter` means.
pub fn flush_target(filter: &Filter) -> String {
    let parts = [
        ("route", &filter.route),
        ("vault", &filter.vault),
        ("subject", &filter.subject),
    ];
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in parts {
        if let Some(value) = value {
            query.append_pair(name, value);
        }
    }
    let query = query.finish();
    let mark = if query.is_empty() { "" } else { "?" };
    format!("/cache/flush{mark}{query}")
}

/// The address by which `filter` is put in force.
pub fn log_target(filter: &str) -> String {
    let text = percent_encoding::utf8_percent_encode(filter, percent_encoding::NON_ALPHANUMERIC);
    format!("/log?{text}")
}

/// JSON lines: some that are there, and some that may come.
pub struct Lines {
    ready: Bytes,
    more: Option<mpsc::Receiver<Bytes>>,
}

impl Lines {
    fn one(value: &impl Serialize) -> Response<Self> {
        Self::many(std::iter::once(value))
    }

    fn many<T: Serialize>(values: impl Iterator<Item = T>) -> Response<Self> {
        let ready: Vec<u8> = values.flat_map(|value| line(&value)).collect();
        Self::response(Self {
            ready: ready.into(),
            more: None,
        })
    }

    fn status(status: StatusCode) -> Response<Self> {
        let mut response = Self::many(std::iter::empty::<()>());
        *response.status_mut() = status;
        response
    }

    fn response(lines: Self) -> Response<Self> {
        let mut response = Response::new(lines);
        let json = header::HeaderValue::from_static("application/x-ndjson");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        response
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if !self.ready.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.ready)))));
        }
        match &mut self.more {
            Some(more) => more
                .poll_recv(cx)
                .map(|line| line.map(|line| Ok(Frame::data(line)))),
            None => Poll::Ready(None),
        }
    }
}

fn line(value: &impl Serialize) -> Bytes {
    let mut bytes = serde_json::to_vec(value).expect("plain data serialises");
    bytes.push(b'\n');
    bytes.into()
}

#[cfg(test)]
mod tests;

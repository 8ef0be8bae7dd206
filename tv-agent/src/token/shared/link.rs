//! The one connection to the shared cache: kept by a task of its own, never waited for. While there is none, or after
//! failures in a row, callers are told at once.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::gauge::Gauge;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, ProtocolVersion, RedisConnectionInfo, RedisError,
    ServerErrorKind, Value,
};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;

use super::meter::{Meter, Metered};
use super::{Event, Settings, plan};
use crate::addr::OriginAddr;
use crate::dial::{self, Dialer};
use crate::https;
use crate::limits;
use crate::metrics::Metrics;

/// After so many failures in a row the connection is given up, and nothing is asked until there is another.
const FAILURES: u32 = 3;
/// A connection that held so long was a good one: the next attempt comes soon.
const HELD: Duration = Duration::from_secs(10);

/// Signs in to nothing and says nothing of itself: [`Keeper::sign_in`] does.
static PLAIN: LazyLock<RedisConnectionInfo> = LazyLock::new(|| {
    RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP2)
        .set_skip_set_lib_name()
});

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot find the address of {host:?}; check shared_cache.url")]
    Resolve { host: String, source: io::Error },
    #[error("{host:?} has no address; check shared_cache.url")]
    NoAddress { host: String },
    #[error("no connection; check shared_cache.url and the network")]
    Dial(#[source] dial::Error),
    #[error("{host:?} cannot stand in a certificate; check shared_cache.url")]
    Name { host: String },
    #[error(
        "TLS failed; check that the server speaks TLS there, its certificate, and shared_cache.extra_roots"
    )]
    Tls(#[source] io::Error),
    #[error(
        "the server refused the sign-in ({code}); check shared_cache.user, password and the server's ACL"
    )]
    SignIn { code: String },
    #[error("the server refused database {db} ({code}); check the number at the end of shared_cache.url")]
    Database { db: i64, code: String },
    #[error(
        "it is no usable server: mode {mode:?}, role {role:?}; allowed: a standalone primary, no cluster, sentinel or replica"
    )]
    Unsuitable { mode: String, role: String },
    #[error("the server does not speak as Redis 6 or Valkey do ({code}); check shared_cache.url")]
    Protocol { code: String },
    #[error("the server did not answer within {} ms; check the network, and that it speaks TLS for rediss:// and none for redis://", limits::SHARED_CONNECT_TIME.as_millis())]
    Timeout,
}

/// A question that was not answered. The label is what is counted.
pub type Unanswered = Event;

/// The way to the shared cache.
pub struct Link {
    state: Arc<State>,
    keeper: tokio::task::JoinHandle<()>,
}

struct State {
    live: ArcSwapOption<Live>,
    timeout: Duration,
    metrics: Metrics,
}

struct Live {
    connection: MultiplexedConnection,
    meter: Meter,
    failures: AtomicU32,
    given_up: Notify,
    /// Counts connections.
    gauge: Gauge,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Link {
    /// Begins to connect. Call within a tokio runtime.
    pub fn open(
        settings: Arc<Settings>,
        tls: Option<TlsConnector>,
        dialer: Dialer,
        metrics: Metrics,
    ) -> Self {
        let state = Arc::new(State {
            live: ArcSwapOption::empty(),
            timeout: settings.timeout,
            metrics,
        });
        let keeper = Keeper {
            settings,
            tls,
            dialer,
            state: state.clone(),
        };
        Self {
            state,
            keeper: tokio::spawn(keeper.run()),
        }
    }

    pub fn is_up(&self) -> bool {
        self.state.live.load().is_some()
    }

    /// Has `command` answered within the configured time.
    ///
    /// # Errors
    /// Why not, counted already.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Unanswered> {
        self.ask_within(command, self.state.timeout).await
    }

    /// As [`ask`](Self::ask), for what no request waits for.
    pub async fn ask_within<T: FromRedisValue>(
        &self,
        command: &Cmd,
        limit: Duration,
    ) -> Result<T, Unanswered> {
        let answer = self.send(command, limit).await;
        if let Err(event) = &answer {
            self.state.metrics.shared_cache(event.label());
        }
        answer
    }

    async fn send<T: FromRedisValue>(&self, command: &Cmd, limit: Duration) -> Result<T, Unanswered> {
        let Some(live) = self.state.live.load_full() else {
            return Err(Event::Down);
        };
        let expected = live.meter.expect();
        let mut connection = live.connection.clone();
        let answer = tokio::time::timeout(limit, command.query_async(&mut connection)).await;
        drop(expected);
        let event = match answer {
            Ok(Ok(value)) => {
                live.failures.store(0, Ordering::Relaxed);
                return Ok(value);
            }
            Ok(Err(error)) => event_of(&error),
            Err(_) => Event::Late,
        };
        // A full server still answers, and what is in it can be read.
        if event != Event::Full {
            let failures = live.failures.fetch_add(1, Ordering::Relaxed) + 1;
            if failures >= FAILURES || event == Event::ReadOnly {
                live.given_up.notify_one();
            }
        }
        Err(event)
    }
}

fn event_of(error: &RedisError) -> Event {
    if error.is_io_error() || error.is_connection_dropped() {
        return Event::Broken;
    }
    match (error.code(), error.kind()) {
        (Some("OOM"), _) => Event::Full,
        (_, redis::ErrorKind::Server(ServerErrorKind::ReadOnly)) => Event::ReadOnly,
        (Some(_), _) => Event::Refused,
        (None, _) => Event::Nonsense,
    }
}

/// Connects once, signs in, and hangs up.
///
/// # Errors
/// Why that cannot be done.
pub async fn try_once(
    settings: Arc<Settings>,
    tls: Option<TlsConnector>,
    dialer: Dialer,
    metrics: Metrics,
) -> Result<(), LinkError> {
    let state = Arc::new(State {
        live: ArcSwapOption::empty(),
        timeout: settings.timeout,
        metrics,
    });
    let keeper = Keeper {
        settings,
        tls,
        dialer,
        state,
    };
    keeper.attempt().await.map(drop)
}

struct Keeper {
    settings: Arc<Settings>,
    tls: Option<TlsConnector>,
    dialer: Dialer,
    state: Arc<State>,
}

impl Keeper {
    async fn run(self) {
        let server = self.settings.server();
        let mut failures = 0;
        let mut told = None;
        loop {
            match self.attempt().await {
                Ok((live, driver)) => {
                    tracing::info!(%server, "the shared cache answers");
                    let began = Instant::now();
                    let live = Arc::new(live);
                    self.state.live.store(Some(live.clone()));
                    tokio::select! {
                        () = driver => {}
                        () = live.given_up.notified() => {}
                    }
                    self.state.live.store(None);
                    tracing::warn!(%server, "the shared cache is gone, slow or read-only: each node asks the vault for itself until it is back");
                    told = None;
                    failures = if began.elapsed() > HELD { 1 } else { failures + 1 };
                }
                Err(error) => {
                    failures += 1;
                    let cause = https::causes(&error);
                    // Once for each cause, not for each attempt.
                    if told.as_ref() != Some(&cause) {
                        tracing::warn!(%server, cause, "no shared cache: each node asks the vault for itself");
                        told = Some(cause);
                    }
                }
            }
            tokio::time::sleep(plan::reconnect(failures, rand::random())).await;
        }
    }

    async fn attempt(&self) -> Result<(Live, impl Future<Output = ()> + use<>), LinkError> {
        let attempt = tokio::time::timeout(limits::SHARED_CONNECT_TIME, self.connect()).await;
        attempt.unwrap_or(Err(LinkError::Timeout))
    }

    async fn connect(&self) -> Result<(Live, impl Future<Output = ()> + use<>), LinkError> {
        let stream = self.dial().await?;
        let meter = Meter::default();
        let metered = Metered {
            stream: self.secure(stream).await?,
            meter: meter.clone(),
        };
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(limits::SHARED_QUEUED)
            .set_concurrency_limit(limits::SHARED_AT_ONCE);
        let (mut connection, driver) = MultiplexedConnection::new_with_config(&PLAIN, metered, config)
            .await
            .map_err(|error| LinkError::Protocol {
                code: code_of(&error),
            })?;
        // Boxed, since it has to run beside the sign-in and be handed on.
        let mut driver = Box::pin(driver);
        let signed_in = {
            let sign_in = self.sign_in(&mut connection, &meter);
            tokio::pin!(sign_in);
            tokio::select! {
                signed_in = &mut sign_in => signed_in,
                () = &mut driver => sign_in.await,
            }
        };
        signed_in?;
        let gauge = self.state.metrics.shared_cache_connected.clone();
        gauge.inc();
        let live = Live {
            gauge,
            connection,
            meter,
            failures: AtomicU32::new(0),
            given_up: Notify::new(),
        };
        Ok((live, driver))
    }

    async fn dial(&self) -> Result<TcpStream, LinkError> {
        let host = &self.settings.host;
        let addresses = tokio::net::lookup_host((host.as_str(), self.settings.port))
            .await
            .map_err(|source| LinkError::Resolve {
                host: host.clone(),
                source,
            })?;
        let mut last = LinkError::NoAddress { host: host.clone() };
        for address in addresses {
            match self.dialer.connect(OriginAddr(address)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = LinkError::Dial(error),
            }
        }
        Err(last)
    }

    async fn secure(&self, stream: TcpStream) -> Result<Box<dyn Stream>, LinkError> {
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let host = &self.settings.host;
        let name = ServerName::try_from(host.clone()).map_err(|_| LinkError::Name { host: host.clone() })?;
        let stream = tls.connect(name, stream).await.map_err(LinkError::Tls)?;
        Ok(Box::new(stream))
    }

    /// Signs in, and looks whom we are talking to (HELLO: Redis 6, any Valkey).
    async fn sign_in(&self, connection: &mut MultiplexedConnection, meter: &Meter) -> Result<(), LinkError> {
        let mut hello = redis::cmd("HELLO");
        hello.arg(2);
        if let Some(password) = &self.settings.password {
            let user = self.settings.user.as_deref().unwrap_or("default");
            hello.arg("AUTH").arg(user).arg(password.expose());
        }
        hello.arg("SETNAME").arg("tv-agent");
        let _expected = meter.expect();
        let answer: Value = hello.query_async(connection).await.map_err(|error| {
            let code = code_of(&error);
            match error.code() {
                Some("NOAUTH" | "WRONGPASS" | "NOPERM") => LinkError::SignIn { code },
                _ => LinkError::Protocol { code },
            }
        })?;
        let (mode, role) = (field(&answer, "mode"), field(&answer, "role"));
        if mode != "standalone" || role != "master" {
            return Err(LinkError::Unsuitable { mode, role });
        }
        let db = self.settings.db;
        if db != 0 {
            let selected: Result<(), _> = redis::cmd("SELECT").arg(db).query_async(connection).await;
            selected.map_err(|error| LinkError::Database {
                db,
                code: code_of(&error),
            })?;
        }
        Ok(())
    }
}

/// The text of one member of an answer to HELLO, without what does not belong into a log.
fn field(answer: &Value, name: &str) -> String {
    let text = |value: &Value| String::from_redis_value(value.clone()).unwrap_or_default();
    let members = match answer {
        Value::Array(members) => members.as_slice(),
        _ => &[],
    };
    let found = members.chunks_exact(2).find(|pair| text(&pair[0]) == name);
    clean(&found.map(|pair| text(&pair[1])).unwrap_or_default())
}

/// An error's kind. The server's own text stays out of the log: it may say again what it was told.
fn code_of(error: &RedisError) -> String {
    match error.code() {
        Some(code @ ("NOAUTH" | "WRONGPASS" | "NOPERM" | "LOADING" | "ERR")) => code.to_owned(),
        Some(_) => "an error of its own".to_owned(),
        None => error.category().to_owned(),
    }
}

fn clean(text: &str) -> String {
    text.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(32)
        .collect()
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for S {}

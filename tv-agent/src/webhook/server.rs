//! HTTPS for the API server: reviews in, answers out; bounded in bytes, time and number.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::Settings;
use super::certificate::{self, Certificate};
use super::keeper::Keeper;
use super::metrics::Metrics;
use super::patch::Unchanged;
use super::review::{self, Review};
use crate::https::causes;
use crate::limits;

/// Where reviews of pods go whose namespace does not ask…
const PATH: &str = "/mutate";
/// …and of those whose namespace does: the API server knows the labels, and chooses by them.
const PATH_ASKED: &str = "/mutate/asked";

#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    settings: Arc<Settings>,
    tls: Result<Arc<ServerConfig>, certificate::Error>,
    keeper: Arc<Keeper>,
    metrics: Metrics,
    /// Reviews that are served at once.
    reviews: Semaphore,
    /// Of those, with a large body.
    large: Semaphore,
}

/// A request that is no review.
struct Refused(StatusCode, String);

impl Server {
    pub fn new(
        settings: Arc<Settings>,
        certificate: Arc<Certificate>,
        keeper: Arc<Keeper>,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            settings,
            tls: certificate.tls(),
            keeper,
            metrics,
            reviews: Semaphore::new(limits::WEBHOOK_REVIEWS),
            large: Semaphore::new(limits::WEBHOOK_LARGE_REVIEWS),
        }))
    }

    /// Until `stop` is true; `linger` later nothing new is accepted, and what is open has `drain` to end.
    pub async fn serve(
        &self,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
        linger: Duration,
        drain: Duration,
    ) {
        let tls = match &self.0.tls {
            Ok(tls) => TlsAcceptor::from(tls.clone()),
            Err(error) => {
                tracing::error!("{}", causes(error));
                return;
            }
        };
        let permits = Arc::new(Semaphore::new(limits::WEBHOOK_CONNECTIONS));
        let (closing, close) = watch::channel(false);
        let mut over = pin!(async {
            let _ = stop.wait_for(|stop| *stop).await;
            sleep(linger).await;
        });
        loop {
            let accepted = async {
                let permit = permits.clone().acquire_owned().await.expect("never closed");
                (permit, listener.accept().await)
            };
            let (permit, accepted) = tokio::select! {
                () = &mut over => break,
                accepted = accepted => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // EMFILE and the like: it passes.
                sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (server, tls, close) = (self.clone(), tls.clone(), close.clone());
            tokio::spawn(async move {
                server.0.metrics.open_connections.inc();
                // Whatever a client does wrong concerns nobody else.
                if let Err(error) = server.connection(stream, tls, close).await {
                    tracing::debug!(%error, "a connection failed");
                }
                server.0.metrics.open_connections.dec();
                drop(permit);
            });
        }
        drop(listener);
        closing.send_replace(true);
        let all = u32::try_from(limits::WEBHOOK_CONNECTIONS).expect("few");
        if timeout(drain, permits.acquire_many(all)).await.is_err() {
            tracing::warn!("connections were still open after the drain, and are dropped");
        }
    }

    async fn connection(
        &self,
        stream: TcpStream,
        tls: TlsAcceptor,
        mut close: watch::Receiver<bool>,
    ) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let stream = timeout(limits::WEBHOOK_HANDSHAKE_TIME, tls.accept(stream)).await??;
        let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let uses = Arc::new(Use::new());
        let service = {
            let (server, uses) = (self.clone(), uses.clone());
            service_fn(move |request| {
                let (server, guard) = (server.clone(), uses.begin());
                async move {
                    let response = server.answer(request).await;
                    drop(guard);
                    Ok::<_, Infallible>(response)
                }
            })
        };
        let end = async {
            tokio::select! {
                _ = close.wait_for(|close| *close) => {}
                () = uses.idle() => {}
            }
        };
        let io = TokioIo::new(stream);
        if h2 {
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(limits::WEBHOOK_STREAMS)
                .max_header_list_size(16 * 1024)
                .keep_alive_interval(Duration::from_secs(30))
                .keep_alive_timeout(Duration::from_secs(10))
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(io::Error::other),
                () = end => connection.as_mut().graceful_shutdown(),
            }
            within(connection, self.0.settings.drain).await
        } else {
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(limits::WEBHOOK_IDLE_TIME)
                .max_buf_size(64 * 1024)
                .serve_connection(io, service);
            let mut connection = pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => return ended.map_err(io::Error::other),
                () = end => connection.as_mut().graceful_shutdown(),
            }
            within(connection, self.0.settings.drain).await
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let began = Instant::now();
        let (result, response) = match self.review(request).await {
            Ok((result, body)) => {
                let mut response = Response::new(Full::from(body));
                let json = header::HeaderValue::from_static("application/json");
                response.headers_mut().insert(header::CONTENT_TYPE, json);
                (result, response)
            }
            Err(Refused(status, why)) => {
                tracing::warn!(status = status.as_u16(), "a request is refused: {why}");
                let mut response = Response::new(Full::from(format!("{why}\n")));
                *response.status_mut() = status;
                ("refused", response)
            }
        };
        self.0.metrics.review(result, began.elapsed());
        response
    }

    async fn review(&self, request: Request<Incoming>) -> Result<(&'static str, Vec<u8>), Refused> {
        let namespace = match request.uri().path() {
            PATH => false,
            PATH_ASKED => true,
            _ => {
                let why = format!("there is only {PATH} and {PATH_ASKED}");
                return Err(Refused(StatusCode::NOT_FOUND, why));
            }
        };
        if request.method() != Method::POST {
            return Err(Refused(StatusCode::METHOD_NOT_ALLOWED, "only POST".to_owned()));
        }
        if !is_json(request.headers()) {
            let why = "only application/json".to_owned();
            return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let Ok(_turn) = self.0.reviews.try_acquire() else {
            let why = format!("more than {} reviews at once", limits::WEBHOOK_REVIEWS);
            return Err(Refused(StatusCode::SERVICE_UNAVAILABLE, why));
        };
        let body = timeout(limits::WEBHOOK_BODY_TIME, self.body(request.into_body())).await;
        let body = body.unwrap_or_else(|_| {
            let why = "the body did not come in time".to_owned();
            Err(Refused(StatusCode::REQUEST_TIMEOUT, why))
        })?;
        let review =
            review::read(&body).map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))?;
        drop(body);
        Ok(self.judge(&review, namespace).await)
    }

    /// The decision, once the ConfigMap that it needs is there.
    async fn judge(&self, review: &Review, namespace: bool) -> (&'static str, Vec<u8>) {
        let content = self.0.keeper.content();
        let decision = review.decide(namespace, &self.0.settings.book, &content.fingerprints);
        let mut warnings = decision.warnings;
        let (place, name) = (&review.namespace, &review.name);
        let patch = match decision.operations {
            Ok(operations) => operations,
            Err(why) => {
                let result = match why {
                    Unchanged::NotAsked => "not_asked",
                    Unchanged::OtherKind => "other_kind",
                    Unchanged::Nothing => "nothing_to_do",
                };
                return (result, review::answer(&review.uid, None, &warnings));
            }
        };
        if !review.dry_run
            && let Err(error) = self.0.keeper.ensure(place).await
        {
            // The pod starts; until its node's agent has given it trust, its connections to routed hosts are refused.
            let error = causes(&error);
            tracing::warn!(
                namespace = place,
                pod = name,
                error,
                "a pod starts without trust in the CA"
            );
            warnings.insert(0, format!("the pod starts without trust in the CA: {error}"));
            return ("failed_open", review::answer(&review.uid, None, &warnings));
        }
        tracing::debug!(
            namespace = place,
            pod = name,
            operations = patch.len(),
            "a pod is given trust"
        );
        ("patched", review::answer(&review.uid, Some(&patch), &warnings))
    }

    /// The whole body; a large one waits for its turn.
    async fn body(&self, mut body: Incoming) -> Result<Vec<u8>, Refused> {
        let too_large = || {
            let why = format!("a review has more than {} bytes", limits::WEBHOOK_BODY_BYTES);
            Refused(StatusCode::PAYLOAD_TOO_LARGE, why)
        };
        let announced = body.size_hint().lower();
        if announced > limits::WEBHOOK_BODY_BYTES as u64 {
            return Err(too_large());
        }
        let mut turn = None;
        let mut bytes = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > limits::WEBHOOK_BODY_BYTES {
                return Err(too_large());
            }
            if length > limits::WEBHOOK_SMALL_BYTES && turn.is_none() {
                turn = Some(self.0.large.acquire().await.expect("never closed"));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }
}

/// What is open has so long to end.
async fn within(connection: impl Future<Output = hyper::Result<()>>, drain: Duration) -> io::Result<()> {
    timeout(drain, connection).await?.map_err(io::Error::other)
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers
        .get(header::CONTENT_TYPE)
        .and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// How a connection is used, to tell one that is idle, or never was of use.
struct Use {
    began: Instant,
    open: AtomicUsize,
    /// Milliseconds from the beginning to the end of the last request; 0: there was none.
    last: AtomicU64,
}

struct InUse(Arc<Use>);

impl Use {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            open: AtomicUsize::new(0),
            last: AtomicU64::new(0),
        }
    }

    fn begin(self: &Arc<Self>) -> InUse {
        self.open.fetch_add(1, Ordering::Relaxed);
        self.touch();
        InUse(self.clone())
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now.max(1), Ordering::Relaxed);
    }

    /// Returns when it is not used any more.
    async fn idle(&self) {
        loop {
            let last = self.last.load(Ordering::Relaxed);
            let limit = match last {
                0 => limits::WEBHOOK_FIRST_TIME,
                _ => limits::WEBHOOK_IDLE_TIME,
            };
            let end = self.began + Duration::from_millis(last) + limit;
            if Instant::now() >= end && self.open.load(Ordering::Relaxed) == 0 {
                return;
            }
            sleep_until(end.max(Instant::now() + Duration::from_millis(100))).await;
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

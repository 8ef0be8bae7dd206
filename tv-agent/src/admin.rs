//! The local HTTP port: metrics, liveness, readiness. It shows no secret and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use crate::local;
use crate::metrics::Metrics;

/// Connections at once; a scraper needs one.
const CONNECTIONS: usize = 16;

/// What the port tells.
#[derive(Clone)]
pub struct Admin {
    pub metrics: Metrics,
    /// True once the CA is loaded and the kernel half is attached.
    pub ready: Arc<AtomicBool>,
    /// More lines of metrics, in the same format: the kernel half's counters.
    pub more: Arc<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
}

/// Why the port is not served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics on {address}; choose another admin.metrics, or `off`")]
pub struct Error {
    address: SocketAddr,
    source: std::io::Error,
}

/// The socket to serve on.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address)
        .await
        .map_err(|source| Error { address, source })
}

impl Admin {
    /// Listens on `address` and serves until the returned task is dropped or aborted.
    pub async fn serve(self, address: SocketAddr) -> Result<tokio::task::JoinHandle<()>, Error> {
        Ok(self.serve_on(listen(address).await?))
    }

    /// As [`serve`](Self::serve), on a socket that listens already.
    pub fn serve_on(self, listener: TcpListener) -> tokio::task::JoinHandle<()> {
        tokio::spawn(local::serve(listener, CONNECTIONS, move |request| {
            self.answer(request)
        }))
    }

    fn answer<B>(&self, request: &Request<B>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".to_owned());
        }
        match request.uri().path() {
            "/metrics" => {
                let mut response = text(StatusCode::OK, self.metrics());
                let openmetrics = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                let value = header::HeaderValue::from_static(openmetrics);
                response.headers_mut().insert(header::CONTENT_TYPE, value);
                response
            }
            "/healthz/live" => text(StatusCode::OK, "live\n".to_owned()),
            "/healthz/ready" if self.ready.load(Ordering::Relaxed) => {
                text(StatusCode::OK, "ready\n".to_owned())
            }
            "/healthz/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            _ => text(
                StatusCode::NOT_FOUND,
                "try /metrics, /healthz/live, /healthz/ready\n".to_owned(),
            ),
        }
    }

    fn metrics(&self) -> String {
        let mut all = self.metrics.render();
        let end = "# EOF\n";
        all.truncate(all.len() - if all.ends_with(end) { end.len() } else { 0 });
        all.push_str("# HELP tv_agent_bpf_events What the kernel half did, by reason.\n");
        all.push_str("# TYPE tv_agent_bpf_events counter\n");
        for (reason, count) in (self.more)() {
            all.push_str(&format!(
                "tv_agent_bpf_events_total{{reason=\"{reason}\"}} {count}\n"
            ));
        }
        all.push_str(end);
        all
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn metrics_health_and_nothing_else() {
        let ready = Arc::new(AtomicBool::new(false));
        let admin = Admin {
            metrics: Metrics::new(),
            ready: ready.clone(),
            more: Arc::new(|| vec![("redirected", 7)]),
        };
        let status = |path: &str| {
            admin
                .answer(&Request::get(path).body(()).unwrap())
                .status()
                .as_u16()
        };
        assert_eq!(
            (status("/healthz/live"), status("/healthz/ready"), status("/")),
            (200, 503, 404)
        );
        ready.store(true, Ordering::Relaxed);
        assert_eq!(status("/healthz/ready"), 200);
        assert_eq!(
            admin
                .answer(&Request::post("/metrics").body(()).unwrap())
                .status(),
            405
        );
        let body = admin
            .answer(&Request::get("/metrics").body(()).unwrap())
            .into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(
            text.contains("tv_agent_bpf_events_total{reason=\"redirected\"} 7\n"),
            "{text}"
        );
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}

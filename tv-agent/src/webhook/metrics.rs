//! The webhook's metrics and health, on a port of their own.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

use crate::local;

/// Scrapers and probes at once.
const CONNECTIONS: usize = 16;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    what: &'static str,
    result: &'static str,
}

/// Handles of all families. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reviews: Family<ResultLabels, Counter>,
    review_seconds: Histogram,
    pub open_connections: Gauge,
    writes: Family<ResultLabels, Counter>,
    namespaces: Gauge,
    reloads: Family<ReloadLabels, Counter>,
    certificate_ends: Gauge,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("tv_agent_webhook");
        let mut metrics = Self {
            registry: Arc::default(),
            reviews: Family::default(),
            review_seconds: Histogram::new([0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0]),
            open_connections: Gauge::default(),
            writes: Family::default(),
            namespaces: Gauge::default(),
            reloads: Family::default(),
            certificate_ends: Gauge::default(),
        };
        registry.register(
            "reviews",
            "Requests by result: patched, not_asked, other_kind, nothing_to_do, failed_open, refused",
            metrics.reviews.clone(),
        );
        registry.register_with_unit(
            "review_duration",
            "Time from a request's header to its answer",
            Unit::Seconds,
            metrics.review_seconds.clone(),
        );
        registry.register(
            "open_connections",
            "Connections served now",
            metrics.open_connections.clone(),
        );
        registry.register(
            "config_map_writes",
            "ConfigMaps with roots that were to be written: ok, failed",
            metrics.writes.clone(),
        );
        registry.register(
            "namespaces",
            "Namespaces with a ConfigMap of roots",
            metrics.namespaces.clone(),
        );
        registry.register(
            "file_reads",
            "Looks at certificate and roots on disk: ok, failed",
            metrics.reloads.clone(),
        );
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the server's certificate ends, since 1970",
            Unit::Seconds,
            metrics.certificate_ends.clone(),
        );
        metrics.registry = Arc::new(registry);
        metrics
    }

    pub fn review(&self, result: &'static str, took: Duration) {
        self.reviews.get_or_create(&ResultLabels { result }).inc();
        self.review_seconds.observe(took.as_secs_f64());
    }

    pub fn write(&self, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.writes.get_or_create(&ResultLabels { result }).inc();
    }

    pub fn namespaces(&self, count: usize) {
        self.namespaces.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn reload(&self, what: &'static str, ok: bool) {
        let result = if ok { "ok" } else { "failed" };
        self.reloads.get_or_create(&ReloadLabels { what, result }).inc();
    }

    pub fn certificate_ends(&self, at: i64) {
        self.certificate_ends.set(at);
    }

    fn render(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }
}

/// `/metrics`, `/healthz`, `/readyz`.
pub async fn serve(
    listener: TcpListener,
    metrics: Metrics,
    ready: impl Fn() -> bool + Clone + Send + 'static,
) {
    local::serve(listener, CONNECTIONS, move |request, _| {
        answer(request, &metrics, &ready)
    })
    .await;
}

fn answer<B>(request: &Request<B>, metrics: &Metrics, ready: &impl Fn() -> bool) -> Response<Full<Bytes>> {
    const PLAIN: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let (status, kind, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, path) => match path {
            "/metrics" => (StatusCode::OK, METRICS, metrics.render()),
            "/healthz" => (StatusCode::OK, PLAIN, "live\n".to_owned()),
            "/readyz" if ready() => (StatusCode::OK, PLAIN, "ready\n".to_owned()),
            "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, PLAIN, "not ready\n".to_owned()),
            _ => (
                StatusCode::NOT_FOUND,
                PLAIN,
                "try /metrics, /healthz, /readyz\n".to_owned(),
            ),
        },
        _ => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_and_metrics_and_nothing_else() {
        let metrics = Metrics::new();
        metrics.review("patched", Duration::from_millis(2));
        let status = |method: &str, path: &str, ready: bool| {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            answer(&request, &metrics, &|| ready).status().as_u16()
        };
        assert_eq!(status("GET", "/healthz", false), 200);
        assert_eq!(
            (status("GET", "/readyz", false), status("GET", "/readyz", true)),
            (503, 200)
        );
        assert_eq!(
            (status("POST", "/metrics", true), status("GET", "/mutate", true)),
            (405, 404)
        );
        let text = metrics.render();
        assert!(
            text.contains("tv_agent_webhook_reviews_total{result=\"patched\"} 1"),
            "{text}"
        );
    }
}

//! The local HTTP port: metrics, liveness, readiness, public keys, the page. It shows no secret and changes nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::uri::Authority;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use crate::local::{self, Peer};
use crate::page::{self, View};
use crate::sign::KeySets;

/// Connections at once; a scraper needs one.
const CONNECTIONS: usize = 16;

/// What the port tells.
#[derive(Clone)]
pub struct Admin {
    /// In the OpenMetrics text format.
    pub metrics: Arc<dyn Fn() -> String + Send + Sync>,
    /// True once the CA is loaded and the kernel half is attached.
    pub ready: Arc<AtomicBool>,
    /// More lines of metrics, in the same format: the kernel half's counters.
    pub more: Arc<dyn Fn() -> Vec<(String, u64)> + Send + Sync>,
    /// The key sets that are published; None until the agent is there.
    pub keys: Arc<dyn Fn() -> Option<KeySets> + Send + Sync>,
    /// What the page shows; None where nobody asked for one.
    pub page: Option<Arc<dyn Fn() -> View + Send + Sync>>,
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
        tokio::spawn(local::serve(listener, CONNECTIONS, move |request, peer| {
            self.answer(request, peer)
        }))
    }

    fn answer<B>(&self, request: &Request<B>, peer: Peer) -> Response<Full<Bytes>> {
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
            "/" => self.page(request, peer),
            "/jwks" => self.jwks(None),
            path => match path.strip_prefix("/jwks/") {
                Some(name) => self.jwks(Some(name)),
                None => text(
                    StatusCode::NOT_FOUND,
                    "try /, /metrics, /healthz/live, /healthz/ready, /jwks, /jwks/NAME\n".to_owned(),
                ),
            },
        }
    }

    /// For people on this machine: it shows who calls what. A name in `Host` that is none of this machine's would be a
    /// web page elsewhere, reading through somebody's browser (DNS rebinding).
    fn page<B>(&self, request: &Request<B>, peer: Peer) -> Response<Full<Bytes>> {
        let Some(view) = &self.page else {
            return text(
                StatusCode::NOT_FOUND,
                "there is no page; ask for it by `admin: { page: true }`, or try /metrics\n".to_owned(),
            );
        };
        let host = request.headers().get(header::HOST);
        if peer != Peer::Local || !host.is_some_and(is_this_machine) {
            return text(
                StatusCode::FORBIDDEN,
                "the page is for this machine alone, as localhost or 127.0.0.1\n".to_owned(),
            );
        }
        let mut response = text(StatusCode::OK, page::render(&view()));
        for (name, value) in [
            (header::CONTENT_TYPE, "text/html; charset=utf-8"),
            (header::CONTENT_SECURITY_POLICY, page::content_security_policy()),
            (header::CACHE_CONTROL, "no-store"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
        ] {
            response
                .headers_mut()
                .insert(name, header::HeaderValue::from_static(value));
        }
        response
    }

    /// The public keys of one set, or of all.
    fn jwks(&self, name: Option<&str>) -> Response<Full<Bytes>> {
        let Some(sets) = (self.keys)() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned());
        };
        let Some(keys) = sets.jwks(name) else {
            return text(StatusCode::NOT_FOUND, "there is no such key set\n".to_owned());
        };
        let mut response = text(StatusCode::OK, keys.to_string());
        // RFC 7517 §8.5.1. Short, so that a new key is soon known to those who keep it.
        for (name, value) in [
            (header::CONTENT_TYPE, "application/jwk-set+json"),
            (header::CACHE_CONTROL, "public, max-age=60"),
        ] {
            response
                .headers_mut()
                .insert(name, header::HeaderValue::from_static(value));
        }
        response
    }

    fn metrics(&self) -> String {
        let mut all = (self.metrics)();
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

/// `localhost` or a loopback address, with or without a port.
fn is_this_machine(host: &header::HeaderValue) -> bool {
    let authority = host.to_str().ok().and_then(|text| text.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let name = authority.host().trim_matches(['[', ']']);
        let address = name.parse::<std::net::IpAddr>();
        name.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    })
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
    use crate::metrics::Metrics;
    use http_body_util::BodyExt as _;

    #[tokio::test]
    async fn metrics_health_and_nothing_else() {
        let ready = Arc::new(AtomicBool::new(false));
        let admin = Admin {
            metrics: Arc::new(|| Metrics::new().render()),
            ready: ready.clone(),
            more: Arc::new(|| vec![("redirected".to_owned(), 7)]),
            keys: Arc::new(|| None),
            page: None,
        };
        let status = |path: &str| {
            admin
                .answer(&Request::get(path).body(()).unwrap(), Peer::Remote)
                .status()
                .as_u16()
        };
        assert_eq!(
            (status("/healthz/live"), status("/healthz/ready"), status("/")),
            (200, 503, 404)
        );
        assert_eq!((status("/jwks"), status("/jwks/a")), (503, 503));
        ready.store(true, Ordering::Relaxed);
        assert_eq!(status("/healthz/ready"), 200);
        assert_eq!(
            admin
                .answer(&Request::post("/metrics").body(()).unwrap(), Peer::Local)
                .status(),
            405
        );
        let body = admin
            .answer(&Request::get("/metrics").body(()).unwrap(), Peer::Remote)
            .into_body();
        let text = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        assert!(
            text.contains("tv_agent_bpf_events_total{reason=\"redirected\"} 7\n"),
            "{text}"
        );
        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }

    #[tokio::test]
    async fn public_keys_are_published_by_set_and_together() {
        use crate::sign::keyset::{Generate, Settings, Source};
        use crate::sign::{Algorithm, KeySet};
        let dir = tempfile::tempdir().unwrap();
        let set = |name: &str, algorithm| {
            let how = Generate {
                algorithm,
                bits: 2048,
            };
            let source = Source::Generate { how, rotate: None };
            let settings = Settings {
                name: name.into(),
                source,
            };
            KeySet::open(settings, dir.path(), 1, None).unwrap()
        };
        let sets = [
            ("a", Algorithm::ES256),
            ("b", Algorithm::EdDSA),
            ("h", Algorithm::HS256),
        ];
        let sets = KeySets::new(sets.map(|(name, algorithm)| set(name, algorithm)));
        let admin = Admin {
            metrics: Arc::new(|| Metrics::new().render()),
            ready: Arc::default(),
            more: Arc::new(Vec::new),
            keys: Arc::new(move || Some(sets.clone())),
            page: None,
        };
        for (path, expected) in [
            ("/jwks", Some(vec!["ES256", "EdDSA"])),
            ("/jwks/a", Some(vec!["ES256"])),
            ("/jwks/h", Some(vec![])),
            ("/jwks/c", None),
            ("/jwks/", None),
            ("/jwks/a/b", None),
            ("/jwks/../a", None),
        ] {
            let response = admin.answer(&Request::get(path).body(()).unwrap(), Peer::Remote);
            let Some(expected) = expected else {
                assert_eq!(response.status(), 404, "{path}");
                continue;
            };
            assert_eq!(
                response.headers()[header::CONTENT_TYPE],
                "application/jwk-set+json"
            );
            let body = response.into_body().collect().await.unwrap().to_bytes();
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let keys = document["keys"].as_array().unwrap();
            let algorithms: Vec<_> = keys.iter().map(|key| key["alg"].as_str().unwrap()).collect();
            assert_eq!(algorithms, expected, "{path}");
        }
        let posted = admin.answer(&Request::post("/jwks/a").body(()).unwrap(), Peer::Local);
        assert_eq!(posted.status(), 405);
    }
}

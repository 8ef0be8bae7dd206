//! An API server that knows ConfigMaps and nothing else: lists in pages, watches, server-side apply, faults on demand.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, channel::Channel};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Writes get this status.
    Refuse(u16),
    /// Writes get no answer.
    Hang,
}

#[derive(Default)]
struct State {
    version: u64,
    maps: BTreeMap<String, Value>,
    events: Vec<(u64, &'static str, Value)>,
    fault: Fault,
    ending: BTreeSet<String>,
    writes: Vec<String>,
    pages: usize,
    unexpected: Vec<String>,
}

struct Shared {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    name: String,
}

/// A running server; dropping it ends it, and fails the test when it was asked for something else.
pub struct WebhookApi {
    shared: Arc<Shared>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

impl WebhookApi {
    /// Serves ConfigMaps called `name`, by plain HTTP on loopback.
    ///
    /// # Panics
    /// When it cannot listen.
    pub fn start(name: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            version: watch::channel(0).0,
            name: name.to_owned(),
        });
        let server = shared.clone();
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| {
                        let server = server.clone();
                        async move { Ok::<_, Infallible>(server.answer(request).await) }
                    });
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Self {
            shared,
            address,
            runtime: Some(runtime),
        }
    }

    /// The kubeconfig of somebody who may ask it.
    pub fn kubeconfig(&self) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": format!("http://{}", self.address) } }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
            "users": [{ "name": "u", "user": { "token": "webhook-token" } }],
        })
        .to_string()
    }

    pub fn fault(&self, fault: Fault) {
        self.shared.state().fault = fault;
    }

    /// The namespace is being deleted: nothing can be made there.
    pub fn end(&self, namespace: &str) {
        self.shared.state().ending.insert(namespace.to_owned());
        self.remove(namespace);
    }

    /// The ConfigMap's data in this namespace.
    pub fn data(&self, namespace: &str) -> Option<HashMap<String, String>> {
        let state = self.shared.state();
        let data = state.maps.get(namespace)?["data"].clone();
        serde_json::from_value(data).ok()
    }

    /// Namespaces of successful writes, in order.
    pub fn writes(&self) -> Vec<String> {
        self.shared.state().writes.clone()
    }

    /// Pages of lists that were asked for.
    pub fn pages(&self) -> usize {
        self.shared.state().pages
    }

    /// Somebody else writes.
    pub fn put(&self, namespace: &str, mut map: Value) {
        let mut state = self.shared.state();
        state.version += 1;
        map["metadata"]["name"] = self.shared.name.clone().into();
        map["metadata"]["namespace"] = namespace.into();
        map["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.put(namespace, map);
        self.shared.version.send_replace(state.version);
    }

    /// Somebody else changes the data.
    ///
    /// # Panics
    /// When it is not there.
    pub fn tamper(&self, namespace: &str, key: &str, value: &str) {
        let mut map = self.shared.state().maps[namespace].clone();
        map["data"][key] = value.into();
        self.put(namespace, map);
    }

    pub fn remove(&self, namespace: &str) {
        let mut state = self.shared.state();
        if let Some(mut map) = state.maps.remove(namespace) {
            state.version += 1;
            let version = state.version;
            map["metadata"]["resourceVersion"] = version.to_string().into();
            state.events.push((version, "DELETED", map));
            self.shared.version.send_replace(version);
        }
    }
}

impl Drop for WebhookApi {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        let unexpected = self.shared.state().unexpected.clone();
        if !std::thread::panicking() {
            assert_eq!(unexpected, Vec::<String>::new(), "nobody expected these calls");
        }
    }
}

impl State {
    fn put(&mut self, namespace: &str, map: Value) {
        let kind = match self.maps.insert(namespace.to_owned(), map.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        self.events.push((self.version, kind, map));
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Answer {
        let uri = request.uri().clone();
        let query = uri.query().unwrap_or_default().as_bytes();
        let query: HashMap<String, String> = url::form_urlencoded::parse(query).into_owned().collect();
        let value = |name: &str| query.get(name).map(String::as_str);
        let selector = format!("metadata.name={}", self.name);
        let authorized = request
            .headers()
            .get("authorization")
            .is_some_and(|value| value == "Bearer webhook-token");
        let path: Vec<&str> = uri.path().trim_start_matches('/').split('/').collect();
        match (request.method(), &path[..]) {
            _ if !authorized => self.unexpected(&request),
            (&Method::GET, ["api", "v1", "configmaps"]) if value("fieldSelector") == Some(&selector) => {
                if value("watch").is_some() {
                    self.watch(
                        value("resourceVersion")
                            .and_then(|text| text.parse().ok())
                            .unwrap_or(0),
                    )
                } else {
                    self.list(value("limit"), value("continue"))
                }
            }
            (&Method::PATCH, ["api", "v1", "namespaces", namespace, "configmaps", name])
                if *name == self.name
                    && value("fieldManager") == Some("tv-agent-webhook")
                    && request
                        .headers()
                        .get("content-type")
                        .is_some_and(|kind| kind == "application/apply-patch+yaml") =>
            {
                let namespace = (*namespace).to_owned();
                self.apply(&namespace, request).await
            }
            _ => self.unexpected(&request),
        }
    }

    fn unexpected(&self, request: &Request<Incoming>) -> Answer {
        let call = format!("{} {}", request.method(), request.uri());
        self.state().unexpected.push(call);
        refusal(404, json!({}))
    }

    fn list(&self, limit: Option<&str>, from: Option<&str>) -> Answer {
        let mut state = self.state();
        state.pages += 1;
        let limit: usize = limit.and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        let from: usize = from.and_then(|text| text.parse().ok()).unwrap_or(0);
        let items: Vec<&Value> = state.maps.values().skip(from).take(limit).collect();
        let next = from + items.len();
        let more = match next < state.maps.len() {
            true => next.to_string(),
            false => String::new(),
        };
        let list = json!({
            "apiVersion": "v1", "kind": "ConfigMapList", "items": items,
            "metadata": { "resourceVersion": state.version.to_string(), "continue": more },
        });
        whole(200, &list)
    }

    fn watch(self: Arc<Self>, mut seen: u64) -> Answer {
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(16);
        let mut version = self.version.subscribe();
        tokio::spawn(async move {
            loop {
                let fresh: Vec<_> = {
                    let state = self.state();
                    let fresh = state.events.iter().filter(|(at, _, _)| *at > seen);
                    fresh.cloned().collect()
                };
                for (at, kind, object) in fresh {
                    seen = at;
                    let mut line = json!({ "type": kind, "object": object }).to_string();
                    line.push('\n');
                    if sender.send_data(line.into()).await.is_err() {
                        return;
                    }
                }
                if version.changed().await.is_err() {
                    return;
                }
            }
        });
        Response::new(body.boxed())
    }

    async fn apply(&self, namespace: &str, request: Request<Incoming>) -> Answer {
        let fault = self.state().fault;
        match fault {
            Fault::None => {}
            Fault::Refuse(status) => return refusal(status, json!({})),
            Fault::Hang => {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        }
        let body = request.into_body().collect().await.map(|body| body.to_bytes());
        let Ok(mut map) = serde_json::from_slice::<Value>(&body.unwrap_or_default()) else {
            return refusal(400, json!({}));
        };
        let mut state = self.state();
        if state.ending.contains(namespace) {
            let details =
                json!({ "causes": [{ "reason": "NamespaceTerminating", "message": "m", "field": "f" }] });
            return refusal(403, details);
        }
        let size: usize = map["data"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(_, text)| Some(text.as_str()?.len()))
            .sum();
        if size > 1024 * 1024 {
            return refusal(422, json!({}));
        }
        state.version += 1;
        map["metadata"]["namespace"] = namespace.into();
        map["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.put(namespace, map.clone());
        state.writes.push(namespace.to_owned());
        self.version.send_replace(state.version);
        whole(200, &map)
    }
}

fn whole(status: u16, body: &Value) -> Answer {
    let mut response = Response::new(Full::from(body.to_string()).boxed());
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
    response
}

fn refusal(status: u16, details: Value) -> Answer {
    let body = json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": status, "reason": "Test",
        "message": "this write is refused", "details": details,
    });
    whole(status, &body)
}

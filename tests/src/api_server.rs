//! A stand-in for the Kubernetes API server: pods and namespaces to list and watch, Events to take, and every way to
//! fail that a real one has.
//!
//! It refuses what nobody expects, as the other fakes do.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::fakes::pki::Identity;
use crate::fakes::{UNEXPECTED_STATUS, Unexpected, lock, server};

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

/// What is wrong with it, until something else is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Every watch is told that its place is too old, in a line.
    Expired,
    /// Every watch is refused with status 410.
    Gone,
    /// Everything is refused with status 429 and `Retry-After: 1`.
    Throttled,
    /// Everything is refused with status 500.
    Broken,
    /// No answer at all.
    Hangs,
    /// Watches are accepted, and then say nothing.
    Silent,
    /// Watches end in the middle of a line.
    Cut,
    /// Watches say what is no JSON.
    Garbage,
    /// Answers come a few bytes at a time.
    Slow,
    /// Connections are closed at once.
    Away,
}

/// Objects by resource and key, and what happened to them.
#[derive(Default)]
struct Store {
    version: u64,
    objects: BTreeMap<(&'static str, String), Value>,
    /// Version, resource, kind of the change, object.
    history: VecDeque<(u64, &'static str, &'static str, Value)>,
    events: BTreeMap<String, Value>,
    fault: Fault,
    token: Option<String>,
    counts: BTreeMap<String, usize>,
}

/// A running API server; dropped, it is gone.
pub struct ApiServer {
    store: Arc<Mutex<Store>>,
    changed: watch::Sender<u64>,
    addr: SocketAddr,
    tls: bool,
    unexpected: Unexpected,
    runtime: Option<Runtime>,
}

/// For whoever answers.
#[derive(Clone)]
struct Server {
    store: Arc<Mutex<Store>>,
    changed: watch::Receiver<u64>,
    unexpected: Unexpected,
}

impl ApiServer {
    /// Listens at `addr` (port 0: any); with an identity over TLS.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(addr: SocketAddr, identity: Option<&Identity>) -> io::Result<Self> {
        let runtime = server::runtime("api-server")?;
        let listener = std::net::TcpListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let tls = identity.map(|identity| server::tls(identity, &["http/1.1"]));
        let tls = tls.transpose().map_err(io::Error::other)?.map(TlsAcceptor::from);
        let (changed, watched) = watch::channel(0);
        let store: Arc<Mutex<Store>> = Arc::default();
        let unexpected = Unexpected::default();
        let answering = Server {
            store: store.clone(),
            changed: watched,
            unexpected: unexpected.clone(),
        };
        let over_tls = tls.is_some();
        let _guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        runtime.spawn(accept(listener, tls, answering));
        drop(_guard);
        Ok(Self {
            store,
            changed,
            addr,
            tls: over_tls,
            unexpected,
            runtime: Some(runtime),
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("http{}://{}", if self.tls { "s" } else { "" }, self.addr)
    }

    /// From now on only this token is taken.
    pub fn demand(&self, token: &str) {
        lock(&self.store).token = Some(token.to_owned());
    }

    /// Fails this way from now on; watches that run are told of nothing more, where that is how it fails.
    pub fn fail(&self, fault: Fault) {
        lock(&self.store).fault = fault;
        self.changed.send_modify(|version| *version += 1);
    }

    /// Makes or changes an object of `pods` or `namespaces`.
    pub fn put(&self, resource: &'static str, mut object: Value) {
        let mut store = lock(&self.store);
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let key = (resource, key(&object));
        let kind = match store.objects.insert(key, object.clone()) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        store.history.push_back((version, resource, kind, object));
        drop(store);
        self.changed.send_modify(|version| *version += 1);
    }

    /// Removes one, `NAME` or `NAMESPACE/NAME`.
    pub fn remove(&self, resource: &'static str, key: &str) {
        let mut store = lock(&self.store);
        let Some(mut object) = store.objects.remove(&(resource, key.to_owned())) else {
            return;
        };
        store.version += 1;
        let version = store.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        store.history.push_back((version, resource, "DELETED", object));
        drop(store);
        self.changed.send_modify(|version| *version += 1);
    }

    /// As etcd's compaction does: watches from before now are told that their place is too old.
    pub fn forget(&self) {
        let mut store = lock(&self.store);
        store.version += 1;
        store.history.clear();
    }

    /// The Events that it holds.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.store).events.values().cloned().collect()
    }

    /// How often something was asked: `list pods`, `watch namespaces`, `create events`, `patch events`, `401`.
    pub fn count(&self, what: &str) -> usize {
        lock(&self.store).counts.get(what).copied().unwrap_or_default()
    }

    pub fn unexpected(&self) -> &Unexpected {
        &self.unexpected
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        server::stop(self.runtime.take());
        self.unexpected.assert_none("the API server");
    }
}

/// A pod with one container `app`, as the API server shows it. Change it before it is put.
pub fn pod(node: &str, namespace: &str, name: &str, uid: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "uid": uid, "labels": labels },
        "spec": { "nodeName": node, "serviceAccountName": "default", "containers": [{ "name": "app" }] },
        "status": { "phase": "Pending" },
    })
}

pub fn namespace(name: &str, labels: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn key(object: &Value) -> String {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    match metadata["namespace"].as_str() {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, server: Server) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (server, tls) = (server.clone(), tls.clone());
        if lock(&server.store).fault == Fault::Away {
            continue;
        }
        tokio::spawn(async move {
            match tls {
                None => serve(stream, server).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, server).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, server: Server) {
    let service = service_fn(move |request| {
        let server = server.clone();
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    // A connection's end is the client's business.
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .await
        .ok();
}

impl Server {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let (fault, token) = {
            let store = lock(&self.store);
            (store.fault, store.token.clone())
        };
        if fault == Fault::Hangs {
            std::future::pending::<()>().await;
        }
        let wanted = token.map(|token| format!("Bearer {token}"));
        let given = request.headers().get(header::AUTHORIZATION);
        if wanted.is_some_and(|wanted| given.is_none_or(|given| given != wanted.as_str())) {
            self.counted("401");
            return status(401, "Unauthorized");
        }
        match fault {
            Fault::Throttled => {
                let mut answer = status(429, "too many requests");
                let seconds = header::HeaderValue::from_static("1");
                answer.headers_mut().insert(header::RETRY_AFTER, seconds);
                self.counted("429");
                return answer;
            }
            Fault::Broken => return status(500, "etcd is away"),
            _ => {}
        }
        let path = request.uri().path().to_owned();
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let method = request.method().clone();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (&method, &parts[..]) {
            (&Method::GET, ["api", "v1", "pods"]) if query.contains_key("fieldSelector") => {
                self.read("pods", &query, fault)
            }
            (&Method::GET, ["api", "v1", "namespaces"]) if wants_metadata(&request) => {
                self.read("namespaces", &query, fault)
            }
            (&Method::POST, ["api", "v1", "namespaces", namespace, "events"]) => {
                self.create(namespace, &text_of(request).await)
            }
            (&Method::PATCH, ["api", "v1", "namespaces", namespace, "events", name]) => {
                let name = format!("{namespace}/{name}");
                self.patch(&name, &text_of(request).await)
            }
            _ => {
                self.unexpected.remember(format!("{method} {}", request.uri()));
                status(UNEXPECTED_STATUS, "nobody expects this")
            }
        }
    }

    fn counted(&self, what: &str) {
        *lock(&self.store).counts.entry(what.to_owned()).or_default() += 1;
    }

    fn read(&self, resource: &'static str, query: &BTreeMap<String, String>, fault: Fault) -> Response<Body> {
        let known = [
            "fieldSelector",
            "limit",
            "continue",
            "watch",
            "timeoutSeconds",
            "allowWatchBookmarks",
            "resourceVersion",
        ];
        if let Some(other) = query.keys().find(|name| !known.contains(&name.as_str())) {
            self.unexpected.remember(format!("{resource}?{other}"));
        }
        let node = query.get("fieldSelector").map(|selector| {
            let node = selector.strip_prefix("spec.nodeName=");
            node.unwrap_or_else(|| {
                self.unexpected.remember(format!("fieldSelector={selector}"));
                "nowhere"
            })
            .to_owned()
        });
        if query.get("watch").is_none_or(|watch| watch != "true") {
            self.counted(&format!("list {resource}"));
            return self.list(resource, query, node.as_deref(), fault);
        }
        self.counted(&format!("watch {resource}"));
        let from = query
            .get("resourceVersion")
            .and_then(|version| version.parse().ok());
        let Some(from) = from else {
            return status(400, "a watch has to begin somewhere");
        };
        if fault == Fault::Gone {
            return status(410, "too old resource version");
        }
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(64);
        let seconds = query
            .get("timeoutSeconds")
            .and_then(|seconds| seconds.parse().ok());
        let limit = Duration::from_secs(seconds.unwrap_or(60));
        let server = self.clone();
        tokio::spawn(async move {
            // The client that goes away ends it as well.
            let _ = tokio::time::timeout(limit, server.follow(resource, from, node, &mut sender)).await;
            // Not even the end is told.
            while lock(&server.store).fault == Fault::Silent {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut answer = Response::new(body.boxed_unsync());
        let json = header::HeaderValue::from_static("application/json");
        answer.headers_mut().insert(header::CONTENT_TYPE, json);
        answer
    }

    fn list(
        &self,
        resource: &'static str,
        query: &BTreeMap<String, String>,
        node: Option<&str>,
        fault: Fault,
    ) -> Response<Body> {
        let store = lock(&self.store);
        let all = store.objects.iter().filter(|((kind, _), _)| *kind == resource);
        let all: Vec<&Value> = all
            .map(|(_, object)| object)
            .filter(|object| is_on(object, node))
            .collect();
        let limit = query
            .get("limit")
            .and_then(|limit| limit.parse().ok())
            .unwrap_or(usize::MAX);
        let begin: usize = query.get("continue").and_then(|at| at.parse().ok()).unwrap_or(0);
        let end = begin.saturating_add(limit).min(all.len());
        let more = if end < all.len() {
            end.to_string()
        } else {
            String::new()
        };
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": { "resourceVersion": store.version.to_string(), "continue": more },
            "items": all.get(begin..end).unwrap_or_default(),
        });
        drop(store);
        if fault != Fault::Slow {
            return whole(200, &list);
        }
        let (mut sender, body) = Channel::<Bytes, Infallible>::new(1);
        tokio::spawn(async move {
            for piece in list.to_string().as_bytes().chunks(64) {
                if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Response::new(body.boxed_unsync())
    }

    /// Tells what happened after `from` and happens, with a bookmark now and then.
    async fn follow(
        &self,
        resource: &'static str,
        mut from: u64,
        node: Option<String>,
        sender: &mut http_body_util::channel::Sender<Bytes, Infallible>,
    ) {
        let mut changed = self.changed.clone();
        let mut bookmark = tokio::time::interval(Duration::from_millis(500));
        loop {
            let (lines, fault) = {
                let store = lock(&self.store);
                let fault = store.fault;
                let oldest = store
                    .history
                    .front()
                    .map_or(store.version + 1, |(version, ..)| *version);
                let mut lines = Vec::new();
                if fault == Fault::Expired || from + 1 < oldest {
                    let object = json!({ "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
                                         "message": format!("too old resource version: {from}") });
                    lines.push(json!({ "type": "ERROR", "object": object }));
                } else {
                    let new = store.history.iter().filter(|(version, kind, _, object)| {
                        *version > from && *kind == resource && is_on(object, node.as_deref())
                    });
                    lines.extend(new.map(|(_, _, kind, object)| json!({ "type": kind, "object": object })));
                    from = store.version;
                }
                (lines, fault)
            };
            match fault {
                Fault::Silent => std::future::pending::<()>().await,
                Fault::Hangs | Fault::Throttled | Fault::Broken | Fault::Gone | Fault::Away => return,
                Fault::Cut => {
                    let _ = sender
                        .send_data(Bytes::from_static(b"{\"type\":\"ADDED\",\"obj"))
                        .await;
                    return;
                }
                Fault::Garbage => {
                    let _ = sender.send_data(Bytes::from_static(b"<html>no</html>\n")).await;
                    return;
                }
                Fault::None | Fault::Slow | Fault::Expired => {}
            }
            for line in &lines {
                let text = format!("{line}\n");
                let piece = if fault == Fault::Slow { 7 } else { text.len() };
                for piece in text.as_bytes().chunks(piece) {
                    if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                        return;
                    }
                    if fault == Fault::Slow {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            if fault == Fault::Expired || lines.iter().any(|line| line["type"] == "ERROR") {
                return;
            }
            tokio::select! {
                ended = changed.changed() => if ended.is_err() { return },
                _ = bookmark.tick() => {
                    let object = json!({ "kind": "Bookmark",
                        "metadata": { "name": "", "resourceVersion": from.to_string() } });
                    let line = format!("{}\n", json!({ "type": "BOOKMARK", "object": object }));
                    if sender.send_data(line.into()).await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    fn create(&self, namespace: &str, text: &[u8]) -> Response<Body> {
        let Ok(event) = serde_json::from_slice::<Value>(text) else {
            self.unexpected.remember("an Event that is no JSON");
            return status(400, "no JSON");
        };
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let (name, about) = (text("/metadata/name"), &event["involvedObject"]);
        // metav1.Time: 2026-01-31T12:00:00Z.
        let is_time = |path| text(path).len() == 20 && text(path).ends_with('Z');
        let good = text("/metadata/namespace") == namespace
            && about["namespace"] == namespace
            && about["kind"] == "Pod"
            && about["uid"].is_string()
            && !name.is_empty()
            && name.len() <= 253
            && text("/reason").chars().all(char::is_alphanumeric)
            && (1..1024).contains(&text("/message").len())
            && text("/type") == "Warning"
            && event["count"].is_u64()
            && is_time("/firstTimestamp")
            && is_time("/lastTimestamp");
        if !good {
            self.unexpected
                .remember(format!("an Event that a real one refuses: {event}"));
            return status(422, "invalid");
        }
        self.counted("create events");
        let mut store = lock(&self.store);
        store.events.insert(format!("{namespace}/{name}"), event.clone());
        whole(201, &event)
    }

    fn patch(&self, key: &str, text: &[u8]) -> Response<Body> {
        self.counted("patch events");
        let mut store = lock(&self.store);
        let Some(event) = store.events.get_mut(key) else {
            return status(404, "no such Event");
        };
        let patch: Value = serde_json::from_slice(text).unwrap_or_default();
        for (name, value) in patch.as_object().into_iter().flatten() {
            event[name] = value.clone();
        }
        whole(200, event)
    }
}

fn wants_metadata(request: &Request<Incoming>) -> bool {
    let accept = request.headers().get(header::ACCEPT);
    accept.is_some_and(|accept| {
        accept
            .to_str()
            .is_ok_and(|accept| accept.contains("as=PartialObjectMetadata"))
    })
}

fn is_on(object: &Value, node: Option<&str>) -> bool {
    node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

async fn text_of(request: Request<Incoming>) -> Bytes {
    request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default()
}

fn status(code: u16, message: &str) -> Response<Body> {
    whole(
        code,
        &json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message }),
    )
}

fn whole(code: u16, value: &Value) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}

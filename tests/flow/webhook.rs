//! The admission webhook in process, through real TLS, before an API server that knows ConfigMaps.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tv_agent::limits;
use tv_agent::webhook::{Pace, Settings, Webhook};
use tv_tests::fakes::pki::{Identity, Pki};
use tv_tests::webhook_api::{Fault, WebhookApi};

const LIMIT: Duration = Duration::from_secs(20);
const MAP: &str = "tv-agent-ca";

/// A webhook that serves, all that it needs, and whoever asks it.
struct World {
    api: WebhookApi,
    pki: Pki,
    address: std::net::SocketAddr,
    admin: std::net::SocketAddr,
    stop: watch::Sender<bool>,
    served: tokio::task::JoinHandle<()>,
    directory: tempfile::TempDir,
}

fn write_identity(directory: &Path, identity: &Identity) {
    let encode = |kind: &str, der: &[u8]| {
        let body = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN {kind}-----\n{body}\n-----END {kind}-----\n")
    };
    let certificate = encode("CERTIFICATE", &identity.chain[0]);
    std::fs::write(directory.join("tls.crt"), certificate).unwrap();
    std::fs::write(
        directory.join("tls.key"),
        encode("PRIVATE KEY", identity.key.secret_der()),
    )
    .unwrap();
}

impl World {
    async fn start() -> Self {
        Self::with(WebhookApi::start(MAP)).await
    }

    async fn with(api: WebhookApi) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::new("Webhook Root");
        write_identity(directory.path(), &pki.leaf(&["127.0.0.1"]));
        let file = |name: &str| directory.path().join(name);
        std::fs::write(file("root.pem"), Pki::new("tv-agent CA").root_pem()).unwrap();
        std::fs::write(file("public.pem"), Pki::new("Public CA").root_pem()).unwrap();
        std::fs::write(file("kubeconfig"), api.kubeconfig()).unwrap();
        let path = |name: &str| file(name).display().to_string();
        let text = json!({
            "listen": "127.0.0.1:0", "admin": { "metrics": "127.0.0.1:0" },
            "tls": { "certificate": path("tls.crt"), "key": path("tls.key") },
            "roots": [path("root.pem")], "public_roots": path("public.pem"),
            "kubernetes": { "kubeconfig": path("kubeconfig") }, "config_map": MAP, "drain_seconds": 5,
        });
        let mut settings = Settings::parse(&text.to_string(), Path::new("webhook.yaml")).unwrap();
        settings.pace = Pace {
            files: Duration::from_millis(50),
            sweep: Duration::from_millis(200),
            linger: Duration::from_millis(100),
        };
        let webhook = Webhook::start(settings).await.unwrap();
        let (address, admin) = (webhook.address, webhook.admin);
        let (stop, stopped) = watch::channel(false);
        let world = Self {
            api,
            pki,
            address,
            admin,
            stop,
            served: tokio::spawn(webhook.serve(stopped)),
            directory,
        };
        world
            .until("ready", async || world.local("/readyz").await.0 == 200)
            .await;
        world
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let until = Instant::now() + LIMIT;
        while !holds().await {
            assert!(Instant::now() < until, "not within {LIMIT:?}: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The port of metrics and health.
    async fn local(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        (text[9..12].parse().unwrap(), text)
    }

    async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.local("/metrics").await;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().unwrap())
    }

    async fn tls(&self, alpn: &[u8]) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.pki.root().clone()).unwrap();
        let mut tls = tv_agent::https::tls(Arc::new(roots)).unwrap();
        tls.alpn_protocols = vec![alpn.to_owned()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::from(self.address.ip());
        TlsConnector::from(Arc::new(tls))
            .connect(name, stream)
            .await
            .unwrap()
    }

    async fn post(&self, path: &str, kind: &str, body: Vec<u8>) -> (u16, Bytes) {
        let io = TokioIo::new(self.tls(b"http/1.1").await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post(path)
            .header("host", "webhook")
            .header("content-type", kind)
            .body(Full::<Bytes>::from(body))
            .unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.into_body().collect().await.unwrap().to_bytes())
    }

    /// The `response` of the answer to a review of this pod.
    async fn review(&self, path: &str, namespace: &str, pod: &Value, dry_run: bool) -> Value {
        let (status, body) = self
            .post(path, "application/json", review(namespace, pod, dry_run))
            .await;
        assert_eq!(status, 200, "{body:?}");
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["response"]["uid"], "u-1");
        assert_eq!(answer["response"]["allowed"], true);
        answer["response"].clone()
    }

    async fn stop(self) {
        self.stop.send_replace(true);
        tokio::time::timeout(LIMIT, self.served).await.unwrap().unwrap();
    }
}

fn review(namespace: &str, pod: &Value, dry_run: bool) -> Vec<u8> {
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "u-1", "operation": "CREATE", "namespace": namespace, "dryRun": dry_run,
            "kind": { "group": "", "version": "v1", "kind": "Pod" }, "object": pod,
        },
    });
    review.to_string().into_bytes()
}

fn pod() -> Value {
    json!({ "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "app", "image": "x" }] } })
}

fn operations(response: &Value) -> Vec<Value> {
    let patch = response["patch"].as_str().expect("a patch");
    let patch = base64::engine::general_purpose::STANDARD.decode(patch).unwrap();
    serde_json::from_slice(&patch).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_asks_is_given_trust_and_its_config_map_is_there_first() {
    let world = World::start().await;
    let response = world.review("/mutate/asked", "shop", &pod(), false).await;
    let paths = operations(&response);
    let paths: Vec<&str> = paths.iter().map(|it| it["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/spec/volumes") && paths.contains(&"/spec/containers/0/volumeMounts"));
    let data = world.api.data("shop").expect("written before the answer");
    assert_eq!(data["roots.pem"].matches("BEGIN CERTIFICATE").count(), 1);
    assert_eq!(data["bundle.pem"].matches("BEGIN CERTIFICATE").count(), 2);
    // Its own word is enough; without it, and without its namespace's, nothing happens.
    let mut asking = pod();
    asking["metadata"]["labels"] = json!({ "tv-agent.io/enrol": "true" });
    assert!(!operations(&world.review("/mutate", "shop", &asking, false).await).is_empty());
    let quiet = world.review("/mutate", "quiet", &pod(), false).await;
    assert!(quiet["patch"].is_null() && world.api.data("quiet").is_none());
    assert_eq!(world.api.writes(), ["shop"], "what is there is not written again");
    assert_eq!(
        world
            .metric("tv_agent_webhook_reviews_total{result=\"patched\"}")
            .await,
        2
    );
    assert_eq!(
        world
            .metric("tv_agent_webhook_reviews_total{result=\"not_asked\"}")
            .await,
        1
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_gets_the_patch_and_leaves_nothing() {
    let world = World::start().await;
    let response = world.review("/mutate/asked", "shop", &pod(), true).await;
    assert!(!operations(&response).is_empty());
    assert!(world.api.writes().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_pods_at_once_write_one_config_map() {
    let world = Arc::new(World::start().await);
    let mut running = tokio::task::JoinSet::new();
    for number in 0..100 {
        let world = world.clone();
        running.spawn(async move {
            let namespace = format!("n{}", number % 2);
            operations(&world.review("/mutate/asked", &namespace, &pod(), false).await).len()
        });
    }
    let lengths = running.join_all().await;
    assert!(lengths.len() == 100 && lengths.iter().all(|length| *length == lengths[0]));
    let mut writes = world.api.writes();
    writes.sort();
    assert_eq!(writes, ["n0", "n1"]);
    Arc::into_inner(world).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_config_map_can_be_written_the_pod_starts_as_it_is() {
    let world = World::start().await;
    for fault in [
        Fault::Refuse(403),
        Fault::Refuse(500),
        Fault::Refuse(429),
        Fault::Hang,
    ] {
        world.api.fault(fault);
        let began = Instant::now();
        let response = world.review("/mutate/asked", "shop", &pod(), false).await;
        assert!(response["patch"].is_null(), "{fault:?}");
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.contains("starts without trust"), "{warning}");
        if fault != Fault::Hang {
            assert!(
                warning.ends_with("this write is refused"),
                "what the API server says: {warning}"
            );
        }
        assert!(
            began.elapsed() < Duration::from_secs(5),
            "{fault:?}: the API server has given up"
        );
    }
    assert_eq!(
        world
            .metric("tv_agent_webhook_reviews_total{result=\"failed_open\"}")
            .await,
        4
    );
    world.api.fault(Fault::None);
    assert!(!operations(&world.review("/mutate/asked", "shop", &pod(), false).await).is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_review_is_refused_and_disturbs_nobody() {
    let world = World::start().await;
    let json = "application/json";
    for (path, kind, body, status) in [
        ("/", json, Vec::new(), 404),
        ("/mutate/", json, Vec::new(), 404),
        ("/mutate", "text/plain", review("a", &pod(), false), 415),
        ("/mutate", json, Vec::new(), 400),
        ("/mutate", json, b"{\"apiVersion\":".to_vec(), 400),
        ("/mutate", json, review("", &pod(), false), 400),
        (
            "/mutate",
            json,
            review("a", &json!({ "metadata": {} }), false),
            400,
        ),
        ("/mutate", json, "[".repeat(200_000).into_bytes(), 400),
    ] {
        let (found, text) = world.post(path, kind, body).await;
        assert_eq!(found, status, "{path} {kind}: {text:?}");
        assert!(!text.is_empty());
    }
    assert_eq!(
        world
            .metric("tv_agent_webhook_reviews_total{result=\"refused\"}")
            .await,
        8
    );
    assert!(!operations(&world.review("/mutate/asked", "a", &pod(), false).await).is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_megabytes_are_reviewed_and_five_are_not() {
    let world = World::start().await;
    let mut large = pod();
    large["metadata"]["annotations"] = json!({ "note": "x".repeat(3 * 1024 * 1024) });
    assert!(!operations(&world.review("/mutate/asked", "a", &large, false).await).is_empty());
    let containers: Vec<Value> = (0..1000)
        .map(|number| json!({ "name": format!("c{number}"), "image": "x".repeat(2500), "env": [] }))
        .collect();
    large = json!({ "metadata": {}, "spec": { "containers": containers } });
    let patch = operations(&world.review("/mutate/asked", "a", &large, false).await);
    let mounts = patch
        .iter()
        .filter(|it| it["path"].as_str().unwrap().ends_with("volumeMounts"));
    assert_eq!(mounts.count(), 1000);

    // Announced, and not announced.
    let five = 5 * 1024 * 1024;
    let mut stream = world.tls(b"http/1.1").await;
    let head = "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
    let announced = format!("{head}content-length: {five}\r\n\r\n");
    stream.write_all(announced.as_bytes()).await.unwrap();
    assert_eq!(status(&mut stream).await, 413);
    let mut stream = world.tls(b"http/1.1").await;
    stream
        .write_all(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let writer = tokio::spawn(async move {
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        for _ in 0..five / 0x10000 {
            // It may have been answered already.
            if write.write_all(chunk.as_bytes()).await.is_err() {
                break;
            }
        }
        write
    });
    assert_eq!(status(&mut read).await, 413);
    drop(writer.await.unwrap());
    world.stop().await;
}

async fn status(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> u16 {
    let mut head = [0; 12];
    let read = tokio::time::timeout(LIMIT, stream.read_exact(&mut head)).await;
    read.expect("an answer in time").expect("an answer");
    std::str::from_utf8(&head[9..]).unwrap().parse().unwrap()
}

/// What a slow client holds, it holds for seconds, and others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn slow_clients_are_let_go() {
    let world = World::start().await;
    let ended = async |mut stream: TlsStream<TcpStream>| {
        let began = Instant::now();
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
            .await
            .expect("it is ended");
        (began.elapsed(), String::from_utf8_lossy(&rest).into_owned())
    };
    let bare = async {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
            .await
            .expect("it is ended");
    };
    let silent = async { ended(world.tls(b"http/1.1").await).await };
    let h2 = async { ended(world.tls(b"h2").await).await };
    let header = async {
        let mut stream = world.tls(b"http/1.1").await;
        stream.write_all(b"POST /mutate HTTP/1.1\r\nhost:").await.unwrap();
        ended(stream).await
    };
    let body = async {
        let mut stream = world.tls(b"http/1.1").await;
        let head = "POST /mutate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(status(&mut stream).await, 408);
    };
    let pod = pod();
    let served = world.review("/mutate/asked", "a", &pod, false);
    let ((), silent, h2, header, (), served) = tokio::join!(bare, silent, h2, header, body, served);
    assert!(!operations(&served).is_empty());
    for (took, rest) in [silent, h2, header] {
        assert!(
            took >= limits::WEBHOOK_FIRST_TIME - Duration::from_secs(1),
            "{took:?} {rest}"
        );
        assert!(!rest.contains("200 OK"), "{rest}");
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reviews_and_connections_beyond_the_limit_wait_or_are_refused() {
    let world = World::start().await;
    // Two connections with all the reviews that are served at once, their bodies unfinished.
    let mut held = Vec::new();
    let mut senders = Vec::new();
    let streams = limits::WEBHOOK_STREAMS as usize;
    for _ in 0..limits::WEBHOOK_REVIEWS / streams {
        let io = TokioIo::new(world.tls(b"h2").await);
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        tokio::spawn(connection);
        for _ in 0..streams {
            let (body, unfinished) = Channel::<Bytes>::new(1);
            let request = http::Request::post("https://webhook/mutate")
                .header("content-type", "application/json")
                .body(unfinished)
                .unwrap();
            held.push((body, tokio::spawn(sender.send_request(request))));
        }
        senders.push(sender);
    }
    world
        .until("refused", async || {
            world
                .post("/mutate", "application/json", review("a", &pod(), false))
                .await
                .0
                == 503
        })
        .await;
    for (body, answer) in held {
        drop(body);
        let status = answer.await.unwrap().unwrap().status().as_u16();
        assert!([400, 408].contains(&status), "{status}");
    }
    drop(senders);
    // As many connections as there may be; one more is served when one of them is gone.
    let mut open = Vec::new();
    for _ in 0..limits::WEBHOOK_CONNECTIONS {
        open.push(TcpStream::connect(world.address).await.unwrap());
    }
    let began = Instant::now();
    assert!(!operations(&world.review("/mutate/asked", "a", &pod(), false).await).is_empty());
    assert!(began.elapsed() <= limits::WEBHOOK_HANDSHAKE_TIME + Duration::from_secs(5));
    drop(open);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_is_served_once_it_is_whole() {
    let mut world = World::start().await;
    let next = Pki::new("Next Root");
    let identity = next.leaf(&["127.0.0.1"]);
    std::fs::write(world.file("tls.crt"), "half").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!operations(&world.review("/mutate/asked", "a", &pod(), false).await).is_empty());
    write_identity(world.directory.path(), &identity);
    world.pki = next;
    let roots = {
        let mut roots = RootCertStore::empty();
        roots.add(world.pki.root().clone()).unwrap();
        Arc::new(roots)
    };
    world
        .until("the new certificate", async || {
            let tls = tv_agent::https::tls(roots.clone()).unwrap();
            let stream = TcpStream::connect(world.address).await.unwrap();
            let name = ServerName::from(world.address.ip());
            TlsConnector::from(Arc::new(tls))
                .connect(name, stream)
                .await
                .is_ok()
        })
        .await;
    assert!(!operations(&world.review("/mutate/asked", "a", &pod(), false).await).is_empty());
    let failed = "tv_agent_webhook_file_reads_total{what=\"certificate\",result=\"failed\"}";
    assert!(world.metric(failed).await > 0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_roots_reach_every_namespace_and_what_others_change_is_put_right() {
    let api = WebhookApi::start(MAP);
    // More than a page, of an earlier run with other roots.
    for number in 0..40 {
        api.put(&format!("old{number}"), json!({ "data": { "roots.pem": "old" } }));
    }
    let world = World::with(api).await;
    assert!(world.api.pages() >= 3);
    let current = |namespace: &str| {
        let data = world.api.data(namespace);
        data.is_some_and(|data| data["roots.pem"].matches("BEGIN CERTIFICATE").count() == 1)
    };
    world
        .until("all", async || {
            (0..40).all(|number| current(&format!("old{number}")))
        })
        .await;
    world.review("/mutate/asked", "shop", &pod(), false).await;

    let before = world.api.data("shop").unwrap();
    let next = Pki::new("tv-agent CA 2");
    std::fs::write(world.file("root.pem"), next.root_pem()).unwrap();
    let renewed = |namespace: &str| {
        let data = world.api.data(namespace);
        data.is_some_and(|data| {
            data["roots.pem"] != before["roots.pem"] && data["bundle.pem"] != before["bundle.pem"]
        })
    };
    world
        .until("renewed", async || {
            renewed("shop") && (0..40).all(|number| renewed(&format!("old{number}")))
        })
        .await;
    // Roots that cannot be used change nothing.
    std::fs::write(world.file("root.pem"), "nothing").unwrap();
    let failed = "tv_agent_webhook_file_reads_total{what=\"roots\",result=\"failed\"}";
    world
        .until("looked at", async || world.metric(failed).await > 1)
        .await;
    assert!(renewed("shop"));

    world.api.tamper("shop", "bundle.pem", "somebody else's");
    world
        .until("put right", async || {
            renewed("shop") && world.api.data("shop").unwrap()["bundle.pem"].contains("BEGIN")
        })
        .await;
    world.api.remove("shop");
    world
        .until("there again", async || world.api.data("shop").is_some())
        .await;
    // A namespace that goes is left alone.
    let known = world.metric("tv_agent_webhook_namespaces").await;
    world.api.end("old0");
    world
        .until("forgotten", async || world.api.data("old0").is_none())
        .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.review("/mutate/asked", "shop2", &pod(), false).await;
    assert_eq!(world.metric("tv_agent_webhook_namespaces").await, known);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_that_is_under_way_is_answered_when_the_webhook_is_stopped() {
    let world = World::start().await;
    let body = review("shop", &pod(), false);
    let mut stream = world.tls(b"http/1.1").await;
    let head = format!(
        "POST /mutate/asked HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.stop.send_replace(true);
    world
        .until("not ready", async || world.local("/readyz").await.0 == 503)
        .await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = TcpStream::connect(world.address).await.is_err();
    assert!(refused, "nothing new is accepted");
    stream.write_all(&body).await.unwrap();
    assert_eq!(status(&mut stream).await, 200);
    drop(stream);
    world.stop().await;
}

//! Requests to the API server as one user, and what it answers.

use std::time::Duration;

use http::Request;
use http::header::WARNING;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

/// For one answer, and for what a watch is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Who applies: the field manager's name, as Helm's is its own.
pub const MANAGER: &str = "tv-tests";

#[derive(Clone)]
pub struct Api {
    runtime: Handle,
    client: kube::Client,
}

/// What the server said.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub text: String,
    /// `null` when it is no JSON.
    pub body: Value,
    /// Its headers of that name (RFC 7234, 5.5).
    pub warnings: Vec<String>,
}

impl Answer {
    /// The body.
    ///
    /// # Panics
    /// When the code is another one.
    #[track_caller]
    pub fn expect_code(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.body
    }

    /// The server's sentence about what is wrong.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or(&self.text)
    }
}

impl Api {
    pub(super) fn new(runtime: Handle, mut config: kube::Config) -> Self {
        // Answers are to be seen, 429 and 503 as well.
        config.default_retry = false;
        let _inside = runtime.enter();
        let client = kube::Client::try_from(config).expect("a client");
        Self { runtime, client }
    }

    /// The client itself, for what the agent does with it.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub fn create(&self, path: &str, object: &Value) -> Answer {
        self.send("POST", path, Some(("application/json", object)))
    }

    pub fn merge(&self, path: &str, patch: &Value) -> Answer {
        self.send("PATCH", path, Some(("application/merge-patch+json", patch)))
    }

    /// Server-side apply.
    pub fn apply(&self, path: &str, object: &Value, dry_run: bool) -> Answer {
        let dry_run = if dry_run { "&dryRun=All" } else { "" };
        let path = format!("{path}?fieldManager={MANAGER}{dry_run}");
        self.send("PATCH", &path, Some(("application/apply-patch+yaml", object)))
    }

    pub fn delete(&self, path: &str) -> Answer {
        // Nobody collects garbage, or takes a finalizer away.
        let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                             "gracePeriodSeconds": 0});
        self.delete_with(path, &options)
    }

    pub fn delete_with(&self, path: &str, options: &Value) -> Answer {
        self.send("DELETE", path, Some(("application/json", options)))
    }

    /// Whether a user may do something: SubjectAccessReview with these attributes.
    pub fn allowed(&self, user: &str, groups: &[String], attributes: &Value) -> bool {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": attributes},
        });
        let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let answer = self.create(path, &review).expect_code(201);
        answer["status"]["allowed"].as_bool().expect("a verdict")
    }

    fn send(&self, method: &str, path: &str, body: Option<(&str, &Value)>) -> Answer {
        self.try_send(method, path, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    pub(super) fn try_send(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Answer, String> {
        let request = request(method, path, body);
        self.runtime.block_on(async {
            let answer = async {
                let response = self
                    .client
                    .send(request)
                    .await
                    .map_err(|error| error.to_string())?;
                let code = response.status().as_u16();
                let warnings = response.headers().get_all(WARNING).iter();
                let warnings = warnings
                    .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                    .collect();
                let bytes = response
                    .into_body()
                    .collect()
                    .await
                    .map_err(|error| error.to_string())?;
                let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
                let body = serde_json::from_str(&text).unwrap_or_default();
                Ok(Answer {
                    code,
                    text,
                    body,
                    warnings,
                })
            };
            timeout(PATIENCE, answer)
                .await
                .unwrap_or_else(|_| Err("no answer in time".into()))
        })
    }

    /// Watches: the answer's code, and its events up to and with the one that `last` is true for, or the stream's end.
    ///
    /// # Panics
    /// When neither comes in time, with what came.
    #[track_caller]
    pub fn watch(&self, path: &str, last: impl Fn(&Value) -> bool) -> (u16, Vec<Value>) {
        let (code, events, complete) = self.runtime.block_on(async {
            let until = Instant::now() + PATIENCE;
            let response = self.client.send(request("GET", path, None)).await;
            let response = response.unwrap_or_else(|error| panic!("{path}: {error}"));
            let code = response.status().as_u16();
            let (mut body, mut rest, mut events) = (response.into_body(), Vec::new(), Vec::new());
            loop {
                match timeout_at(until, body.frame()).await {
                    Err(_) => return (code, events, false),
                    Ok(None) => {
                        events.extend(serde_json::from_slice(&rest).ok());
                        return (code, events, true);
                    }
                    Ok(Some(frame)) => {
                        let frame = frame.unwrap_or_else(|error| panic!("{path}: {error}"));
                        rest.extend_from_slice(&frame.into_data().unwrap_or_default());
                    }
                }
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let event = serde_json::from_slice(&line)
                        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line)));
                    let done = last(&event);
                    events.push(event);
                    if done {
                        return (code, events, true);
                    }
                }
            }
        });
        assert!(
            complete,
            "{path}: neither the event nor the end within {PATIENCE:?}: {events:?}"
        );
        (code, events)
    }
}

fn request(method: &str, path: &str, body: Option<(&str, &Value)>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    let mut content = Vec::new();
    if let Some((kind, value)) = body {
        request = request.header("Content-Type", kind);
        content = value.to_string().into_bytes();
    }
    request.body(Body::from(content)).expect("a request")
}

//! A workload's HTTP client of one connection: HTTP/1.1 or HTTP/2, as ALPN settled it.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;

use super::{SUBJECT, TlsStream, within};

pub type ReqBody = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

pub fn empty() -> ReqBody {
    whole("")
}

/// A body in one piece, with its length declared.
pub fn whole(bytes: impl Into<Bytes>) -> ReqBody {
    http_body_util::Full::new(bytes.into())
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

/// One connection. Clones of an HTTP/2 one share it.
pub struct Caller {
    sender: Sender,
    authority: String,
}

enum Sender {
    Http1(http1::SendRequest<ReqBody>),
    Http2(http2::SendRequest<ReqBody>),
}

/// A response with its whole body.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub trailers: Option<HeaderMap>,
}

impl Caller {
    pub async fn new(stream: TlsStream, authority: &str) -> Self {
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let io = TokioIo::new(stream);
        // A connection's end is seen in its requests.
        let sender = if http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io)
                .await
                .expect("a handshake");
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            Sender::Http2(sender)
        } else {
            let (sender, connection) = http1::handshake(io).await.expect("a handshake");
            let connection = connection.with_upgrades();
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            Sender::Http1(sender)
        };
        Self {
            sender,
            authority: authority.to_owned(),
        }
    }

    pub fn is_http2(&self) -> bool {
        matches!(self.sender, Sender::Http2(_))
    }

    /// Another handle of the same HTTP/2 connection.
    pub fn share(&self) -> Self {
        let Sender::Http2(sender) = &self.sender else {
            panic!("HTTP/1.1 has one request at a time")
        };
        Self {
            sender: Sender::Http2(sender.clone()),
            authority: self.authority.clone(),
        }
    }

    /// A request to this connection's host, without credentials.
    pub fn bare(&self, method: &str, path: &str) -> http::request::Builder {
        let builder = Request::builder().method(method);
        match self.sender {
            Sender::Http1(_) => builder.uri(path).header("host", &self.authority),
            Sender::Http2(_) => builder
                .version(Version::HTTP_2)
                .uri(format!("https://{}{path}", self.authority)),
        }
    }

    /// A request with the subject token that the vault knows.
    pub fn request(&self, method: &str, path: &str) -> http::request::Builder {
        self.bare(method, path)
            .header("authorization", format!("Bearer {SUBJECT}"))
    }

    /// Sends and waits for the response's header.
    pub async fn send(&mut self, request: Request<ReqBody>) -> Result<Response<Incoming>, hyper::Error> {
        let sent = async {
            match &mut self.sender {
                Sender::Http1(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
                Sender::Http2(sender) => {
                    sender.ready().await?;
                    sender.send_request(request).await
                }
            }
        };
        within(sent).await
    }

    /// Sends and reads the whole response.
    ///
    /// # Panics
    /// When there is none, or it breaks off.
    pub async fn answer(&mut self, request: Request<ReqBody>) -> Answer {
        let response = self.send(request).await.expect("a response");
        Answer::read(response).await.expect("a whole body")
    }

    /// GET with the subject token.
    pub async fn get(&mut self, path: &str) -> Answer {
        let request = self.request("GET", path).body(empty()).expect("a request");
        self.answer(request).await
    }

    /// GET with `token` as Bearer.
    pub async fn get_as(&mut self, token: &str, path: &str) -> Answer {
        let request = self
            .bare("GET", path)
            .header("authorization", format!("Bearer {token}"));
        self.answer(request.body(empty()).expect("a request")).await
    }
}

impl Answer {
    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        let collected = within(body.collect()).await?;
        let trailers = collected.trailers().cloned();
        Ok(Self {
            status: head.status,
            version: head.version,
            headers: head.headers,
            body: collected.to_bytes(),
            trailers,
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Whether the agent made it: a provider's own response never carries Proxy-Status of ours.
    pub fn ours(&self) -> bool {
        self.header("proxy-status")
            .is_some_and(|value| value.starts_with("tv-agent; error="))
    }

    /// Status and `error` of a refusal by the agent.
    ///
    /// # Panics
    /// When it is not one.
    pub fn refusal(&self) -> (u16, String) {
        assert!(self.ours(), "not a refusal of ours: {self:?}");
        let document: Value = serde_json::from_slice(&self.body).expect("JSON");
        let error = document["error"].as_str().expect("an error").to_owned();
        assert!(
            !document["error_description"]
                .as_str()
                .expect("a description")
                .is_empty()
        );
        (self.status.as_u16(), error)
    }
}

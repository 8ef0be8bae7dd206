//! Lists, then watches; whatever happens, it goes on, and what was known stays until something newer is heard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Response, StatusCode, header};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use tokio::time::timeout;

use super::backoff;
use super::health::Health;
use super::objects::{self, Resource};
use super::page::{self, Lines, Page};
use super::settings::Settings;
use super::table::{Change, Listing, Table};
use crate::https::causes;
use crate::limits;

/// Objects of the first page that is asked for; halved where a page is too large.
const PAGE: u32 = 200;

pub struct Watcher {
    pub resource: Resource,
    pub client: kube::Client,
    pub settings: Arc<Settings>,
    pub table: Arc<Table>,
    pub health: Arc<Health>,
}

/// Why a list or a watch did not go on.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("the request cannot be made")]
    Request(#[source] kube::core::request::Error),
    #[error("the API server cannot be asked")]
    Ask(#[source] kube::Error),
    #[error("the API server answers {status}{}", message.as_ref().map(|text| format!(": {text}")).unwrap_or_default())]
    Answer {
        status: StatusCode,
        message: Option<String>,
        retry_after: Option<Duration>,
    },
    #[error("the place in time is too old")]
    Expired,
    #[error("the answer broke off")]
    Broken(#[source] kube::Error),
    #[error("the answer is no JSON of the API server: {0}")]
    Malformed(String),
    #[error("the answer is larger than {} bytes", limits::API_PAGE_BYTES)]
    TooLarge,
    #[error("nothing was heard for {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the watch ended at once")]
    Cut,
}

impl Failure {
    fn label(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Ask(_) => "connect",
            Self::Answer { status, .. } => match status.as_u16() {
                401 => "unauthorized",
                403 => "forbidden",
                410 => "expired",
                429 => "rate_limited",
                500..=599 => "server_error",
                _ => "status",
            },
            Self::Expired => "expired",
            Self::Broken(_) | Self::Cut => "broken",
            Self::Malformed(_) => "malformed",
            Self::TooLarge => "too_large",
            Self::Silent(_) => "silent",
        }
    }

    /// Whether the watch can go on where it was. What came malformed or too large was a change that is now missing.
    fn keeps_place(&self) -> bool {
        !matches!(self, Self::Expired | Self::Malformed(_) | Self::TooLarge)
            && !matches!(self, Self::Answer { status, .. } if *status == StatusCode::GONE)
    }

    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Answer { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl Watcher {
    /// Until it is aborted.
    pub async fn run(self) {
        let mut failures = 0;
        let mut place: Option<String> = None;
        loop {
            let (failure, lived) = match place.take() {
                None => match self.list().await {
                    Ok(version) => {
                        self.health.listed(self.resource);
                        place = Some(version);
                        continue;
                    }
                    Err(failure) => (failure, false),
                },
                Some(mut version) => {
                    let began = Instant::now();
                    let mut heard = false;
                    let ended = self.watch(&mut version, &mut heard).await;
                    let lived = heard || began.elapsed() >= self.settings.pace.first;
                    match ended {
                        Ok(()) if lived => {
                            failures = 0;
                            place = Some(version);
                            continue;
                        }
                        Ok(()) => {
                            place = Some(version);
                            (Failure::Cut, false)
                        }
                        Err(failure) => {
                            place = Some(version).filter(|_| failure.keeps_place());
                            (failure, lived)
                        }
                    }
                }
            };
            if lived {
                failures = 0;
            }
            failures += 1;
            self.health
                .failed(self.resource, failure.label(), causes(&failure));
            let pace = &self.settings.pace;
            let asked = failure.retry_after();
            // A place that is too old is no fault: the list comes at once, the first time.
            if matches!(failure, Failure::Expired) && failures == 1 {
                continue;
            }
            let pause = backoff::pause(failures, pace.first, pace.most, asked, rand::random());
            tokio::time::sleep(pause).await;
        }
    }

    fn request(&self) -> Request {
        Request::new(match self.resource {
            Resource::Pods => "/api/v1/pods",
            Resource::Namespaces => "/api/v1/namespaces",
        })
    }

    fn selector(&self) -> Option<String> {
        match self.resource {
            Resource::Pods => Some(format!("spec.nodeName={}", self.settings.node)),
            Resource::Namespaces => None,
        }
    }

    /// Takes all pages, and gives the place in time at which to go on.
    async fn list(&self) -> Result<String, Failure> {
        let mut size = PAGE;
        'again: loop {
            let mut listing = Listing::of(self.resource);
            let mut more = None;
            loop {
                let parameters = ListParams {
                    field_selector: self.selector(),
                    limit: Some(size),
                    continue_token: more.take(),
                    ..ListParams::default()
                };
                let limit = self.settings.pace.page;
                let page = timeout(limit, self.page(&parameters)).await;
                let text = match page.map_err(|_| Failure::Silent(limit))? {
                    Err(Failure::TooLarge) if size > 1 => {
                        size = (size / 4).max(1);
                        continue 'again;
                    }
                    page => page?,
                };
                let page: Page<'_> =
                    serde_json::from_slice(&text).map_err(|error| Failure::Malformed(error.to_string()))?;
                for item in &page.items {
                    self.table.list(&mut listing, item.get());
                }
                more = page.metadata.more.filter(|more| !more.is_empty());
                if more.is_none() {
                    self.table.replace(listing);
                    return Ok(page.metadata.resource_version);
                }
            }
        }
    }

    async fn page(&self, parameters: &ListParams) -> Result<Vec<u8>, Failure> {
        let request = match self.resource {
            Resource::Pods => self.request().list(parameters),
            Resource::Namespaces => self.request().list_metadata(parameters),
        };
        let answer = self.ask(request.map_err(Failure::Request)?).await?;
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(Failure::Broken)?;
            if let Some(data) = frame.data_ref() {
                if text.len() + data.len() > limits::API_PAGE_BYTES {
                    return Err(Failure::TooLarge);
                }
                text.extend_from_slice(data);
            }
        }
        Ok(text)
    }

    /// Follows until the server ends it. `version` moves on with each thing heard.
    async fn watch(&self, version: &mut String, heard: &mut bool) -> Result<(), Failure> {
        let pace = &self.settings.pace;
        let parameters = WatchParams {
            field_selector: self.selector(),
            timeout: Some(u32::try_from(pace.watch.as_secs()).unwrap_or(60).max(1)),
            bookmarks: true,
            ..WatchParams::default()
        };
        let request = match self.resource {
            Resource::Pods => self.request().watch(&parameters, version),
            Resource::Namespaces => self.request().watch_metadata(&parameters, version),
        };
        let answer = self.ask(request.map_err(Failure::Request)?).await?;
        self.health.heard(self.resource);
        let mut body = answer.into_body();
        let mut lines = Lines::default();
        let silence = pace.watch + pace.grace;
        let until = tokio::time::Instant::now() + silence + pace.grace;
        loop {
            let next = tokio::time::timeout_at(until, timeout(silence, body.frame())).await;
            let Ok(Ok(next)) = next else {
                return Err(Failure::Silent(silence));
            };
            let Some(frame) = next else { return Ok(()) };
            let frame = frame.map_err(Failure::Broken)?;
            let Some(data) = frame.data_ref() else { continue };
            lines.push(data);
            while let Some(line) = lines.next().map_err(|_| Failure::TooLarge)? {
                if !line.is_empty() {
                    self.take(&line, version)?;
                    *heard = true;
                    self.health.heard(self.resource);
                }
            }
        }
    }

    fn take(&self, line: &[u8], version: &mut String) -> Result<(), Failure> {
        let malformed = |error: serde_json::Error| Failure::Malformed(error.to_string());
        let line: page::Line<'_> = serde_json::from_slice(line).map_err(malformed)?;
        let object = line.object.get();
        let change = match &*line.kind {
            "ADDED" | "MODIFIED" => Some(Change::Put),
            "DELETED" => Some(Change::Gone),
            "BOOKMARK" => None,
            "ERROR" => {
                let failure: page::Failure = serde_json::from_str(object).map_err(malformed)?;
                return Err(match failure.code {
                    Some(410) => Failure::Expired,
                    code => Failure::Answer {
                        status: code
                            .and_then(|code| StatusCode::from_u16(code).ok())
                            .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                        message: failure.message.map(|text| shortened(&text)),
                        retry_after: None,
                    },
                });
            }
            other => return Err(Failure::Malformed(format!("an event of type {other:.32?}"))),
        };
        if let Some(change) = change {
            self.table.change(self.resource, change, object);
        }
        if let Some(now) = objects::marks(object).resource_version {
            *version = now;
        }
        Ok(())
    }

    async fn ask(&self, request: http::Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
        let answer = self
            .client
            .send(request.map(Body::from))
            .await
            .map_err(Failure::Ask)?;
        refused(answer).await
    }
}

/// The answer, when it is one of success.
async fn refused(answer: Response<Body>) -> Result<Response<Body>, Failure> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let seconds = answer.headers().get(header::RETRY_AFTER);
    let seconds = seconds.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let body = http_body_util::Limited::new(answer.into_body(), limits::API_STATUS_BYTES);
    let text = timeout(Duration::from_secs(1), body.collect()).await;
    let text = text.ok().and_then(Result::ok).map(|body| body.to_bytes());
    let said = text.and_then(|text| serde_json::from_slice::<page::Failure>(&text).ok());
    Err(Failure::Answer {
        status,
        message: said.and_then(|said| said.message).map(|text| shortened(&text)),
        retry_after: seconds.map(Duration::from_secs),
    })
}

/// Enough to understand, and nothing that breaks a log's line.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

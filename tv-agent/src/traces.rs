//! One span per request, sent to an OpenTelemetry collector (OTLP over HTTP).
//!
//! The span is a child of the caller's own, which its `traceparent` names; the header itself goes on to the provider
//! as it came, and is never made where there was none. A collector that is slow or away costs spans, and nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId,
    TraceState, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use rustls::RootCertStore;
use tokio::runtime::Handle;
use url::Url;

use crate::flows::Flow;
use crate::https;
use crate::limits;
use crate::metrics::{Metrics, ResultLabels};
use crate::trace_context::TraceContext;

#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `…/v1/traces` of a collector, http or https.
    pub endpoint: Url,
    /// The part of requests without a `traceparent` that is recorded, 0 to 1. The others are where their caller
    /// records them.
    pub sample: f64,
}

/// Why no spans can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("traces: cannot make a client for the collector")]
    Client(#[from] https::Error),
    #[error("traces.endpoint: the exporter does not take it")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
}

/// Takes what is to be told of requests. Cheap to clone.
#[derive(Clone)]
pub struct Traces {
    tracer: SdkTracer,
    provider: SdkTracerProvider,
}

impl Traces {
    /// Begins to send. Call inside the runtime.
    ///
    /// # Errors
    /// When the client or the exporter cannot be made; whether the collector is there is not asked.
    pub fn start(settings: &Settings, roots: Arc<RootCertStore>, metrics: &Metrics) -> Result<Self, Error> {
        let client = Client {
            http: https::open_client(roots)?,
            runtime: Handle::current(),
            exports: metrics.trace_exports.clone(),
            failing: AtomicBool::new(false),
        };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(settings.endpoint.as_str())
            .with_timeout(limits::SPAN_EXPORT_TIME)
            .build()
            .map_err(Error::Exporter)?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(limits::SPANS)
            .with_scheduled_delay(Duration::from_secs(1))
            .build();
        let roots = Sampler::TraceIdRatioBased(settings.sample);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(
                BatchSpanProcessor::builder(exporter)
                    .with_batch_config(batches)
                    .build(),
            )
            .with_sampler(Sampler::ParentBased(Box::new(roots)))
            .with_resource(
                Resource::builder()
                    .with_service_name("tv-agent")
                    .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
                    .build(),
            )
            .build();
        Ok(Self {
            tracer: provider.tracer("tv-agent"),
            provider,
        })
    }

    /// Tells of one request that is answered now: `flow` is its record, `method` its method.
    pub fn request(&self, flow: &Flow, method: &http::Method, context: Option<&TraceContext>) {
        let parent = context.map_or_else(Context::new, |context| {
            let flags = if context.sampled {
                TraceFlags::SAMPLED
            } else {
                TraceFlags::default()
            };
            Context::new().with_remote_span_context(SpanContext::new(
                TraceId::from_bytes(context.trace),
                SpanId::from_bytes(context.parent),
                flags,
                true,
                TraceState::default(),
            ))
        });
        let end = SystemTime::now();
        let took = Duration::from_micros(flow.took_us);
        let mut span = self.tracer.build_with_context(
            SpanBuilder::from_name(method.to_string())
                .with_kind(SpanKind::Client)
                .with_start_time(end.checked_sub(took).unwrap_or(end))
                .with_attributes(attributes(flow, method)),
            &parent,
        );
        if flow.fault.is_some() {
            span.set_status(Status::error(flow.reason.clone().unwrap_or_default()));
        }
        span.end_with_timestamp(end);
    }

    /// Sends what waits, within the time of one export.
    pub async fn finish(self) {
        // It blocks.
        let _ = tokio::task::spawn_blocking(move || {
            self.provider.shutdown_with_timeout(limits::SPAN_EXPORT_TIME)
        })
        .await;
    }
}

/// By OpenTelemetry's names where it has some, else ours.
fn attributes(flow: &Flow, method: &http::Method) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("http.request.method", method.to_string()),
        KeyValue::new("tv_agent.result", flow.outcome.clone()),
        KeyValue::new("process.pid", i64::from(flow.tgid)),
    ];
    if let Some(status) = flow.status {
        all.push(KeyValue::new("http.response.status_code", i64::from(status)));
    }
    if flow.fault.is_some() {
        all.push(KeyValue::new("error.type", flow.outcome.clone()));
    }
    for (name, value) in [
        ("server.address", &flow.host),
        ("tv_agent.route", &flow.route),
        ("tv_agent.connection", &flow.connection),
        ("tv_agent.token", &flow.token),
        ("tv_agent.subject", &flow.subject),
        ("tv_agent.fault", &flow.fault),
        ("tv_agent.cgroup", &flow.cgroup),
        ("k8s.pod.uid", &flow.pod),
        ("k8s.pod.name", &flow.pod_name),
        ("k8s.namespace.name", &flow.pod_namespace),
        ("container.id", &flow.container),
    ] {
        if let Some(value) = value {
            all.push(KeyValue::new(name, value.clone()));
        }
    }
    all
}

/// The exporter's way out: our own HTTP client, driven by the agent's runtime.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    runtime: Handle,
    exports: Family<ResultLabels, Counter>,
    failing: AtomicBool,
}

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(
        &'a self,
        request: http::Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Bytes>, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            // The exporter has a thread of its own, outside of the runtime.
            let sent = self.runtime.spawn(send(self.http.clone(), request)).await?;
            self.tell(&sent);
            sent
        })
    }
}

impl Client {
    fn tell(&self, sent: &Result<http::Response<Bytes>, HttpError>) {
        let problem = match sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(https::causes(&**error)),
        };
        let result = if problem.is_some() { "failed" } else { "ok" };
        self.exports.get_or_create(&ResultLabels { result }).inc();
        let before = self.failing.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(problem) if !before => {
                tracing::warn!(
                    problem,
                    "spans cannot be sent to traces.endpoint; they are dropped until they can"
                );
            }
            None if before => tracing::info!("spans are sent again"),
            _ => {}
        }
    }
}

async fn send(
    client: reqwest::Client,
    request: http::Request<Bytes>,
) -> Result<http::Response<Bytes>, HttpError> {
    let request = reqwest::Request::try_from(request)?;
    let work = async {
        let mut answer = client.execute(request).await?;
        let mut body = Vec::new();
        https::fill(&mut answer, &mut body, limits::SPAN_ANSWER_BYTES).await?;
        let mut response = http::Response::new(Bytes::from(body));
        *response.status_mut() = answer.status();
        Ok::<_, HttpError>(response)
    };
    tokio::time::timeout(limits::SPAN_EXPORT_TIME, work).await?
}

#[cfg(test)]
mod tests;

//! Spans by OpenTelemetry's SDK, exported by OTLP over HTTP (protobuf).
//!
//! A thread of the SDK sends batches, and its queue is bounded: nothing here waits for a collector. Knows no span's meaning.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span};
use reqwest::redirect::Policy;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::context::TokioContext;

use super::settings::Settings;
use super::{Attribute, SpanRef, Value};
use crate::support::causes::chain;
use crate::support::seldom::Seldom;
use crate::support::web::{self, BodyError};

/// From connecting to the collector to the last byte of its answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Spans that wait to be exported; more are dropped.
const QUEUE: usize = 2048;
/// Spans in one export.
const BATCH: usize = 512;
/// How long spans wait for others to be exported with them.
const DELAY: Duration = Duration::from_secs(1);
/// Bytes of the longest answer.
const ANSWER: usize = 64 << 10;
/// The log tells of exports that fail at most so often.
const QUIET: Duration = Duration::from_secs(60);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error("the HTTP client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("the exporter cannot be made")]
    Exporter(#[source] ExporterBuildError),
}

/// Exports spans until [`Self::end`].
#[derive(Debug)]
pub(super) struct Exporter {
    settings: Settings,
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Exporter {
    /// By these settings. Must be called within the runtime.
    pub(super) fn start(settings: &Settings) -> Result<Self, StartError> {
        let client = Client::new(settings).map_err(|error| StartError::Client(error.without_url()))?;
        let exporter = SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary);
        let exporter = exporter.with_endpoint(settings.endpoint.as_str()).with_timeout(TIMEOUT).build().map_err(StartError::Exporter)?;
        let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE).with_max_export_batch_size(BATCH);
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.with_scheduled_delay(DELAY).build()).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name(settings.service_name.clone()).with_attribute(version).build();
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(settings.ratio)));
        let provider = SdkTracerProvider::builder().with_span_processor(processor).with_sampler(sampler).with_resource(resource).build();
        let tracer = provider.tracer("brokercast");
        Ok(Self { settings: settings.clone(), provider, tracer })
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Begins a span. `serves`: a request.
    pub(super) fn begin(&self, name: &'static str, serves: bool, parent: Option<SpanRef>) -> Recorded {
        let kind = if serves { SpanKind::Server } else { SpanKind::Internal };
        let context = parent.map_or_else(Context::new, |SpanRef { trace, span, flags }| {
            let (trace, span) = (TraceId::from_bytes(trace.to_be_bytes()), SpanId::from_bytes(span.to_be_bytes()));
            let parent = SpanContext::new(trace, span, TraceFlags::new(flags), true, TraceState::NONE);
            Context::new().with_remote_span_context(parent)
        });
        Recorded(self.tracer.build_with_context(self.tracer.span_builder(name).with_kind(kind), &context))
    }

    /// Exports what is left, within `patience`. Blocks.
    pub(super) fn end(&self, patience: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(patience) {
            tracing::warn!(%error, "the last traces were not exported");
        }
    }
}

/// A span that has begun. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Recorded(Span);

impl Recorded {
    pub(super) fn reference(&self) -> SpanRef {
        let context = self.0.span_context();
        let (trace, span) = (context.trace_id().to_bytes(), context.span_id().to_bytes());
        SpanRef { trace: u128::from_be_bytes(trace), span: u64::from_be_bytes(span), flags: context.trace_flags().to_u8() }
    }

    pub(super) fn end(mut self, failed: bool, attributes: impl FnOnce() -> Vec<Attribute>) {
        if !self.0.is_recording() {
            return;
        }
        for (name, value) in attributes() {
            self.0.set_attribute(match value {
                Value::Word(word) => KeyValue::new(name, word),
                Value::Text(text) => KeyValue::new(name, text),
                Value::Number(number) => KeyValue::new(name, number),
            });
        }
        if failed {
            self.0.set_status(Status::error(""));
        }
    }
}

/// Why an export has failed.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("the collector does not answer")]
    Http(#[source] reqwest::Error),
    #[error("the collector's answer cannot be read")]
    Body(#[source] BodyError),
}

/// Sends batches: on the SDK's thread, with the runtime's timers and sockets.
#[derive(Debug)]
struct Client {
    http: reqwest::Client,
    headers: http::HeaderMap,
    runtime: Handle,
    /// Exports that have failed since the last that did not.
    failed: AtomicU64,
    /// When the log tells of them.
    telling: Seldom,
}

impl Client {
    fn new(settings: &Settings) -> reqwest::Result<Self> {
        let (http, headers) = (web::client(&settings.endpoint, TIMEOUT, Policy::none())?, settings.headers.clone());
        Ok(Self { http, headers, runtime: Handle::current(), failed: AtomicU64::new(0), telling: Seldom::every(QUIET) })
    }

    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, ExportError> {
        let without_url = |error: reqwest::Error| ExportError::Http(error.without_url());
        request.headers_mut().extend(self.headers.clone());
        let mut answer = self.http.execute(request.try_into().map_err(without_url)?).await.map_err(without_url)?;
        let mut response = Response::new(web::body(&mut answer, ANSWER).await.map_err(ExportError::Body)?.into());
        (*response.status_mut(), *response.headers_mut()) = (answer.status(), std::mem::take(answer.headers_mut()));
        Ok(response)
    }

    /// Logs failures now and then, and the first success behind them.
    fn note(&self, sent: &Result<Response<Bytes>, ExportError>) {
        let error = match sent {
            Ok(response) if response.status().is_success() => {
                if self.failed.swap(0, Ordering::Relaxed) > 0 {
                    tracing::info!("traces are exported again");
                }
                return;
            }
            Ok(response) => format!("the collector answers {}", response.status().as_u16()),
            Err(error) => chain(error),
        };
        let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.telling.may(Instant::now()) {
            tracing::warn!(%error, failed, "traces cannot be exported");
        }
    }
}

impl HttpClient for Client {
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        let sending = async {
            let sent = self.send(request).await;
            self.note(&sent);
            sent.map_err(HttpError::from)
        };
        Box::pin(TokioContext::new(sending, self.runtime.clone()))
    }
}

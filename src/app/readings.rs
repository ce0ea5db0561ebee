//! What all rooms have counted, gathered when somebody asks for the metrics.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::watch;

use super::sources::{self, All};
use crate::auth::Authenticator;
use crate::frame::Closing;
use crate::http::tls::Tls;
use crate::hub::Transport;
use crate::metrics::Readings;
use crate::pool::Pool;
use crate::route;
use crate::stream::Streams;
use crate::telemetry::Access;
use crate::transport::writer::Writer;

/// Who is asked.
pub(super) struct Asked {
    pub(super) sources: All,
    pub(super) routed: Arc<route::Counts>,
    pub(super) streams: Arc<Streams>,
    pub(super) writer: Arc<Writer>,
    pub(super) pool: Pool,
    /// Connections to the public listener, but those that the writer has.
    pub(super) open: Arc<AtomicUsize>,
    pub(super) auth: watch::Receiver<Arc<Authenticator>>,
    pub(super) log_left_out: Box<dyn Fn() -> u64 + Send + Sync>,
    pub(super) access: Arc<Access>,
    /// Of each listener with TLS.
    pub(super) certificates: Vec<(&'static str, Arc<Tls>)>,
}

impl Asked {
    pub(super) fn read(&self) -> Readings {
        let Self { streams, routed, .. } = self;
        let (hub, auth) = (streams.hub(), self.auth.borrow().clone());
        let deliveries = hub.deliveries();
        let [taken, refused] = auth.revocations().messages();
        let ended = Closing::ALL.iter().map(|reason| (reason.as_str(), streams.closed(*reason)));
        let delivered = Transport::ALL.iter().map(|transport| {
            let (events, bytes) = deliveries.sent_by(*transport);
            (transport.as_str(), events, bytes)
        });
        let (from_broker, from_receipt) = deliveries.latencies();
        let (logs, logs_max) = hub.log_bytes();
        Readings {
            sources: sources::readings(&self.sources, streams),
            window_max: hub.window_bytes() as u64,
            subscribers: streams.opened() as u64,
            subscribers_max: self.pool.max() as u64,
            ended: ended.chain([("client_gone", streams.left())]).collect(),
            lasted: deliveries.lasting(),
            channels: hub.channels() as u64,
            logs: logs as u64,
            logs_max: logs_max as u64,
            history: streams.histories().load(),
            connections: (self.open.load(Ordering::Relaxed) + self.writer.sockets()) as u64,
            stalled: deliveries.stalls(),
            delivered: delivered.collect(),
            latencies: vec![("broker", from_broker), ("receipt", from_receipt)],
            refused_tokens: auth.refusals(),
            backend: auth.backend_load(),
            key_sets: auth.key_sets(),
            certificates: self.certificates.iter().filter_map(|(listener, tls)| Some((*listener, tls.expires()?))).collect(),
            shortened_subjects: routed.shortened(),
            reserved_names: routed.reserved_names(),
            log_left_out: (self.log_left_out)(),
            access_left_out: self.access.left_out(),
            revocations: auth.revocations().count() as u64,
            revocation_messages: [("taken", taken), ("refused", refused)],
        }
    }
}

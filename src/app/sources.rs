//! The configured sources at run time: one struct for each, all built in one place, started and stopped one by one.
//!
//! Knows what a source hands in to; not who reads it there.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::intake::{Counts, Intake};
use crate::event::GapReason;
use crate::history;
use crate::hub::{Hub, Limits, SourceId, SourceSpec};
use crate::metrics::SourceReading;
use crate::route::{Router, Rule};
use crate::source::settings::Source;
use crate::source::supervisor::Supervisor;
use crate::source::{ErrorKind, Handle, Start, State};
use crate::stream;
use crate::subject::Pattern;

/// Before a supervisor that panicked is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// All sources, and what they hand in to.
pub(super) struct Sources {
    pub(super) router: Arc<Router>,
    pub(super) hub: Arc<Hub>,
    pub(super) all: Arc<[SourceRuntime]>,
}

/// One source as the process runs it.
pub(super) struct SourceRuntime {
    /// How router and hub number it.
    pub(super) id: SourceId,
    /// With its adapter and its handle, which has its name.
    pub(super) supervisor: Supervisor,
    pub(super) counts: Arc<Counts>,
    /// What its events are called after routing.
    pub(super) reach: Vec<Pattern>,
}

/// A source that runs. Dropped, it ends at once.
pub(super) struct Running {
    cancel: CancellationToken,
    task: JoinSet<()>,
}

impl Sources {
    /// Builds all; starts none.
    pub(super) fn build(sources: Vec<Source>, routes: &[Rule], window: Limits) -> Self {
        let build =
            |Source { name, required, max_payload, adapter }| (Arc::new(Handle::new(name, &*adapter, required)), adapter, max_payload);
        let built: Vec<_> = sources.into_iter().map(build).collect();
        let reach: Vec<_> = built.iter().map(|(handle, adapter, _)| (handle.name.clone(), adapter.reach())).collect();
        let router = Arc::new(Router::new(routes, &reach));
        let spec = |(id, (handle, ..)): (SourceId, &(Arc<Handle>, _, _))| SourceSpec {
            name: handle.name.clone(),
            durable: handle.durable,
            concerns: stream::concerns(&router, id),
        };
        let hub = Hub::new(built.iter().enumerate().map(spec).collect(), window, rand::random());
        let warm_up = Start::Recent { age: window.age, bytes: window.bytes as u64 };
        let runtime = |(id, (handle, adapter, max_payload))| {
            let counts = Arc::<Counts>::default();
            let intake = Arc::new(Intake { source: id, router: router.clone(), hub: hub.clone(), counts: counts.clone() });
            SourceRuntime { id, supervisor: Supervisor { adapter, intake, handle, warm_up, max_payload }, counts, reach: router.reach(id) }
        };
        let all = built.into_iter().enumerate().map(runtime).collect();
        Self { router, hub, all }
    }
}

impl SourceRuntime {
    /// What it has counted, and what its window holds: events and bytes.
    pub(super) fn reading(&self, window: (u64, u64), history: history::Counted) -> SourceReading {
        let Handle { name, status, counters, .. } = &*self.supervisor.handle;
        SourceReading {
            name: name.to_string(),
            messages: counters.messages(),
            bytes: counters.bytes(),
            events: self.counts.events.load(Ordering::Relaxed),
            dropped: self.counts.dropped.load(Ordering::Relaxed),
            gaps: GapReason::ALL.iter().map(|reason| (*reason, counters.gaps(*reason))).collect(),
            up: status.read().state == State::Up,
            reconnects: counters.reconnects(),
            errors: ErrorKind::ALL.iter().map(|kind| (kind.as_str(), counters.errors(*kind))).collect(),
            history_events: history.events,
            history_bytes: history.bytes,
            history_errors: ErrorKind::ALL.iter().map(|kind| (kind.as_str(), history.errors[*kind as usize])).collect(),
            window_events: window.0,
            window_bytes: window.1,
        }
    }

    /// Runs it until it is stopped; should its supervisor panic, again.
    pub(super) fn start(&self) -> Running {
        let (supervisor, cancel) = (self.supervisor.clone(), CancellationToken::new());
        let ended = cancel.clone();
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let panicked = AssertUnwindSafe(supervisor.clone().run(ended.clone())).catch_unwind().await.is_err();
                if ended.is_cancelled() {
                    return;
                }
                error!(source = %supervisor.handle.name, panicked, "source has ended and is started again");
                sleep(AGAIN).await;
            }
        });
        Running { cancel, task }
    }
}

impl Running {
    /// Ends it in good order: what is in hand is handed in and acknowledged.
    pub(super) async fn stop(mut self) {
        self.cancel.cancel();
        while self.task.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Hub;

    #[tokio::test(start_paused = true)]
    async fn one_source_is_started_and_stopped_while_the_other_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bridge.yaml");
        std::fs::write(&file, "sources:\n  a: { ticker: { subject: a } }\n  b: { ticker: { subject: b } }\n").unwrap();
        let settings = crate::app::load(&[file]).unwrap().settings;
        let Sources { hub, all, .. } = Sources::build(settings.sources, &settings.routes, settings.window);
        let held = |hub: &Hub| hub.state().sources().iter().map(|source| source.window().len()).collect::<Vec<_>>();
        let [a, b] = [&all[0], &all[1]].map(SourceRuntime::start);
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(held(&hub), [3, 3]);
        a.stop().await;
        sleep(Duration::from_secs(2)).await;
        assert_eq!(held(&hub), [3, 5]);
        let a = all[0].start();
        sleep(Duration::from_secs(2)).await;
        assert!(held(&hub)[0] > 3, "{:?}", held(&hub));
        // Dropped, it ends at once.
        drop(b);
        let before = held(&hub);
        sleep(Duration::from_secs(2)).await;
        assert!(held(&hub)[0] > before[0] && held(&hub)[1] == before[1], "{before:?} {:?}", held(&hub));
        a.stop().await;
    }
}

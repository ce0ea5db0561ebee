//! The configured sources at run time: one struct for each, known by its name here and by a key further in. Adds, changes
//! and removes them, by the same functions when the process starts and while it runs.
//!
//! Knows what a source hands in to; not who reads it there.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::intake::{Counts, Intake};
use super::settings::MAX_DURABLE;

use crate::cursor::{Point, Tag};
use crate::event::{Gap, GapReason, SourceKey, SourceName, Timestamp};
use crate::history;
use crate::http::Inbox;
use crate::hub::{self, Hold, Limits, Window};
use crate::metrics::SourceReading;
use crate::route::{self, Router, Rule};
use crate::settings::Written;
use crate::source::parts::{self, Admit, FirstOfAll, Parts};
use crate::source::settings::Source;
use crate::source::supervisor::Supervisor;
use crate::source::{self, ErrorKind, Gauges, Handle, Item, Start, State};
use crate::stream::{self, Streams};
use crate::subject::{Pattern, Subject};

/// Before a supervisor that panicked is started again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long those that read what was published are waited for, before the routes of a source change.
const SETTLE: Duration = Duration::from_millis(100);
/// How often is looked whether they have.
const LOOK: Duration = Duration::from_millis(1);

/// Runs the tasks of sources: tokio, or the simulation, where the seed decides which task runs next.
pub(crate) trait Host: Send + Sync {
    /// Runs a task. What is returned resolves when the task has ended. Dropping it ends the task.
    fn spawn(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()>;

    /// Where the supervisor of a source hands in.
    fn intake(&self, _: &SourceName, intake: Arc<Intake>) -> Arc<dyn source::Intake> {
        intake
    }
}

/// See [`Host`].
pub(crate) struct Tokio;

impl Host for Tokio {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(task);
        Box::pin(async move { while tasks.join_next().await.is_some() {} })
    }
}

/// All sources, by their names: added, changed and removed while the process runs.
pub(crate) struct Sources {
    host: Arc<dyn Host>,
    streams: Arc<Streams>,
    window: Limits,
    /// Of all routers that there ever were.
    routed: Arc<route::Counts>,
    running: Vec<(Arc<SourceRuntime>, Running)>,
    /// By which all are routed.
    rules: Vec<Rule>,
    /// More logs were found of a source that has several.
    found: Arc<Notify>,
    /// How long those who are behind are waited for: see [`Self::settle`].
    patience: Duration,
    all: All,
}

/// The sources that there are now, for those who show them. Each log of a source that has several is here.
pub(crate) type All = Arc<ArcSwap<Vec<Arc<SourceRuntime>>>>;

/// One source as the process runs it.
pub(crate) struct SourceRuntime {
    /// What router, hub and history know it by.
    key: SourceKey,
    /// With its adapter and its handle, which has its name.
    supervisor: Supervisor,
    /// Where its supervisor hands in.
    intake: Arc<Intake>,
    counts: Arc<Counts>,
    /// What its events are called after routing.
    pub(super) reach: Vec<Pattern>,
    /// Which of the source's logs it reads, if that has several.
    part: Option<Arc<str>>,
    /// Where HTTP publishers hand in, and for what.
    inbox: Option<(Vec<Pattern>, Inbox)>,
    /// What it was made of.
    written: Written,
    router: Arc<Router>,
}

/// A source that runs. Dropped, it ends at once.
pub(super) struct Running {
    cancel: CancellationToken,
    ended: BoxFuture<'static, ()>,
}

impl Sources {
    /// None yet.
    pub(crate) fn new(streams: Arc<Streams>, window: Limits, host: Arc<dyn Host>) -> Self {
        let (routed, running, rules, found, all) = (Arc::default(), Vec::new(), Vec::new(), Arc::default(), Arc::default());
        Self { host, streams, window, routed, running, rules, found, patience: SETTLE, all }
    }

    /// Those that there are, now and later.
    pub(super) fn all(&self) -> &All {
        &self.all
    }

    /// The streams that get their events.
    pub(super) fn streams(&self) -> &Arc<Streams> {
        &self.streams
    }

    /// What the routers have counted.
    pub(super) fn routed(&self) -> &Arc<route::Counts> {
        &self.routed
    }

    /// Adds the sources that the process starts with.
    pub(crate) fn begin(&mut self, sources: Vec<Source>, rules: &[Rule]) {
        self.rules = rules.to_vec();
        for source in sources {
            let others = others(&source);
            self.launch(source, rules, false, false);
            others.into_iter().for_each(|other| self.launch(other, rules, false, false));
        }
    }

    /// Notified when logs were found, which [`Sources::grow`] then enters.
    pub(super) fn found(&self) -> Arc<Notify> {
        self.found.clone()
    }

    /// Enters the logs that were found of sources that have several.
    pub(super) async fn grow(&mut self) {
        let rules = self.rules.clone();
        let first: Vec<_> = self.running.iter().map(|(of, _)| of.clone()).filter(|of| of.parts().is_some()).collect();
        for (first, other) in first.iter().flat_map(|of| others(&of.source()).into_iter().map(move |other| (of, other))) {
            match self.at(&other.name, other.part.as_ref()) {
                None => {
                    // What is found while the first log is served already was made just now.
                    let is_new = self.streams.hub().state().source(first.key).is_some_and(hub::Source::warm);
                    info!(source = %other.name, log = other.part.as_deref(), is_new, "another log of a source");
                    let ready = self.is_ready();
                    self.launch(other, &rules, ready, is_new);
                }
                Some(at) if !Arc::ptr_eq(&self.running[at].0.supervisor.adapter, &other.adapter) => self.change(other, &rules).await,
                Some(_) => {}
            }
        }
    }

    /// Adds a source while the process runs. Readiness that was reached is not lost by that.
    pub(super) fn add(&mut self, source: Source, rules: &[Rule]) {
        let ready = self.is_ready();
        self.launch(source, rules, ready, false);
    }

    fn is_ready(&self) -> bool {
        self.running.iter().all(|(of, _)| of.handle().is_ready())
    }

    /// `excused`: readiness does not wait for it. `is_new`: so is its log at the broker, of which live streams get everything.
    fn launch(&mut self, source: Source, rules: &[Rule], excused: bool, is_new: bool) {
        let first = self.running.iter().map(|(of, _)| of).find(|of| of.handle().name == source.name).cloned();
        let handle = match &first {
            Some(first) => Handle::beside(first.handle(), &*source.adapter),
            None => Handle::new(source.name.clone(), &*source.adapter, source.required),
        };
        if excused {
            handle.status.excuse();
        }
        let register = |streams: &Streams, source| {
            let now = Timestamp::now();
            if is_new { (streams.add_new(source, now), Some(Point::Earliest)) } else { (streams.add(source, now), None) }
        };
        let counts = first.map(|first| first.counts.clone()).unwrap_or_default();
        let runtime = self.enter(source, rules, handle, counts, register);
        self.start(runtime);
    }

    /// Ends a source and starts another in its place, with other routes, another broker or other settings. It goes on where the
    /// other stood if it has a log; else what came in between may be lost, which is told.
    pub(super) async fn change(&mut self, source: Source, rules: &[Rule]) {
        let Some(at) = self.at(&source.name, source.part.as_ref()) else { return self.add(source, rules) };
        let old = self.stop(at).await;
        let handle = Handle::in_place_of(old.handle(), &*source.adapter, source.required);
        let rerouted = !old.routes_like(&source, rules);
        if rerouted {
            self.streams.hub().ask(old.key);
        }
        let hold = if rerouted { Some(self.settle().await.0) } else { None };
        let replace = |streams: &Streams, source| streams.replace(old.key, source, rerouted, Timestamp::now());
        let runtime = self.enter(source, rules, handle, old.counts.clone(), replace);
        drop(hold);
        if runtime.supervisor.adapter.loses_while_away() {
            runtime.handle().counters.count_gap(GapReason::Reconnect);
            let gap = Gap { reason: GapReason::Reconnect, from: None, to: None, position: None };
            runtime.supervisor.intake.take(&mut vec![Item::Gap(gap)]).await;
        }
        self.start(runtime);
    }

    /// Gives a source other routes. Its connection goes on, so nothing is lost; its window is a new one. False: not now, as a
    /// source that still warms up has to be read again from where it began.
    async fn reroute(&mut self, at: usize, rules: &[Rule]) -> bool {
        let old = self.running[at].0.clone();
        let (name, part) = (&old.handle().name, old.part.clone());
        let hub = self.streams.hub().clone();
        if !hub.state().source(old.key).is_some_and(hub::Source::warm) {
            return false;
        }
        let Supervisor { adapter, handle, max_payload, .. } = &old.supervisor;
        let router = Arc::new(Router::new(rules, name, &adapter.reach(), self.routed.clone()));
        hub.ask(old.key);
        let (_hold, deadline) = self.settle().await;
        let mut key = old.key;
        let is_ready = || hub.settled() || Instant::now() >= deadline;
        let mut replace = || {
            let log = history::Log::of(handle, adapter.clone(), *max_payload);
            let source = stream::Source { name: name.clone(), part: part.clone(), router: router.clone(), log };
            key = self.streams.replace(old.key, source, true, Timestamp::now()).0;
            key
        };
        while !old.intake.reroute(&router, is_ready, &mut replace) {
            sleep(LOOK).await;
        }
        let (supervisor, counts, intake) = (old.supervisor.clone(), old.counts.clone(), old.intake.clone());
        let (reach, inbox, written) = (router.reach(), old.inbox.clone(), old.written.clone());
        self.running[at].0 = Arc::new(SourceRuntime { key, supervisor, intake, counts, reach, part, inbox, written, router });
        self.show();
        true
    }

    /// Holds publishing up, and waits until all who are not slow have read what was published: then nobody has to resume from
    /// windows that are about to be others. Not beyond the deadline. Somebody who was too slow for one source is hardly waited for
    /// at the next ones, so that a reload of many sources holds publishing up for hardly longer than that of one.
    async fn settle(&mut self) -> (Hold, Instant) {
        let (hub, deadline) = (self.streams.hub().clone(), Instant::now() + self.patience);
        let hold = hub.hold();
        while !hub.settled() {
            if Instant::now() >= deadline {
                self.patience = LOOK;
                break;
            }
            sleep(LOOK).await;
        }
        (hold, deadline)
    }

    /// Ends one and forgets it.
    async fn remove_at(&mut self, at: usize) {
        let old = self.stop(at).await;
        self.streams.remove(old.key);
        self.show();
    }

    /// Adds, changes and removes until there are those that are wanted, with these routes. What has not changed goes on.
    pub(crate) async fn follow(&mut self, wanted: Vec<Source>, rules: &[Rule], window: Limits) {
        self.window = window;
        self.patience = SETTLE;
        self.grow().await;
        self.rules = rules.to_vec();
        let wanted: Vec<_> = wanted.into_iter().flat_map(|source| self.with_others(source)).collect();
        let is_gone = |of: &SourceRuntime| !wanted.iter().any(|source| of.reads(source));
        while let Some(at) = self.running.iter().position(|(of, _)| is_gone(of)) {
            let of = &self.running[at].0;
            info!(source = %of.handle().name, log = of.part.as_deref(), "source removed");
            self.remove_at(at).await;
        }
        for source in wanted {
            let name = source.name.clone();
            match self.at(&name, source.part.as_ref()) {
                None => {
                    info!(source = %name, log = source.part.as_deref(), "source added");
                    self.add(source, rules);
                }
                Some(at) => {
                    let present = &self.running[at].0;
                    let (same, routes) = (present.written == source.written, present.routes_like(&source, rules));
                    if same && routes {
                        // A file that it names may be another one.
                        present.handle().try_again();
                        continue;
                    }
                    info!(source = %name, routes = !routes, settings = !same, "source changed");
                    if !(same && self.reroute(at, rules).await) {
                        self.change(source, rules).await;
                    }
                }
            }
        }
    }

    /// Ends all of them in good order. Their windows stay.
    pub(crate) async fn drain(&mut self) {
        self.running.iter().for_each(|(of, _)| of.release());
        join_all(self.running.iter_mut().map(|(_, running)| running.stop())).await;
        self.running.clear();
    }

    /// How many sources run.
    pub(super) fn len(&self) -> usize {
        self.running.iter().filter(|(of, _)| of.is_first()).count()
    }

    fn at(&self, name: &SourceName, part: Option<&Arc<str>>) -> Option<usize> {
        self.running.iter().position(|(of, _)| of.handle().name == *name && of.part.as_ref() == part)
    }

    /// A source that is wanted, and its other logs: those that it knows, and those that were found of it before. These are read as
    /// its settings say now, which may name another broker.
    fn with_others(&self, source: Source) -> Vec<Source> {
        if let Some(parts) = source.adapter.parts().filter(|_| self.at(&source.name, source.part.as_ref()).is_some()) {
            let is_read = |log: &str| self.running.iter().any(|(of, _)| of.handle().name == source.name && of.part.as_deref() == Some(log));
            parts.know(MAX_DURABLE, is_read);
        }
        let mut all = others(&source);
        all.insert(0, source);
        all
    }

    /// Lets streams know a source, by `register`.
    fn enter(
        &self,
        source: Source,
        rules: &[Rule],
        handle: Handle,
        counts: Arc<Counts>,
        register: impl FnOnce(&Streams, stream::Source) -> (SourceKey, Option<Point>),
    ) -> SourceRuntime {
        let Source { name, adapter, part, max_payload, written, .. } = source;
        let router = Arc::new(Router::new(rules, &name, &adapter.reach(), self.routed.clone()));
        let handle = Arc::new(handle);
        let log = history::Log::of(&handle, adapter.clone(), max_payload);
        let (key, point) = register(&self.streams, stream::Source { name, part: part.clone(), router: router.clone(), log });
        let warm_up = match point {
            Some(Point::At(position)) => Start::After(position),
            // Its log was empty.
            Some(_) => Start::Earliest,
            None => Start::Recent { age: self.window.age, bytes: self.window.bytes as u64 },
        };
        let reach = router.reach();
        let inbox = adapter.inbox().map(|handle| (adapter.reach(), Inbox { max_payload, handle }));
        let intake = Arc::new(Intake::new(key, router.clone(), self.streams.hub().clone(), counts.clone()));
        let handed: Arc<dyn source::Intake> = match adapter.parts() {
            Some(parts) => {
                parts.run(self.admitted(&handle.name), self.found.clone());
                Arc::new(FirstOfAll { parts: parts.clone(), intake: intake.clone() })
            }
            None => self.host.intake(&handle.name, intake.clone()),
        };
        let supervisor = Supervisor { adapter, intake: handed, handle, warm_up, max_payload };
        SourceRuntime { key, supervisor, intake, counts, reach, part, inbox, written, router }
    }

    fn start(&mut self, runtime: SourceRuntime) {
        let running = run(&*self.host, runtime.supervisor.clone());
        self.running.push((Arc::new(runtime), running));
        self.show();
    }

    /// Ends a source in good order. It is still shown, and its window stays.
    async fn stop(&mut self, at: usize) -> Arc<SourceRuntime> {
        let (runtime, running) = &mut self.running[at];
        runtime.release();
        // It is still there if this is dropped: then the drain waits for it.
        running.stop().await;
        self.running.remove(at).0
    }

    fn show(&self) {
        let all: Vec<_> = self.running.iter().map(|(runtime, _)| runtime.clone()).collect();
        for first in all.iter().filter(|of| of.parts().is_some()) {
            let others: Vec<_> = all.iter().filter(|of| of.is_beside(first)).map(|of| of.handle().clone()).collect();
            let entered = others.len();
            first.handle().status.stand_for(others);
            if let Some(parts) = first.parts() {
                parts.entered(entered);
            }
        }
        self.all.store(Arc::new(all));
    }

    /// Whether a source may have more logs of these names, beside all that there are then.
    fn admitted(&self, source: &SourceName) -> Box<Admit> {
        let (all, source) = (self.all.clone(), source.clone());
        Box::new(move |names| {
            let known = |of: &Arc<SourceRuntime>| Some((of.tag()?, of.handle().name.clone(), of.part.clone()));
            let mut tags: Vec<_> = all.load().iter().filter_map(known).collect();
            for name in names {
                let tag = parts::tag(&source, Some(name));
                match tags.iter().find(|(of, ..)| *of == tag) {
                    Some((_, other, part)) if (other, part.as_ref()) == (&source, Some(name)) => continue, // It is read already.
                    Some((_, other, part)) => {
                        let part = part.as_ref().map(|part| format!("partition `{part}` of ")).unwrap_or_default();
                        return Err(format!("clients' cursors could not tell partition `{name}` from {part}source `{other}`"));
                    }
                    None => tags.push((tag, source.clone(), Some(name.clone()))),
                }
            }
            if tags.len() > MAX_DURABLE {
                let most = format!("an id holds {MAX_DURABLE} durable sources, and each partition of a super stream is one");
                return Err(format!("there are more partitions than fit: {most}"));
            }
            Ok(())
        })
    }
}

/// The logs of a source beside its first, as far as they are known.
fn others(source: &Source) -> Vec<Source> {
    let others = source.adapter.parts().map(|parts| parts.others()).unwrap_or_default();
    others.into_iter().map(|part| source.other(part)).collect()
}

/// The source that takes a subject from HTTP publishers.
pub(super) fn inbox(all: &All, subject: &Subject) -> Option<Inbox> {
    let takes = |of: &Arc<SourceRuntime>| {
        let (subjects, inbox) = of.inbox.as_ref()?;
        subjects.iter().any(|pattern| pattern.matches(subject.as_str())).then(|| inbox.clone())
    };
    all.load().iter().find_map(takes)
}

/// What all have counted, and what their windows hold.
pub(super) fn readings(all: &All, streams: &Streams) -> Vec<SourceReading> {
    let all = all.load();
    let windows: Vec<_> = {
        let state = streams.hub().state();
        let held = |of: &Window| (of.len() as u64, of.bytes() as u64);
        all.iter().map(|source| state.source(source.key).map_or((0, 0), |of| held(of.window()))).collect()
    };
    let counted = |source: &SourceRuntime| streams.histories().counted(source.key);
    let each = || all.iter().zip(&windows);
    let all_logs = |first: &Arc<SourceRuntime>| {
        let logs = each().filter(|(of, _)| Arc::ptr_eq(of, first) || of.is_beside(first));
        logs.fold(((0, 0), history::Counted::default()), |(window, history), (of, held)| {
            ((window.0 + held.0, window.1 + held.1), history.and(counted(of)))
        })
    };
    let first = each().map(|(of, _)| of).filter(|of| of.is_first());
    first.map(|of| (of, all_logs(of))).map(|(of, (window, history))| of.reading(window, history)).collect()
}

impl SourceRuntime {
    /// Its name, status and counters.
    pub(super) fn handle(&self) -> &Arc<Handle> {
        &self.supervisor.handle
    }

    /// The logs of its source, whose first it reads, if that has several.
    fn parts(&self) -> Option<&Arc<Parts>> {
        self.supervisor.adapter.parts()
    }

    /// What it has in hand need not wait for the source's other logs any more: it is about to end.
    fn release(&self) {
        if let Some(parts) = self.parts() {
            parts.entered(usize::MAX);
        }
    }

    /// Whether it stands for its source: it reads the first log, or the only one.
    pub(super) fn is_first(&self) -> bool {
        self.part.is_none() || self.parts().is_some()
    }

    /// Whether it reads another log of the same source.
    fn is_beside(&self, first: &Self) -> bool {
        !self.is_first() && self.handle().name == first.handle().name
    }

    /// Whether it is what reads this.
    fn reads(&self, source: &Source) -> bool {
        self.handle().name == source.name && self.part == source.part
    }

    fn tag(&self) -> Option<Tag> {
        let handle = self.handle();
        handle.durable.then(|| parts::tag(&handle.name, self.part.as_deref()))
    }

    /// What it was made of.
    fn source(&self) -> Source {
        let Supervisor { adapter, handle, max_payload, .. } = &self.supervisor;
        let required = handle.status.own().required;
        let (name, part, written) = (handle.name.clone(), self.part.clone(), self.written.clone());
        Source { name, required, max_payload: *max_payload, adapter: adapter.clone(), part, written }
    }

    /// Whether its messages are routed like those of a source with these routes.
    fn routes_like(&self, source: &Source, rules: &[Rule]) -> bool {
        self.router.is_like(&Router::new(rules, &source.name, &source.adapter.reach(), Arc::default()))
    }

    fn reading(&self, window: (u64, u64), history: history::Counted) -> SourceReading {
        let Handle { name, status, counters, durable, .. } = &*self.supervisor.handle;
        let Gauges { ready, expires, passed } = self.supervisor.adapter.gauges();
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
            last_message: counters.last().map(|(at, _)| at),
            lag: counters.last().filter(|_| *durable).map(|(_, lag)| lag),
            behind: counters.behind(),
            history_events: history.events,
            history_bytes: history.bytes,
            history_errors: ErrorKind::ALL.iter().map(|kind| (kind.as_str(), history.errors[*kind as usize])).collect(),
            ready: ready.filter(|_| status.read().state == State::Up),
            expires: [("certificate", expires.certificate), ("token", expires.token)],
            passed,
            window_events: window.0,
            window_bytes: window.1,
        }
    }
}

/// Runs a source until it is stopped; should its supervisor panic, again.
pub(super) fn run(host: &dyn Host, supervisor: Supervisor) -> Running {
    let cancel = CancellationToken::new();
    let cancelled = cancel.clone();
    let ended = host.spawn(Box::pin(async move {
        loop {
            let panicked = AssertUnwindSafe(supervisor.clone().run(cancelled.clone())).catch_unwind().await.is_err();
            if cancelled.is_cancelled() {
                return;
            }
            error!(source = %supervisor.handle.name, panicked, "source has ended and is started again");
            sleep(AGAIN).await;
        }
    }));
    Running { cancel, ended }
}

impl Running {
    /// Ends it in good order: what is in hand is handed in and acknowledged. Where this is dropped before, it may be called again.
    pub(super) async fn stop(&mut self) {
        self.cancel.cancel();
        (&mut self.ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Histories;
    use crate::hub::Hub;
    use crate::source::parts::{Counted, Part};

    /// The sources that a text configures, and its routes.
    fn read(text: &str) -> (Vec<Source>, Vec<Rule>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("bridge.yaml");
        std::fs::write(&file, text).unwrap();
        let settings = crate::app::load(&[file]).unwrap().settings;
        (settings.sources, settings.routes)
    }

    fn sources() -> Sources {
        let window = Limits { bytes: 1 << 20, age: Duration::from_secs(600) };
        let (scan, piece, share) = (stream::Settings::SCAN, stream::Settings::PIECE, stream::Settings::SHARE);
        let settings = stream::Settings { heartbeat: AGAIN, retry: AGAIN, scan, piece, share };
        let histories = Histories::new(history::Settings { readers: 1, rate: 1 << 20, cache: 1 << 20 });
        Sources::new(Streams::new(Hub::new(window, 1), histories, settings), window, Arc::new(Tokio))
    }

    /// How many events each source's window holds, by name.
    fn held(sources: &Sources) -> Vec<(String, u64)> {
        let readings = readings(sources.all(), &sources.streams);
        readings.into_iter().map(|reading| (reading.name, reading.window_events)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn sources_are_added_changed_and_removed_while_another_goes_on() {
        let (first, rules) = read("sources: { a: { ticker: { subject: a } }, b: { ticker: { subject: b } } }");
        let mut sources = sources();
        sources.begin(first, &rules);
        let both = |a: u64, b: u64| vec![("a".to_owned(), a), ("b".to_owned(), b)];
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(held(&sources), both(3, 3));
        let (added, rules) = read("sources: { c: { ticker: { subject: c } } }");
        sources.add(added.into_iter().next().unwrap(), &rules);
        sleep(Duration::from_secs(1)).await;
        assert_eq!(held(&sources).len(), 3);
        let name = "c".parse().unwrap();
        let at = sources.at(&name, None).unwrap();
        sources.remove_at(at).await;
        assert!(sources.at(&name, None).is_none());
        assert_eq!(held(&sources), both(4, 4));
        // Changed: a new window, other routes, and the counters go on.
        let counted = |sources: &Sources| sources.all().load().iter().map(|of| of.handle().counters.messages()).collect::<Vec<_>>();
        let before = counted(&sources);
        let (changed, rules) = read("{ sources: { a: { ticker: { subject: a } } }, routes: [{ match: { source: a }, subject: other }] }");
        sources.change(changed.into_iter().next().unwrap(), &rules).await;
        let readings = readings(sources.all(), &sources.streams);
        let of = |name: &str| readings.iter().find(|reading| reading.name == name).unwrap();
        assert_eq!((of("a").window_events, of("b").window_events), (0, 4));
        assert_eq!(of("a").messages, before[0]);
        let reach = sources.all().load().iter().find(|of| of.handle().name.as_str() == "a").unwrap().reach.clone();
        assert_eq!(reach, ["other".parse().unwrap()]);
        sleep(Duration::from_secs(2)).await;
        assert!(held(&sources).iter().all(|(_, events)| *events > 0), "{:?}", held(&sources));
        // Dropped or drained, nothing comes any more.
        sources.drain().await;
        let after = counted(&sources);
        sleep(Duration::from_secs(3)).await;
        assert_eq!(counted(&sources), after);
    }

    /// Its tasks take a minute to end.
    struct Slow;

    impl Host for Slow {
        fn spawn(&self, task: BoxFuture<'static, ()>) -> BoxFuture<'static, ()> {
            Box::pin(async move {
                task.await;
                sleep(Duration::from_secs(60)).await;
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_was_ending_when_a_reload_was_dropped_is_drained() {
        for change in [false, true] {
            let (first, rules) = read("sources: { a: { ticker: { subject: a } } }");
            let mut sources = Sources { host: Arc::new(Slow), ..sources() };
            sources.begin(first, &rules);
            let (wanted, rules) = if change { read("sources: { a: { ticker: { subject: b } } }") } else { (Vec::new(), Vec::new()) };
            let window = sources.window;
            tokio::time::timeout(Duration::from_secs(1), sources.follow(wanted, &rules, window)).await.unwrap_err();
            let begins = Instant::now();
            sources.drain().await;
            assert!(begins.elapsed() >= Duration::from_secs(59), "{:?}", begins.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_waits_for_the_sources_of_the_start_only() {
        let text = "sources: { a: { required: false, http: { subjects: [a] } }, b: { http: { subjects: [b] } } }";
        let (first, rules) = read(text);
        let mut sources = sources();
        sources.begin(first, &rules);
        let ready = |sources: &Sources| sources.all().load().iter().map(|of| of.handle().is_ready()).collect::<Vec<_>>();
        assert_eq!(ready(&sources), [true, false]);
        // Neither is ready yet, so the new one is waited for as well.
        let late =
            |name: &str| read(&format!("sources: {{ {name}: {{ nats: {{ servers: ['nats://127.0.0.1:1'], subjects: [{name}] }} }} }}"));
        let (added, rules) = late("c");
        sources.add(added.into_iter().next().unwrap(), &rules);
        assert_eq!(ready(&sources), [true, false, false]);
        let at = sources.at(&"c".parse().unwrap(), None).unwrap();
        sources.remove_at(at).await;
        sleep(Duration::from_secs(1)).await;
        assert_eq!(ready(&sources), [true, true]);
        let (added, rules) = late("d");
        sources.add(added.into_iter().next().unwrap(), &rules);
        assert_eq!(ready(&sources), [true, true, true]);
        assert!(inbox(sources.all(), &"b".parse().unwrap()).is_some() && inbox(sources.all(), &"d".parse().unwrap()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn one_client_that_takes_nothing_holds_publishing_up_no_longer_where_many_sources_change() {
        let names: Vec<String> = (0..30).map(|n| format!("s{n}")).collect();
        let all = names.iter().map(|name| format!("{name}: {{ http: {{ subjects: [{name}] }} }}")).collect::<Vec<_>>().join(", ");
        let (first, rules) = read(&format!("sources: {{ {all} }}"));
        let mut sources = sources();
        sources.begin(first, &rules);
        sleep(Duration::from_secs(1)).await;
        let hub = sources.streams.hub().clone();
        // A body that is live, has something to read, and is not polled any more: its client's window is full.
        let stream = sources.streams.open(crate::stream::tests::request(">"), Timestamp::now());
        let mut body = crate::transport::body::Body::new(stream);
        for _ in 0..8 {
            while body.poll_next(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready() {}
            tokio::task::yield_now().await;
        }
        let key = sources.all().load()[0].key;
        let event = crate::event::Message::new("s0".parse().unwrap(), bytes::Bytes::new(), Timestamp::now(), None);
        hub.publish(key, &mut vec![hub::Input::Event(crate::event::Event::of(event))], Timestamp::now());
        // How long nothing can be published: looked at each millisecond, as a publisher that waits would.
        let mut held = Duration::ZERO;
        let watch = async {
            loop {
                held += if hub.crowded() { Duration::from_millis(1) } else { Duration::ZERO };
                sleep(Duration::from_millis(1)).await;
            }
        };
        let (wanted, rules) = read(&format!("{{ sources: {{ {all} }}, routes: [{{ match: {{ subject: '>' }}, event: x }}] }}"));
        let window = sources.window;
        tokio::select! {
            () = watch => {}
            () = sources.follow(wanted, &rules, window) => {}
        }
        assert!(held <= SETTLE * 3, "publishing was held up for {held:?}");
    }

    /// A log of some broker, by whose name it calls its kind.
    struct Log {
        broker: &'static str,
        parts: Option<Arc<Parts>>,
    }

    impl source::Adapter for Log {
        fn kind(&self) -> &'static str {
            self.broker
        }
        fn durable(&self) -> bool {
            true
        }
        fn reach(&self) -> Vec<Pattern> {
            vec![Pattern::all()]
        }
        fn connect(&self, _: Start) -> BoxFuture<'_, Result<Box<dyn source::Connection>, source::SourceError>> {
            Box::pin(std::future::pending())
        }
        fn parts(&self) -> Option<&Arc<Parts>> {
            self.parts.as_ref()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_log_of_a_broker_is_read_any_more_that_the_configuration_does_not_name() {
        let found = |broker, number: usize| Part { name: format!("x-{number}").into(), adapter: Arc::new(Log { broker, parts: None }) };
        let super_stream = |broker, subject: &str| {
            let log = move |number| found(broker, number);
            let counted = Counted { name: Box::new(|number| format!("x-{number}")), log: Box::new(log) };
            let parts = Parts::new("x-0".into(), Vec::new(), Some(counted));
            let (parts, written) =
                (Arc::new(parts), read(&format!("sources: {{ s: {{ ticker: {{ subject: {subject} }} }} }}")).0.remove(0));
            let adapter = Arc::new(Log { broker, parts: Some(parts.clone()) });
            (parts, Source { adapter, part: Some("x-0".into()), ..written })
        };
        let mut sources = sources();
        let (parts, source) = super_stream("old", "a");
        sources.begin(vec![source], &[]);
        parts.add(vec![found("old", 1), found("old", 2)]).unwrap();
        sources.grow().await;
        let read = |sources: &Sources| {
            let log = |of: &Arc<SourceRuntime>| (of.part.clone().unwrap().to_string(), of.supervisor.adapter.kind());
            let mut read: Vec<_> = sources.all().load().iter().map(log).collect();
            read.sort();
            read
        };
        let all = |broker, logs: usize| (0..logs).map(|number| (format!("x-{number}"), broker)).collect::<Vec<_>>();
        assert_eq!(read(&sources), all("old", 3));
        // The same name at another broker. The logs that were found are there, or are missing.
        let (parts, source) = super_stream("new", "b");
        let window = sources.window;
        sources.follow(vec![source], &[], window).await;
        assert_eq!(read(&sources), all("new", 3));
        assert_eq!(parts.names().len(), 3);
        // They are known, so that only the next one is new.
        parts.add(vec![found("new", 3)]).unwrap();
        let before = sources.all().load_full();
        sources.grow().await;
        assert_eq!(read(&sources), all("new", 4));
        assert!(before.iter().zip(sources.all().load().iter()).all(|(before, now)| Arc::ptr_eq(before, now)));
        // Written out, they are those that are written.
        let (_, written) = super_stream("newer", "c");
        let named = Parts::new("x-0".into(), vec![found("newer", 2)], None);
        let adapter = Arc::new(Log { broker: "newer", parts: Some(Arc::new(named)) });
        sources.follow(vec![Source { adapter, ..written }], &[], window).await;
        assert_eq!(read(&sources), [("x-0".to_owned(), "newer"), ("x-2".to_owned(), "newer")]);
    }
}

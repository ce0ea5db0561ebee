//! A client's stream, from the first comment to the closing: history, then the window, then live, without a seam.
//!
//! Sans-IO: a stream never waits and never reads. It says what to send, what to read for it and what to wait for; whoever
//! moves it (a driver, in `transport`) does that. Time is an argument, but for how long a stream lasted. Owns the registry of open streams. Knows the hub and
//! routing; nothing of HTTP, sockets or timers.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use hashbrown::HashMap;
use parking_lot::Mutex;

use crate::auth::Owner;
use crate::cursor::{Cursor, Point};
use crate::event::{SourceKey, SourceName, Timestamp};
use crate::frame::{self, Closing};
use crate::history::{self, Histories};
pub(crate) use crate::hub::Transport;
use crate::hub::{Channel, Concerns, Filter, Hub, Seat, SourceSpec};
use crate::route::Router;
use crate::source::Item;
use crate::source::parts;
use crate::subject::{Cover, Pattern};
use crate::support::backoff::jittered;

mod catch_up;
mod out;
mod registry;
mod settings;
#[cfg(test)]
pub(crate) mod tests;
mod visit;

use catch_up::{CatchUp, Moved};
pub(crate) use registry::{Driver, End, Selection, StreamId, Wanted};
use registry::{Entry, Granted, Registry};
pub(crate) use settings::Settings;
pub(crate) use visit::Visitor;
use visit::{Place, Visit};

/// The most bytes of what a stream has not got yet that it is still sent when it is ended to let the process end. Full sockets
/// keep it.
const REST: usize = 64 << 10;
/// The reconnection time of clients whose history could not be read, before jitter.
const UNAVAILABLE: Duration = Duration::from_secs(15);

/// Streams that end together end, or their clients come back, so far apart on average.
pub(crate) const STAGGER: Duration = Duration::from_millis(10);
/// No client is told to stay away for longer than this because many streams end at once.
const MOST_SPREAD: Duration = Duration::from_secs(30);
/// So long after many streams were told to end, they are taken to end together.
const SPREADING: Duration = Duration::from_secs(5);
/// Below this the usual jitter of the reconnection time is enough.
const LEAST_SPREAD: Duration = Duration::from_secs(1);

/// Where a client begins.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Begin {
    /// With what comes.
    Now,
    /// Behind its last id.
    After(Cursor),
    /// It sent an id that cannot be read: told as a gap, then as `Now`.
    Unreadable,
    /// At this point of every source: `Earliest`, `Since` or `Last`.
    At(Point),
}

/// A client that may come in.
pub(crate) struct Request {
    /// What it wants, within its grant.
    pub filter: Arc<Filter>,
    /// Whether it named its patterns. One that did not wants all that its grant covers.
    pub named: bool,
    /// Where it begins.
    pub begin: Begin,
    /// When its token would be refused.
    pub expires: Option<Timestamp>,
    /// Whose token it is.
    pub owner: Option<Arc<Owner>>,
    /// Who asks, and how.
    pub visitor: Visitor,
    /// Its place in the pool, given back when the stream ends.
    pub permit: Box<dyn Send + Sync>,
}

/// A source that streams are served from.
pub(crate) struct Source {
    /// Its name.
    pub name: SourceName,
    /// Which of its logs it is, if it has several.
    pub part: Option<Arc<str>>,
    /// What becomes of its messages.
    pub router: Arc<Router>,
    /// Its log. Only that of a durable source is read.
    pub log: history::Log,
}

impl Source {
    fn split(self) -> (SourceSpec, Arc<Router>, history::Log) {
        let Self { name, part, router, log } = self;
        let asked = router.clone();
        let concerns = Concerns(Arc::new(move |patterns| asked.concerns(patterns)));
        let tag = log.adapter.durable().then(|| parts::tag(&name, part.as_deref()));
        (SourceSpec { name, tag, part: part.is_some(), concerns }, router, log)
    }
}

/// Opens streams, and knows those that are open.
pub(crate) struct Streams {
    hub: Arc<Hub>,
    /// Of each source, for what is read of its log. Locked last.
    routers: Mutex<HashMap<SourceKey, Arc<Router>>>,
    histories: Arc<Histories>,
    settings: Settings,
    /// The reconnection time told to clients, before jitter, in milliseconds.
    retry: AtomicU64,
    registry: Registry,
    closed: [AtomicU64; Closing::ALL.len()],
    /// Streams whose clients ended them.
    left: AtomicU64,
    /// Told of each stream that has ended.
    ended: OnceLock<Box<dyn Fn(Ended) + Send + Sync>>,
    spread: Mutex<Spread>,
}

/// Many streams end: over what span their clients come back, and until when that counts.
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    span: Duration,
    until: Timestamp,
}

impl fmt::Debug for Streams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Streams").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Streams {
    /// Over a hub without sources.
    #[must_use]
    pub(crate) fn new(hub: Arc<Hub>, histories: Arc<Histories>, settings: Settings) -> Arc<Self> {
        let (routers, registry, closed, ended) = (Mutex::default(), Registry::default(), Default::default(), OnceLock::new());
        let (retry, left, spread) = (AtomicU64::new(millis(settings.retry)), AtomicU64::new(0), Mutex::default());
        Arc::new(Self { hub, routers, histories, settings, retry, registry, closed, left, ended, spread })
    }

    /// Clients that come from now on are told another reconnection time.
    pub(crate) fn set_retry(&self, retry: Duration) {
        self.retry.store(millis(retry), Ordering::Relaxed);
    }

    /// Adds a source. Live streams get its events without more ado, and those that catch up follow it from now on.
    pub(crate) fn add(&self, source: Source, now: Timestamp) -> SourceKey {
        let (spec, router, log) = source.split();
        self.hub.add(spec, now, |key| self.register(key, router, log))
    }

    /// Adds a log that is new at its broker: streams get all that it holds.
    pub(crate) fn add_new(&self, source: Source, now: Timestamp) -> SourceKey {
        let (spec, router, log) = source.split();
        self.hub.add_new(spec, now, |key| self.register(key, router, log))
    }

    /// Removes a source, whose supervisor has ended. Streams that catch up follow it no more, and get no gap.
    pub(crate) fn remove(&self, source: SourceKey) {
        self.hub.remove(source);
        self.forget(source);
    }

    /// Puts a source in another's place: see [`Hub::replace`].
    pub(crate) fn replace(&self, old: SourceKey, source: Source, rerouted: bool, now: Timestamp) -> (SourceKey, Option<Point>) {
        let (spec, router, log) = source.split();
        let replaced = self.hub.replace(old, spec, rerouted, now, |key| self.register(key, router, log));
        self.forget(old);
        replaced
    }

    fn register(&self, key: SourceKey, router: Arc<Router>, log: history::Log) {
        self.routers.lock().insert(key, router);
        self.histories.add(key, log);
    }

    fn forget(&self, source: SourceKey) {
        self.routers.lock().remove(&source);
        self.histories.remove(source);
    }

    /// What becomes of a source's messages, unless it was removed.
    fn router(&self, source: SourceKey) -> Option<Arc<Router>> {
        self.routers.lock().get(&source).cloned()
    }

    /// The hub.
    #[must_use]
    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// How often a quiet stream gets a heartbeat.
    #[must_use]
    pub(crate) fn heartbeat(&self) -> Duration {
        self.settings.heartbeat
    }

    /// The sources' logs.
    #[must_use]
    pub(crate) fn histories(&self) -> &Arc<Histories> {
        &self.histories
    }

    /// Opens a stream. Whatever the client asks for, the answer is in the stream.
    #[must_use]
    pub(crate) fn open(self: &Arc<Self>, request: Request, now: Timestamp) -> Stream {
        let Request { filter, named, begin, expires, owner, visitor, permit } = request;
        let entry = Entry { owner, visitor, filter: filter.clone(), named, permit, expires };
        let lease = Lease { streams: self.clone(), visit: self.registry.insert(entry, now) };
        Stream { lease, state: State::CatchingUp(Box::new(CatchUp::open(self.clone(), filter, begin, now))) }
    }

    /// Ends streams at random times within a span from now, so that their clients do not come back all at once. When all
    /// are ended because the process drains, so are those that are opened later. Returns how many are open and meant.
    pub(crate) fn end(&self, selection: Selection<'_>, reason: Closing, now: Timestamp, within: Duration) -> usize {
        self.registry.end(selection, reason, now, within, |count| self.spread(count, now))
    }

    /// So many streams are about to end: their clients shall not come back all at once.
    fn spread(&self, count: usize, now: Timestamp) {
        let span = STAGGER.saturating_mul(u32::try_from(count).unwrap_or(u32::MAX)).min(MOST_SPREAD);
        let mut spread = self.spread.lock();
        if span >= spread.span || now >= spread.until {
            *spread = Spread { span, until: now.after(SPREADING) };
        }
    }

    /// The reconnection time for a client whose stream ends with many others.
    fn spread_retry(&self, now: Timestamp) -> Option<Duration> {
        let Spread { span, until } = *self.spread.lock();
        (now < until && span >= LEAST_SPREAD).then(|| self.retry() + jittered(span, 0.0..1.0))
    }

    /// Ends the streams whose patterns what is `granted` to their owners covers no more. Returns how many. Leaves owners alone for
    /// whom it says nothing.
    pub(crate) fn narrow(&self, granted: impl Fn(Option<&Arc<Owner>>) -> Option<Arc<[Pattern]>>, now: Timestamp) -> usize {
        let mut lost = Vec::new();
        self.for_granted(granted, |Granted { stream, filter, .. }, granted| {
            if !is_within(&filter, granted) {
                lost.push(stream);
            }
        });
        self.spread(lost.len(), now);
        lost.into_iter().filter(|stream| self.registry.end_one(*stream, End { at: now, reason: Closing::Revoked })).count()
    }

    /// Streams whose clients named no patterns get all that is `granted` to their owners from now on. Returns how many get more.
    /// Leaves owners alone for whom it says nothing.
    pub(crate) fn widen(&self, granted: impl Fn(Option<&Arc<Owner>>) -> Option<Arc<[Pattern]>>) -> usize {
        let mut widened = 0;
        let since = self.hub.state().id().clone();
        self.for_granted(granted, |Granted { stream, filter, named, .. }, granted| {
            if named || !is_within(&filter, granted) {
                return;
            }
            let wider = Filter::new(granted.to_vec(), filter.form());
            if wider != *filter {
                self.registry.refilter(stream, Arc::new(wider), &since);
                widened += 1;
            }
        });
        widened
    }

    /// Streams end as expired when their owners' time is over, unless they end earlier. Leaves owners alone for whom `expires` says
    /// nothing.
    pub(crate) fn expire(&self, expires: impl Fn(Option<&Arc<Owner>>) -> Option<Timestamp>) {
        self.for_granted(expires, |Granted { stream, .. }, at| {
            self.registry.end_one(stream, End { at: *at, reason: Closing::Expired });
        });
    }

    /// Calls `each` for all streams with what `granted` says of their owners: asked once for each owner.
    fn for_granted<T>(&self, granted: impl Fn(Option<&Arc<Owner>>) -> Option<T>, mut each: impl FnMut(Granted, &T)) {
        let mut known: HashMap<Option<*const Owner>, Option<T>> = HashMap::new();
        for one in self.registry.granted() {
            let owner = one.owner.as_ref().map(Arc::as_ptr);
            if let Some(granted) = known.entry(owner).or_insert_with(|| granted(one.owner.as_ref())) {
                each(one, granted);
            }
        }
    }

    /// Streams that are open, at most `limit` of them behind `after`, and the last of these if there are more.
    #[must_use]
    pub(crate) fn list(&self, wanted: &Wanted, after: Option<StreamId>, limit: usize) -> (Vec<Listed>, Option<StreamId>) {
        let (found, more) = self.registry.list(wanted, after, limit);
        let next = found.last().filter(|_| more).map(|found| found.visit.id);
        let listed = found.into_iter().map(|found| {
            let (position, behind) = match found.visit.place() {
                Place::Behind(id) => (id, None),
                Place::Live(offset) => {
                    let (id, behind) = self.hub.place_in_channel(&found.filter, offset);
                    (id, Some(behind))
                }
            };
            let (events, bytes) = found.visit.sent();
            let (owner, visitor, since) = (found.visit.owner.clone(), found.visit.visitor(), found.visit.since);
            let position = String::from_utf8_lossy(&position).into_owned();
            Listed { id: found.visit.id, owner, visitor, filter: found.filter, since, position, behind, events, bytes, end: found.end }
        });
        (listed.collect(), next)
    }

    /// Ends streams that are open. Returns how many.
    pub(crate) fn end_listed(&self, wanted: &Wanted, now: Timestamp) -> usize {
        self.end(Selection::Listed(wanted), Closing::Ended, now, Duration::ZERO)
    }

    /// Streams that are open.
    #[must_use]
    pub(crate) fn opened(&self) -> usize {
        self.registry.len()
    }

    /// Streams that were ended on purpose, by reason.
    #[must_use]
    pub(crate) fn closed(&self, reason: Closing) -> u64 {
        self.closed[reason as usize].load(Ordering::Relaxed)
    }

    fn note_closed(&self, visit: &Visit, reason: Closing, bytes: usize) {
        self.closed[reason as usize].fetch_add(1, Ordering::Relaxed);
        visit.close(reason, bytes as u64);
    }

    /// Streams whose clients have gone.
    #[must_use]
    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// The reconnection time for one client: jittered, so that clients that lost the same server do not come back at
    /// the same moment.
    fn retry(&self) -> Duration {
        jittered(Duration::from_millis(self.retry.load(Ordering::Relaxed)), 0.75..1.25)
    }

    /// Whoever wants to know of each stream that has ended. Set once; must not block.
    pub(crate) fn on_end(&self, tell: impl Fn(Ended) + Send + Sync + 'static) {
        // Whoever comes second is not heard.
        self.ended.set(Box::new(tell)).unwrap_or_default();
    }
}

/// A stream whose client may turn out to take nothing, for a part that sees this and does not move the stream.
pub(crate) struct Watched {
    streams: Arc<Streams>,
    visit: Arc<Visit>,
}

impl Watched {
    /// The stream is ended for this reason, unless it has already ended for another. Called right before what moves the stream is
    /// dropped, and never while that runs.
    pub(crate) fn abandon(&self, reason: Closing) {
        if self.visit.closed().is_none() {
            self.streams.note_closed(&self.visit, reason, 0);
        }
    }
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("id", &self.visit.id).finish_non_exhaustive()
    }
}

/// The hub's sequence in one of its own ids.
fn seq(id: &[u8]) -> Option<u64> {
    let cursor = Cursor::from_id(std::str::from_utf8(id).ok()?).ok()?;
    if let Point::At(position) = cursor.volatile { Some(position.seq) } else { None }
}

fn length(parts: &[Bytes]) -> u64 {
    parts.iter().map(|part| part.len() as u64).sum()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// An open stream, as it is listed.
#[derive(Debug)]
pub(crate) struct Listed {
    /// What tells it from all others.
    pub id: StreamId,
    /// Whose token it is.
    pub owner: Option<Arc<Owner>>,
    /// Who reads it.
    pub visitor: Visitor,
    /// What it is sent.
    pub filter: Arc<Filter>,
    /// When it was opened.
    pub since: Timestamp,
    /// The last id that it was sent; empty where it was sent none.
    pub position: String,
    /// Events, gaps and heartbeats that it is still to be sent; `None`: it catches up.
    pub behind: Option<u64>,
    /// Events that it was sent.
    pub events: u64,
    /// Bytes that it was sent, as they are framed.
    pub bytes: u64,
    /// When it ends, as far as that is known.
    pub end: Option<End>,
}

/// A stream that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Whose token it was.
    pub owner: Option<Arc<Owner>>,
    /// Who read it.
    pub visitor: Visitor,
    /// What it was sent.
    pub filter: Arc<Filter>,
    /// How long it was open.
    pub lasted: Duration,
    /// Why it was ended; `None`: its client has gone.
    pub reason: Option<Closing>,
    /// Events that it was sent.
    pub events: u64,
    /// Bytes that it was sent, as they are framed.
    pub bytes: u64,
}

/// A stream's place in the registry: dropping it is the only way out.
struct Lease {
    streams: Arc<Streams>,
    visit: Arc<Visit>,
}

impl Lease {
    /// This side ends the stream, with so many bytes that say so.
    fn closed(&self, reason: Closing, bytes: usize) {
        self.streams.note_closed(&self.visit, reason, bytes);
    }

    /// Appends the end of the stream: the last id and the reason.
    fn write_closing(&self, out: &mut Vec<u8>, reason: Closing, id: &[u8]) {
        let before = out.len();
        if reason == Closing::Unavailable {
            // After so many failed attempts, three seconds more would not help.
            frame::retry(out, jittered(UNAVAILABLE, 0.75..1.25));
        }
        if matches!(reason, Closing::Revoked | Closing::Ended)
            && let Some(retry) = self.streams.spread_retry(Timestamp::now())
        {
            frame::retry(out, retry);
        }
        if !id.is_empty() {
            frame::id_line(out, id);
        }
        frame::closing(out, reason);
        self.closed(reason, out.len() - before);
    }

    /// Counts events that its client was sent.
    fn sent(&self, events: u64) {
        self.streams.hub.deliveries().sent(self.visit.transport, events, 0);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.visit.closed().is_none() {
            self.streams.left.fetch_add(1, Ordering::Relaxed);
        }
        let lasted = Timestamp::now().since(self.visit.since);
        self.streams.hub.deliveries().lasted(lasted);
        let tell = self.streams.ended.get().and_then(|tell| Some((tell, self.streams.registry.filter_of(self.visit.id)?)));
        self.streams.registry.remove(self.visit.id);
        if let Some((tell, filter)) = tell {
            let (owner, (events, bytes)) = (&self.visit.owner, self.visit.sent());
            tell(Ended { owner: owner.clone(), visitor: self.visit.visitor(), filter, lasted, reason: self.visit.closed(), events, bytes });
        }
    }
}

/// What to do for a stream that is not live.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send these, one behind the other and nothing between them, then ask again.
    Send(Vec<Bytes>),
    /// Ask again, after others had their turn.
    Again,
    /// Ask again when the hub has changed, at this time, or when `history` was read.
    Wait {
        /// When the next heartbeat is due.
        until: Timestamp,
        /// What to read and give to [`Stream::read`].
        history: Option<history::Request>,
    },
    /// It is live: [`Stream::into_live`].
    Live,
}

/// One client's stream.
pub(crate) struct Stream {
    lease: Lease,
    state: State,
}

enum State {
    CatchingUp(Box<CatchUp>),
    /// Its seat, and the client's id at its offset.
    Live(Seat, Arc<str>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if matches!(self.state, State::Live(..)) { "live" } else { "catching up" };
        f.debug_struct("Stream").field("id", &self.lease.visit.id).field("state", &state).finish()
    }
}

impl Stream {
    /// All streams.
    #[must_use]
    pub(crate) fn streams(&self) -> &Arc<Streams> {
        &self.lease.streams
    }

    /// What carries it.
    #[must_use]
    pub(crate) fn transport(&self) -> Transport {
        self.lease.visit.transport
    }

    /// Says who moves it from now on; returns when it ends, as far as that is known by now.
    pub(crate) fn drive(&self, driver: Arc<dyn Driver>, member: u32) -> Option<End> {
        self.lease.streams.registry.drive(self.lease.visit.id, driver, member)
    }

    /// While it catches up, it is sent from now on what it is to be sent by now. One that is live has to resume.
    fn follow(&mut self) {
        if let State::CatchingUp(catch_up) = &mut self.state
            && self.lease.visit.is_moved()
            && let Some((filter, _)) = self.lease.streams.registry.take_moved(self.lease.visit.id)
        {
            catch_up.follow(filter);
        }
    }

    /// What to do next.
    pub(crate) fn step(&mut self, now: Timestamp) -> Step {
        self.follow();
        let State::CatchingUp(catch_up) = &mut self.state else { return Step::Live };
        match catch_up.step(&self.lease.visit, now) {
            Moved::Step(step) => {
                if let Step::Send(parts) = &step {
                    let visit = &self.lease.visit;
                    let events = catch_up.take_events();
                    visit.sent_behind(events, length(parts), catch_up.last_id());
                    self.lease.sent(events);
                }
                step
            }
            Moved::Live(seat, offset, id, parts) => {
                let events = catch_up.take_events();
                self.lease.visit.sent_behind(events, length(&parts), id.as_bytes());
                self.lease.sent(events);
                self.lease.visit.live(offset);
                self.state = State::Live(seat, id);
                if parts.is_empty() { Step::Live } else { Step::Send(parts) }
            }
        }
    }

    /// What reads a log for it; `None`: the source was removed.
    #[must_use]
    pub(crate) fn reader(&self, request: history::Request) -> Option<history::Reader> {
        let wanted = if let State::CatchingUp(catch_up) = &self.state { catch_up.wanted(request.source) } else { None };
        let owner = self.lease.visit.owner.as_ref();
        let mut hasher = DefaultHasher::new();
        owner.and_then(|owner| owner.identity.as_ref()).hash(&mut hasher);
        let asker = history::Asker { identity: hasher.finish(), wanted: wanted.map(Into::into) };
        self.lease.streams.histories.reader(request, asker)
    }

    /// Takes what was read for the last [`Step::Wait`].
    pub(crate) fn read(&mut self, items: &mut Vec<Item>) {
        // Behind the reading: what it is to be sent besides may have been left out, and is read again.
        self.follow();
        if self.lease.visit.is_over() {
            return items.clear();
        }
        if let State::CatchingUp(catch_up) = &mut self.state {
            catch_up.read(items);
        }
    }

    /// Leaves a live stream to whoever writes channels, with its client's id.
    ///
    /// # Errors
    /// Gives it back while it is not live.
    pub(crate) fn into_live(self) -> Result<(Live, Arc<str>), Self> {
        match self.state {
            State::Live(seat, id) => Ok((Live { seat, lease: self.lease }, id)),
            State::CatchingUp(_) => Err(self),
        }
    }

    /// Ends it, and returns the last bytes.
    #[must_use]
    pub(crate) fn close(self, reason: Closing) -> Bytes {
        match self.state {
            State::CatchingUp(catch_up) => {
                let mut out = Vec::new();
                self.lease.write_closing(&mut out, reason, catch_up.last_id());
                out.into()
            }
            State::Live(seat, id) => Live { seat, lease: self.lease }.close(reason, Some(id.as_bytes())),
        }
    }

    /// Ends a stream that nothing can be sent any more.
    pub(crate) fn abandon(self, reason: Closing) {
        self.lease.closed(reason, 0);
    }

    /// For a part that sees that the client takes nothing.
    #[must_use]
    pub(crate) fn watched(&self) -> Watched {
        Watched { streams: self.lease.streams.clone(), visit: self.lease.visit.clone() }
    }
}

/// Whether what is granted covers all that a filter wants.
fn is_within(filter: &Filter, granted: &[Pattern]) -> bool {
    // Mostly they are the same, which is cheaper to see.
    filter.patterns() == granted || {
        let cover = Cover::new(granted);
        filter.patterns().iter().all(|pattern| cover.covers(pattern))
    }
}

/// A stream that has caught up: all it needs is what its channel's log holds from its offset on.
pub(crate) struct Live {
    seat: Seat,
    lease: Lease,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("id", &self.lease.visit.id).field("offset", &self.offset()).finish_non_exhaustive()
    }
}

impl Live {
    /// Its channel.
    #[must_use]
    pub(crate) fn channel(&self) -> &Arc<Channel> {
        self.seat.channel()
    }

    /// Where it is in the log.
    #[must_use]
    pub(crate) fn offset(&self) -> u64 {
        self.lease.visit.offset()
    }

    /// What tells it from all others.
    #[must_use]
    pub(crate) fn id(&self) -> StreamId {
        self.lease.visit.id
    }

    /// It was sent so much of its channel's log, and is at this offset now.
    pub(crate) fn advance(&mut self, offset: u64, events: u64, bytes: u64) {
        self.lease.visit.sent_live(events, bytes, offset);
    }

    /// See [`Stream::drive`].
    pub(crate) fn drive(&self, driver: Arc<dyn Driver>, member: u32) -> Option<End> {
        self.lease.streams.registry.drive(self.lease.visit.id, driver, member)
    }

    /// When it ends and why, as far as that is known by now.
    #[must_use]
    pub(crate) fn end(&self) -> Option<End> {
        self.lease.streams.registry.end_of(self.lease.visit.id)
    }

    /// Whether it is to be sent something else by now than its channel has: then it has to [`resume`](Self::resume).
    #[must_use]
    pub(crate) fn is_moved(&self) -> bool {
        self.lease.visit.is_moved()
    }

    /// Whether its channel still has something for it from before it was to be sent something else.
    #[must_use]
    pub(crate) fn is_owed(&self) -> bool {
        self.lease.streams.registry.moved_since(self.lease.visit.id).is_some_and(|since| self.is_owed_up_to(&since))
    }

    /// Whether its channel still has something for it up to an id of the hub's, or had it and dropped it.
    fn is_owed_up_to(&self, id: &str) -> bool {
        let end = seq(id.as_bytes());
        !self.channel().is_sent(self.offset(), |next| seq(next) > end)
    }

    /// The id of what stands before its offset, as far as that can still be said.
    #[must_use]
    pub(crate) fn last_id(&self) -> Option<Bytes> {
        if let Some(id) = self.received_id() {
            return Some(id);
        }
        // Its channel was silent for long.
        self.id_at_end().map(|id| Bytes::copy_from_slice(id.as_bytes()))
    }

    /// The last id that it was sent, if its channel's log still has it.
    #[must_use]
    pub(crate) fn received_id(&self) -> Option<Bytes> {
        // Copied: whoever keeps it does not keep the block that it lies in.
        self.channel().id_before(self.offset()).map(|id| Bytes::copy_from_slice(&id))
    }

    /// The hub's id, if the stream has all of its channel: then it has all there is.
    fn id_at_end(&self) -> Option<Arc<str>> {
        // Nothing is published between the two looks. Publishing waits for this lock: nothing is copied under it.
        let state = self.lease.streams.hub.state();
        self.channel().is_end(self.offset()).then(|| state.id().clone())
    }

    /// Appends the text of what its channel's log still holds for it, at most [`REST`]. Returns the last id in that.
    fn write_rest(&mut self, out: &mut Vec<u8>) -> Option<Bytes> {
        let form = self.channel().filter().form();
        let rest = self.channel().entries_from(self.offset(), REST)?;
        let before = out.len();
        for entry in &rest {
            out.extend_from_slice(&entry.bytes()[entry.text(form)]);
        }
        let events = rest.iter().filter(|entry| entry.is_event()).count() as u64;
        self.advance(self.offset() + rest.len() as u64, events, (out.len() - before) as u64);
        self.lease.sent(events);
        rest.iter().rev().find_map(|entry| Some(entry.bytes().slice(entry.id_range(form)?)))
    }

    /// The last bytes of the stream, without framing. When the process drains, they begin with what the stream has not got
    /// yet, as far as its channel's log still holds that and it is not much. The reason follows, with the cursor that is true then. `last_id` is the
    /// client's, if it is not that of the offset.
    #[must_use]
    pub(crate) fn close(&mut self, reason: Closing, last_id: Option<&[u8]>) -> Bytes {
        let mut out = Vec::new();
        let mut id = last_id.map(Bytes::copy_from_slice).or_else(|| self.channel().id_before(self.offset()));
        // The channel lacks what a stream is to be sent besides: its client comes back for all of it.
        let is_moved = self.is_moved();
        if reason == Closing::Draining && !is_moved {
            id = self.write_rest(&mut out).or(id);
        }
        let at_end = if is_moved { None } else { self.id_at_end() };
        let id = at_end.as_deref().map(str::as_bytes).or(id.as_deref()).unwrap_or_default();
        self.lease.write_closing(&mut out, reason, id);
        out.into()
    }

    /// Carries a stream on that has fallen out of its channel's log, or is to be sent something else: it resumes like one that
    /// reconnects.
    #[must_use]
    pub(crate) fn resume(self, last_id: &[u8], now: Timestamp) -> Stream {
        let moved = self.lease.streams.registry.take_moved(self.lease.visit.id);
        // Its channel may have been silent for long before it was to be sent something else: what came until then is not new to it.
        let since =
            moved.as_ref().map(|(_, since)| since).filter(|since| seq(since.as_bytes()) > seq(last_id) && !self.is_owed_up_to(since));
        let (known, last_id) = match since {
            Some(since) => (None, since.as_bytes()),
            None => (Some(last_id), last_id),
        };
        let Self { seat, lease, .. } = self;
        let filter = moved.as_ref().map_or_else(|| seat.channel().filter(), |(filter, _)| filter).clone();
        lease.visit.sent_behind(0, 0, last_id);
        let id = std::str::from_utf8(last_id).ok();
        let begin = id.and_then(|id| Cursor::from_id(id).ok()).map_or(Begin::Unreadable, Begin::After);
        let catch_up = CatchUp::resume(lease.streams.clone(), filter, begin, known, now);
        Stream { lease, state: State::CatchingUp(Box::new(catch_up)) }
    }

    /// Ends a stream that nothing can be sent any more.
    pub(crate) fn abandon(self, reason: Closing) {
        self.lease.closed(reason, 0);
    }
}

//! The open streams: who has each, when it ends and why, and whoever moves it at the moment.
//!
//! Knows neither what a stream sends nor how a transport moves it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use parking_lot::Mutex;
use slab::Slab;

use super::visit::{Visit, Visitor};
use crate::auth::{Authenticator, Criteria, Owner, Revocations};
use crate::event::Timestamp;
use crate::frame::Closing;
use crate::hub::Filter;
use crate::subject::Pattern;
use crate::support::backoff::jittered;

/// When a stream ends at the latest, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct End {
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: Closing,
}

impl End {
    /// What is due by now stays due, also if the clock is set back before anybody looks.
    pub(crate) fn noted(self) -> Self {
        if self.at <= Timestamp::now() { Self { at: Timestamp::default(), ..self } } else { self }
    }
}

/// Tells one stream from all others of this process, those that have ended included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StreamId {
    key: u32,
    serial: u32,
}

/// What moves streams, where it has to hear that one of them ends earlier.
pub(crate) trait Driver: Send + Sync {
    /// The stream, which the driver calls `member`, ends then. Must not block.
    fn end(&self, member: u32, stream: StreamId, end: End);

    /// The stream has another filter from now on: see [`Stream::step`](super::Stream::step) and
    /// [`Live::is_moved`](super::Live::is_moved). Must not block.
    fn moved(&self, member: u32, stream: StreamId);
}

/// Which streams are meant.
#[cfg_attr(not(test), expect(dead_code, reason = "the program ends none by identity, token or connection alone so far"))]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Selection<'a> {
    /// All of them.
    All,
    /// Those of this `sub`.
    Identity(&'a str),
    /// Those that this token, by its `jti`, has opened.
    Token(&'a str),
    /// Those whose tokens are meant by a revocation.
    Revoked(&'a Criteria),
    /// Those whose tokens are meant by any revocation that holds at a time.
    RevokedBy(&'a Revocations, Timestamp),
    /// Those whose tokens were signed by keys that count no more.
    LostKey(&'a Authenticator),
    /// Those on this connection.
    Connection(u32),
    /// Those of a list.
    Listed(&'a Wanted),
}

/// Which open streams are listed: those that meet all that is set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// This one.
    pub id: Option<StreamId>,
    /// Of this `sub`.
    pub identity: Option<String>,
    /// From this address.
    pub address: Option<IpAddr>,
    /// With this pattern among theirs.
    pub pattern: Option<Pattern>,
}

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.key, self.serial)
    }
}

impl std::str::FromStr for StreamId {
    type Err = std::num::ParseIntError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, serial) = text.split_once('-').unwrap_or((text, ""));
        Ok(Self { key: key.parse()?, serial: serial.parse()? })
    }
}

/// A stream that is open. Kept small: there is one for every subscriber.
struct Open {
    visit: Arc<Visit>,
    /// What it is to be sent.
    filter: Arc<Filter>,
    driver: Option<Arc<dyn Driver>>,
    /// Its place in the pool, given back when the stream ends.
    _permit: Box<dyn Send + Sync>,
    end_at: Timestamp,
    /// Why it ends at `end_at`; `None`: it has no end yet.
    end_reason: Option<Closing>,
    /// What the driver calls it.
    member: u32,
    /// Whether its client named its patterns.
    named: bool,
}

impl Open {
    fn is_of(&self, selection: Selection<'_>) -> bool {
        let owner = self.visit.owner.as_deref();
        match selection {
            Selection::All => true,
            Selection::Identity(identity) => self.has_identity(identity),
            Selection::Token(id) => owner.is_some_and(|owner| owner.token_id.as_deref() == Some(id)),
            Selection::Revoked(criteria) => owner.is_some_and(|owner| criteria.cover(owner)),
            Selection::RevokedBy(all, now) => owner.is_some_and(|owner| all.cover(owner, now)),
            Selection::LostKey(authenticator) => owner.is_some_and(|owner| authenticator.lost_key(owner)),
            Selection::Connection(connection) => self.visit.connection == connection,
            Selection::Listed(wanted) => self.is_listed(wanted),
        }
    }

    fn is_listed(&self, wanted: &Wanted) -> bool {
        let Wanted { id, identity, address, pattern } = wanted;
        id.is_none_or(|id| self.visit.id == id)
            && identity.as_deref().is_none_or(|identity| self.has_identity(identity))
            && address.is_none_or(|address| self.visit.address == address)
            && pattern.as_ref().is_none_or(|pattern| self.filter.patterns().contains(pattern))
    }

    fn has_identity(&self, identity: &str) -> bool {
        self.visit.owner.as_ref().is_some_and(|owner| owner.identity.as_deref() == Some(identity))
    }

    /// Ends it at `end`, unless it ends earlier. Notifies its driver.
    fn order(&mut self, end: End) {
        if end.at <= Timestamp::now() {
            self.visit.set_over();
        }
        if self.end_by(end)
            && let Some(driver) = &self.driver
        {
            driver.end(self.member, self.visit.id, end);
        }
    }

    /// Ends it at `end`, unless it ends earlier. Returns whether its end has changed.
    fn end_by(&mut self, end: End) -> bool {
        let sooner = self.end().is_none_or(|present| end.at < present.at);
        if sooner {
            (self.end_at, self.end_reason) = (end.at, Some(end.reason));
        }
        sooner
    }

    fn end(&self) -> Option<End> {
        Some(End { at: self.end_at, reason: self.end_reason? })
    }
}

/// See the module.
#[derive(Default)]
pub(super) struct Registry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    streams: Slab<Open>,
    serial: u32,
    /// By key: the hub's id at the moment from which on a stream is to be sent something else, until it is.
    moved: HashMap<u32, Arc<str>>,
    /// All streams end within this span after they were opened: the process drains.
    draining: Option<Duration>,
}

/// What is said of a stream when it is opened.
pub(super) struct Entry {
    pub(super) owner: Option<Arc<Owner>>,
    pub(super) visitor: Visitor,
    pub(super) filter: Arc<Filter>,
    pub(super) named: bool,
    pub(super) permit: Box<dyn Send + Sync>,
    pub(super) expires: Option<Timestamp>,
}

/// A stream that is listed.
pub(super) struct Found {
    pub(super) visit: Arc<Visit>,
    pub(super) filter: Arc<Filter>,
    pub(super) end: Option<End>,
}

/// Whose a stream is, and what it is sent.
pub(super) struct Granted {
    pub(super) stream: StreamId,
    pub(super) owner: Option<Arc<Owner>>,
    pub(super) filter: Arc<Filter>,
    pub(super) named: bool,
}

impl Registry {
    pub(super) fn insert(&self, entry: Entry, now: Timestamp) -> Arc<Visit> {
        let Entry { owner, visitor, filter, named, permit, expires } = entry;
        let mut state = self.state.lock();
        state.serial = state.serial.wrapping_add(1);
        let serial = state.serial;
        let draining = state.draining;
        let vacant = state.streams.vacant_entry();
        let visit = Arc::new(Visit::new(StreamId { key: vacant.key() as u32, serial }, owner, visitor, now));
        let (end_at, end_reason) = (expires.unwrap_or_default(), expires.map(|_| Closing::Expired));
        let (visit, known) = (visit.clone(), visit);
        let mut open = Open { visit, filter, driver: None, _permit: permit, end_at, end_reason, member: 0, named };
        if let Some(within) = draining {
            open.end_by(sometime(Closing::Draining, now, within));
        }
        vacant.insert(open);
        known
    }

    /// Removes a stream, which must be there.
    pub(super) fn remove(&self, stream: StreamId) {
        let mut state = self.state.lock();
        state.moved.remove(&stream.key);
        let open = state.streams.try_remove(stream.key as usize);
        drop(state);
        // Outside the lock: the pool has a lock of its own, and a driver may have much to drop.
        drop(open);
    }

    /// At most `limit` streams behind `after`, and whether there are more.
    pub(super) fn list(&self, wanted: &Wanted, after: Option<StreamId>, limit: usize) -> (Vec<Found>, bool) {
        let state = self.state.lock();
        let behind = after.map_or(0, |after| after.key as usize + 1);
        let mut streams = state.streams.iter().filter(|(key, open)| *key >= behind && open.is_listed(wanted));
        let found = |(_, open): (usize, &Open)| Found { visit: open.visit.clone(), filter: open.filter.clone(), end: open.end() };
        let found = streams.by_ref().take(limit).map(found).collect();
        (found, streams.next().is_some())
    }

    /// When a stream ends, as far as that is known.
    pub(super) fn end_of(&self, stream: StreamId) -> Option<End> {
        self.state.lock().streams.get(stream.key as usize)?.end()
    }

    /// What a stream is to be sent.
    pub(super) fn filter_of(&self, stream: StreamId) -> Option<Arc<Filter>> {
        Some(self.state.lock().streams.get(stream.key as usize)?.filter.clone())
    }

    /// All that is needed to see whether streams may go on.
    pub(super) fn granted(&self) -> Vec<Granted> {
        let granted = |(_, open): (usize, &Open)| Granted {
            stream: open.visit.id,
            owner: open.visit.owner.clone(),
            filter: open.filter.clone(),
            named: open.named,
        };
        self.state.lock().streams.iter().map(granted).collect()
    }

    /// What a stream is to be sent from the hub's id on that is said with it, if it is not sent that yet. It is from now on.
    pub(super) fn take_moved(&self, stream: StreamId) -> Option<(Arc<Filter>, Arc<str>)> {
        let mut state = self.state.lock();
        let since = state.moved.remove(&stream.key)?;
        let open = state.streams.get(stream.key as usize)?;
        open.visit.set_moved(false);
        Some((open.filter.clone(), since))
    }

    /// From which of the hub's ids on a stream is to be sent something else, until it is.
    pub(super) fn moved_since(&self, stream: StreamId) -> Option<Arc<str>> {
        self.state.lock().moved.get(&stream.key).cloned()
    }

    /// A stream, if it is still there, is to be sent something else behind the hub's id `since`.
    pub(super) fn refilter(&self, stream: StreamId, filter: Arc<Filter>, since: &Arc<str>) {
        let mut state = self.state.lock();
        let Some(open) = state.streams.get_mut(stream.key as usize).filter(|open| open.visit.id == stream) else { return };
        open.filter = filter;
        open.visit.set_moved(true);
        if let Some(driver) = &open.driver {
            driver.moved(open.member, stream);
        }
        // Of two such moments the first counts: it has been sent neither yet.
        state.moved.entry(stream.key).or_insert_with(|| since.clone());
    }

    /// Says who moves a stream from now on, and returns when it ends: an order that was given meanwhile is not lost.
    pub(super) fn drive(&self, stream: StreamId, driver: Arc<dyn Driver>, member: u32) -> Option<End> {
        let mut state = self.state.lock();
        let open = state.streams.get_mut(stream.key as usize)?;
        open.member = member;
        let before = open.driver.replace(driver);
        let end = open.end();
        drop(state);
        drop(before);
        end
    }

    pub(super) fn len(&self) -> usize {
        self.state.lock().streams.len()
    }

    /// Ends streams at random times within a span from now. Returns how many are meant; `before` is told that first.
    pub(super) fn end(
        &self,
        selection: Selection<'_>,
        reason: Closing,
        now: Timestamp,
        within: Duration,
        before: impl FnOnce(usize),
    ) -> usize {
        let mut state = self.state.lock();
        if matches!(selection, Selection::All) && reason == Closing::Draining {
            state.draining = Some(within);
        }
        let meant: Vec<usize> = state.streams.iter().filter(|(_, open)| open.is_of(selection)).map(|(key, _)| key).collect();
        before(meant.len());
        for key in &meant {
            state.streams[*key].order(sometime(reason, now, within));
        }
        meant.len()
    }

    /// Ends one stream. Returns whether it was still there. Looks at no other: many may be ended one by one.
    pub(super) fn end_one(&self, stream: StreamId, end: End) -> bool {
        let mut state = self.state.lock();
        let Some(open) = state.streams.get_mut(stream.key as usize).filter(|open| open.visit.id == stream) else { return false };
        open.order(end);
        true
    }
}

fn sometime(reason: Closing, now: Timestamp, within: Duration) -> End {
    End { at: now.after(jittered(within, 0.0..1.0)), reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Form;

    #[derive(Default)]
    struct Told(Mutex<Vec<(u32, Closing)>>);

    impl Driver for Told {
        fn end(&self, member: u32, _: StreamId, end: End) {
            self.0.lock().push((member, end.reason));
        }

        fn moved(&self, _: u32, _: StreamId) {}
    }

    fn entry(identity: &str, token: &str, connection: u32) -> Entry {
        let owner = Owner { identity: Some(identity.into()), token_id: Some(token.into()), ..Owner::default() };
        let filter = Arc::new(Filter::new(Vec::new(), Form::Routed));
        Entry {
            owner: Some(Arc::new(owner)),
            visitor: Visitor { connection, ..Visitor::unknown() },
            filter,
            named: true,
            permit: Box::new(()),
            expires: None,
        }
    }

    #[test]
    fn streams_end_by_whose_they_are() {
        let (registry, told) = (Registry::default(), Arc::new(Told::default()));
        let now = Timestamp::from_micros(1_000_000);
        let streams: Vec<_> = [("alice", "1", 7), ("alice", "2", 8), ("bob", "3", 8)]
            .into_iter()
            .enumerate()
            .map(|(n, (identity, token, connection))| {
                let stream = registry.insert(entry(identity, token, connection), now).id;
                assert_eq!(registry.drive(stream, told.clone(), n as u32), None);
                stream
            })
            .collect();
        let end = |selection| registry.end(selection, Closing::Revoked, now, Duration::ZERO, |_| {});
        assert_eq!(end(Selection::Token("2")), 1);
        assert_eq!(end(Selection::Identity("alice")), 2);
        assert_eq!(end(Selection::Identity("carol")), 0);
        assert_eq!(*told.0.lock(), [(1, Closing::Revoked), (0, Closing::Revoked)], "each is told once");
        assert_eq!(end(Selection::Connection(8)), 2);
        assert_eq!(registry.end_of(streams[2]), Some(End { at: now, reason: Closing::Revoked }));
        streams.into_iter().for_each(|stream| registry.remove(stream));
        assert_eq!((registry.len(), end(Selection::All)), (0, 0));
    }

    #[test]
    fn what_ends_a_stream_first_is_why_it_ends() {
        let registry = Registry::default();
        let at = Timestamp::from_micros;
        let stream = registry.insert(Entry { expires: Some(at(50)), ..entry("a", "1", 0) }, at(0)).id;
        assert_eq!(registry.end(Selection::All, Closing::Revoked, at(90), Duration::ZERO, |_| {}), 1);
        assert_eq!(registry.end_of(stream), Some(End { at: at(50), reason: Closing::Expired }));
        registry.end(Selection::All, Closing::Draining, at(20), Duration::ZERO, |_| {});
        assert_eq!(registry.end_of(stream), Some(End { at: at(20), reason: Closing::Draining }));
        let late = registry.insert(entry("b", "2", 0), at(60)).id;
        assert_eq!(registry.end_of(late), Some(End { at: at(60), reason: Closing::Draining }), "opened while it drains");
    }

    #[test]
    fn an_open_stream_takes_no_more_than_64_bytes() {
        assert_eq!(size_of::<Open>(), 64);
    }
}

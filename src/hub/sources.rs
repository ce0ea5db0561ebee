//! The sources of a hub: added, replaced and removed while it runs.
//!
//! Both sides of the hub know a source by its [`SourceKey`]: `Publisher` has its `Feed`, `State` its window.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;

use super::{Concerns, Feed, Filter, Hub, Publisher, SourceSpec, State, Window};
use crate::cursor::{Point, Position, Tag};
use crate::event::{SourceKey, SourceName, Timestamp};

/// What both sides know of a source.
#[derive(Debug)]
pub struct SourceInfo {
    /// Its key.
    pub key: SourceKey,
    /// Its name.
    pub name: SourceName,
    /// What cursors call it, if it is durable.
    pub tag: Option<Tag>,
    /// Whether it is one of several logs of a source.
    pub part: bool,
    /// See [`SourceInfo::returned`].
    returned: AtomicBool,
    concerns: Concerns,
}

/// A source as readers see it.
#[derive(Debug)]
pub struct Source {
    info: Arc<SourceInfo>,
    pub(super) window: Window,
    /// Whether it is live; a durable source first fills its window.
    pub(super) warm: bool,
    /// Where it began to be.
    pub(super) start: Option<Began>,
    /// See [`Source::whole`].
    pub(super) whole: Option<u64>,
    /// What was published up to this sequence was of another source of this name.
    replaced: u64,
}

/// Where a durable source began to be live.
#[derive(Debug, Clone, Copy)]
pub struct Began {
    /// The sequence up to which its window was filled before.
    pub seq: u64,
    /// Where its log stood; `None`: it was empty and knew no position.
    pub position: Option<Position>,
}

impl Source {
    /// It is live from here on: its log was read up to this position.
    pub(super) fn warm_up(&mut self, seq: u64, position: Option<Position>) {
        if let Some(position) = position {
            self.window.skip(position);
        }
        if !self.warm {
            self.warm = true;
            self.start = Some(Began { seq, position });
            if self.window.is_empty() && self.window.floor() == 0 && position.is_none_or(|p| p.seq == 0) {
                self.whole = Some(seq);
            }
        }
    }

    /// What both sides know of it.
    #[must_use]
    pub fn info(&self) -> &Arc<SourceInfo> {
        &self.info
    }

    /// Whether a loss of its events concerns somebody with this filter.
    #[must_use]
    pub fn concerns(&self, filter: &Filter) -> bool {
        self.info.concerns(filter)
    }

    /// What cursors call it, if it is durable.
    #[must_use]
    pub fn tag(&self) -> Option<Tag> {
        self.info.tag
    }

    /// Its window.
    #[must_use]
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether it is live.
    #[must_use]
    pub fn warm(&self) -> bool {
        self.warm
    }

    /// Where a durable source began to be live.
    #[must_use]
    pub fn began(&self) -> Option<Began> {
        self.start
    }

    /// The sequence behind which the window holds all of the log: there the log was empty, or was made anew and is read from
    /// its beginning. `None`: it does not.
    #[must_use]
    pub fn whole(&self) -> Option<u64> {
        self.whole.filter(|seq| self.window.floor() <= *seq)
    }

    /// Events up to this sequence belonged to an earlier source of the same name, whose window is gone; 0 if there was none.
    #[must_use]
    pub fn replaced(&self) -> u64 {
        self.replaced
    }
}

impl SourceInfo {
    /// Whether it may be one that was there before, by this name or by another, or before this process or in another one: then a
    /// client whose id has no point of it may have missed events that are in no window. False for a source without a log.
    #[must_use]
    pub fn returned(&self) -> bool {
        self.returned.load(Ordering::Relaxed)
    }

    /// A client that had a place in its log has an id without one from now on. Called before it is live.
    pub(crate) fn note_returned(&self) {
        self.returned.store(true, Ordering::Relaxed);
    }

    /// Whether a loss of its events concerns somebody with this filter.
    #[must_use]
    pub fn concerns(&self, filter: &Filter) -> bool {
        (self.concerns.0)(filter.patterns())
    }
}

impl State {
    /// All sources.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().map(|(_, source)| source)
    }

    /// A source, unless it was removed.
    #[must_use]
    pub fn source(&self, key: SourceKey) -> Option<&Source> {
        self.sources.get(key.slot()).filter(|source| source.info.key == key)
    }

    pub(super) fn source_mut(&mut self, key: SourceKey) -> Option<&mut Source> {
        self.sources.get_mut(key.slot()).filter(|source| source.info.key == key)
    }

    /// Cuts the logs that may hold events of a source.
    fn cut(&mut self, source: SourceKey) {
        let Some(of) = self.source(source) else { return };
        let concerned = self.channels.iter().filter(|(_, slot)| slot.is_concerned(of));
        concerned.for_each(|(_, slot)| slot.channel.lock().cut());
    }

    /// How often sources were added or removed.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

impl Publisher {
    pub(super) fn feed(&self, key: SourceKey) -> Option<&Feed> {
        self.feeds.get(key.slot()).filter(|feed| feed.info.key == key)
    }

    /// Whether a source of this name may be one that was there before: it has the name of one that was removed, or one was
    /// removed whose name none has now. What is known of one log of a source holds for those that are found later.
    fn returns(&self, name: &SourceName) -> bool {
        let known = |feed: &Feed| feed.info.name == *name && feed.info.returned();
        let is_there = |of: &SourceName| self.feeds.iter().any(|(_, feed)| feed.info.name == *of);
        self.retired.keys().any(|of| of == name || !is_there(of)) || self.feeds.iter().any(|(_, feed)| known(feed))
    }

    /// Adds a source to both sides. A durable one that `goes_on` is live at once.
    fn add(&mut self, state: &mut State, spec: SourceSpec, goes_on: bool, returned: bool, window: Window) -> SourceKey {
        self.generation += 1;
        let SourceSpec { name, tag, part, concerns } = spec;
        let durable = tag.is_some();
        let key = SourceKey::new(self.feeds.vacant_key() as u32, self.generation);
        let info = Arc::new(SourceInfo { key, name, tag, part, returned: (durable && returned).into(), concerns });
        let warm = !durable || goes_on;
        let head = window.head();
        let start = (durable && goes_on).then_some(Began { seq: self.seq, position: head });
        let whole = start.filter(|began| began.position.is_none()).map(|began| began.seq);
        let replaced = window.floor();
        self.feeds.insert(Feed { info: info.clone(), warm, block: BytesMut::new() });
        let slot = state.sources.insert(Source { info, window, warm, start, whole, replaced });
        debug_assert_eq!(slot, key.slot());
        state.version += 1;
        key
    }

    /// Takes a source out of both sides; the cursor still has its point.
    fn remove(&mut self, state: &mut State, key: SourceKey) -> Option<Feed> {
        self.feed(key)?;
        let feed = self.feeds.remove(key.slot());
        state.sources.remove(key.slot());
        state.version += 1;
        // Another sequence, so that the id is made anew.
        self.seq += 1;
        self.cursor.volatile = Point::At(Position::unverified(self.seq));
        self.retired.insert(feed.info.name.clone(), self.seq);
        Some(feed)
    }

    fn point(&self, tag: Tag) -> Option<Point> {
        self.cursor.durable.iter().find(|(of, _)| *of == tag).map(|(_, point)| *point)
    }
}

impl Hub {
    /// Adds a source. Live streams get its events from now on. `register` is called with its key before readers see it, under
    /// both locks.
    pub fn add(&self, spec: SourceSpec, now: Timestamp, register: impl FnOnce(SourceKey)) -> SourceKey {
        self.add_either(spec, false, now, register)
    }

    /// Adds a durable source whose log is new: it is live at once, so that live streams get all that the log holds.
    pub fn add_new(&self, spec: SourceSpec, now: Timestamp, register: impl FnOnce(SourceKey)) -> SourceKey {
        self.add_either(spec, true, now, register)
    }

    fn add_either(&self, spec: SourceSpec, is_new: bool, now: Timestamp, register: impl FnOnce(SourceKey)) -> SourceKey {
        let mut publisher = self.publisher.lock();
        let p = &mut *publisher;
        let mut state = self.state.lock();
        let mut window = Window::default();
        if let Some(seq) = p.retired.get(&spec.name).filter(|_| spec.tag.is_none()) {
            // What the earlier one of this name published is lost for those who come back from before.
            window.clear(*seq, now);
        }
        let returned = !is_new && (p.returns(&spec.name) || spec.tag.is_some_and(|tag| state.left_behind.contains(&tag)));
        let key = p.add(&mut state, spec, is_new, returned, window);
        register(key);
        drop(state);
        drop(publisher);
        self.changed.notify_waiters();
        key
    }

    /// Removes a source, whose supervisor has ended. Its window is dropped, and new ids have no point of it; those of the other
    /// sources are not affected. Returns whether there was one.
    pub fn remove(&self, key: SourceKey) -> bool {
        let mut publisher = self.publisher.lock();
        let p = &mut *publisher;
        let mut state = self.state.lock();
        let Some(feed) = p.remove(&mut state, key) else { return false };
        p.cursor.durable.retain(|(tag, _)| Some(*tag) != feed.info.tag);
        p.encode_id();
        state.follow(p);
        drop(state);
        drop(publisher);
        self.changed.notify_waiters();
        true
    }

    /// Puts a source in another's place, whose supervisor has ended, with a window of its own. Where both are durable and the
    /// other was live, live streams go on where that one stood: from the point that is returned the new one has to be read.
    /// `None`: there is nothing to go on from. `rerouted`: no event of the other is read any more, not even by streams that
    /// are a moment behind.
    pub fn replace(
        &self,
        old: SourceKey,
        spec: SourceSpec,
        rerouted: bool,
        now: Timestamp,
        register: impl FnOnce(SourceKey),
    ) -> (SourceKey, Option<Point>) {
        let mut publisher = self.publisher.lock();
        let p = &mut *publisher;
        let mut state = self.state.lock();
        // Whoever has got the last event of a volatile source has lost nothing.
        let last = state.source(old).map_or(0, |of| of.window().last());
        if rerouted {
            state.cut(old);
        }
        let gone = p.remove(&mut state, old);
        // Of one that was never live, nobody has a place.
        let returned = gone.as_ref().is_none_or(|of| of.warm || of.info.returned() || of.info.tag != spec.tag);
        let mut window = Window::default();
        let mut point = None;
        if let Some(Feed { info, warm, .. }) = gone
            && let Some(tag) = info.tag
        {
            if spec.tag == Some(tag) && warm {
                point = p.point(tag);
            } else {
                p.cursor.durable.retain(|(of, _)| *of != tag);
            }
        }
        if spec.tag.is_none() {
            window.clear(last, now);
        } else if point.is_some() {
            window.clear(p.seq, now);
        }
        if let Some(Point::At(position)) = point {
            window.begin(position);
        }
        let key = p.add(&mut state, spec, point.is_some(), returned, window);
        register(key);
        p.encode_id();
        state.follow(p);
        drop(state);
        drop(publisher);
        self.changed.notify_waiters();
        (key, point)
    }
}

//! What a loop's thread does: rounds over the channels that have something new, and whatever happens on its sockets.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use slab::Slab;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Returned;
use super::lane::{Lane, New, WAKE};
use super::socket::{Wrote, alive, keep, write};
use crate::event::Timestamp;
use crate::frame::{self, Closing};
use crate::hub::{Channel, Hub, Piece, Read};
use crate::stream::{End, Live, StreamId};
use crate::transport::framing::Chunked;

/// Sockets written to before the loop looks at what else has happened.
const BUDGET: usize = 512;

/// A subscriber.
struct Member {
    socket: TcpStream,
    live: Live,
    /// Its place among its channel's members.
    at: u32,
    /// Bytes that it sent and nobody wanted.
    ignored: u32,
    /// When its stream ends, in microseconds since 1970.
    ends: u64,
    blocked: Option<Box<Blocked>>,
}

/// What a full socket waits with.
struct Blocked {
    /// The rest of the event that the socket took a part of, in its chunk.
    rest: Bytes,
    /// The id behind that event.
    id: Bytes,
    since: Instant,
    /// Nothing follows.
    last: bool,
}

/// A channel with members here.
struct Group {
    channel: Arc<Channel>,
    members: Vec<u32>,
    /// In the round already.
    dirty: bool,
}

pub(super) struct Work {
    lane: Arc<Lane>,
    hub: Arc<Hub>,
    poll: Poll,
    stall: Duration,
    returned: mpsc::UnboundedSender<Returned>,
    members: Slab<Member>,
    /// By the channel's key.
    channels: Vec<Option<Group>>,
    /// Channels to be written in this round.
    round: Vec<u32>,
    /// A round has begun and has not ended, even if all whose channels were to be written have gone meanwhile.
    begun: bool,
    /// How far the round has come: which of its channels, and which of that one's members.
    at: (usize, usize),
    /// The channel under way holds more than the pieces that were taken of it.
    rest: bool,
    /// When somebody's time is up, at the earliest.
    due: Option<Timestamp>,
}

impl Work {
    pub(super) fn new(lane: Arc<Lane>, hub: Arc<Hub>, poll: Poll, stall: Duration, returned: mpsc::UnboundedSender<Returned>) -> Self {
        Self {
            lane,
            hub,
            poll,
            stall,
            returned,
            members: Slab::new(),
            channels: Vec::new(),
            round: Vec::new(),
            begun: false,
            at: (0, 0),
            rest: false,
            due: None,
        }
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let wait = if self.begun { Some(Duration::ZERO) } else { self.wait() };
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::error!(%error, "a writer cannot wait for its sockets");
                return;
            }
            for event in &events {
                if event.token() != WAKE {
                    self.happened(event.token().0 as u32, event.is_readable() || event.is_error(), event.is_writable());
                }
            }
            if self.lane.listener.has_orders() {
                let orders = std::mem::take(&mut *self.lane.inbox.lock());
                if orders.stop {
                    return;
                }
                for new in orders.new {
                    self.add(new);
                }
                for (key, stream, end) in orders.ends {
                    self.end_at(key, stream, end);
                }
            }
            if !self.begun && self.lane.listener.has_news() {
                self.begin_round();
            }
            self.work();
            if self.due.is_some_and(|due| due <= Timestamp::now()) {
                self.sweep();
            }
        }
    }

    /// How long to wait for events: until somebody's time is up.
    fn wait(&self) -> Option<Duration> {
        if !self.lane.listener.may_sleep() {
            return Some(Duration::ZERO);
        }
        let due = self.due?;
        let left = due.as_micros().saturating_sub(Timestamp::now().as_micros());
        // The system's clock may be set meanwhile.
        Some(Duration::from_micros(left).clamp(Duration::from_millis(1), Duration::from_secs(60)))
    }

    fn add(&mut self, new: New) {
        let New { socket, live, id, beyond } = new;
        let mut socket = TcpStream::from_std(socket);
        let entry = self.members.vacant_entry();
        let key = entry.key() as u32;
        let interest = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut socket, Token(entry.key()), interest) {
            tracing::warn!(%error, "a socket cannot be waited for");
            self.lane.members.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let channel = live.channel().clone();
        let slot = channel.key() as usize;
        if self.channels.len() <= slot {
            self.channels.resize_with(slot + 1, || None);
        }
        let group = self.channels[slot].get_or_insert_with(|| {
            channel.set_member(&self.lane.listener, true);
            // Notified while it had members here before, and never looked at: it would not be notified again.
            channel.looked(&self.lane.listener);
            Group { channel, members: Vec::new(), dirty: false }
        });
        let ends = live.drive(self.lane.clone(), key).map_or(u64::MAX, |end| end.at.as_micros());
        let at = group.members.len() as u32;
        group.members.push(key);
        // What was published since it took its seat may be gone from the log: then its id says where to resume.
        let late = !live.channel().is_end(live.offset);
        let blocked = late.then(|| {
            let id = Bytes::copy_from_slice(id.as_bytes());
            Box::new(Blocked { rest: Bytes::new(), id, since: Instant::now(), last: false })
        });
        entry.insert(Member { socket, live, at, ignored: beyond as u32, ends, blocked });
        self.remind(ends);
        // What came between its seat and now is written with its first event: a new socket is reported writable.
    }

    fn end_at(&mut self, key: u32, stream: StreamId, end: End) {
        // Its key may be another's by now.
        if let Some(member) = self.members.get_mut(key as usize).filter(|member| member.live.id() == stream) {
            member.ends = end.at.as_micros();
            self.remind(end.at.as_micros());
        }
    }

    fn remind(&mut self, micros: u64) {
        if micros < u64::MAX && self.due.is_none_or(|due| micros < due.as_micros()) {
            self.due = Some(Timestamp::from_micros(micros));
        }
    }

    fn remove(&mut self, key: u32) -> Option<Member> {
        let member = self.members.try_remove(key as usize)?;
        self.lane.members.fetch_sub(1, Ordering::Relaxed);
        let slot = member.live.channel().key() as usize;
        if let Some(group) = self.channels.get_mut(slot).and_then(Option::as_mut) {
            group.members.swap_remove(member.at as usize);
            if let Some(moved) = group.members.get(member.at as usize) {
                if let Some(moved) = self.members.get_mut(*moved as usize) {
                    moved.at = member.at;
                }
                // A pass under way may have gone by that place already.
                if let Some(passing) = self.round.get(self.at.0)
                    && *passing as usize == slot
                {
                    self.at.1 = self.at.1.min(member.at as usize);
                }
            } else if group.members.is_empty() {
                group.channel.set_member(&self.lane.listener, false);
                self.channels[slot] = None;
            }
        }
        Some(member)
    }

    /// Something happened on a socket, or it is new. Whoever hangs up makes it readable.
    fn happened(&mut self, key: u32, readable: bool, writable: bool) {
        let Some(member) = self.members.get_mut(key as usize) else { return };
        if readable && !alive(&mut member.socket, &mut member.ignored) {
            self.remove(key);
            return;
        }
        if writable {
            self.write_on(key);
        }
    }

    /// Writes all there is for one member.
    fn write_on(&mut self, key: u32) {
        loop {
            let Some(member) = self.members.get_mut(key as usize) else { return };
            if let Some(blocked) = &mut member.blocked {
                match write(&mut member.socket, &blocked.rest) {
                    Wrote::All if blocked.last => {
                        self.hang_up(key);
                        return;
                    }
                    Wrote::All => {}
                    Wrote::Part(0) => return,
                    Wrote::Part(n) => {
                        blocked.rest = blocked.rest.slice(n..);
                        blocked.since = Instant::now();
                        return;
                    }
                    Wrote::Gone => {
                        self.remove(key);
                        return;
                    }
                }
            }
            let place = member.live.offset;
            match member.live.channel().read_from::<Chunked>(place) {
                Read::AtEnd => {
                    member.blocked = None;
                    return;
                }
                Read::Piece(piece) => {
                    member.blocked = None;
                    if !self.write(key, &piece) {
                        return;
                    }
                }
                Read::Lagged => {
                    self.give_back(key);
                    return;
                }
            }
        }
    }

    /// Writes a piece to a member that stands at its beginning. Returns whether it stands at its end now.
    fn write(&mut self, key: u32, piece: &Piece) -> bool {
        let Some(member) = self.members.get_mut(key as usize) else { return false };
        match write(&mut member.socket, &piece.bytes) {
            Wrote::All => {
                member.live.offset = piece.to;
                true
            }
            Wrote::Part(n) => {
                let stop = piece.stop(n);
                member.live.offset = piece.from + stop.entries;
                // A heartbeat may have no id: then that of what came before it still holds.
                let id = stop.id.map_or_else(|| member.live.last_id().unwrap_or_default(), |id| Bytes::copy_from_slice(&piece.bytes[id]));
                let rest = keep(&piece.bytes, stop.rest);
                member.blocked = Some(Box::new(Blocked { rest, id, since: Instant::now(), last: false }));
                self.remind(Timestamp::now().as_micros() + self.stall.as_micros() as u64);
                false
            }
            Wrote::Gone => {
                self.remove(key);
                false
            }
        }
    }

    /// A slow reader is somebody resuming.
    fn give_back(&mut self, key: u32) {
        let Some(mut member) = self.remove(key) else { return };
        // Without an id it stands where nothing was ever told to it: the window decides.
        let last_id = member.blocked.take().map(|b| b.id.to_vec()).unwrap_or_default();
        if self.poll.registry().deregister(&mut member.socket).is_ok() {
            let socket = std::net::TcpStream::from(member.socket);
            // Nobody takes it back when the process is about to end.
            self.returned.send(Returned { socket, live: member.live, last_id }).unwrap_or_default();
        }
    }

    /// Ends a round, if one was under way, and begins the next with what is new since.
    fn begin_round(&mut self) {
        if self.lane.listener.turn(&mut self.round) {
            self.hub.make_room();
        }
        self.begun = !self.round.is_empty();
        self.at = (0, 0);
        self.round.retain(|slot| match self.channels.get_mut(*slot as usize).and_then(Option::as_mut) {
            Some(group) => !std::mem::replace(&mut group.dirty, true),
            None => false,
        });
    }

    /// Goes on with the round, for a budget's worth.
    fn work(&mut self) {
        let mut budget = BUDGET;
        while let Some(slot) = self.round.get(self.at.0).copied() {
            if !self.pass(slot as usize, &mut budget) {
                return;
            }
            self.at = (self.at.0 + 1, 0);
        }
        if self.begun {
            self.begin_round();
        }
    }

    /// Writes a channel to its members; false when the budget is used up.
    fn pass(&mut self, slot: usize, budget: &mut usize) -> bool {
        let Some(group) = self.channels.get_mut(slot).and_then(Option::as_mut) else { return true };
        if std::mem::take(&mut group.dirty) {
            // Before looking: what comes from here on is notified again.
            group.channel.looked(&self.lane.listener);
        }
        let channel = group.channel.clone();
        while self.hand_round(slot, &channel, budget) {
            // Pieces are capped. The remainder triggers no notification, so keep going here.
            if !std::mem::take(&mut self.rest) {
                return true;
            }
            self.at.1 = 0;
        }
        false
    }

    /// Writes the next piece to each member from `at` on; false when the budget is used up.
    fn hand_round(&mut self, slot: usize, channel: &Channel, budget: &mut usize) -> bool {
        let mut piece: Option<Piece> = None;
        while let Some(key) = self.channels.get(slot).and_then(Option::as_ref).and_then(|g| g.members.get(self.at.1)).copied() {
            if *budget == 0 {
                return false;
            }
            let Some(member) = self.members.get_mut(key as usize) else { return true };
            if member.blocked.is_some() {
                self.at.1 += 1;
                continue;
            }
            let place = member.live.offset;
            match &piece {
                Some(piece) if piece.from == place => {
                    *budget -= 1;
                    // Where one has gone another stands now.
                    if self.write(key, piece) || self.members.contains(key as usize) {
                        self.at.1 += 1;
                    }
                }
                Some(piece) if piece.to == place => self.at.1 += 1,
                _ => match channel.read_from::<Chunked>(place) {
                    Read::Piece(next) => {
                        self.rest |= next.more;
                        piece = Some(next);
                    }
                    Read::AtEnd => self.at.1 += 1,
                    Read::Lagged => self.give_back(key),
                },
            }
        }
        // Many channels would otherwise keep a piece each.
        if piece.is_some_and(|p| p.to > p.from + 1) {
            channel.forget();
        }
        true
    }

    /// Ends those whose time is up.
    fn sweep(&mut self) {
        let now = Timestamp::now();
        let mut due = u64::MAX;
        let mut over = Vec::new();
        let mut stuck = Vec::new();
        for (key, member) in &self.members {
            if member.ends <= now.as_micros() {
                over.push(key as u32);
                continue;
            }
            due = due.min(member.ends);
            if let Some(blocked) = &member.blocked {
                let left = self.stall.saturating_sub(blocked.since.elapsed());
                if left.is_zero() {
                    stuck.push(key as u32);
                } else {
                    due = due.min(now.as_micros() + left.as_micros() as u64);
                }
            }
        }
        self.due = (due < u64::MAX).then(|| Timestamp::from_micros(due));
        for key in stuck {
            if let Some(member) = self.remove(key) {
                member.live.abandon(Closing::Slow);
            }
        }
        for key in over {
            self.end(key, now);
        }
    }

    /// Says why a stream ends, and ends it.
    fn end(&mut self, key: u32, now: Timestamp) {
        let stall = self.stall;
        let Some(member) = self.members.get_mut(key as usize) else { return };
        member.ends = u64::MAX;
        let Some(End { reason, .. }) = member.live.end() else { return };
        let blocked = member.blocked.take();
        if blocked.as_ref().is_some_and(|b| b.last) {
            self.remove(key);
            return;
        }
        let last = member.live.close(reason, blocked.as_ref().map(|b| &*b.id));
        let mut out = Vec::with_capacity(last.len() + 64);
        if let Some(blocked) = &blocked {
            out.extend_from_slice(&blocked.rest);
        }
        frame::chunk_head(&mut out, last.len());
        out.extend_from_slice(&last);
        out.extend_from_slice(frame::CHUNK_END);
        out.extend_from_slice(frame::LAST_CHUNK);
        match write(&mut member.socket, &out) {
            Wrote::Part(n) => {
                let rest = Bytes::from(out).slice(n..);
                member.blocked = Some(Box::new(Blocked { rest, id: Bytes::new(), since: Instant::now(), last: true }));
                self.remind(now.as_micros() + stall.as_micros() as u64);
            }
            Wrote::All => self.hang_up(key),
            Wrote::Gone => {
                self.remove(key);
            }
        }
    }

    fn hang_up(&mut self, key: u32) {
        if let Some(member) = self.remove(key) {
            // The client may have gone meanwhile.
            member.socket.shutdown(std::net::Shutdown::Write).unwrap_or_default();
        }
    }
}

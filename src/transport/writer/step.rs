//! What a loop does at each turn: it carries out orders, writes rounds of channels that have something new, goes on with
//! sockets that have room again, gives slow streams back, and ends streams whose time is up.
//!
//! Sync. Time is an argument, and [`Io`] waits for sockets. Knows the hub's channels and live streams; neither threads nor
//! how a socket becomes ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::handle::{Handle, New, Orders};
use super::members::{Blocked, Member, Members, Then};
use super::round::Round;
use super::socket::{Socket, Written, is_open, keep, write_until_full};
use super::vanished::Looks;
use super::{Returned, Settings};
use crate::event::Timestamp;
use crate::frame::{self, Closing};
use crate::hub::{Channel, Hub, Piece, Read, Transport};
use crate::stream::{End, StreamId};
use crate::transport::framing::Chunked;

#[cfg(test)]
mod tests;

/// The present, by both clocks: streams end by the system's, and a stall is measured by the one that is never set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    pub(crate) system: Timestamp,
    pub(crate) monotonic: Instant,
}

impl Now {
    pub(crate) fn read() -> Self {
        Self { system: Timestamp::now(), monotonic: Instant::now() }
    }
}

/// What a loop needs of the part that waits for its sockets.
pub(crate) trait Io {
    /// What it writes to.
    type Socket: Socket;

    /// Reports from now on when a socket can be read or written, each time that it can again; at first at once. The reports
    /// go to [`WriterLoop::ready`], with this key.
    ///
    /// # Errors
    /// When the socket cannot be waited for.
    fn watch(&mut self, socket: &mut Self::Socket, key: u32) -> io::Result<()>;

    /// Takes back a stream that has fallen out of its channel's log, and no longer reports on its socket.
    fn give_back(&mut self, returned: Returned<Self::Socket>);
}

/// What a loop does after a turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It takes another turn at once, after a look at its sockets.
    Turn,
    /// It sleeps until a socket is ready or the listener wakes it, at most `until` then.
    Sleep { until: Option<Instant> },
    /// It ends.
    Stop,
}

/// What became of a member that a piece was written to.
enum Outcome {
    /// It has the piece.
    All,
    /// Its socket is full.
    Blocked,
    /// It has left, and another member may have its index.
    Left,
}

/// See the module.
pub(crate) struct WriterLoop<I: Io> {
    io: I,
    handle: Arc<Handle<I::Socket>>,
    hub: Arc<Hub>,
    settings: Settings,
    members: Members<I::Socket>,
    round: Round,
    /// When a stream ends, at the earliest.
    deadline: Option<Timestamp>,
    /// When a full socket is closed, at the earliest.
    patience: Option<Instant>,
    /// The batch up to which all is written when the round under way has ended.
    round_to: Option<u64>,
    /// What sockets took since the last turn.
    sent: Sent,
}

/// What sockets took.
#[derive(Default)]
struct Sent {
    events: u64,
    bytes: u64,
}

impl<I: Io<Socket: Send + 'static>> WriterLoop<I> {
    /// A loop without streams. Its handle's listener has to be one of the hub's.
    pub(crate) fn new(hub: Arc<Hub>, handle: Arc<Handle<I::Socket>>, settings: Settings, io: I) -> Self {
        let members = Members::new(handle.listener().clone());
        let (round, sent) = (Round::default(), Sent::default());
        Self { io, handle, hub, settings, members, round, deadline: None, patience: None, round_to: None, sent }
    }

    /// What waits for the loop's sockets.
    pub(crate) fn io(&mut self) -> &mut I {
        &mut self.io
    }

    /// Takes one turn.
    pub(crate) fn turn(&mut self, now: Now) -> Next {
        if let Some(orders) = self.handle.take_orders() {
            if orders.stop {
                return Next::Stop;
            }
            self.carry_out(orders, now);
        }
        // Before writing: what has ended is sent nothing more.
        self.sweep_if_due(now);
        self.write_round(now);
        // Members are many: they are counted here, and all of them at once.
        let Sent { events, bytes } = std::mem::take(&mut self.sent);
        self.hub.deliveries().sent(Transport::Http11, events, bytes);
        if self.round.is_under_way() || !self.handle.listener().may_sleep() {
            return Next::Turn;
        }
        let end = self.deadline.map(|deadline| now.monotonic + deadline.since(now.system));
        Next::Sleep { until: end.into_iter().chain(self.patience).min() }
    }

    fn carry_out(&mut self, orders: Orders<I::Socket>, now: Now) {
        orders.new.into_iter().for_each(|new| self.add(new, now));
        for (key, stream, end) in orders.ends {
            self.end_at(key, stream, end);
        }
        for (key, stream) in orders.moved {
            self.follow(key, stream, now);
        }
    }

    /// Carries out what was ordered of members since the last look. To be called between reading a log and writing that: nothing goes out
    /// against an order that was given before it was published. Returns whether there was anything: then what was read may be wrong.
    fn obeys(&mut self, now: Now) -> bool {
        let orders = self.handle.take_orders_to_members();
        let any = orders.is_some();
        if let Some(orders) = orders {
            self.carry_out(orders, now);
            self.sweep_if_due(now);
        }
        any
    }

    fn sweep_if_due(&mut self, now: Now) {
        if self.deadline.is_some_and(|deadline| deadline <= now.system) || self.patience.is_some_and(|patience| patience <= now.monotonic) {
            self.sweep(now);
        }
    }

    /// Whether it has no streams.
    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Looks for clients that have vanished, and removes their streams. `silence`: for how long a socket's client has acknowledged nothing
    /// of what it was sent.
    pub(super) fn look(&mut self, looks: &mut Looks, now: Now, silence: impl Fn(&I::Socket) -> Duration) {
        for (key, stream) in looks.begin(now.monotonic) {
            let member = self.members.get_mut(key).filter(|member| member.live.id() == stream);
            if member.is_some_and(|member| silence(&member.socket) >= looks.patience()) {
                self.remove(key);
            }
        }
        for (key, member) in self.members.iter() {
            if looks.includes(key) && silence(&member.socket) >= looks.patience() {
                looks.suspect(key, member.live.id(), now.monotonic);
            }
        }
    }

    fn add(&mut self, new: New<I::Socket>, now: Now) {
        let New { mut socket, live, id, read_ahead } = new;
        let key = self.members.next_key();
        if let Err(error) = self.io.watch(&mut socket, key) {
            tracing::warn!(%error, "a socket cannot be waited for");
            self.handle.left();
            return;
        }
        let ends = live.drive(self.handle.clone(), key).map_or(u64::MAX, |end| end.at.as_micros());
        self.remind(ends);
        let member = self.members.add(socket, live, read_ahead, ends);
        // Only now: what is published from here on is kept for the loop. What was published since the stream became live may be
        // gone from the log: then its id says where to resume.
        member.moved = member.live.is_moved();
        if member.moved || !member.live.channel().is_end(member.live.offset()) {
            self.block(key, Bytes::new(), Then::Live { id: Bytes::copy_from_slice(id.as_bytes()) }, now);
        }
        // A new socket is reported as writable: then the member gets what was published since it became live.
    }

    fn end_at(&mut self, key: u32, stream: StreamId, end: End) {
        // Another member may have the key by now.
        if let Some(member) = self.members.get_mut(key).filter(|member| member.live.id() == stream) {
            // The turn may have begun before the order: what is due by now is due in this turn.
            let at = end.noted().at.as_micros();
            member.ends = at;
            self.remind(at);
        }
    }

    /// A member is to be sent something else: it resumes with that behind what it was sent here.
    fn follow(&mut self, key: u32, stream: StreamId, now: Now) {
        // It may have followed elsewhere, and be here again.
        let is_it = |member: &&mut Member<I::Socket>| member.live.id() == stream && member.live.is_moved();
        let Some(member) = self.members.get_mut(key).filter(is_it) else { return };
        member.moved = true;
        if member.blocked.is_none()
            && member.live.received_id().is_none()
            && member.live.is_owed()
            && let Read::Piece(piece) = member.live.channel().read_from::<Chunked>(member.live.offset())
        {
            // The log does not say where it is any more. The next entry does, once the member has it.
            self.stop_in(key, &piece, 0, now);
        }
        if self.write_rest(key, now) {
            self.give_back(key);
        }
    }

    fn remind(&mut self, micros: u64) {
        if micros < u64::MAX && self.deadline.is_none_or(|deadline| micros < deadline.as_micros()) {
            self.deadline = Some(Timestamp::from_micros(micros));
        }
    }

    fn remove(&mut self, key: u32) -> Option<Member<I::Socket>> {
        let member = self.members.remove(key, &mut self.round)?;
        self.handle.left();
        Some(member)
    }

    /// Something happened on a socket, or it is new. A client that hangs up makes it readable.
    pub(crate) fn ready(&mut self, key: u32, readable: bool, writable: bool, now: Now) {
        let Some(member) = self.members.get_mut(key) else { return };
        if readable && !is_open(&mut member.socket, &mut member.ignored) {
            self.remove(key);
        } else if writable {
            self.write_on(key, now);
        }
    }

    /// Writes all there is for one member.
    fn write_on(&mut self, key: u32, now: Now) {
        while self.write_rest(key, now) {
            let Some(member) = self.members.get_mut(key) else { return };
            if member.moved {
                return self.give_back(key);
            }
            match member.live.channel().read_from::<Chunked>(member.live.offset()) {
                Read::AtEnd => {
                    member.blocked = None;
                    return;
                }
                Read::Piece(_) if self.obeys(now) => {}
                Read::Piece(piece) => {
                    let Some(member) = self.members.get_mut(key) else { return };
                    member.blocked = None;
                    if !matches!(self.send(key, &piece, now), Outcome::All) {
                        return;
                    }
                }
                Read::Lagged => return self.give_back(key),
            }
        }
    }

    /// Writes what a full socket waits with. Returns whether the stream goes on.
    fn write_rest(&mut self, key: u32, now: Now) -> bool {
        let Some(member) = self.members.get_mut(key) else { return false };
        let Some(blocked) = &mut member.blocked else { return true };
        match write_until_full(&mut member.socket, &blocked.rest) {
            Written::All => {
                self.sent.bytes += std::mem::take(&mut blocked.rest).len() as u64;
                match blocked.then {
                    Then::Live { .. } => return true,
                    Then::HangUp => self.hang_up(key),
                }
            }
            Written::Part(0) => {}
            Written::Part(taken) => {
                self.sent.bytes += taken as u64;
                blocked.rest = blocked.rest.slice(taken..);
                blocked.since = now.monotonic;
            }
            Written::Gone => drop(self.remove(key)),
        }
        false
    }

    /// Sends a piece to a member that has everything before it.
    fn send(&mut self, key: u32, piece: &Piece, now: Now) -> Outcome {
        let Some(member) = self.members.get_mut(key) else { return Outcome::Left };
        match write_until_full(&mut member.socket, &piece.bytes) {
            Written::All => {
                member.live.advance(piece.to, piece.events, piece.bytes.len() as u64);
                self.sent.events += piece.events;
                self.sent.bytes += piece.bytes.len() as u64;
                Outcome::All
            }
            Written::Part(taken) => {
                self.stop_in(key, piece, taken, now);
                Outcome::Blocked
            }
            Written::Gone => {
                self.remove(key);
                Outcome::Left
            }
        }
    }

    /// A socket took so many bytes of a piece and is full: it waits with the rest of the entry that it stopped in.
    fn stop_in(&mut self, key: u32, piece: &Piece, taken: usize, now: Now) {
        let Some(member) = self.members.get_mut(key) else { return };
        let stop = piece.stop(taken);
        // What it has not taken yet of the last entry is sent next.
        member.live.advance(piece.from + stop.entries, stop.events, stop.rest.end as u64);
        self.sent.events += stop.events;
        self.sent.bytes += taken as u64;
        // A heartbeat may have no id: then the id of what came before it still holds.
        let id = stop.id.map_or_else(|| member.live.last_id().unwrap_or_default(), |id| Bytes::copy_from_slice(&piece.bytes[id]));
        let rest = keep(&piece.bytes, stop.rest, self.settings.copied);
        self.block(key, rest, Then::Live { id }, now);
    }

    fn block(&mut self, key: u32, rest: Bytes, then: Then, now: Now) {
        let Some(member) = self.members.get_mut(key) else { return };
        member.blocked = Some(Box::new(Blocked { rest, since: now.monotonic, then }));
        let patience = now.monotonic + self.settings.stall;
        self.patience = Some(self.patience.map_or(patience, |before| before.min(patience)));
    }

    /// A slow reader goes on like a client that reconnects.
    fn give_back(&mut self, key: u32) {
        let Some(member) = self.members.remove(key, &mut self.round) else { return };
        let last_id = match member.blocked.map(|blocked| blocked.then) {
            Some(Then::Live { id }) => id.to_vec(),
            // Without an id nothing was sent to it here: it goes on from where it was to be sent something else.
            _ if member.moved => member.live.received_id().unwrap_or_default().to_vec(),
            // Its log was cut, which still says the ids. Without an id nothing was ever sent to it: the window decides.
            _ => member.live.last_id().unwrap_or_default().to_vec(),
        };
        self.io.give_back(Returned { socket: member.socket, live: member.live, last_id });
        // Only now: it is always counted, here or there.
        self.handle.left();
    }

    /// Goes on with the round, or begins one if channels have something new. Writes to as many sockets as the budget
    /// allows.
    fn write_round(&mut self, now: Now) {
        if !self.round.is_under_way() {
            if !self.handle.listener().has_news() {
                return;
            }
            self.begin_round();
        }
        let mut budget = self.settings.budget;
        while let Some(channel) = self.round.channel() {
            if !self.write_channel(channel, &mut budget, now) {
                return;
            }
            self.round.leave();
        }
        self.begin_round();
    }

    /// Ends the round, if one was under way, and begins the next with what is new since.
    fn begin_round(&mut self) {
        // Before looking: what is announced from here on is in a later round.
        let next = self.hub.deliveries().announced();
        if let Some(batch) = self.round_to.take() {
            self.measure(batch);
        }
        if self.round.begin(|channels| self.handle.listener().turn(channels)) {
            self.hub.make_room();
        }
        if self.round.is_under_way() {
            self.round_to = Some(next);
        } else {
            // What was published meanwhile in channels that were still to be written is written too.
            self.measure(next);
        }
    }

    fn measure(&self, batch: u64) {
        self.hub.deliveries().written(self.handle.listener().number(), batch, Timestamp::now);
    }

    /// Writes a channel to its members; false when the budget is used up.
    fn write_channel(&mut self, key: u32, budget: &mut usize, now: Now) -> bool {
        let Some(channel) = self.members.channel(key).cloned() else { return true };
        if self.round.enter() {
            // Before reading: what comes from here on is notified again.
            channel.looked(self.handle.listener());
        }
        loop {
            if !self.write_members(&channel, budget, now) {
                return false;
            }
            // Pieces are capped. The remainder triggers no notification, so keep going here.
            if !self.round.again() {
                return true;
            }
        }
    }

    /// Writes the next piece to each member that is left in this pass; false when the budget is used up.
    fn write_members(&mut self, channel: &Channel, budget: &mut usize, now: Now) -> bool {
        let mut piece: Option<Piece> = None;
        while let Some(key) = self.members.at(channel.key(), self.round.member()) {
            if *budget == 0 {
                return false;
            }
            let Some(member) = self.members.get_mut(key) else { return true };
            let offset = member.live.offset();
            match &piece {
                _ if member.blocked.is_some() => self.round.next_member(),
                Some(piece) if piece.from == offset => {
                    *budget -= 1;
                    if !matches!(self.send(key, piece, now), Outcome::Left) {
                        self.round.next_member();
                    }
                }
                Some(piece) if piece.to == offset => self.round.next_member(),
                _ => match channel.read_from::<Chunked>(offset) {
                    Read::Piece(_) if self.obeys(now) => {}
                    Read::Piece(next) => {
                        self.round.note_more(next.more);
                        piece = Some(next);
                    }
                    Read::AtEnd => self.round.next_member(),
                    Read::Lagged => self.give_back(key),
                },
            }
        }
        // Many channels would otherwise keep a piece each.
        if piece.is_some_and(|piece| piece.to > piece.from + 1) {
            channel.forget();
        }
        true
    }

    /// Ends streams whose time is up, and closes sockets that have taken nothing for too long.
    fn sweep(&mut self, now: Now) {
        let (mut deadline, mut patience) = (u64::MAX, None);
        let mut over = Vec::new();
        let mut stuck = Vec::new();
        for (key, member) in self.members.iter() {
            if member.ends <= now.system.as_micros() {
                over.push(key);
                continue;
            }
            deadline = deadline.min(member.ends);
            if let Some(blocked) = &member.blocked {
                let closes = blocked.since + self.settings.stall;
                if closes <= now.monotonic {
                    stuck.push(key);
                } else {
                    patience = patience.into_iter().chain([closes]).min();
                }
            }
        }
        (self.deadline, self.patience) = (None, patience);
        self.remind(deadline);
        for key in stuck {
            let Some(member) = self.remove(key) else { continue };
            self.hub.deliveries().stalled();
            // The end of an ended stream was counted when it was sent.
            if member.blocked.is_some_and(|blocked| matches!(blocked.then, Then::Live { .. })) {
                member.live.abandon(Closing::Slow);
            }
        }
        for key in over {
            self.end(key, now);
        }
    }

    /// Says why a stream ends, and ends it.
    fn end(&mut self, key: u32, now: Now) {
        let Some(member) = self.members.get_mut(key) else { return };
        member.ends = u64::MAX;
        let Some(End { reason, .. }) = member.live.end() else { return };
        let (rest, id) = match member.blocked.take().map(|blocked| *blocked) {
            None => (Bytes::new(), None),
            Some(Blocked { rest, then: Then::Live { id }, .. }) => (rest, Some(id)),
            // Its end was sent before, and it has had its time to take it.
            Some(Blocked { then: Then::HangUp, .. }) => return drop(self.remove(key)),
        };
        let last = member.live.close(reason, id.as_deref());
        let mut out = Vec::with_capacity(rest.len() + last.len() + 64);
        out.extend_from_slice(&rest);
        frame::chunk_head(&mut out, last.len());
        out.extend_from_slice(&last);
        out.extend_from_slice(frame::CHUNK_END);
        out.extend_from_slice(frame::LAST_CHUNK);
        match write_until_full(&mut member.socket, &out) {
            Written::Part(taken) => {
                self.sent.bytes += taken as u64;
                self.block(key, Bytes::from(out).slice(taken..), Then::HangUp, now);
            }
            Written::All => {
                self.sent.bytes += out.len() as u64;
                self.hang_up(key);
            }
            Written::Gone => drop(self.remove(key)),
        }
    }

    fn hang_up(&mut self, key: u32) {
        if let Some(mut member) = self.remove(key) {
            member.socket.shutdown();
        }
    }
}

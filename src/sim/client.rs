//! A client: opens streams at any bridge, reads, stalls, leaves, and comes back behind its last id.

use std::rc::Rc;
use std::time::Duration;

use memchr::memmem;
use tokio::time::{Instant, sleep, timeout_at};

use super::bridge::{Opening, index};
use super::broker::{SOURCES, named};
use super::oracle::{Block, Content, Judge, Start};
use super::pipe::{ClientEnd, pair};
use super::world::World;
use super::writer::{Chunks, Text};
use crate::cursor::Cursor;
use crate::event::Timestamp;
use crate::frame::{self, Closing};
use crate::support::random;

/// How late a stream may notice that its token has expired: timers count milliseconds, and a piece is made at once.
const LATE: Duration = Duration::from_millis(20);

/// What the Fetch standard lets a browser send across origins without a preflight.
const LONGEST_ID: usize = 128;

fn one_in(count: u32) -> bool {
    random::in_range(0..count) == 0
}

async fn pause(millis: std::ops::Range<u64>) {
    sleep(Duration::from_millis(random::in_range(millis))).await;
}

/// How a stream came to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Left {
    /// The client had enough of it, or was told why it ends.
    Told,
    /// The connection ended, or the bridge is drained.
    Ended,
}

/// See the module. Runs for as long as its world.
pub(super) async fn run(
    world: Rc<World>,
    number: usize,
    (patterns, narrower): (&'static [&'static str], &'static [&'static str]),
    json: bool,
    first: Start,
) {
    world.judges.borrow_mut().push((number, Judge::new(patterns.to_vec())));
    let mut reader = Reader::new(world.clone(), number, patterns);
    // What was chosen by narrower patterns as the newest of each subject is not looked for again.
    let may_widen = world.plan.has("widen") && first != Start::Last && !narrower.is_empty();
    loop {
        let Some(bridge) = world.some_bridge() else {
            pause(10..200).await;
            continue;
        };
        let start = match reader.last_id {
            Some(_) if !world.quiet.get() && world.plan.has("unreadable") && one_in(60) => Start::Unreadable,
            Some(_) if !world.quiet.get() && world.plan.has("again") && one_in(60) => first.clone(),
            Some(_) => Start::Resume,
            None => match first {
                Start::Since(_) => Start::Since(Timestamp::now().before(Duration::from_millis(random::in_range(0..20_000)))),
                _ => first.clone(),
            },
        };
        if start != Start::Resume {
            // A new EventSource knows no id, nor does one whose id is damaged, even where its stream ends before anything came.
            reader.last_id = None;
        }
        // Each stream is opened with what the client may see then.
        reader.widen();
        let named = !may_widen || world.quiet.get() || one_in(2);
        let patterns = if named { patterns } else { narrower };
        world.note(Some(number), || format!("opens {start:?} with {patterns:?} at {}", bridge.epoch));
        world.judge(number, |judge, state, _| {
            judge.open(state, bridge.epoch, &start);
            judge.narrow(if named { &[] } else { narrower });
            Ok(())
        });
        let expires = (!world.quiet.get() && one_in(6)).then(|| {
            let span = Duration::from_millis(random::in_range(0..8_000));
            Timestamp::from_micros(Timestamp::now().as_micros() + span.as_micros() as u64)
        });
        (reader.expires, reader.revoked) = (expires, None);
        reader.epoch = bridge.epoch;
        reader.narrowed_at = (!named).then_some(bridge.epoch);
        let last_id = reader.last_id.clone();
        let stream = bridge.open(Opening { client: number, patterns, named, json, start, last_id, expires });
        let (server, socket) = pair(random::in_range(world.plan.socket.clone()), world.broker.changes.clone());
        let chunked = world.plan.has("writer") && one_in(2);
        bridge.write(&world.executor, stream, server, chunked);
        world.opened();
        let epoch = bridge.epoch;
        drop(bridge);
        if reader.read(socket, chunked.then(Chunks::default)).await == Left::Ended {
            world.ended(epoch);
        }
        pause(1..if one_in(8) { 20_000 } else { 400 }).await;
    }
}

struct Reader {
    world: Rc<World>,
    number: usize,
    patterns: &'static [&'static str],
    /// The bridge that it is at.
    epoch: u32,
    /// Where its stream has narrower patterns, until it is sent all of them.
    narrowed_at: Option<u32>,
    last_id: Option<String>,
    /// When the open stream's token expires.
    expires: Option<Timestamp>,
    /// How much was written of each source when the open stream was ordered to end.
    revoked: Option<[usize; 4]>,
    /// The reason that the open stream was closed with.
    closing: Option<String>,
    pending: Text,
}

impl Reader {
    fn new(world: Rc<World>, number: usize, patterns: &'static [&'static str]) -> Self {
        let (epoch, narrowed_at, last_id, expires, revoked, closing) = (0, None, None, None, None, None);
        Self { world, number, patterns, epoch, narrowed_at, last_id, expires, revoked, closing, pending: Text::default() }
    }

    /// Reads until the stream ends or the client has had enough of it.
    async fn read(&mut self, socket: ClientEnd, mut chunks: Option<Chunks>) -> Left {
        self.pending.clear();
        self.closing = None;
        let leave = Instant::now() + Duration::from_millis(random::in_range(0..if one_in(4) { 30_000 } else { 3_000 }));
        loop {
            if !self.world.quiet.get() && one_in(40) {
                pause(1..if one_in(4) { 15_000 } else { 300 }).await;
            }
            if self.world.quiet.get() || one_in(10) {
                self.widen();
            }
            if !self.world.quiet.get() && self.world.plan.has("revoke") && one_in(150) {
                self.revoke();
            }
            let next = match timeout_at(leave, socket.read()).await {
                Ok(next) => next,
                // In the end everybody stays.
                Err(_) if self.world.quiet.get() => socket.read().await,
                Err(_) => return Left::Told,
            };
            let Some((bytes, mark)) = next else {
                let told = self.closing.as_ref().is_some_and(|reason| reason != Closing::Draining.as_str());
                return if told { Left::Told } else { Left::Ended };
            };
            let taken = match &mut chunks {
                Some(chunks) => chunks.push((&bytes, mark), &mut self.pending),
                None => {
                    self.pending.push(&bytes, mark);
                    Ok(())
                }
            };
            if !self.world.judge(self.number, |_, _, _| taken) {
                return Left::Told;
            }
            let mut from = 0;
            while let Some(end) = memmem::find(&self.pending.bytes[from..], b"\n\n") {
                let block = from..from + end + 1;
                from = block.end + 1;
                self.block(block);
            }
            self.pending.drain(from);
        }
    }

    /// The client may see all of its patterns from now on.
    fn widen(&mut self) {
        let Some(epoch) = self.narrowed_at.take() else { return };
        // Of a bridge that was killed, nothing comes any more.
        let seq = self.world.bridge(epoch).map_or(u64::MAX, |bridge| bridge.widen(self.number, self.patterns));
        self.world.note(Some(self.number), || format!("is widened at {epoch}, behind {seq}"));
        self.world.judge(self.number, |judge, state, _| {
            judge.widen(state, seq);
            Ok(())
        });
    }

    fn revoke(&mut self) {
        let Some(bridge) = self.world.bridge(self.epoch) else { return };
        bridge.revoke(self.number);
        let state = self.world.broker.state.lock();
        self.revoked = Some(std::array::from_fn(|source| state.written[source].len()));
    }

    fn block(&mut self, range: std::ops::Range<usize>) {
        let mark = self.pending.mark(range.start);
        let bytes = &self.pending.bytes[range];
        self.world.trace(self.number, bytes);
        self.world.note(Some(self.number), || String::from_utf8_lossy(bytes).replace('\n', " | "));
        let (mut id, mut name, mut data) = (None, None, None);
        for line in bytes.split(|b| *b == b'\n') {
            if let Some(value) = line.strip_prefix(b"id: ") {
                id = std::str::from_utf8(value).ok();
            } else if let Some(value) = line.strip_prefix(b"event: ") {
                name = Some(value);
            } else if let Some(value) = line.strip_prefix(b"data: ") {
                data = Some(value);
            }
        }
        let cursor = id.map(Cursor::from_id).transpose();
        let short = id.is_none_or(|id| id.len() <= LONGEST_ID);
        self.world.judge(self.number, |_, _, _| if short { Ok(()) } else { Err("an id is too long".into()) });
        self.world.note(Some(self.number), || format!("    {cursor:?}"));
        let content = data.map_or(Ok(Content::Nothing), |data| content(name, data));
        if let Ok(Content::Closing(reason)) = &content {
            self.closing = Some(reason.clone());
        }
        let judged = match (cursor, content) {
            (Ok(id), Ok(content)) => {
                let (block, expires, revoked) = (Block { id, content }, self.expires, self.revoked);
                self.world.judge(self.number, |judge, state, floors| {
                    if let (Content::Event { source, index, .. }, Some(expires)) = (&block.content, expires)
                        && state.written[*source].get(*index).is_some_and(|written| written.time > expires.after(LATE))
                    {
                        return Err(format!("{} {index} was written after the token had expired", SOURCES[*source]));
                    }
                    if let (Content::Event { source, index, .. }, Some(written)) = (&block.content, revoked)
                        && *index >= written[*source]
                    {
                        return Err(format!("{} {index} was written after the stream was to end", SOURCES[*source]));
                    }
                    judge.block(state, floors, &block, mark)
                })
            }
            _ => self.world.judge(self.number, |_, _, _| Err("a block cannot be read".into())),
        };
        if !judged {
            let text = String::from_utf8_lossy(bytes).into_owned();
            self.world.broker.state.lock().alarms.push(format!("by this block, after {:?}: {text}", self.last_id));
        }
        if let Some(id) = id {
            self.last_id = Some(id.to_owned());
        }
    }
}

fn content(name: Option<&[u8]>, data: &[u8]) -> Result<Content, String> {
    let broken = || "data that nobody wrote".to_owned();
    if name == Some(frame::CLOSING.as_bytes()) || name == Some(frame::GAP.as_bytes()) {
        let value: serde_json::Value = serde_json::from_slice(data).map_err(|e| e.to_string())?;
        let reason = value["reason"].as_str().ok_or_else(broken)?.to_owned();
        if name == Some(frame::CLOSING.as_bytes()) {
            return Ok(Content::Closing(reason));
        }
        let number = |key: &str| value[key].as_str().and_then(|text| text.parse().ok());
        let source = match value["source"].as_str() {
            Some("*") => None,
            source => Some(source.and_then(named).ok_or("a gap of a source that never was")?),
        };
        return Ok(Content::Gap { source, reason, from: number("from"), to: number("to") });
    }
    let start = memmem::find(data, b"{\"n\":").ok_or_else(broken)?;
    let payload = &data[start..];
    let after = memmem::find(payload, b"\"s\":").ok_or_else(broken)?;
    let source = index(&payload[after..]);
    let field = |name: &str| {
        let at = memmem::find(&data[..start], name.as_bytes())? + name.len();
        let end = at + memchr::memchr(b'"', &data[at..])?;
        String::from_utf8(data[at..end].to_vec()).ok()
    };
    Ok(Content::Event { source, index: index(payload), subject: field("\"subject\":\"") })
}

//! The writer's loops of one bridge: the real turns and the real task that catches up, over sockets of the simulation.
//!
//! The executor decides when a loop runs, the seed which of its sockets are reported to it and in which order. The only file
//! that knows how production's driver treats a loop.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::choose;
use super::executor::{Executor, Group};
use super::pipe::ServerEnd;
use crate::event::Timestamp;
use crate::hub::Hub;
use crate::stream::Stream;
use crate::support::random;
use crate::transport::task;
use crate::transport::writer::handle::{Handle, New};
use crate::transport::writer::step::{Io, Next, Now, WriterLoop};
use crate::transport::writer::{Returned, Settings};

const LOOPS: usize = 2;
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// See the module.
pub(super) struct Writers {
    executor: Executor,
    group: Group,
    handles: Vec<Arc<Handle<ServerEnd>>>,
    next: Cell<usize>,
    stall: Duration,
}

impl Writers {
    pub(super) fn start(executor: &Executor, group: Group, hub: &Arc<Hub>) -> Rc<Self> {
        let stall = Duration::from_secs(choose(&[5, 60]));
        let settings = Settings { stall, budget: choose(&[1, 512]), copied: choose(&[0, 16 << 10]) };
        let (mut handles, mut readiness) = (Vec::new(), Vec::new());
        for _ in 0..LOOPS {
            let ready = Arc::<Readiness>::default();
            let waker = ready.clone();
            handles.push(Handle::new(hub.listen(move || waker.wake()).expect("few listeners")));
            readiness.push(ready);
        }
        let writers = Rc::new(Self { executor: executor.clone(), group, handles, next: Cell::new(0), stall });
        for (handle, readiness) in writers.handles.iter().zip(readiness) {
            let sockets = Sockets { readiness, writers: writers.clone() };
            executor.spawn(group, run(WriterLoop::new(hub.clone(), handle.clone(), settings, sockets)));
        }
        writers
    }

    /// Writes a stream to its socket: in a task while it catches up, then in a loop.
    pub(super) async fn write(self: Rc<Self>, socket: ServerEnd, stream: Stream) {
        let Some((socket, live, id)) = task::catch_up(socket, stream, self.stall).await else { return };
        let number = self.next.get();
        self.next.set(number + 1);
        self.handles[number % LOOPS].adopt(New { socket, live, id, read_ahead: 0 }).await;
    }
}

/// Lets a loop take its turns, as production's driver does.
async fn run(mut writer: WriterLoop<Sockets>) {
    let readiness = writer.io().readiness.clone();
    loop {
        let now = Now::read();
        for (key, event) in readiness.take() {
            writer.ready(key, event.readable, event.writable, now);
        }
        match writer.turn(now) {
            Next::Turn => let_others_run().await,
            Next::Sleep { until } => {
                let longest =
                    until.map_or(LONGEST_WAIT, |until| until.saturating_duration_since(Instant::now()).clamp(SHORTEST_WAIT, LONGEST_WAIT));
                // Either it is woken, or its time has come.
                timeout(longest, readiness.wait()).await.unwrap_or_default();
            }
            Next::Stop => return,
        }
    }
}

async fn let_others_run() {
    let mut yielded = false;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if std::mem::replace(&mut yielded, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// What happened on a socket.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Event {
    pub(super) readable: bool,
    pub(super) writable: bool,
}

/// What one loop has not been told of its sockets: the part of the system's poll.
#[derive(Default)]
struct Readiness {
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    events: Vec<(u32, Event)>,
    woken: bool,
}

impl Readiness {
    fn wake(&self) {
        self.state.lock().woken = true;
        self.waker.wake();
    }

    fn report(&self, key: u32, event: Event) {
        self.state.lock().events.push((key, event));
        self.waker.wake();
    }

    async fn wait(&self) {
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            let state = &mut *self.state.lock();
            if std::mem::take(&mut state.woken) || !state.events.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Some of what happened, in any order.
    fn take(&self) -> Vec<(u32, Event)> {
        let events = &mut self.state.lock().events;
        let count = random::in_range(0..=events.len());
        (0..count).map(|_| events.swap_remove(random::in_range(0..events.len()))).collect()
    }
}

/// What a loop has for its sockets.
struct Sockets {
    readiness: Arc<Readiness>,
    writers: Rc<Writers>,
}

impl Io for Sockets {
    type Socket = ServerEnd;

    fn watch(&mut self, socket: &mut ServerEnd, key: u32) -> io::Result<()> {
        let readiness = self.readiness.clone();
        socket.watch(move |event| readiness.report(key, event));
        Ok(())
    }

    fn give_back(&mut self, returned: Returned<ServerEnd>) {
        let Returned { socket, live, last_id } = returned;
        socket.unwatch();
        let stream = live.resume(&last_id, Timestamp::now());
        self.writers.executor.spawn(self.writers.group, self.writers.clone().write(socket, stream));
    }
}

/// The text of a stream that has not been looked at, with its marks.
#[derive(Default)]
pub(super) struct Text {
    pub(super) bytes: Vec<u8>,
    /// From where on which mark holds.
    marks: Vec<(usize, u64)>,
}

impl Text {
    pub(super) fn push(&mut self, bytes: &[u8], mark: u64) {
        self.marks.push((self.bytes.len(), mark));
        self.bytes.extend_from_slice(bytes);
    }

    /// The mark of the byte at a place.
    pub(super) fn mark(&self, at: usize) -> u64 {
        self.marks.iter().rev().find(|(from, _)| *from <= at).map_or(0, |(_, mark)| *mark)
    }

    /// Removes the first bytes.
    pub(super) fn drain(&mut self, count: usize) {
        let mark = self.mark(count);
        self.bytes.drain(..count);
        self.marks.retain(|(from, _)| *from > count);
        self.marks.iter_mut().for_each(|(from, _)| *from -= count);
        self.marks.insert(0, (0, mark));
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.marks.clear();
    }
}

/// Reads chunks of HTTP/1.1 as a client does.
#[derive(Default)]
pub(super) struct Chunks {
    pending: Vec<u8>,
    /// When what is pending began to come: see [`super::pipe::ClientEnd::read`].
    mark: u64,
    ended: bool,
}

impl Chunks {
    /// Takes what came, and appends the text of the chunks that are whole, with its mark.
    ///
    /// # Errors
    /// When it is not what a server may send.
    pub(super) fn push(&mut self, (bytes, mark): (&[u8], u64), text: &mut Text) -> Result<(), String> {
        if self.pending.is_empty() {
            self.mark = mark;
        }
        self.pending.extend_from_slice(bytes);
        let mut rest = &self.pending[..];
        while let Some(line) = memchr::memmem::find(rest, b"\r\n") {
            let size = std::str::from_utf8(&rest[..line]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            let size = size.filter(|_| !self.ended).ok_or("a broken chunk")?;
            let Some(chunk) = rest.get(line + 2..line + 2 + size + 2) else { break };
            let chunk = chunk.strip_suffix(b"\r\n").ok_or("a chunk without its end")?;
            text.push(chunk, std::mem::replace(&mut self.mark, mark));
            self.ended = size == 0;
            rest = &rest[line + 2 + size + 2..];
        }
        self.pending = rest.to_vec();
        Ok(())
    }
}

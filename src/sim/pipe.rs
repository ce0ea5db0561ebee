//! A socket between a bridge and a client: it takes only so many bytes, and either end may go at any time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::writer::Event;
use crate::support::random;
use crate::transport::writer::socket::Socket;

#[derive(Default)]
struct State {
    bytes: BytesMut,
    capacity: usize,
    server_gone: bool,
    client_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Reports to a loop that holds the server's end.
    report: Option<Box<dyn Fn(Event) + Send>>,
    /// A write found no room since a report said that there was some.
    full: bool,
    /// How often the sources of any bridge have changed.
    changes: Arc<AtomicU64>,
    /// Up to which of all bytes there had been so many changes when whoever writes took them in hand.
    marks: VecDeque<(u64, u64)>,
    written: u64,
    read: u64,
    /// What a writer who waits for room has in hand, since so many changes. A loop has what it began with, if the socket was full then.
    in_hand: (usize, u64),
    /// A loop's last write was taken in part: it stops, or goes on, in what the socket has begun to take.
    has_begun: bool,
}

impl State {
    fn wake(&mut self) {
        self.reader.take().into_iter().chain(self.writer.take()).for_each(Waker::wake);
    }

    /// Reports what is news, as an epoll set with edges does.
    fn report(&mut self) {
        let event = Event { readable: self.client_gone, writable: self.client_gone || std::mem::take(&mut self.full) };
        if let Some(report) = self.report.as_ref().filter(|_| event.writable) {
            report(event);
        }
    }
}

/// What the bridge holds.
pub(super) struct ServerEnd(Arc<Mutex<State>>);

/// What the client holds.
pub(super) struct ClientEnd(Arc<Mutex<State>>);

/// A connection whose buffers hold `capacity` bytes. What is read from it says how many `changes` there had been when it was made.
pub(super) fn pair(capacity: usize, changes: Arc<AtomicU64>) -> (ServerEnd, ClientEnd) {
    let state = Arc::new(Mutex::new(State { capacity, changes, ..State::default() }));
    (ServerEnd(state.clone()), ClientEnd(state))
}

impl ServerEnd {
    /// Writes a part, as the buffer allows: `Ok(0)` if it is full. `in_hand`: the writer keeps all of the rest in hand until it is
    /// written.
    ///
    /// # Errors
    /// When the client has gone.
    fn try_write(&self, bytes: &[u8], in_hand: bool) -> Result<usize, Gone> {
        let mut state = self.0.lock();
        if state.client_gone {
            return Err(Gone);
        }
        let count = bytes.len().min(state.capacity - state.bytes.len());
        state.full |= count < bytes.len();
        state.bytes.extend_from_slice(&bytes[..count]);
        let (left, since) = state.in_hand;
        let mark = if left > 0 { since } else { state.changes.load(Ordering::Relaxed) };
        let waits = in_hand || count == 0 && !state.has_begun;
        state.in_hand = (if waits { bytes.len() - count } else { 0 }, mark);
        state.has_begun = !in_hand && count > 0 && count < bytes.len();
        state.written += count as u64;
        let end = state.written;
        match state.marks.back_mut().filter(|(_, before)| *before == mark) {
            Some((before, _)) => *before = end,
            None => state.marks.push_back((end, mark)),
        }
        if count > 0
            && let Some(reader) = state.reader.take()
        {
            reader.wake();
        }
        Ok(count)
    }

    /// Writes all, waiting for room.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> Result<(), Gone> {
        poll_fn(|cx| {
            while !bytes.is_empty() {
                match self.try_write(bytes, true)? {
                    0 => {
                        self.0.lock().writer = Some(cx.waker().clone());
                        return Poll::Pending;
                    }
                    count => bytes = &bytes[count..],
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    /// Resolves when the client has gone.
    pub(super) async fn closed(&self) {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if state.client_gone {
                return Poll::Ready(());
            }
            state.writer = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Reports from now on what a loop has to know; first that it may write.
    pub(super) fn watch(&self, report: impl Fn(Event) + Send + 'static) {
        let mut state = self.0.lock();
        report(Event { readable: state.client_gone, writable: true });
        state.full = false;
        state.report = Some(Box::new(report));
    }

    pub(super) fn unwatch(&self) {
        self.0.lock().report = None;
    }
}

/// For a loop.
impl Socket for ServerEnd {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.try_write(bytes, false) {
            Ok(0) => Err(io::ErrorKind::WouldBlock.into()),
            Ok(count) => Ok(count),
            Err(Gone) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        if self.0.lock().client_gone { Ok(0) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn shutdown(&mut self) {
        let mut state = self.0.lock();
        state.server_gone = true;
        state.wake();
    }
}

/// For a task, which reads only to find out that the client has gone.
impl AsyncRead for ServerEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        if state.client_gone {
            return Poll::Ready(Ok(()));
        }
        state.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for ServerEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.try_write(bytes, true) {
            Ok(0) => {
                self.0.lock().writer = Some(cx.waker().clone());
                Poll::Pending
            }
            Ok(count) => Poll::Ready(Ok(count)),
            Err(Gone) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Socket::shutdown(&mut *self);
        Poll::Ready(Ok(()))
    }
}

/// The other end is no longer there.
#[derive(Debug)]
pub(super) struct Gone;

impl ClientEnd {
    /// Reads some of what is there, and how many changes there had been when it was made; `None` at the end.
    pub(super) async fn read(&self) -> Option<(Bytes, u64)> {
        poll_fn(|cx| {
            let mut state = self.0.lock();
            if !state.bytes.is_empty() {
                let read = state.read;
                while state.marks.pop_front_if(|(end, _)| *end <= read).is_some() {}
                let (end, mark) = state.marks.front().copied().unwrap_or_default();
                let most = state.bytes.len().min((end - read) as usize);
                let count = if random::in_range(0..4) == 0 { random::in_range(1..=most) } else { most };
                let bytes = state.bytes.split_to(count).freeze();
                state.read += count as u64;
                state.report();
                if let Some(writer) = state.writer.take() {
                    writer.wake();
                }
                return Poll::Ready(Some((bytes, mark)));
            }
            if state.server_gone {
                return Poll::Ready(None);
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

impl Drop for ServerEnd {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.server_gone = true;
        state.wake();
    }
}

impl Drop for ClientEnd {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.client_gone = true;
        state.report();
        state.wake();
    }
}
